import http, { type ClientRequest, type IncomingMessage } from 'node:http'
import https from 'node:https'
import { connect, isIP } from 'node:net'
import type { SecureContext } from 'node:tls'
import type { HealthChecks } from '../schema/entities.ts'
import { isOwnLimit } from './failure.ts'
import type { Failure } from './health.ts'

/** What is probed, and how. */
export interface Probe {
  readonly type: HealthChecks['active']['type']
  readonly ip: string
  readonly port: number
  /** What `Host` says. */
  readonly host: string
  readonly path: string
  readonly headers: Readonly<Record<string, readonly string[]>>
  /** Milliseconds for the whole probe. */
  readonly timeout: number
  /** Name for SNI and verification; undefined goes by `host`. */
  readonly servername: string | undefined
  readonly verify: boolean
  /** Gives what is shown and trusted over TLS; undefined shows nothing and trusts what the process does. */
  readonly context: (() => SecureContext) | undefined
}

/**
 * What a probe saw: a status to be judged, a plain success, a failure with its cause, or nothing, since
 * this process was unable to look.
 */
export type Finding =
  | { readonly status: number }
  | { readonly success: string }
  | { readonly failure: Failure; readonly cause: string }
  | { readonly unable: string }

/** Probes an address once. Never rejects. */
export async function probe(options: Probe): Promise<Finding> {
  const { promise, resolve } = Promise.withResolvers<Finding>()
  const broken = ({ code, message }: NodeJS.ErrnoException): void =>
    resolve(isOwnLimit(code) ? { unable: code! } : { failure: 'tcp', cause: code ?? message })
  const timer = setTimeout(
    () => resolve({ failure: 'timeout', cause: `no answer in ${options.timeout} ms` }),
    options.timeout
  )
  let end: () => void = () => {}
  try {
    end = await open(options, resolve, broken)
    return await promise
  } catch (error) {
    return { failure: 'tcp', cause: (error as Error).message }
  } finally {
    clearTimeout(timer)
    end()
  }
}

type Found = (finding: Finding) => void
type Broken = (error: NodeJS.ErrnoException) => void

/** Sends the probe; gives what ends it. */
async function open(options: Probe, found: Found, broken: Broken): Promise<() => void> {
  switch (options.type) {
    case 'tcp':
      return openTcp(options, found, broken)
    case 'http':
    case 'https':
      return openHttp(options, found, broken)
    case 'grpc':
    case 'grpcs':
      return openGrpc(options, found, broken)
  }
}

function openTcp({ ip, port }: Probe, found: Found, broken: Broken): () => void {
  const socket = connect(port, ip)
  socket.on('connect', () => found({ success: 'connected' }))
  socket.on('error', broken)
  return () => socket.destroy()
}

/** The TLS options of a probe; SNI carries names only (RFC 6066 §3). */
function tlsOptions({ servername, host, verify, context }: Probe) {
  const name = servername ?? host.replace(/:\d+$/, '')
  return {
    rejectUnauthorized: verify,
    ...(isIP(name.replace(/^\[|\]$/g, '')) === 0 ? { servername: name } : {}),
    ...(context === undefined ? {} : { secureContext: context() })
  }
}

function openHttp(options: Probe, found: Found, broken: Broken): () => void {
  const { type, ip, port, path, host, headers } = options
  const common = { host: ip, port, path, agent: false as const, headers: { ...headers, host } }
  const request: ClientRequest =
    type === 'https'
      ? https.get({ ...common, ...tlsOptions(options) } as https.RequestOptions)
      : http.get(common as http.RequestOptions)
  request.on('response', (response: IncomingMessage) => {
    found({ status: response.statusCode ?? 0 })
    response.resume()
  })
  request.on('error', broken)
  return () => request.destroy()
}

/** An empty HealthCheckRequest: the health of the server as a whole. */
const HEALTH_REQUEST = Buffer.alloc(5)
const SERVING = 1
const UNIMPLEMENTED = '12'

/** The standard health service (grpc.health.v1.Health/Check). */
async function openGrpc(options: Probe, found: Found, broken: Broken): Promise<() => void> {
  const http2 = await import('node:http2')
  const { type, ip, port, host, headers } = options
  const origin = `${type === 'grpcs' ? 'https' : 'http'}://${isIP(ip) === 6 ? `[${ip}]` : ip}:${port}`
  const session = http2.connect(origin, type === 'grpcs' ? tlsOptions(options) : {})
  session.on('error', broken)
  const stream = session.request({
    ...Object.fromEntries(Object.entries(headers).map(([name, values]) => [name, [...values]])),
    ':method': 'POST',
    ':path': '/grpc.health.v1.Health/Check',
    ':authority': host,
    'content-type': 'application/grpc',
    te: 'trailers'
  })
  // What befalls the session shows in its streams first, as ERR_HTTP2_STREAM_CANCEL.
  stream.on('error', (error: Error) => broken((error.cause as Error | undefined) ?? error))
  let status: string | undefined
  let httpStatus = 0
  const body: Buffer[] = []
  stream.on('response', fields => {
    httpStatus = fields[':status'] ?? 0
    status = fields['grpc-status'] as string | undefined
  })
  stream.on('trailers', fields => {
    status = (fields['grpc-status'] as string | undefined) ?? status
  })
  stream.on('data', (chunk: Buffer) => {
    if (body.length < 16) body.push(chunk)
  })
  stream.on('end', () => {
    if (status === UNIMPLEMENTED) found({ success: 'answers, without a health service' })
    else if (status !== '0')
      found({ failure: 'http', cause: `grpc-status ${status ?? httpStatus}` })
    else if (servingStatus(Buffer.concat(body)) === SERVING) found({ success: 'serving' })
    else found({ failure: 'http', cause: 'not serving' })
  })
  stream.end(HEALTH_REQUEST)
  return () => session.destroy()
}

/** The `status` of a HealthCheckResponse, its field 1: after five bytes of gRPC framing, tag and value. */
function servingStatus(message: Buffer): number {
  return message[5] === 0x08 ? (message[6] ?? 0) : 0
}
