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
  readonly response: ClientResponse & { fields(): readonly string[] }
}

/** Kong's fixed id of the one workspace a file describes. */
const WORKSPACE = '0dc6f45b-8f8d-40d2-a504-473544ee190b'
const REDACTED = new Set(['authorization', 'proxy-authorization'])

type Fields = Record<string, string | readonly string[]>

/** Flat fields to an object of lower-case names; repeated fields become arrays. */
function headersOf(flat: readonly string[], redact: boolean): Fields {
  const headers: Record<string, string | string[]> = Object.create(null)
  for (let i = 0; i < flat.length; i += 2) {
    const name = flat[i]!.toLowerCase()
    if (name.startsWith(':')) continue
    const value = redact && REDACTED.has(name) ? 'REDACTED' : flat[i + 1]!
    const before = headers[name]
    if (before === undefined) headers[name] = value
    else if (Array.isArray(before)) before.push(value)
    else headers[name] = [before, value]
  }
  return headers
}

function queryOf(query: string | undefined): Record<string, unknown> {
  const args: Record<string, unknown> = Object.create(null)
  if (query === undefined || query === '') return args
  for (const part of query.split('&')) {
    if (part === '') continue
    const equals = part.indexOf('=')
    const name = decode(equals === -1 ? part : part.slice(0, equals))
    const value = equals === -1 ? true : decode(part.slice(equals + 1))
    const before = args[name]
    if (before === undefined) args[name] = value
    else if (Array.isArray(before)) before.push(value)
    else args[name] = [before, value]
  }
  return args
}

function decode(text: string): string {
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

function requestHeaders(exchange: Finished): Fields {
  const headers = headersOf(exchange.request.rawHeaders, true) as Record<
    string,
    string | readonly string[]
  >
  for (const [name, { value }] of exchange.upstream.edits ?? []) {
    if (value === undefined) delete headers[name]
    else headers[name] = REDACTED.has(name) ? 'REDACTED' : value
  }
  return headers
}

/** The record every log plugin emits for one finished exchange; absent facts are absent keys. */
export function buildRecord(exchange: Finished): Record<string, unknown> {
  const { request, response, route, service, consumer, credential } = exchange
  const now = performance.now()
  const proxied = exchange.firstByteMark > 0 && exchange.answer === undefined
  const total = Math.round(now - exchange.startedMark)
  const fields = response.fields()
  const record: Record<string, unknown> = {
    request: {
      id: exchange.id,
      uri: request.target,
      url: `${request.scheme}://${request.host}:${request.port}${request.target}`,
      querystring: queryOf(request.query),
      method: request.method,
      headers: requestHeaders(exchange),
      size:
        request.method.length +
        request.target.length +
        request.httpVersion.length +
        9 +
        size(request.rawHeaders) +
        exchange.bytesReceived,
      ...(request.tls === undefined
        ? {}
        : {
            tls: {
              version: request.tls.version,
              cipher: request.tls.cipher,
              client_verify: request.tls.clientVerify
            }
          })
    },
    upstream_uri:
      exchange.tries.length === 0
        ? ''
        : exchange.upstream.path +
          (exchange.upstream.query === undefined ? '' : `?${exchange.upstream.query}`),
    upstream_status: exchange.upstreamStatuses.join(', '),
    response: {
      status: response.status,
      headers: headersOf(fields, false),
      size: 17 + size(fields) + exchange.bytesSent
    },
    latencies: {
      kong:
        proxied || exchange.sentMark > 0
          ? Math.round(exchange.sentMark - exchange.startedMark)
          : total,
      proxy:
        exchange.firstByteMark > 0 ? Math.round(exchange.firstByteMark - exchange.sentMark) : -1,
      request: total,
      receive:
        exchange.lastByteMark > 0 && exchange.firstByteMark > 0
          ? Math.round(exchange.lastByteMark - exchange.firstByteMark)
          : 0
    },
    client_ip: request.clientIp,
    started_at: exchange.startedAt,
    source: proxied ? 'upstream' : 'kong',
    workspace: WORKSPACE,
    workspace_name: 'default'
  }
  if (route !== undefined) {
    record.route = route
    record.tries = exchange.tries.map(({ startedAt, latency, peer, state, code }) => ({
      balancer_start: Math.floor(startedAt),
      balancer_start_ns: Math.round(startedAt * 1e6),
      balancer_latency: Math.round(latency),
      balancer_latency_ns: Math.round(latency * 1e6),
      ip: peer.ip,
      port: peer.port,
      ...(state === undefined ? {} : { state, code })
    }))
  }
  if (service !== undefined) record.service = service
  if (consumer !== undefined) record.consumer = consumer
  if (credential !== undefined) {
    record.authenticated_entity = { id: credential.id, consumer_id: credential.consumer.id }
  }
  return record
}
