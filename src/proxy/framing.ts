import type { IncomingMessage } from 'node:http'
import type { Http2ServerRequest } from 'node:http2'
import { splitTarget } from './path.ts'

/** Why a request is refused before anything looks at it. */
export interface FramingProblem {
  readonly status: number
  readonly message: string
}

const BAD_REQUEST: FramingProblem = { status: 400, message: 'Bad request' }
const NOT_ALLOWED: FramingProblem = { status: 405, message: 'Method not allowed' }

/** Bytes of `uri-host [":" port]` (RFC 3986 §3.2.2): no userinfo, no delimiter of another part. */
const HOST_BYTES = new Uint8Array(256)
for (const char of "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~%!$&'()*+,;=:[]") {
  HOST_BYTES[char.charCodeAt(0)] = 1
}

function isHost(value: string): boolean {
  if (value === '') return false
  for (let i = 0; i < value.length; i++) {
    const code = value.charCodeAt(i)
    if (code > 255 || HOST_BYTES[code] === 0) return false
  }
  const colon = value.lastIndexOf(':')
  if (colon === -1 || value.endsWith(']')) return true
  if (value.indexOf(':') !== colon && !value.startsWith('[')) return false
  for (let i = colon + 1; i < value.length; i++) {
    const code = value.charCodeAt(i)
    if (code < 48 || code > 57) return false
  }
  return Number(value.slice(colon + 1)) <= 65535
}

/** Whether a target has bytes that parsers treat differently: controls, `\`, a fragment. */
function hasAmbiguousBytes(target: string): boolean {
  for (let i = 0; i < target.length; i++) {
    const code = target.charCodeAt(i)
    if (code <= 32 || code === 127 || code === 92 || code === 35) return true
  }
  return false
}

/**
 * Refuses whatever two parsers could read as different requests (RFC 9112 §3.2, §6.1, §6.3, §11.2):
 * anything but exactly one valid Host, both or doubtful lengths, transfer codings other than
 * `chunked` or on HTTP/1.0, targets of other forms or with ambiguous bytes. The connection must be
 * closed after the answer. `target` is the request target as received.
 */
export function framingProblem(
  request: IncomingMessage | Http2ServerRequest,
  target: string
): FramingProblem | undefined {
  if (request.method === 'TRACE' || request.method === 'CONNECT') return NOT_ALLOWED
  if (hasAmbiguousBytes(target)) return BAD_REQUEST
  if (request.httpVersion === '2.0') return http2Problem(request)
  const split = splitTarget(target)
  if (split === undefined && !(target === '*' && request.method === 'OPTIONS')) return BAD_REQUEST
  let host: string | undefined
  let length: string | undefined
  let coding: string | undefined
  const { rawHeaders } = request
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
  if (host === undefined && request.httpVersion !== '1.0') return BAD_REQUEST
  if (coding !== undefined && (length !== undefined || request.httpVersion === '1.0'))
    return BAD_REQUEST
  if (split?.authority !== undefined && split.authority !== host) return BAD_REQUEST
  return undefined
}

function http2Problem(request: IncomingMessage | Http2ServerRequest): FramingProblem | undefined {
  const authority = request.headers[':authority'] as string | undefined
  const { host } = request.headers
  if (authority !== undefined && host !== undefined && host !== authority) return BAD_REQUEST
  const effective = authority ?? host
  return effective === undefined || !isHost(effective) ? BAD_REQUEST : undefined
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
