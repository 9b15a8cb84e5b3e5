import type { ClientResponse, Exchange, UpstreamRequest } from '../plugins/plugin.ts'
import type { Peer } from './upstream.ts'

/** One attempt to reach an upstream, as the log record shows it. Times in milliseconds. */
export interface Try {
  readonly startedAt: number
  /** Milliseconds choosing the peer took. */
  readonly latency: number
  readonly peer: Peer
  state?: 'failed' | 'next'
  code?: number
}

/** An exchange as its record sees it. Marks are of `performance.now()`, 0 when never reached. */
export interface Finished extends Exchange {
  readonly startedMark: number
  /** When the last try began. */
  readonly sentMark: number
  readonly firstByteMark: number
  readonly lastByteMark: number
  readonly bytesReceived: number
  readonly bytesSent: number
  readonly tries: readonly Try[]
  readonly upstreamStatuses: readonly number[]
  /** Undefined when the upstream answered. */
  readonly answer: object | undefined
  readonly upstream: UpstreamRequest & {
    readonly edits: ReadonlyMap<string, { readonly value: string | undefined }> | undefined
  }
  readonly response: ClientResponse & {
    /** What went to the client, flat; undefined while nothing has. */
    readonly sent: readonly string[] | undefined
  }
}

/** Kong's fixed id of the one workspace a file describes. */
const WORKSPACE = '0dc6f45b-8f8d-40d2-a504-473544ee190b'
const REDACTED = new Set(['authorization', 'proxy-authorization'])

/** What JSON writes with an escape, and what is not ASCII. */
const UNUSUAL = /[^ !#-[\]-~]/

/** A JSON string. Nearly all text needs no escapes, and testing for that is faster than escaping. */
function quoted(text: string): string {
  return UNUSUAL.test(text) ? JSON.stringify(text) : `"${text}"`
}

/** Whether two field names are the same; mostly their length or first letter tells that they are not. */
function isSame(a: string, b: string): boolean {
  return (
    a.length === b.length &&
    (a.charCodeAt(0) | 32) === (b.charCodeAt(0) | 32) &&
    a.toLowerCase() === b.toLowerCase()
  )
}

/** The values of a name that stands at `at` and again further on, as an array. */
function repeated(flat: readonly string[], at: number): string | undefined {
  let values: string | undefined
  for (let i = at + 2; i < flat.length; i += 2) {
    if (!isSame(flat[i]!, flat[at]!)) continue
    values ??= `[${quoted(flat[at + 1]!)}`
    values += `,${quoted(flat[i + 1]!)}`
  }
  return values === undefined ? undefined : `${values}]`
}

function stoodBefore(flat: readonly string[], at: number): boolean {
  for (let i = 0; i < at; i += 2) if (isSame(flat[i]!, flat[at]!)) return true
  return false
}

/** The members so far and one more, whose value is JSON. */
function withJson(text: string, name: string, value: string): string {
  return text === '' ? `"${name}":${value}` : `${text},"${name}":${value}`
}

/** The members so far and one more, whose value is text. Each piece that is joined makes a string. */
function withText(text: string, name: string, value: string): string {
  if (UNUSUAL.test(value)) return withJson(text, name, JSON.stringify(value))
  return text === '' ? `"${name}":"${value}"` : `${text},"${name}":"${value}"`
}

/** One of 32 bits for a name; names that are the same have the same. */
function bitOf(name: string): number {
  return 1 << (name.length * 7 + (name.charCodeAt(0) | 32))
}

/** Bits of all names that may stand repeatedly: the others need no search. */
function repeatedBits(flat: readonly string[]): number {
  let once = 0
  let twice = 0
  for (let i = 0; i < flat.length; i += 2) {
    const bit = bitOf(flat[i]!)
    twice |= once & bit
    once |= bit
  }
  return twice
}

/**
 * Members of an object of lower-case names; repeated fields become arrays. A field's name is a token
 * (RFC 9110 §5.1), of which JSON escapes nothing.
 */
function members(
  flat: readonly string[],
  redact: boolean,
  edits: Finished['upstream']['edits']
): string {
  const twice = repeatedBits(flat)
  let text = ''
  for (let i = 0; i < flat.length; i += 2) {
    const original = flat[i]!
    const name = original.toLowerCase()
    if (name.charCodeAt(0) === 58 || edits?.has(name) === true) continue
    const mayRepeat = (bitOf(original) & twice) !== 0
    if (mayRepeat && stoodBefore(flat, i)) continue
    if (redact && REDACTED.has(name)) text = withText(text, name, 'REDACTED')
    else {
      const values = mayRepeat ? repeated(flat, i) : undefined
      text =
        values === undefined ? withText(text, name, flat[i + 1]!) : withJson(text, name, values)
    }
  }
  return text
}

/** The client's fields as plugins edited them. */
function requestHeaders({ request, upstream }: Finished): string {
  const { edits } = upstream
  let text = members(request.rawHeaders, true, edits)
  if (edits === undefined) return text
  for (const [name, { value }] of edits) {
    if (value !== undefined) text = withText(text, name, REDACTED.has(name) ? 'REDACTED' : value)
  }
  return text
}

function queryOf(query: string | undefined): string {
  if (query === undefined || query === '') return '{}'
  /** Values as JSON, those of a repeated name with commas between. */
  const args = new Map<string, string>()
  let repeated: Set<string> | undefined
  for (const part of query.split('&')) {
    if (part === '') continue
    const equals = part.indexOf('=')
    const name = decode(equals === -1 ? part : part.slice(0, equals))
    const value = equals === -1 ? 'true' : quoted(decode(part.slice(equals + 1)))
    const before = args.get(name)
    if (before === undefined) args.set(name, value)
    else {
      args.set(name, `${before},${value}`)
      repeated ??= new Set()
      repeated.add(name)
    }
  }
  let text = ''
  for (const [name, values] of args) {
    const shown = repeated?.has(name) === true ? `[${values}]` : values
    text += `${text === '' ? '' : ','}${quoted(name)}:${shown}`
  }
  return `{${text}}`
}

function decode(text: string): string {
  if (!text.includes('%') && !text.includes('+')) return text
  try {
    return decodeURIComponent(text.replaceAll('+', ' '))
  } catch {
    return text
  }
}

function size(flat: readonly string[]): number {
  let bytes = 2
  // Each field line is `name: value` and CRLF (RFC 9112 §5).
  for (let i = 0; i < flat.length; i += 2) bytes += flat[i]!.length + flat[i + 1]!.length + 4
  return bytes
}

function requestOf(exchange: Finished): string {
  const { request } = exchange
  const { target, method, tls } = request
  const bytes =
    method.length +
    target.length +
    request.httpVersion.length +
    9 +
    size(request.rawHeaders) +
    exchange.bytesReceived
  // Without a Host that tells one there is no port on a Unix socket.
  const port = request.port === 0 ? '' : `:${request.port}`
  const url = quoted(`${request.scheme}://${request.host}${port}${target}`)
  return (
    `{"id":"${exchange.id}","uri":${quoted(target)},"url":${url}` +
    `,"querystring":${queryOf(request.query)},"method":${quoted(method)}` +
    `,"headers":{${requestHeaders(exchange)}},"size":${bytes}` +
    (tls === undefined
      ? '}'
      : `,"tls":{"version":${quoted(tls.version)},"cipher":${quoted(tls.cipher)},"client_verify":${quoted(tls.clientVerify)}}}`)
  )
}

function latenciesOf(exchange: Finished, proxied: boolean): string {
  const { startedMark, sentMark, firstByteMark, lastByteMark } = exchange
  const total = Math.round(performance.now() - startedMark)
  const own = proxied || sentMark > 0 ? Math.round(sentMark - startedMark) : total
  const upstream = firstByteMark > 0 ? Math.round(firstByteMark - sentMark) : -1
  const receive =
    lastByteMark > 0 && firstByteMark > 0 ? Math.round(lastByteMark - firstByteMark) : 0
  return `{"kong":${own},"proxy":${upstream},"request":${total},"receive":${receive}}`
}

function tryOf({ startedAt, latency, peer, state, code }: Try): string {
  return (
    `{"balancer_start":${Math.floor(startedAt)},"balancer_start_ns":${Math.round(startedAt * 1e6)}` +
    `,"balancer_latency":${Math.round(latency)},"balancer_latency_ns":${Math.round(latency * 1e6)}` +
    `,"ip":${quoted(peer.ip)},"port":${peer.port}` +
    (state === undefined
      ? '}'
      : `,"state":"${state}"${code === undefined ? '' : `,"code":${code}`}}`)
  )
}

/** Entities as JSON: they are frozen, and the same in record after record. */
const texts = new WeakMap<object, string>()

function textOf(entity: object): string {
  let text = texts.get(entity)
  if (text === undefined) {
    text = JSON.stringify(entity)
    texts.set(entity, text)
  }
  return text
}

/**
 * The record every log plugin emits for one finished exchange, as JSON; absent facts are absent keys.
 * Written as text and not as an object first, which took three times as long (18 µs a record).
 */
export function writeRecord(exchange: Finished): string {
  const { response, route, service, consumer, credential, upstream, logFields } = exchange
  const proxied = exchange.firstByteMark > 0 && exchange.answer === undefined
  const fields = response.sent ?? []
  const { path, query } = upstream
  const uri = exchange.tries.length === 0 ? '' : query === undefined ? path : `${path}?${query}`
  let text =
    `{"request":${requestOf(exchange)},"upstream_uri":${quoted(uri)}` +
    `,"upstream_status":"${exchange.upstreamStatuses.join(', ')}"` +
    `,"response":{"status":${response.status},"headers":{${members(fields, false, undefined)}}` +
    `,"size":${17 + size(fields) + exchange.bytesSent}}` +
    `,"latencies":${latenciesOf(exchange, proxied)},"client_ip":${quoted(exchange.request.clientIp)}` +
    `,"started_at":${exchange.startedAt},"source":"${proxied ? 'upstream' : 'kong'}"` +
    `,"workspace":"${WORKSPACE}","workspace_name":"default"`
  if (route !== undefined) {
    text += `,"route":${textOf(route)},"tries":[${exchange.tries.map(tryOf).join(',')}]`
  }
  if (service !== undefined) text += `,"service":${textOf(service)}`
  if (consumer !== undefined) text += `,"consumer":${textOf(consumer)}`
  if (credential !== undefined) {
    text += `,"authenticated_entity":{"id":${quoted(credential.id)},"consumer_id":${quoted(credential.consumer.id)}}`
  }
  for (const name in logFields) {
    const value = JSON.stringify(logFields[name])
    if (value !== undefined) text += `,${quoted(name)}:${value}`
  }
  return `${text}}`
}
