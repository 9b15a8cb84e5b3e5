import { type IncomingHttpHeaders, METHODS } from 'node:http'
import { splitTarget } from './path.ts'

/** Why a request is refused before anything looks at it. */
export interface FramingProblem {
  readonly status: number
  readonly message: string
}

/** A request as the framing checks see it, of either protocol; only HTTP/2 has a `stream`. */
export interface Framed {
  readonly method?: string | undefined
  readonly httpVersion: string
  readonly headers: IncomingHttpHeaders
  readonly rawHeaders: readonly string[]
  readonly stream?: object
}

const BAD_REQUEST: FramingProblem = { status: 400, message: 'Bad request' }
const NOT_ALLOWED: FramingProblem = { status: 405, message: 'Method not allowed' }
const UNKNOWN_VERSION: FramingProblem = { status: 505, message: 'HTTP version not supported' }

/** What names of hosts consist of; RFC 3986 §3.2.2 allows more, which no name has and parsers differ on. */
const NAME = 1
/** What the address within `[` and `]` consists of. */
const ADDRESS = 2
const HOST_BYTES = new Uint8Array(256)
for (const char of 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~') {
  HOST_BYTES[char.charCodeAt(0)]! |= NAME
}
for (const char of 'ABCDEFabcdef0123456789:.') HOST_BYTES[char.charCodeAt(0)]! |= ADDRESS

/** Whether a value is `uri-host [":" port]` (RFC 9110 §7.2): no userinfo, no delimiter of another part. */
function isHost(value: string): boolean {
  const bracketed = value.charCodeAt(0) === 91
  const kind = bracketed ? ADDRESS : NAME
  let i = bracketed ? 1 : 0
  const start = i
  for (; i < value.length; i++) {
    const code = value.charCodeAt(i)
    if (code > 255 || (HOST_BYTES[code]! & kind) === 0) break
  }
  if (i === start) return false
  if (bracketed && value.charCodeAt(i++) !== 93) return false
  if (i === value.length) return true
  if (value.charCodeAt(i++) !== 58 || value.length - i > 5) return false
  let port = 0
  for (; i < value.length; i++) {
    const digit = value.charCodeAt(i) - 48
    if (digit < 0 || digit > 9) return false
    port = port * 10 + digit
  }
  return port <= 65_535
}

/** A `..` between slashes or backslashes of which one is encoded; the query is no part of the path. */
const HIDDEN_DOTS =
  /^[^?]*(?:(?:%2f|%5c)(?:\.|%2e){2}(?:\/|%2f|%5c|\?|$)|\/(?:\.|%2e){2}(?:%2f|%5c))/i

/**
 * Whether a target has what parsers treat differently: controls, `\`, a fragment, or a dot segment
 * that only shows once encoded slashes are decoded, as some upstreams do before they look for it.
 */
function hasAmbiguousBytes(target: string): boolean {
  let encoded = false
  for (let i = 0; i < target.length; i++) {
    const code = target.charCodeAt(i)
    if (code <= 32 || code === 127 || code === 92 || code === 35) return true
    if (code === 37) encoded = true
  }
  return encoded && HIDDEN_DOTS.test(target)
}

/**
 * Refuses whatever two parsers could read as different requests (RFC 9112 §3.2, §6.1, §6.3, §11.2):
 * anything but exactly one valid Host, both or doubtful lengths, transfer codings other than
 * `chunked` or on HTTP/1.0, other versions, targets of other forms or with ambiguous bytes. The
 * connection must be closed after the answer. `target` is the request target as received.
 */
export function framingProblem(request: Framed, target: string): FramingProblem | undefined {
  if (request.method === 'TRACE' || request.method === 'CONNECT') return NOT_ALLOWED
  if (hasAmbiguousBytes(target)) return BAD_REQUEST
  // The version alone does not tell: a request line may well say HTTP/2.0.
  return 'stream' in request ? http2Problem(request, target) : http1Problem(request, target)
}

function http1Problem(request: Framed, target: string): FramingProblem | undefined {
  const { httpVersion, rawHeaders } = request
  if (httpVersion !== '1.1' && httpVersion !== '1.0') return UNKNOWN_VERSION
  const split = splitTarget(target)
  if (split === undefined) return BAD_REQUEST
  let host: string | undefined
  let length: string | undefined
  let coding: string | undefined
  for (let i = 0; i < rawHeaders.length; i += 2) {
    const name = rawHeaders[i]!
    // Only names of these lengths matter here, so most fields cost one comparison.
    if (name.length === 4 && name.toLowerCase() === 'host') {
      if (host !== undefined) return BAD_REQUEST
      host = rawHeaders[i + 1]!
      if (!isHost(host)) return BAD_REQUEST
    } else if (name.length === 14 && name.toLowerCase() === 'content-length') {
      if (length !== undefined || !isDigits(rawHeaders[i + 1]!)) return BAD_REQUEST
      length = rawHeaders[i + 1]!
    } else if (name.length === 17 && name.toLowerCase() === 'transfer-encoding') {
      if (coding !== undefined || rawHeaders[i + 1]!.toLowerCase() !== 'chunked') return BAD_REQUEST
      coding = rawHeaders[i + 1]!
    }
  }
  if (host === undefined && httpVersion !== '1.0') return BAD_REQUEST
  if (coding !== undefined && (length !== undefined || httpVersion === '1.0')) return BAD_REQUEST
  if (split.authority !== undefined && split.authority !== host) return BAD_REQUEST
  return undefined
}

/** The methods of HTTP/1.1's parser, which refuses any other with 400; HTTP/2's leaves that to us. */
const KNOWN: ReadonlySet<string | undefined> = new Set(METHODS)

/** RFC 9113 §8.3.1: a path that begins with a slash, and one authority however often it is named. */
function http2Problem(request: Framed, target: string): FramingProblem | undefined {
  if (target.charCodeAt(0) !== 47 || !KNOWN.has(request.method)) return BAD_REQUEST
  const { rawHeaders } = request
  let authority: string | undefined
  for (let i = 0; i < rawHeaders.length; i += 2) {
    const name = rawHeaders[i]!
    if (name !== ':authority' && name !== 'host') continue
    if (authority !== undefined && rawHeaders[i + 1] !== authority) return BAD_REQUEST
    authority = rawHeaders[i + 1]!
  }
  return authority === undefined || !isHost(authority) ? BAD_REQUEST : undefined
}

function isDigits(value: string): boolean {
  // RFC 9110 §8.6: one or more digits; more than 15 exceed what numbers hold exactly.
  if (value.length === 0 || value.length > 15) return false
  for (let i = 0; i < value.length; i++) {
    const code = value.charCodeAt(i)
    if (code < 48 || code > 57) return false
  }
  return true
}
