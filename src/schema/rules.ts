import { isIP } from 'node:net'
import type { Problem } from '../errors.ts'
import { looksLikeReference } from '../vault/reference.ts'
import { checkKeyPair } from './certificates.ts'
import type { Segments } from './document.ts'
import { normalisePath } from './formats.ts'
import { patternProblem } from './patterns.ts'
import type { Row } from './row.ts'
import { isRecord } from './walk.ts'

/** A broken rule between fields of one entity. */
export interface RuleFinding {
  readonly code: string
  readonly segments: Segments
  readonly message: string
  readonly fix: string
}

type Fields = Readonly<Record<string, unknown>>
type Report = (segments: Segments, message: string, fix: string, code?: string) => void

const INVALID = 'POSTERN_CONFIG_INVALID_VALUE'
const REQUIRED = 'POSTERN_CONFIG_REQUIRED'

/** Protocols below HTTP, which this release does not listen for. */
export const streamProtocols: ReadonlySet<string> = new Set([
  'tcp',
  'tls',
  'udp',
  'tls_passthrough'
])

/** What an entity breaks of the rules between its fields; `authored` is the entity without defaults. */
export function checkEntity(
  kind: string,
  entity: Fields,
  authored: Fields
): readonly RuleFinding[] {
  const findings: RuleFinding[] = []
  const report: Report = (segments, message, fix, code = INVALID) => {
    findings.push({ code, segments, message, fix })
  }
  checks[kind]?.(entity, report, authored)
  return findings
}

const checks: Readonly<Record<string, (entity: Fields, report: Report, authored: Fields) => void>> =
  {
    services: checkService,
    routes: checkRoute,
    upstreams: checkUpstream,
    consumers: checkConsumer,
    certificates: checkCertificate
  }

/** Fields of a wrong type are the schema's to tell; rules take them as empty. */
function text(value: unknown): string {
  return typeof value === 'string' ? value : ''
}

function isSet(value: unknown): boolean {
  if (value === undefined || value === null) return false
  return typeof value !== 'object' || Object.keys(value).length > 0
}

function checkService(service: Fields, report: Report): void {
  const protocol = text(service.protocol)
  if (['tcp', 'tls', 'udp', 'grpc', 'grpcs'].includes(protocol) && isSet(service.path)) {
    report(['path'], 'value must be null', `Remove path: ${protocol} services have none`)
  }
  if (['https', 'tls'].includes(protocol)) return
  for (const field of ['tls_verify', 'tls_verify_depth', 'ca_certificates', 'client_certificate']) {
    if (!isSet(service[field])) continue
    report([field], 'value must be null', `Remove ${field}, or set protocol to https`)
  }
}

const groups = [
  ['http', 'https'],
  ['tcp', 'tls', 'udp'],
  ['tls_passthrough'],
  ['grpc', 'grpcs'],
  ['ws', 'wss']
]

/** The fields of which a route needs one, by protocol. */
const matchers: ReadonlyMap<string, readonly string[]> = new Map([
  ['http', ['methods', 'hosts', 'headers', 'paths']],
  ['https', ['methods', 'hosts', 'headers', 'paths', 'snis']],
  ['ws', ['hosts', 'headers', 'paths']],
  ['wss', ['hosts', 'headers', 'paths', 'snis']],
  ['grpc', ['hosts', 'headers', 'paths']],
  ['grpcs', ['hosts', 'headers', 'paths', 'snis']],
  ['tcp', ['sources', 'destinations', 'snis']],
  ['tls', ['sources', 'destinations', 'snis']],
  ['udp', ['sources', 'destinations', 'snis']],
  ['tls_passthrough', ['snis']]
])

function checkRoute(route: Fields, report: Report): void {
  const protocols = Array.isArray(route.protocols) ? route.protocols.map(text) : []
  const used = groups.filter(group => group.some(protocol => protocols.includes(protocol)))
  if (used.length > 1) {
    const lists = groups.map(group => `('${group.join("', '")}')`).join(', ')
    report(
      ['protocols'],
      `these sets are mutually exclusive: ${lists}`,
      'Write one route for each set'
    )
    return
  }
  for (const protocol of protocols) {
    const wanted = matchers.get(protocol)
    if (wanted === undefined || wanted.some(field => isSet(route[field]))) continue
    const list = wanted.map(field => `'${field}'`).join(', ')
    const message = `must set one of ${list} when 'protocols' is '${protocol}'`
    report(
      [],
      message,
      `Add ${wanted.includes('paths') ? 'paths: [/]' : wanted[0]} to match every request`,
      REQUIRED
    )
    break
  }
  if (used[0]?.includes('grpc')) checkGrpcRoute(route, report)
  if (
    isSet(route.snis) &&
    !protocols.some(protocol =>
      ['https', 'grpcs', 'tls', 'tls_passthrough', 'wss'].includes(protocol)
    )
  ) {
    report(
      ['snis'],
      "can only set snis with protocols 'https', 'grpcs', 'tls' or 'tls_passthrough'",
      'Add https to protocols'
    )
  }
  if (!used[0]?.includes('tcp') && !used[0]?.includes('tls_passthrough')) {
    for (const field of ['sources', 'destinations']) {
      if (isSet(route[field])) {
        report([field], "cannot set it when 'protocols' is 'http' or 'https'", `Remove ${field}`)
      }
    }
  }
  if (isRecord(route.headers)) checkRouteHeaders(route.headers, report)
}

function checkRouteHeaders(headers: Fields, report: Report): void {
  for (const [name, values] of Object.entries(headers)) {
    if (name.toLowerCase() === 'host') {
      report(['headers', name], "cannot contain 'host' header", "Use the field 'hosts'")
    }
    for (const [index, value] of (Array.isArray(values) ? values : []).map(text).entries()) {
      // Compared in lower case, pattern included.
      const reason = value.startsWith('~*')
        ? patternProblem(value.slice(2).toLowerCase())
        : undefined
      if (reason === undefined) continue
      report(
        ['headers', name, index],
        `invalid regex: ${reason}`,
        'Correct the regular expression; it is read in lower case'
      )
    }
  }
}

function checkGrpcRoute(route: Fields, report: Report): void {
  if (isSet(route.methods)) {
    report(
      ['methods'],
      "cannot set 'methods' when 'protocols' is 'grpc' or 'grpcs'",
      'Remove methods'
    )
  }
  if (route.strip_path === true) {
    const message = "cannot set 'strip_path' when 'protocols' is 'grpc' or 'grpcs'"
    report(['strip_path'], message, 'Remove strip_path')
  }
}

/** The field that a hash input needs, for the primary hash and for the fallback. */
const hashFields: ReadonlyMap<string, readonly [string, string]> = new Map([
  ['header', ['hash_on_header', 'hash_fallback_header']],
  ['cookie', ['hash_on_cookie', 'hash_on_cookie']],
  ['query_arg', ['hash_on_query_arg', 'hash_fallback_query_arg']],
  ['uri_capture', ['hash_on_uri_capture', 'hash_fallback_uri_capture']]
])

function checkUpstream(upstream: Fields, report: Report): void {
  const on = text(upstream.hash_on)
  const fallback = text(upstream.hash_fallback)
  for (const [input, at] of [
    [on, 0],
    [fallback, 1]
  ] as const) {
    const field = hashFields.get(input)?.[at]
    if (field === undefined || isSet(upstream[field])) continue
    report([field], 'required field missing', `Add ${field}: what to hash on`, REQUIRED)
  }
  if ((on === 'none' || on === 'cookie') && fallback !== 'none') {
    report(['hash_fallback'], 'expected one of: none', `Remove hash_fallback: hash_on is ${on}`)
  } else if (on === fallback && ['consumer', 'ip', 'path'].includes(on)) {
    report(
      ['hash_fallback'],
      `expected another value than hash_on: ${on}`,
      'Fall back to another input'
    )
  } else if (on === fallback && hashFields.has(on)) {
    const [first, second] = hashFields.get(on)!
    const same =
      isSet(upstream[first]) &&
      text(upstream[first]).toLowerCase() === text(upstream[second]).toLowerCase()
    if (same)
      report([second], `values of ${first} and ${second} must be different`, 'Change one of them')
  }
  if (upstream.algorithm === 'sticky-sessions' && !isSet(upstream.sticky_sessions_cookie)) {
    const fix = 'Add sticky_sessions_cookie: the name of the cookie'
    report(['sticky_sessions_cookie'], 'required field missing', fix, REQUIRED)
  }
}

function checkConsumer(consumer: Fields, report: Report): void {
  if (isSet(consumer.username) || isSet(consumer.custom_id)) return
  const message = "at least one of these fields must be non-empty: 'custom_id', 'username'"
  report([], message, 'Add username', REQUIRED)
}

function checkCertificate(certificate: Fields, report: Report): void {
  for (const { path, message, fix } of checkKeyPair(certificate)) {
    if (path !== '/cert') report([path.slice(1)], message, fix)
  }
  if (isSet(certificate.cert_alt) === isSet(certificate.key_alt)) return
  const message = "all or none of these fields must be set: 'cert_alt', 'key_alt'"
  report([], message, 'Add the missing one of the two', REQUIRED)
}

/** A row's fields with its shorthands written out: `service.url`, old route paths, hashing. */
export function expandShorthands(row: Row, version: unknown, problems: Problem[]): Fields {
  switch (row.kind.name) {
    case 'services':
      return Object.hasOwn(row.fields, 'url') ? expandUrl(row, problems) : row.fields
    case 'routes':
      return modernRoute(row.fields, version)
    case 'upstreams':
      return legacyHashing(row.fields)
    case 'plugins':
    case 'vaults':
      return row.fields.config === null ? { ...row.fields, config: {} } : row.fields
    case 'targets':
      return withPort(row.fields)
    default:
      return row.fields
  }
}

function expandUrl(row: Row, problems: Problem[]): Fields {
  const { url, ...rest } = row.fields
  if (url === null) return rest
  const found = typeof url === 'string' ? /^([a-z_]+):\/\/([^/?#]+)([^?#]*)/i.exec(url) : null
  const authority = found?.[2]?.replace(/^.*@/, '') ?? ''
  const split = /^(\[[^\]]*\]|[^:]*)(?::(\d+))?$/.exec(authority)
  if (found === null || split === null || split[1] === '') {
    const message =
      typeof url !== 'string'
        ? 'expected a string'
        : /^[a-z_]+:/i.test(url)
          ? 'missing host in url'
          : 'missing scheme in url'
    const fix = 'Write url: http://host:port/path'
    problems.push({ code: INVALID, message, fix, place: row.place(['url']) })
    return { host: 'invalid', ...rest }
  }
  const protocol = found[1]!.toLowerCase()
  const port = split[2] === undefined ? (protocol === 'https' ? 443 : 80) : Number(split[2])
  const path = found[3] === '' ? {} : { path: found[3] }
  const { path: _, ...others } = rest
  return { ...others, protocol, host: split[1]!.replace(/^\[|\]$/g, ''), port, ...path }
}

/** Formats before 3.0 had no `~`: there, characters outside plain paths made a path a regex. */
function modernRoute(authored: Fields, version: unknown): Fields {
  let fields = authored
  const isGrpc =
    Array.isArray(fields.protocols) &&
    fields.protocols.some(protocol => protocol === 'grpc' || protocol === 'grpcs')
  if (isGrpc && !Object.hasOwn(fields, 'strip_path')) fields = { ...fields, strip_path: false }
  const isOld = version === '1.1' || version === '2.1'
  if (!isOld || !Array.isArray(fields.paths)) return fields
  const paths = fields.paths.map((path: unknown) => {
    if (typeof path !== 'string' || !path.startsWith('/')) return path
    return /^[A-Za-z0-9.\-_~/%]*$/.test(path) ? normalisePath(path) : `~${decodeRegex(path)}`
  })
  return { ...fields, paths }
}

/** A target without a port is asked on 8000. */
function withPort(fields: Fields): Fields {
  const { target } = fields
  if (typeof target !== 'string' || target === '') return fields
  if (isIP(target) === 6) return { ...fields, target: `[${target}]:8000` }
  const hasPort = /:\d+$/.test(target.replace(/^\[.*\]/, ''))
  return hasPort || looksLikeReference(target) ? fields : { ...fields, target: `${target}:8000` }
}

/** Decodes percent escapes once, keeping what a regex would take for syntax escaped. */
function decodeRegex(path: string): string {
  return path.replace(/%([0-9A-Fa-f]{2})/g, (escaped, hex: string) => {
    const character = String.fromCharCode(Number.parseInt(hex, 16))
    if (character >= '\x80' || /[!*'();:@&=+$,/?%#[\]]/.test(character))
      return escaped.toUpperCase()
    return /[.\\^{}|-]/.test(character) ? `\\${character}` : character
  })
}

/** Naming something to hash on has always meant consistent hashing, and the reverse. */
function legacyHashing(fields: Fields): Fields {
  const { hash_on, algorithm } = fields
  if (algorithm === 'least-connections' || algorithm === 'latency')
    return { ...fields, hash_on: 'none' }
  if (typeof hash_on !== 'string' || algorithm === 'sticky-sessions') return fields
  if (hash_on !== 'none') return { ...fields, algorithm: 'consistent-hashing' }
  return algorithm === undefined ? { ...fields, algorithm: 'round-robin' } : fields
}
