import { randomFillSync } from 'node:crypto'
import type { IncomingHttpHeaders, IncomingMessage, ServerResponse } from 'node:http'
import type { Http2ServerRequest, Http2ServerResponse } from 'node:http2'
import { isIP, type Socket } from 'node:net'
import type { TLSSocket } from 'node:tls'
import { BodyAborted, BodyTimeout, BodyTooLarge, TrailersTooMany } from '../errors.ts'
import { plainAddress, proxiedAddress } from '../listener/proxy-protocol.ts'
import type { Instance } from '../plugins/instance.ts'
import type {
  ClientRequest,
  ClientResponse,
  Consumer,
  Credential,
  Directory,
  Exchange,
  Route,
  Service,
  UpstreamRequest
} from '../plugins/plugin.ts'
import { ByteBlock } from './byte-block.ts'
import { defaultMessage, errorBody, grpcStatus } from './failure.ts'
import { normalizePath, splitTarget } from './path.ts'
import { type Try, writeRecord } from './record.ts'
import type { Match } from './router.ts'
import type { ServiceUpstream } from './upstream.ts'

export type RawRequest = IncomingMessage | Http2ServerRequest
export type RawResponse = ServerResponse | Http2ServerResponse

/** What every exchange of a listener shares. */
export interface ExchangeOptions {
  readonly listener: {
    readonly port: number
    readonly ssl: boolean
    /** Whether clients are asked for a certificate. */
    readonly clientCertificates: boolean
  }
  /** Whether forwarding headers of this direct peer are believed. */
  readonly trusted: (ip: string) => boolean
  /** Lower-case name of the header that carries the client address behind trusted peers. */
  readonly realIpHeader: string
  readonly realIpRecursive: boolean
  /** Most bytes {@link Exchange.body} buffers. */
  readonly maxBufferedBody: number
  /** Milliseconds between two reads of a request body. */
  readonly bodyTimeout: number
  /** Most trailers of a request or response: as many as a head may have fields. */
  readonly maxTrailers: number
}

/** A Host or `X-Forwarded-Host` split into name and port. */
export function splitHost(text: string): { host: string; port: number | undefined } {
  const colon = text.lastIndexOf(':')
  if (colon === -1 || text.endsWith(']')) return { host: text, port: undefined }
  const port = Number(text.slice(colon + 1))
  return { host: text.slice(0, colon), port: port > 0 ? port : undefined }
}

/** An address as forwarding fields write it, with or without a port; undefined when it is none. */
function addressIn(text: string): string | undefined {
  let address = text.trim()
  const colon = address.indexOf(':')
  if (address.startsWith('[')) address = address.slice(1, address.indexOf(']'))
  else if (colon !== -1 && colon === address.lastIndexOf(':')) address = address.slice(0, colon)
  return isIP(address) === 0 ? undefined : plainAddress(address)
}

/** An IPv4 address that an IPv6 socket shows, as IPv4. */
function unmapped(address: string): string {
  return address.startsWith('::ffff:') && address.includes('.') ? address.slice(7) : address
}

/** The client's address as a trusted peer tells it; the peer's own where it tells none. */
function clientAddress(
  remote: string,
  { headers, socket }: RawRequest,
  options: ExchangeOptions
): string {
  if (options.realIpHeader === 'proxy_protocol') return proxiedAddress(socket) ?? remote
  const value = headers[options.realIpHeader]
  const text = Array.isArray(value) ? value.join(',') : value
  if (text === undefined) return remote
  const hops = text.split(',')
  let client = remote
  for (let i = hops.length - 1; i >= 0; i--) {
    const address = addressIn(hops[i]!)
    if (address === undefined) break
    client = address
    if (!options.realIpRecursive || !options.trusted(address)) break
  }
  return client
}

class Request implements ClientRequest {
  readonly method: string
  readonly scheme: 'http' | 'https'
  readonly httpVersion: string
  readonly host: string
  readonly port: number
  readonly path: string
  readonly target: string
  readonly query: string | undefined
  readonly headers: IncomingHttpHeaders
  readonly rawHeaders: readonly string[]
  readonly clientIp: string
  readonly remoteAddress: string
  readonly tls: ClientRequest['tls']
  /** The Host header (or `:authority`) as received. */
  readonly authority: string
  /** The path as received, without the query. */
  readonly rawPath: string
  readonly trusted: boolean
  captures: Readonly<Record<string, string>> | undefined = undefined

  constructor(raw: RawRequest, target: string, options: ExchangeOptions) {
    this.method = raw.method!
    this.scheme = options.listener.ssl ? 'https' : 'http'
    this.httpVersion = raw.httpVersion
    this.headers = raw.headers
    this.rawHeaders = raw.rawHeaders
    this.target = target
    const split = splitTarget(target)
    this.rawPath = split?.path ?? '/'
    this.query = split?.query
    this.path = normalizePath(this.rawPath)
    const authority = (raw.headers[':authority'] as string | undefined) ?? raw.headers.host ?? ''
    this.authority = authority
    const { host, port } = splitHost(authority)
    this.host = host
    this.port = port ?? options.listener.port
    // A Unix socket has no address; `unix:` is how such a peer is written in trusted ranges.
    this.remoteAddress = unmapped(raw.socket?.remoteAddress ?? 'unix:')
    this.trusted = options.trusted(this.remoteAddress)
    this.clientIp = this.trusted
      ? clientAddress(this.remoteAddress, raw, options)
      : this.remoteAddress
    this.tls = options.listener.ssl
      ? tlsOf(raw.socket as TLSSocket, options.listener.clientCertificates)
      : undefined
  }
}

function tlsOf(socket: TLSSocket, clientCertificates: boolean) {
  const sni = socket.servername
  const facts = {
    version: socket.getProtocol?.() ?? '',
    cipher: socket.getCipher?.()?.name ?? '',
    clientVerify: clientCertificates ? verification(socket) : 'NONE'
  }
  return sni === undefined || sni === null || sni === '' ? facts : { ...facts, sni: String(sni) }
}

/**
 * `SUCCESS`, `NONE` or `FAILED:reason`, as nginx says it. The certificate itself is looked for: of a
 * session resumed without one, `authorized` says true.
 */
function verification(socket: TLSSocket): string {
  if (socket.getPeerX509Certificate() === undefined) return 'NONE'
  if (socket.authorized) return 'SUCCESS'
  return `FAILED:${socket.authorizationError}`
}

/** Names that plugins and the gateway set fields by, to their lower case. */
const lowerCases = new Map<string, string>()
const MAX_LOWER_CASES = 1000

/**
 * The lower case of a name that code sets a field by. The same few are set with every request, and a
 * string made anew would be hashed anew each time it is looked up: 3 % of a request with four plugins.
 */
function lowerCase(name: string): string {
  let lower = lowerCases.get(name)
  if (lower === undefined) {
    lower = name.toLowerCase()
    if (lowerCases.size < MAX_LOWER_CASES) lowerCases.set(name, lower)
  }
  return lower
}

class Upstream implements UpstreamRequest {
  path = ''
  query: string | undefined
  body: Buffer | undefined = undefined
  /** Lower-case name to the name and value to send; undefined value removes the client's. */
  edits: Map<string, { readonly name: string; readonly value: string | undefined }> | undefined =
    undefined
  readonly #headers: IncomingHttpHeaders

  constructor(request: Request) {
    this.query = request.query
    this.#headers = request.headers
  }

  header(name: string): string | undefined {
    const lower = name.toLowerCase()
    const edit = this.edits?.get(lower)
    if (edit !== undefined) return edit.value
    const value = this.#headers[lower]
    return Array.isArray(value) ? value.join(', ') : value
  }

  setHeader(name: string, value: string): void {
    this.edits ??= new Map()
    this.edits.set(lowerCase(name), { name, value })
  }

  removeHeader(name: string): void {
    this.edits ??= new Map()
    this.edits.set(lowerCase(name), { name, value: undefined })
  }
}

interface ResponseEdit {
  readonly name: string
  readonly values: readonly string[]
  /** Whether fields of this name that the upstream sent are dropped. */
  readonly replaces: boolean
}

class Response implements ClientResponse {
  status = 0
  /** What the upstream or the answer gave, flat: name, value, name, value, … */
  base: string[] = []
  sent: readonly string[] | undefined = undefined
  #edits: Map<string, ResponseEdit> | undefined = undefined

  header(name: string): string | readonly string[] | undefined {
    const lower = name.toLowerCase()
    const edit = this.#edits?.get(lower)
    const values: string[] = []
    if (edit === undefined || !edit.replaces) {
      for (let i = 0; i < this.base.length; i += 2) {
        if (this.base[i]!.toLowerCase() === lower) values.push(this.base[i + 1]!)
      }
    }
    if (edit !== undefined) values.push(...edit.values)
    return values.length > 1 ? values : values[0]
  }

  setHeader(name: string, value: string): void {
    this.#edits ??= new Map()
    this.#edits.set(lowerCase(name), { name, values: [value], replaces: true })
  }

  appendHeader(name: string, value: string): void {
    this.#edits ??= new Map()
    const lower = lowerCase(name)
    const before = this.#edits.get(lower)
    this.#edits.set(lower, {
      name,
      values: [...(before?.values ?? []), value],
      replaces: before?.replaces ?? false
    })
  }

  removeHeader(name: string): void {
    this.#edits ??= new Map()
    this.#edits.set(lowerCase(name), { name, values: [], replaces: true })
  }

  /** The final fields: base with the edits applied. The base itself when there are none. */
  fields(): string[] {
    const edits = this.#edits
    if (edits === undefined) return this.base
    const fields: string[] = []
    for (let i = 0; i < this.base.length; i += 2) {
      if (edits.get(this.base[i]!.toLowerCase())?.replaces !== true) {
        fields.push(this.base[i]!, this.base[i + 1]!)
      }
    }
    for (const { name, values } of edits.values()) {
      for (const value of values) fields.push(name, value)
    }
    return fields
  }
}

/** The answer a plugin or the gateway itself gave. */
export interface Answer {
  readonly body: string | Buffer | undefined
  /** Whether the gateway failed (`error`) or a plugin answered (`exit`); both log as source `kong`. */
  readonly source: 'exit' | 'error'
}

/** Whoever speaks the protocol that the client wants its connection to become. */
export interface Upgrade {
  /** Throws when the upstream's answer, of which `response.base` has the fields, is no agreement. */
  check(exchange: HttpExchange): void
  /** Takes over both connections: the upstream's, paused, and the client's, to which `fields` go. */
  take(exchange: HttpExchange, upstream: Socket, fields: readonly string[]): void
}

const ID_BYTES = 16
/** Random bytes for ids: drawn for many requests at once, a tenth of the price of a UUID each. */
const pool = Buffer.allocUnsafeSlow(256 * ID_BYTES)
let used = pool.length

/** 32 hexadecimal digits. */
function newId(): string {
  if (used === pool.length) {
    randomFillSync(pool)
    used = 0
  }
  used += ID_BYTES
  return pool.toString('hex', used - ID_BYTES, used)
}

/** One request in one thread. Lives from the parsed head to the last byte of the response. */
export class HttpExchange implements Exchange {
  readonly id: string
  readonly startedAt: number
  /** `performance.now()` at the start, for latencies. */
  readonly startedMark: number
  readonly request: Request
  readonly upstream: Upstream
  readonly response = new Response()
  readonly directory: Directory
  readonly raw: RawRequest
  readonly rawResponse: RawResponse
  /** The protocol spoken; the version a request line claims does not tell. */
  readonly http2: boolean
  readonly options: ExchangeOptions
  /** The route and what requests need of it; undefined until routing. */
  match: Match | undefined = undefined
  service: Service | undefined = undefined
  consumer: Consumer | undefined = undefined
  credential: Credential | undefined = undefined
  groups: readonly string[] | undefined = undefined
  answer: Answer | undefined = undefined
  /** Trailers of an error answer to a gRPC call. */
  grpcEnding: Readonly<Record<string, string>> | undefined = undefined
  /** Fields the log record gets besides its own. */
  readonly logFields: Record<string, unknown> = {}
  /** Instances whose later phases run for this exchange. */
  selected: readonly Instance[] = []
  target: ServiceUpstream | undefined = undefined
  affinity: string | undefined = undefined
  affinityCookie: string | undefined = undefined
  tries: Try[] = []
  /** Marks of `performance.now()`: the last try's start, the first response byte, its last. */
  sentMark = 0
  firstByteMark = 0
  lastByteMark = 0
  upstreamStatuses: number[] = []
  /** The protocol version of the upstream's answer. */
  upstreamVersion: '1.1' | '2' = '1.1'
  bytesReceived = 0
  bytesSent = 0
  /** Close the connection after this response: its framing cannot be trusted. */
  closing = false
  /** For a request that asks to switch protocols; undefined for all others. */
  upgrade: Upgrade | undefined = undefined
  #accepted = false
  #buffered: Promise<Buffer> | undefined = undefined
  #record: string | undefined = undefined
  #notes: Map<object, unknown> | undefined = undefined

  constructor(
    raw: RawRequest,
    rawResponse: RawResponse,
    target: string,
    directory: Directory,
    options: ExchangeOptions
  ) {
    this.id = newId()
    this.startedAt = Date.now()
    this.startedMark = performance.now()
    this.raw = raw
    this.rawResponse = rawResponse
    this.http2 = 'stream' in raw
    this.directory = directory
    this.options = options
    this.request = new Request(raw, target, options)
    this.upstream = new Upstream(this.request)
  }

  get route(): Route | undefined {
    return this.match?.route
  }

  get notes(): Map<object, unknown> {
    this.#notes ??= new Map()
    return this.#notes
  }

  /** Whether the client makes a gRPC call, which is told of errors in trailers. */
  get isGrpc(): boolean {
    const { httpVersion, headers } = this.request
    return httpVersion === '2.0' && headers['content-type']?.startsWith('application/grpc') === true
  }

  /** Whether the client asks for another protocol on a stream of HTTP/2 (RFC 8441), not a connection. */
  get tunnels(): boolean {
    return this.http2 && this.upgrade !== undefined
  }

  get ended(): boolean {
    return this.answer !== undefined
  }

  authenticate(
    consumer: Consumer | undefined,
    credential: Credential | undefined,
    identifier?: string,
    groups?: readonly string[]
  ): void {
    const { upstream } = this
    this.consumer = consumer
    this.credential = credential
    if (groups !== undefined) this.groups = groups
    setOrClear(upstream, 'X-Consumer-ID', consumer?.id)
    setOrClear(upstream, 'X-Consumer-Custom-ID', consumer?.custom_id)
    setOrClear(upstream, 'X-Consumer-Username', consumer?.username)
    setOrClear(
      upstream,
      'X-Credential-Identifier',
      credential === undefined ? undefined : identifier
    )
    setOrClear(upstream, 'X-Anonymous-Consumer', credential === undefined ? 'true' : undefined)
  }

  exit(status: number, body?: string | Buffer | object, headers?: Record<string, string>): void {
    const structured = body !== undefined && typeof body !== 'string' && !Buffer.isBuffer(body)
    const base = structured ? ['Content-Type', 'application/json; charset=utf-8'] : []
    this.#answer(
      status,
      structured ? JSON.stringify(body) : (body as string | Buffer | undefined),
      base,
      headers,
      'exit'
    )
  }

  error(status: number, message?: string, headers?: Record<string, string>): void {
    if (this.isGrpc) {
      this.#answer(status, undefined, ['Content-Type', 'application/grpc'], headers, 'exit')
      this.grpcEnding = {
        'grpc-status': `${grpcStatus(status)}`,
        'grpc-message': encodeURIComponent(message ?? defaultMessage(status))
      }
      return
    }
    const { contentType, body } = errorBody(
      status,
      message ?? defaultMessage(status),
      this.request.headers.accept,
      this.id
    )
    this.#answer(status, body, ['Content-Type', contentType], headers, 'exit')
  }

  /** Answers with an error of the gateway itself rather than of a plugin. */
  fail(status: number, contentType: string, body: string): void {
    this.#answer(status, body, ['Content-Type', contentType], undefined, 'error')
  }

  #answer(
    status: number,
    body: string | Buffer | undefined,
    base: string[],
    headers: Record<string, string> | undefined,
    source: Answer['source']
  ): void {
    this.response.status = status
    this.response.base = base
    if (headers !== undefined) {
      for (const [name, value] of Object.entries(headers)) this.response.setHeader(name, value)
    }
    this.answer = { body, source }
  }

  /** The body is about to be read: a client that waits for that is told to send it (RFC 9110 §10.1.1). */
  acceptBody(): void {
    if (this.#accepted || this.request.headers.expect === undefined) return
    this.#accepted = true
    if (this.request.httpVersion !== '1.0' && !this.rawResponse.headersSent) {
      this.rawResponse.writeContinue()
    }
  }

  /** What is wrong with the trailers of a body that has ended; undefined when nothing is. */
  trailersProblem(): Error | undefined {
    const { maxTrailers } = this.options
    return this.raw.rawTrailers.length > maxTrailers * 2
      ? new TrailersTooMany(maxTrailers)
      : undefined
  }

  body(limit = this.options.maxBufferedBody): Promise<Buffer> {
    this.#buffered ??= this.#buffer(Math.min(limit, this.options.maxBufferedBody))
    return this.#buffered
  }

  async #buffer(limit: number): Promise<Buffer> {
    const { raw } = this
    const length = Number(raw.headers['content-length'] ?? Number.POSITIVE_INFINITY)
    const block = new ByteBlock(Math.min(length, limit))
    this.acceptBody()
    let timer: NodeJS.Timeout | undefined
    await new Promise<void>((resolve, reject) => {
      timer = setTimeout(() => reject(new BodyTimeout()), this.options.bodyTimeout)
      raw.on('data', (chunk: Buffer) => {
        timer!.refresh()
        if (block.length + chunk.length > limit) {
          raw.pause()
          raw.removeAllListeners('data')
          reject(new BodyTooLarge(limit))
        } else {
          block.append(chunk)
        }
      })
      raw.once('end', () => {
        const problem = this.trailersProblem()
        if (problem === undefined) resolve()
        else reject(problem)
      })
      raw.once('close', () => reject(new BodyAborted()))
      raw.once('error', () => reject(new BodyAborted()))
    }).finally(() => clearTimeout(timer))
    const body = block.bytes()
    this.bytesReceived = body.length
    this.upstream.body ??= body
    return body
  }

  record(): string {
    this.#record ??= writeRecord(this)
    return this.#record
  }
}

function setOrClear(upstream: Upstream, name: string, value: string | undefined): void {
  if (value === undefined) upstream.removeHeader(name)
  else upstream.setHeader(name, value)
}
