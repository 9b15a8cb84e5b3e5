import { createPrivateKey, X509Certificate } from 'node:crypto'
import { existsSync, readFileSync } from 'node:fs'
import { BlockList, isIP } from 'node:net'
import { createSecureContext, type SecureVersion } from 'node:tls'
import type { NameServer } from './proxy/dns/client.ts'
import type { DnsOrder } from './proxy/dns.ts'
import { nearest } from './schema/validator.ts'

/** A value a setting cannot have: what is wrong, and what to write instead. Never the value of a secret. */
export class Misfit extends Error {
  readonly fix: string

  constructor(message: string, fix: string) {
    super(message)
    this.name = 'Misfit'
    this.fix = fix
  }
}

/** What is wrong with a value, told by {@link allOf} or one by one; other errors have no `fix`. */
export function misfitsIn(error: unknown): readonly (Error & { readonly fix?: string })[] {
  return error instanceof AggregateError ? error.errors : [error as Error]
}

/** What `read` gives for each part of a value; throws what is wrong with all of them at once. */
function allOf<T, R>(parts: readonly T[], read: (part: T, index: number) => R): readonly R[] {
  const misfits: Error[] = []
  const found = parts.flatMap((part, index) => {
    try {
      return [read(part, index)]
    } catch (error) {
      misfits.push(...misfitsIn(error))
      return []
    }
  })
  if (misfits.length > 0) throw new AggregateError(misfits)
  return found
}

function suggestion(word: string, known: readonly string[]): string {
  const near = nearest(word, known)
  return near === undefined ? `Write one of ${known.join(', ')}.` : `Did you mean ${near}?`
}

/** Tells of something in a value that is accepted but has no effect. */
export type Note = (message: string, fix: string) => void

/** Reads the text of a setting; throws {@link Misfit}. */
export type Parse<T> = (text: string, note: Note) => T

/** An address the gateway listens on. */
export interface Listener {
  /** `unix:` and the path for a Unix socket. */
  readonly host: string
  /** 0 lets the system choose; always 0 for a Unix socket. */
  readonly port: number
  /** Of a Unix socket; undefined for others. */
  readonly path: string | undefined
  /** Every connection begins with a PROXY protocol header. */
  readonly proxyProtocol: boolean
  readonly ssl: boolean
  readonly http2: boolean
  /** Connections the system may queue; undefined is the system's choice. */
  readonly backlog: number | undefined
  /** As authored. */
  readonly text: string
}

/** Any text. */
export const text: Parse<string> = value => value

/** Text that is a key: at least so many characters. */
export function secretText(least: number): Parse<string> {
  return value => {
    if (value.length < least)
      throw new Misfit('is too short', `Give at least ${least} random characters.`)
    return value
  }
}

const KEY_BASE64 = /^[A-Za-z0-9+/_-]{43}=?$/

/** A key of 32 bytes, hexadecimal or base64, or the path of a file that holds one; gives it as hexadecimal. */
export const key32: Parse<string> = value => {
  const path = keyPath(value)
  const written = path === undefined ? value : keyIn(path)
  const bytes = /^[0-9a-f]{64}$/i.test(written)
    ? Buffer.from(written, 'hex')
    : KEY_BASE64.test(written)
      ? Buffer.from(written, 'base64')
      : undefined
  if (bytes?.length !== 32)
    throw new Misfit(
      'is no key of 32 bytes',
      'Write 64 hexadecimal digits or base64 (`openssl rand -base64 32`), or the path of a file with it.'
    )
  return bytes.toString('hex')
}

/** The path that a key's setting is, where it is one; base64 that looks like a path counts as such. */
export function keyPath(value: string): string | undefined {
  return existsSync(value) || /^\.{0,2}\//.test(value) ? value : undefined
}

/** The text of a key file; base64 may begin with a slash, too. */
function keyIn(path: string): string {
  try {
    return readFileSync(path, 'utf8').trim()
  } catch (error) {
    if (KEY_BASE64.test(path)) return path
    const { code } = error as NodeJS.ErrnoException
    throw new Misfit(
      `names a file that cannot be read (${code})`,
      'Let it be read, or name another file.'
    )
  }
}

/** `on` or `off`, as Kong writes booleans; `true` and `false` mean the same. */
export const toggle: Parse<boolean> = value => {
  const known: Readonly<Record<string, boolean>> = {
    on: true,
    true: true,
    off: false,
    false: false
  }
  const meaning = known[value.toLowerCase()]
  if (meaning === undefined) throw new Misfit('is neither on nor off', 'Write on or off.')
  return meaning
}

/** One of the keys of `meanings`; letters of either case. */
export function choice<T>(meanings: Readonly<Record<string, T>>): Parse<T> {
  const names = Object.keys(meanings)
  return value => {
    const name = names.find(each => each.toLowerCase() === value.toLowerCase())
    if (name === undefined)
      throw new Misfit('is not one of the known values', `Write one of ${names.join(', ')}.`)
    return meanings[name]!
  }
}

/** A whole number within the bounds, both included. */
export function whole(least: number, most: number): Parse<number> {
  return value => {
    const number = /^\d+$/.test(value) ? Number(value) : Number.NaN
    if (!(number >= least && number <= most)) {
      throw new Misfit('is not a number in range', `Write a whole number from ${least} to ${most}.`)
    }
    return number
  }
}

/** Longest time a timer can wait, in whole seconds: 2³¹ − 1 ms. */
const MAX_SECONDS = 2_147_483
const SECONDS_IN: Readonly<Record<string, number>> = { ms: 0.001, s: 1, m: 60, h: 3600, d: 86_400 }

/** Seconds: a number, or with a unit as nginx writes it (`500ms`, `30s`, `1h`). */
export function seconds(least: number): Parse<number> {
  return value => {
    const parts = /^(\d+(?:\.\d+)?)(ms|s|m|h|d)?$/.exec(value)
    const number = parts === null ? Number.NaN : Number(parts[1]) * SECONDS_IN[parts[2] ?? 's']!
    if (!(number >= least && number <= MAX_SECONDS)) {
      throw new Misfit(
        'is not a time in range',
        `Write seconds from ${least} to ${MAX_SECONDS}, or a number with one of ms, s, m, h, d.`
      )
    }
    return number
  }
}

const BYTES_IN: Readonly<Record<string, number>> = { '': 1, k: 1024, m: 1024 ** 2, g: 1024 ** 3 }

/** Bytes: a number, or with k, m or g (powers of 1024) as nginx writes it; `1MiB` is read too. */
export function bytes(least: number, most: number): Parse<number> {
  return value => {
    const parts = /^(\d+)([kmg]?)(?:i?b)?$/i.exec(value)
    const number =
      parts === null ? Number.NaN : Number(parts[1]) * BYTES_IN[parts[2]!.toLowerCase()]!
    if (!(number >= least && number <= most)) {
      throw new Misfit(
        'is not a size in range',
        `Write bytes from ${least} to ${most}, or a number with k, m or g.`
      )
    }
    return number
  }
}

/** A worker count, or `auto` for one on each CPU. */
export function workerCount(available: number): Parse<number> {
  const count = whole(1, 1024)
  return (value, note) => (value === 'auto' ? available : count(value, note))
}

/** Whether requests are logged. Kong's path is read as on where it means standard output or error. */
export const accessLog: Parse<boolean> = (value, note) => {
  if (/^\/dev\/std(out|err)\b/.test(value)) return true
  if (value.includes('/'))
    throw new Misfit('names a file', 'Write on: the log goes to standard output.')
  return toggle(value, note)
}

/** A field name of HTTP (RFC 9110 §5.1). */
export const fieldName: Parse<string> = value => {
  if (!/^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/.test(value)) {
    throw new Misfit('is not the name of a header', 'Write a header name such as X-Forwarded-For.')
  }
  return value
}

/** Comma-separated IP addresses and CIDR ranges; `unix:` is every peer on a Unix socket. */
export const addressRanges: Parse<readonly string[]> = value => {
  return allOf(list(value), range => {
    if (range === UNIX || familyOf(range) !== undefined) return range
    throw new Misfit(
      `"${range}" is neither an IP address nor a CIDR range`,
      'Write addresses such as 10.0.0.0/8 or fd00::/8.'
    )
  })
}

/** How peers on Unix sockets are written, which have no address. */
const UNIX = 'unix:'
const NEVER = (): boolean => false

/** Tells whether an address is within one of the ranges, IPv4-mapped IPv6 addresses included. */
export function trustedPeers(ranges: readonly string[]): (ip: string) => boolean {
  if (ranges.length === 0) return NEVER
  const known = new BlockList()
  const unix = ranges.includes(UNIX)
  for (const range of ranges) {
    if (range === UNIX) continue
    const [address, prefix] = range.split('/')
    const family = familyOf(range)!
    if (prefix === undefined) known.addAddress(address!, family)
    else known.addSubnet(address!, Number(prefix), family)
  }
  return ip => (ip === UNIX ? unix : known.check(ip, ip.includes(':') ? 'ipv6' : 'ipv4'))
}

function familyOf(range: string): 'ipv4' | 'ipv6' | undefined {
  const [address = '', prefix, ...rest] = range.split('/')
  const version = isIP(address)
  if (version === 0 || rest.length > 0) return undefined
  const width = version === 4 ? 32 : 128
  if (prefix !== undefined && !(/^\d{1,3}$/.test(prefix) && Number(prefix) <= width))
    return undefined
  return version === 4 ? 'ipv4' : 'ipv6'
}

/** Comma-separated `host:port` with flags, or `off`. */
export const listeners: Parse<readonly Listener[]> = (value, note) => {
  if (value === 'off') return []
  const seen = new Set<string>()
  const found = allOf(list(value), each => {
    const read = listener(each, note)
    const { host, port, path } = read
    const address = `${host} ${port}`
    if ((port !== 0 || path !== undefined) && seen.has(address))
      throw new Misfit(
        path === undefined ? `names port ${port} of ${host} twice` : `names ${host} twice`,
        'Name each address once.'
      )
    seen.add(address)
    return read
  })
  if (found.length === 0)
    throw new Misfit('names no address', 'Write host:port, such as 0.0.0.0:8000, or off.')
  return found
}

/** Comma-separated addresses of name servers: `ip` or `ip:port`, IPv6 with a port in brackets. */
export const nameServers: Parse<readonly NameServer[]> = value => {
  const servers = allOf(list(value), (text): NameServer => {
    if (isIP(text) !== 0) return { host: text, port: 53 }
    const [, bracketed, plain, port = '53'] =
      /^(?:\[(.+)\]|([^:]+))(?::(\d{1,5}))?$/.exec(text) ?? []
    const server = { host: bracketed ?? plain ?? '', port: Number(port) }
    if (isIP(server.host) !== 0 && server.port >= 1 && server.port <= 65_535) return server
    throw new Misfit(
      `"${text}" is not the address of a name server`,
      'Write an IP address, with a port or without: 10.0.0.2 or 10.0.0.2:5353.'
    )
  })
  if (servers.length === 0)
    throw new Misfit('names no server', 'Leave it unset to use those of the system.')
  return servers
}

const RECORD_TYPES = ['LAST', 'SRV', 'A', 'AAAA', 'CNAME']

/** Comma-separated record types; those that lead to addresses. */
export const dnsOrder: Parse<DnsOrder> = value => {
  const types = allOf(list(value.toUpperCase()), type => {
    if (RECORD_TYPES.includes(type)) return type
    throw new Misfit(`"${type}" is not a record type`, `Use ${RECORD_TYPES.join(', ')}.`)
  })
  const order = types.filter(type => type === 'SRV' || type === 'A' || type === 'AAAA')
  if (order.length === 0)
    throw new Misfit('has no type that leads to an address', 'Name A, AAAA or SRV.')
  return [...new Set(order)]
}

/** The one address of the status API, or `off`. */
export const statusListener: Parse<Listener | undefined> = (value, note) => {
  const found = listeners(value, note)
  if (found.length > 1)
    throw new Misfit('names several addresses', 'Write one host:port for the status API.')
  if (found[0]?.ssl)
    throw new Misfit(
      'asks for TLS, which the status API does not serve',
      'Leave ssl out, and keep the address private.'
    )
  if (found[0]?.path !== undefined || found[0]?.proxyProtocol)
    throw new Misfit(
      'asks for what only listeners of traffic serve',
      'Write host:port for the status API.'
    )
  return found[0]
}

const HOST_NAME =
  /^(\*|(\*\.)?[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*)$/

/** Comma-separated host names, `*.domain` for all below one, `*` for any; gives them in lower case. */
export const hostNames: Parse<readonly string[]> = value => {
  return allOf(list(value.toLowerCase()), authored => {
    const name = authored.replace(/\.$/, '')
    if (HOST_NAME.test(name)) return name
    throw new Misfit(
      `"${name}" is not a host name`,
      'Write names without scheme and port, such as postern.gateway.svc or *.svc.cluster.local.'
    )
  })
}

/** Flags that hold anyway here: threads share the port, each address is bound on its own. */
const IMPLIED = new Set(['reuseport', 'bind'])
const WITHOUT_EFFECT = new Set(['deferred', 'so_keepalive', 'ipv6only'])
const FLAGS = ['ssl', 'http2', 'backlog', 'proxy_protocol', ...IMPLIED, ...WITHOUT_EFFECT]

function listener(authored: string, note: Note): Listener {
  const parts = allOf(
    authored.split(/\s+/),
    (part, index): Partial<Listener> => (index === 0 ? parseAddress(part) : parseFlag(part, note))
  )
  const plain = { proxyProtocol: false, ssl: false, http2: false, backlog: undefined }
  return Object.assign({ host: '', port: 0, path: undefined, ...plain, text: authored }, ...parts)
}

function parseFlag(flag: string, note: Note): Partial<Listener> {
  const [name = '', value] = flag.split('=')
  if (name === 'ssl') return { ssl: true }
  if (name === 'http2') return { http2: true }
  if (name === 'proxy_protocol') return { proxyProtocol: true }
  if (name === 'backlog') return { backlog: parseBacklog(value) }
  if (WITHOUT_EFFECT.has(name)) note(`the flag ${name} has no effect`, `Leave ${name} out.`)
  else if (!IMPLIED.has(name)) {
    throw new Misfit(`"${flag}" is not a flag of a listener`, suggestion(name, FLAGS))
  }
  return {}
}

/** Bytes of a socket's path that every system takes. */
const MAX_SOCKET_PATH = 103

function parseAddress(address: string): Pick<Listener, 'host' | 'port' | 'path'> {
  if (address.startsWith(UNIX)) {
    const path = address.slice(UNIX.length)
    if (!path.startsWith('/') || Buffer.byteLength(path) > MAX_SOCKET_PATH) {
      throw new Misfit(
        `"${address}" is not the absolute path of a socket`,
        `Write unix:/run/postern.sock, at most ${MAX_SOCKET_PATH} bytes.`
      )
    }
    return { host: address, port: 0, path }
  }
  const parts = /^(?:\[([^\]]+)\]|([^\s:[\]]+)):(\d{1,5})$/.exec(address)
  const [, ipv6, name, digits] = parts ?? []
  const port = Number(digits)
  const valid =
    parts !== null &&
    port <= 65_535 &&
    (ipv6 === undefined
      ? isIP(name!) === 4 || /^[A-Za-z0-9_](?:[A-Za-z0-9_.-]*)$/.test(name!)
      : isIP(ipv6) === 6)
  // A name of digits and dots alone would be a mistyped IPv4 address, and bind somewhere unexpected.
  if (!valid || (name !== undefined && isIP(name) === 0 && /^[\d.]+$/.test(name))) {
    throw new Misfit(
      `"${address}" is not an address`,
      'Write host:port, such as 0.0.0.0:8000 or [::]:8000.'
    )
  }
  return { host: ipv6 ?? name!, port, path: undefined }
}

function parseBacklog(value: string | undefined): number {
  const number = Number(value)
  if (!/^\d+$/.test(value ?? '') || number < 1 || number > 65_535) {
    throw new Misfit(
      `has a backlog of ${value ?? 'nothing'}, which is not a number in range`,
      'Write backlog=N with N from 1 to 65535.'
    )
  }
  return number
}

/** Which of the gateway's own response header fields are sent. */
export interface HeaderChoice {
  readonly server: boolean
  readonly via: boolean
  readonly latency: boolean
  readonly requestId: boolean
  readonly upstreamStatus: boolean
}

const HEADER_TOKENS: Readonly<Record<string, Partial<HeaderChoice>>> = {
  server_tokens: { server: true, via: true },
  latency_tokens: { latency: true },
  server: { server: true },
  via: { via: true },
  'request-id': { requestId: true },
  'upstream-status': { upstreamStatus: true },
  'proxy-latency': { latency: true },
  'upstream-latency': { latency: true },
  'response-latency': { latency: true }
}
const HEADERS_WITHOUT_EFFECT = new Set([
  'advanced_latency_tokens',
  'admin-latency',
  'total-latency',
  'third-party-latency',
  'client-latency'
])
const NO_HEADERS: HeaderChoice = {
  server: false,
  via: false,
  latency: false,
  requestId: false,
  upstreamStatus: false
}

/** Comma-separated header names and tokens, or `off`. */
export const headerChoice: Parse<HeaderChoice> = (value, note) => {
  if (value === 'off') return NO_HEADERS
  const additions = allOf(list(value), authored => {
    const name = ownName(authored)
    const addition = HEADER_TOKENS[name]
    if (addition === undefined && !HEADERS_WITHOUT_EFFECT.has(name)) {
      throw new Misfit(
        `"${authored}" is not one of the gateway's own headers`,
        suggestion(name, Object.keys(HEADER_TOKENS))
      )
    }
    if (addition === undefined)
      note(`${authored} is not sent by this release`, `Leave ${authored} out.`)
    else if (name.endsWith('-latency'))
      note(`${authored} stands for all latency headers`, 'Write latency_tokens.')
    return addition
  })
  return Object.assign({}, NO_HEADERS, ...additions)
}

/** Whether the upstream is sent the request id. */
export const upstreamHeaders: Parse<boolean> = value => {
  const names = list(value)
  if (value === 'off') return false
  if (names.length !== 1 || ownName(names[0]!) !== 'request-id') {
    throw new Misfit(
      'is not a header the gateway can send upstream',
      'Write X-Postern-Request-Id or off.'
    )
  }
  return true
}

function ownName(authored: string): string {
  return authored.toLowerCase().replace(/^x-(postern|kong)-/, '')
}

const TLS_VERSIONS = ['TLSv1.2', 'TLSv1.3'] as const

/** TLS versions, separated by spaces: the oldest and the newest that are spoken. */
export const tlsVersions: Parse<{ readonly min: SecureVersion; readonly max: SecureVersion }> = (
  value,
  note
) => {
  const names = value.split(/[\s,]+/)
  for (const old of names.filter(name => ['SSLv3', 'TLSv1', 'TLSv1.1'].includes(name))) {
    note(`${old} is not spoken by this release (RFC 8996)`, `Leave ${old} out.`)
  }
  const spoken = TLS_VERSIONS.filter(name => names.includes(name))
  if (spoken.length === 0 || names.some(name => !/^(SSLv3|TLSv1(\.[123])?)$/.test(name))) {
    throw new Misfit(
      'names no TLS version that is spoken',
      'Write TLSv1.2 TLSv1.3, or one of them.'
    )
  }
  return { min: spoken[0]!, max: spoken.at(-1)! }
}

/** OpenSSL's list of ciphers. */
export const cipherList: Parse<string> = value => {
  try {
    createSecureContext({ ciphers: value })
  } catch {
    throw new Misfit(
      'is not a list of ciphers OpenSSL takes',
      'Write names separated by colons, such as ECDHE-ECDSA-AES128-GCM-SHA256.'
    )
  }
  return value
}

/** A PEM text, the path of a file with one, or base64 of one. Gives the PEM text. */
export const certificate: Parse<string> = value => {
  const pem = readPem(value)
  try {
    new X509Certificate(pem)
  } catch {
    throw new Misfit(
      'holds no certificate',
      'Write a path, a PEM text, or base64 of a PEM text, of a certificate.'
    )
  }
  return pem
}

/** The key of a certificate, written like the certificate. Gives the PEM text. */
export const privateKey: Parse<string> = value => {
  const pem = readPem(value)
  try {
    createPrivateKey(pem)
  } catch {
    throw new Misfit(
      'holds no private key',
      'Write a path, a PEM text, or base64 of a PEM text, of an unencrypted private key.'
    )
  }
  return pem
}

/** Whether the key is the certificate's. */
export function belongTogether(certificatePem: string, keyPem: string): boolean {
  return new X509Certificate(certificatePem).checkPrivateKey(createPrivateKey(keyPem))
}

/** The path a certificate or key is read from; undefined when it stands in the value itself. */
export function pemPath(value: string): string | undefined {
  const written = PEM.test(value) || PEM.test(Buffer.from(value, 'base64').toString())
  return written ? undefined : value
}

const PEM = /-----BEGIN [A-Z ]+-----/

function readPem(value: string): string {
  if (PEM.test(value)) return value
  const decoded = Buffer.from(value, 'base64').toString()
  if (PEM.test(decoded)) return decoded
  try {
    return readFileSync(value, 'utf8')
  } catch (error) {
    if (value.includes(',') && value.split(',').every(path => existsSync(path.trim()))) {
      throw new Misfit(
        'names several files',
        'Name one here, and put the others under certificates in the configuration.'
      )
    }
    // A value that is no path may be a mangled key: it is not repeated.
    throw new Misfit(
      `names a file that cannot be read (${(error as NodeJS.ErrnoException).code})`,
      'Write a path, a PEM text, or base64 of a PEM text.'
    )
  }
}

/** An https address, or a plain one of this machine. */
export const secureUrl: Parse<string> = value => {
  const url = URL.parse(value)
  const local = ['127.0.0.1', '[::1]', 'localhost'].includes(url?.hostname ?? '')
  if (url === null || !(url.protocol === 'https:' || (url.protocol === 'http:' && local)))
    throw new Misfit('is not an https address', 'Write https://host/path.')
  return value
}

/** The address of a Redis server. */
export const redisUrl: Parse<string> = value => {
  const url = URL.parse(value)
  const { protocol, hostname, pathname, username, password } = url ?? {}
  const readable = [username, password].every(part => part !== undefined && isEncoded(part))
  if (
    (protocol !== 'redis:' && protocol !== 'rediss:') ||
    hostname === '' ||
    !/^(\/\d*)?$/.test(pathname!) ||
    !readable
  ) {
    throw new Misfit(
      'is not the address of a Redis server',
      'Write redis://host:6379 or rediss://user:password@host:6379/0.'
    )
  }
  return value
}

function isEncoded(part: string): boolean {
  try {
    decodeURIComponent(part)
    return true
  } catch {
    return false
  }
}

/** Items separated by commas. */
export function list(value: string): readonly string[] {
  return value
    .split(',')
    .map(part => part.trim())
    .filter(part => part !== '')
}
