import type { OutgoingHttpHeaders } from 'node:http2'
import { isAll, VALUE } from './bytes.ts'

/** What the header fields towards an upstream are made of. */
export interface UpstreamHeadersInput {
  /** The client's fields, flat, as received. */
  readonly rawHeaders: readonly string[]
  /** Plugins' edits by lower-case name; an undefined value removes the client's field. */
  readonly edits:
    | ReadonlyMap<string, { readonly name: string; readonly value: string | undefined }>
    | undefined
  readonly host: string
  readonly clientIp: string
  readonly remoteAddress: string
  readonly scheme: string
  /** Host the client addressed, without port. */
  readonly forwardedHost: string
  /** The listener's port; 0 on a Unix socket, which has none. */
  readonly port: number
  readonly rawPath: string
  /** The prefix taken off the path; undefined when none was. */
  readonly prefix: string | undefined
  /** Whether forwarding fields of the direct peer are believed. */
  readonly trusted: boolean
  readonly httpVersion: string
  /** Undefined sends none. */
  readonly requestId: string | undefined
  readonly requestIdHeader: string
  /** Our name in `Via`. */
  readonly via: string
  readonly upgrade: boolean
  /** Length of a body that is sent whole; undefined keeps the client's framing. */
  readonly bodyLength: number | undefined
}

/** Fields that end at this hop (RFC 9110 §7.6.1, RFC 9113 §8.2.2) or that are made anew here. */
const NOT_FORWARDED = new Set([
  'connection',
  'keep-alive',
  'proxy',
  'proxy-connection',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade',
  'http2-settings',
  'expect',
  'host',
  'via',
  'x-real-ip',
  'x-forwarded-for',
  'x-forwarded-proto',
  'x-forwarded-host',
  'x-forwarded-port',
  'x-forwarded-path',
  'x-forwarded-prefix'
])

/** Fields that frame the message or make the connection: a plugin's edit of them has no effect. */
const NOT_EDITABLE = new Set([
  'connection',
  'content-length',
  'keep-alive',
  'proxy-connection',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade'
])

/** Connection options that name no field. */
const PLAIN_OPTIONS = new Set(['keep-alive', 'close', 'upgrade', 'te'])

/** The fields a `Connection` value names, lower case; undefined for the usual values. */
function namedFields(value: string): readonly string[] | undefined {
  if (value === 'keep-alive' || value === 'close' || value === 'Upgrade') return undefined
  const names = value
    .toLowerCase()
    .split(',')
    .map(name => name.trim())
    .filter(name => name !== '' && !PLAIN_OPTIONS.has(name))
  return names.length === 0 ? undefined : names
}

function collectNamed(flat: readonly (string | Buffer)[]): ReadonlySet<string> | undefined {
  let named: Set<string> | undefined
  for (let i = 0; i < flat.length; i += 2) {
    const name = flat[i]!
    if (name.length !== 10 || name.toString().toLowerCase() !== 'connection') continue
    for (const field of namedFields(flat[i + 1]!.toString()) ?? []) {
      named ??= new Set()
      named.add(field)
    }
  }
  return named
}

/**
 * Whether a name with underscores would pass for one the gateway answers for: CGI, WSGI and their
 * kind turn `-` and `_` into the same variable, so `X_Real_IP` would speak for `X-Real-IP`.
 */
function impersonates(lower: string, edits: UpstreamHeadersInput['edits'], own: string): boolean {
  const name = lower.replaceAll('_', '-')
  return (
    NOT_FORWARDED.has(name) || NOT_EDITABLE.has(name) || name === own || edits?.has(name) === true
  )
}

/**
 * The fields to send upstream, flat. Fields a client's `Connection` names are dropped before
 * plugins' edits and our own fields are added, so no client can strip those.
 */
export function buildUpstreamHeaders(input: UpstreamHeadersInput): string[] {
  const { rawHeaders, edits, trusted } = input
  const named = collectNamed(rawHeaders)
  const ownRequestId = input.requestId === undefined ? '' : input.requestIdHeader.toLowerCase()
  const fields: string[] = ['Host', input.host]
  let forwardedFor = ''
  let via = ''
  let cookie = -1
  let takesTrailers = false
  let proto: string | undefined
  let host: string | undefined
  let port: string | undefined
  let path: string | undefined
  let prefix: string | undefined
  for (let i = 0; i < rawHeaders.length; i += 2) {
    const name = rawHeaders[i]!
    const value = rawHeaders[i + 1]!
    if (name.charCodeAt(0) === 58) continue
    const lower = name.toLowerCase()
    if (NOT_FORWARDED.has(lower)) {
      switch (lower) {
        case 'x-forwarded-for':
          forwardedFor = forwardedFor === '' ? value : `${forwardedFor}, ${value}`
          break
        case 'via':
          via = via === '' ? value : `${via}, ${value}`
          break
        case 'te':
          takesTrailers ||= listsTrailers(value)
          break
        case 'x-forwarded-proto':
          proto = value
          break
        case 'x-forwarded-host':
          host = value
          break
        case 'x-forwarded-port':
          port = value
          break
        case 'x-forwarded-path':
          path = value
          break
        case 'x-forwarded-prefix':
          prefix = value
          break
      }
      continue
    }
    if (named?.has(lower) || edits?.has(lower) || lower === ownRequestId) continue
    if (lower === 'content-length' && input.bodyLength !== undefined) continue
    if (lower.includes('_') && impersonates(lower, edits, ownRequestId)) continue
    if (lower === 'cookie') {
      // RFC 9113 §8.2.3: crumbs of an HTTP/2 request become one field towards HTTP/1.1.
      if (cookie !== -1) {
        fields[cookie] = `${fields[cookie]}; ${value}`
        continue
      }
      cookie = fields.length + 1
    }
    fields.push(name, value)
  }
  if (input.bodyLength !== undefined) fields.push('Content-Length', `${input.bodyLength}`)
  if (takesTrailers) fields.push('TE', 'trailers')
  fields.push(
    'X-Real-IP',
    input.clientIp,
    'X-Forwarded-For',
    forwardedFor === '' ? input.clientIp : `${forwardedFor}, ${input.remoteAddress}`,
    'X-Forwarded-Proto',
    (trusted ? proto : undefined) ?? input.scheme,
    'X-Forwarded-Host',
    (trusted ? host : undefined) ?? input.forwardedHost,
    'X-Forwarded-Path',
    (trusted ? path : undefined) ?? input.rawPath
  )
  const portValue = (trusted ? port : undefined) ?? (input.port === 0 ? undefined : `${input.port}`)
  if (portValue !== undefined) fields.push('X-Forwarded-Port', portValue)
  const prefixValue = (trusted ? prefix : undefined) ?? input.prefix
  if (prefixValue !== undefined) fields.push('X-Forwarded-Prefix', prefixValue)
  const token = `${input.httpVersion === '2.0' ? '2' : input.httpVersion} ${input.via}`
  fields.push('Via', via === '' ? token : `${via}, ${token}`)
  if (input.requestId !== undefined) fields.push(input.requestIdHeader, input.requestId)
  if (edits !== undefined) applyEdits(fields, edits)
  if (input.upgrade) fields.push('Connection', 'keep-alive, Upgrade', 'Upgrade', 'websocket')
  return fields
}

/** Adds plugins' fields; the client's of the same names are left out already. */
function applyEdits(fields: string[], edits: NonNullable<UpstreamHeadersInput['edits']>): void {
  for (const [lower, { name, value }] of edits) {
    if (NOT_EDITABLE.has(lower)) continue
    const at = NOT_FORWARDED.has(lower)
      ? fields.findIndex((field, i) => i % 2 === 0 && field.toLowerCase() === lower)
      : -1
    if (at === -1) {
      if (value !== undefined) fields.push(name, value)
    } else if (value !== undefined) {
      fields[at + 1] = value
    } else if (lower !== 'host') {
      fields.splice(at, 2)
    }
  }
}

/** RFC 9110 §10.1.4: whether a `TE` value says that trailers are taken. */
export function listsTrailers(te: string): boolean {
  return /(?:^|,)[ \t]*trailers[ \t]*(?:,|$)/i.test(te)
}

const RESPONSE_HOP_BY_HOP = new Set([
  'connection',
  'keep-alive',
  'proxy-connection',
  'transfer-encoding',
  'upgrade',
  'te'
])

/** Lengths of those names, and of `trailer`: what has another is none of them, and needs no look-up. */
const HOP_BY_HOP_LENGTHS = lengthsOf([...RESPONSE_HOP_BY_HOP, 'trailer'])

/** One bit for each length of a name. */
function lengthsOf(names: Iterable<string>): number {
  let bits = 0
  for (const { length } of names) bits |= 1 << length
  return bits
}

/** Whether a field value may be sent on: no control characters but tab (RFC 9110 §5.5). */
export function isFieldValue(value: string): boolean {
  return isAll(value, VALUE)
}

const text = (value: Buffer | string): string =>
  typeof value === 'string' ? value : value.toString('latin1')

/** Where trailers may come to the client: nowhere, after a body in chunks, or after any body. */
export type TrailersAfter = 'nothing' | 'chunks' | 'any'

/** An upstream's fields as they may go to the client, flat; a field no client could read is left out. */
export function filterResponseHeaders(
  raw: readonly (Buffer | string)[],
  status: number,
  trailersAfter: TrailersAfter
): string[] {
  const named = collectNamed(raw)
  const fields: string[] = []
  let announced = false
  for (let i = 0; i < raw.length; i += 2) {
    const name = text(raw[i]!)
    if (named !== undefined || (name.length < 32 && (HOP_BY_HOP_LENGTHS >>> name.length) & 1)) {
      const lower = name.toLowerCase()
      if (RESPONSE_HOP_BY_HOP.has(lower) || named?.has(lower)) continue
      if (lower === 'trailer') {
        if (trailersAfter === 'nothing') continue
        announced = true
      }
    }
    const value = text(raw[i + 1]!)
    if (isFieldValue(value)) fields.push(name, value)
  }
  // RFC 9110 §8.6: none with 204. Over HTTP/2 clients take such an answer for a broken one.
  if (status === 204) return without(fields, 'content-length')
  // RFC 9112 §7.1.2: trailers stand after chunks alone, and Node refuses to announce them elsewhere.
  return announced && trailersAfter === 'chunks' && has(fields, 'content-length')
    ? without(fields, 'trailer')
    : fields
}

const has = (fields: readonly string[], lower: string): boolean =>
  fields.some((field, i) => i % 2 === 0 && field.toLowerCase() === lower)

const without = (fields: readonly string[], lower: string): string[] =>
  fields.filter((_, i) => fields[i - (i % 2)]!.toLowerCase() !== lower)

/** Fields that must not come as trailers: they frame, route or authenticate (RFC 9110 §6.5.1). */
const NEVER_TRAILERS = new Set([
  'transfer-encoding',
  'content-length',
  'host',
  'connection',
  'trailer',
  'te',
  'content-encoding',
  'content-type',
  'content-range',
  'authorization',
  'set-cookie',
  'cache-control'
])

/** Whether a field may come as a trailer. */
export function mayTrail(name: string): boolean {
  const lower = name.toLowerCase()
  return !NEVER_TRAILERS.has(lower) && !NOT_FORWARDED.has(lower)
}

/** Trailers as they may go on, flat; in either direction. */
export function filterTrailers(raw: readonly (Buffer | string)[]): string[] {
  const fields: string[] = []
  for (let i = 0; i < raw.length; i += 2) {
    const name = text(raw[i]!)
    const value = text(raw[i + 1]!)
    if (mayTrail(name) && isFieldValue(value)) fields.push(name, value)
  }
  return fields
}

/** HTTP/2 has no connection-specific fields (RFC 9113 §8.2.2) and takes repeats as arrays. */
export function groupFields(fields: readonly string[]): OutgoingHttpHeaders {
  const headers: Record<string, string | string[]> = Object.create(null)
  for (let i = 0; i < fields.length; i += 2) {
    const name = fields[i]!.toLowerCase()
    if (name === 'connection' || name === 'upgrade' || name === 'keep-alive') continue
    const before = headers[name]
    if (before === undefined) headers[name] = fields[i + 1]!
    else if (Array.isArray(before)) before.push(fields[i + 1]!)
    else headers[name] = [before, fields[i + 1]!]
  }
  return headers
}
