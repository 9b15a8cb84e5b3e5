import type { IncomingHttpHeaders, ServerResponse } from 'node:http'
import { constants, type Http2ServerResponse, type ServerHttp2Stream } from 'node:http2'
import type { Socket } from 'node:net'
import { UpstreamTrailers } from '../errors.ts'
import { linger } from '../listener/turns.ts'
import type { Chains } from '../plugins/chain.ts'
import { runAccess, runLog, runPhase } from '../plugins/chain.ts'
import type { Instance } from '../plugins/instance.ts'
import type { ClientRequest, Directory, Exchange, Logger } from '../plugins/plugin.ts'
import { countRequest, type RequestCounts } from './counts.ts'
import type { ExchangeOptions, RawRequest, RawResponse, Upgrade } from './exchange.ts'
import { HttpExchange } from './exchange.ts'
import { httpLayerBody, upstreamFailure } from './failure.ts'
import { Forward, type ForwardOwner } from './forward.ts'
import { framingProblem } from './framing.ts'
import { Gathering, type GatheringOwner } from './gathering.ts'
import {
  buildUpstreamHeaders,
  filterResponseHeaders,
  filterTrailers,
  groupFields,
  listsTrailers,
  type TrailersAfter
} from './headers.ts'
import { type HeldBody, HoldBounds } from './held-body.ts'
import type { Router } from './router.ts'
import type { Peer, Upstreams } from './upstream.ts'

/** What requests are served with: everything compiled from one configuration and its secrets. */
export interface Serving {
  readonly router: Router
  readonly chains: Chains
  readonly upstreams: Upstreams
  readonly directory: Directory
  /** Pins everything above until the matching {@link release}. */
  acquire(): void
  release(): void
}

/** The gateway's own header fields; which of them are sent. */
export interface OwnHeaders {
  /** `X-Postern` or `X-Kong`: the prefix of the fields below. */
  readonly namespace: string
  readonly server: boolean
  readonly via: boolean
  readonly latency: boolean
  readonly requestId: boolean
  readonly upstreamStatus: boolean
  /** The request id towards the upstream. */
  readonly upstreamRequestId: boolean
}

export interface HandlerOptions {
  /** `postern/0.1.0`: the `Server` and `Via` token. */
  readonly product: string
  readonly ownHeaders: OwnHeaders
  /** Most bytes of a request body; 0 is unlimited. */
  readonly maxBodySize: number
  /** Bytes of a request body that are held in memory before the upstream is asked. */
  readonly requestBuffer: number
  /** Most bytes of a request target. */
  readonly maxUriSize: number
  /** Most fields of a request head. */
  readonly maxHeaders: number
  /** Milliseconds a client that reads nothing keeps its response. */
  readonly sendTimeout: number
  /** `on` answers 400 to TLS clients without a valid certificate. */
  readonly clientCertificates: 'off' | 'optional' | 'on'
  readonly accessLog: boolean
  readonly counts: RequestCounts
  readonly log: Logger
}

const URI_TOO_LONG = { status: 414, message: 'URI too long' }
const HEADERS_TOO_LARGE = { status: 400, message: 'Request header or cookie too large' }
const BODY_TOO_LARGE = { status: 413, message: 'Payload too large' }
const EXPECTATION_FAILED = { status: 417, message: 'Expectation failed' }

type Step = (exchange: HttpExchange) => void | Promise<void>

const EXCHANGE = Symbol('exchange')
type Carrier = RawResponse & { [EXCHANGE]?: Pinned }

/** An exchange with what it pinned, its body as far as it is held and, once it is forwarded, its forward. */
interface Pinned {
  readonly exchange: HttpExchange
  readonly serving: Serving
  readonly handler: Handler
  gathering: Gathering | undefined
  forward: Forward | undefined
}

/** `Upgrade` and `Connection` values of the 426 that sends a client to TLS (RFC 9110 §15.5.22). */
const UPGRADE_TO_TLS = { Connection: 'Upgrade', Upgrade: 'TLS/1.2, HTTP/1.1' }

/** Runs requests through their life; one per data-plane thread. */
export class Handler implements ForwardOwner, GatheringOwner {
  readonly maxBodySize: number
  readonly #options: HandlerOptions
  readonly #current: () => Serving
  readonly sendTimeout: number
  readonly #holdBounds: HoldBounds
  /** Our part of `Via` by the version of the upstream's answer (RFC 9110 §7.6.3). */
  readonly #via: Readonly<Record<'1.1' | '2', string>>
  readonly #names: {
    readonly requestId: string
    readonly upstreamLatency: string
    readonly proxyLatency: string
    readonly responseLatency: string
    readonly upstreamStatus: string
  }
  #inFlight = 0

  /** `current` gives what new requests are served with. */
  constructor(options: HandlerOptions, current: () => Serving) {
    this.#options = options
    this.#current = current
    this.maxBodySize = options.maxBodySize
    this.sendTimeout = options.sendTimeout
    this.#holdBounds = new HoldBounds(options.requestBuffer)
    this.#via = { '1.1': `1.1 ${options.product}`, '2': `2 ${options.product}` }
    const { namespace } = options.ownHeaders
    this.#names = {
      requestId: `${namespace}-Request-Id`,
      upstreamLatency: `${namespace}-Upstream-Latency`,
      proxyLatency: `${namespace}-Proxy-Latency`,
      responseLatency: `${namespace}-Response-Latency`,
      upstreamStatus: `${namespace}-Upstream-Status`
    }
  }

  /** Exchanges that have begun and not yet ended. */
  get inFlight(): number {
    return this.#inFlight
  }

  /** The life of a request: each step in order, until one of them answers. */
  readonly #life: readonly Step[] = [
    exchange => this.#refuseUnfit(exchange),
    exchange => this.#rewrite(exchange),
    exchange => this.#route(exchange),
    exchange => this.#checkProtocol(exchange),
    exchange => this.#access(exchange),
    exchange => this.#forward(exchange)
  ]

  /**
   * Serves one request whose head was parsed; `target` is its request target as received. `upgrade`
   * takes the connections when the client asks for another protocol and the upstream agrees. The
   * exchange ends when its response closes.
   */
  serve(
    raw: RawRequest,
    rawResponse: RawResponse,
    target: string,
    options: ExchangeOptions,
    upgrade?: Upgrade
  ): void {
    const serving = this.#current()
    serving.acquire()
    this.#inFlight++
    const exchange = new HttpExchange(raw, rawResponse, target, serving.directory, options)
    exchange.selected = serving.chains.globals.fixed!
    exchange.upgrade = upgrade
    const carrier = rawResponse as Carrier
    carrier[EXCHANGE] = {
      exchange,
      serving,
      handler: this,
      gathering: undefined,
      forward: undefined
    }
    carrier.on('close', onClose)
    if (upgrade === undefined && 'stream' in raw && !raw.stream.endAfterHeaders)
      stopWhenAnswered(raw.stream)
    this.#live(exchange, 0)
  }

  #live(exchange: HttpExchange, from: number): void {
    for (let i = from; i < this.#life.length; i++) {
      if (exchange.ended) {
        this.#answer(exchange)
        return
      }
      try {
        const pending = this.#life[i]!(exchange)
        if (pending !== undefined) {
          pending.then(
            () => this.#live(exchange, i + 1),
            error => this.#crash(exchange, error)
          )
          return
        }
      } catch (error) {
        this.#crash(exchange, error)
        return
      }
    }
    if (exchange.ended) this.#answer(exchange)
  }

  /** Refuses what is ambiguous or exceeds a limit before anything acts on it. */
  #refuseUnfit(exchange: HttpExchange): void {
    const problem =
      framingProblem(exchange.raw, exchange.request.target) ?? this.#exceeded(exchange.request)
    if (problem === undefined) {
      if (this.#options.clientCertificates === 'on') this.#demandCertificate(exchange)
      return
    }
    exchange.closing = true
    this.#fail(exchange, problem.status, problem.message)
  }

  #exceeded({ target, rawHeaders, headers, httpVersion }: ClientRequest) {
    const { maxUriSize, maxHeaders } = this.#options
    if (target.length > maxUriSize) return URI_TOO_LONG
    if (rawHeaders.length > maxHeaders * 2 && fieldsIn(rawHeaders) > maxHeaders)
      return HEADERS_TOO_LARGE
    if (this.maxBodySize > 0 && Number(headers['content-length']) > this.maxBodySize) {
      return BODY_TOO_LARGE
    }
    const { expect } = headers
    // RFC 9110 §10.1.1: 100-continue is the only expectation there is, and 1.0 clients have none.
    if (expect !== undefined && httpVersion !== '1.0' && expect.toLowerCase() !== '100-continue') {
      return EXPECTATION_FAILED
    }
    return undefined
  }

  #demandCertificate(exchange: HttpExchange): void {
    const verified = exchange.request.tls?.clientVerify ?? 'SUCCESS'
    if (verified === 'SUCCESS') return
    exchange.closing = true
    this.#fail(
      exchange,
      400,
      verified === 'NONE' ? 'No required SSL certificate was sent' : 'The SSL certificate error'
    )
  }

  #rewrite(exchange: HttpExchange): void | Promise<void> {
    if (exchange.selected.length === 0) return
    return runPhase('rewrite', exchange.selected, exchange, this.#hookFailed)
  }

  #route(exchange: HttpExchange): void {
    const { request } = exchange
    const match = this.#servingOf(exchange).router.match({
      method: request.method,
      host: request.host,
      port: request.port,
      path: request.path,
      rawHeaders: request.rawHeaders,
      sni: request.scheme === 'https' ? (request.tls?.sni ?? '') : undefined
    })
    if (match === undefined) {
      exchange.error(404, 'no Route matched with those values')
      return
    }
    const { service, upstreamPath } = match.traits
    exchange.match = match
    exchange.service = service
    request.captures = match.captures
    if (service !== undefined) exchange.upstream.path = upstreamPath(request.path, match.prefix)
  }

  /** Checks after the match whether the route may be used over this connection (entities of kind grpc too). */
  #checkProtocol(exchange: HttpExchange): void {
    const { request } = exchange
    const match = exchange.match!
    if (match.traits.tlsOnly) {
      const status = match.route.https_redirect_status_code
      const proto = request.trusted ? request.headers['x-forwarded-proto'] : undefined
      if ((proto ?? request.scheme) !== 'https') {
        if (status === 426) exchange.error(426, 'Please use HTTPS protocol', UPGRADE_TO_TLS)
        else
          exchange.exit(status, undefined, { Location: `https://${request.host}${request.target}` })
        return
      }
    }
    if (match.traits.grpc) this.#checkGrpc(exchange, match.route.protocols)
  }

  #checkGrpc(exchange: HttpExchange, protocols: readonly string[]): void {
    const { request } = exchange
    const isGrpc = request.headers['content-type']?.startsWith('application/grpc') === true
    if (!isGrpc) {
      exchange.error(415, 'Non-gRPC request matched gRPC route')
    } else if (request.httpVersion !== '2.0') {
      exchange.error(426, 'Please use HTTP2 protocol', { Connection: 'Upgrade', Upgrade: 'HTTP/2' })
    } else if (!protocols.includes('grpc') && request.scheme === 'http') {
      exchange.exit(200, undefined, {
        'Content-Type': 'application/grpc',
        'grpc-status': '1',
        'grpc-message': 'gRPC request matched gRPCs route'
      })
    }
  }

  #access(exchange: HttpExchange): void | Promise<void> {
    const chain = this.#servingOf(exchange).chains.for(exchange.match!, exchange.service)
    const selected = runAccess(chain, exchange, this.#hookFailed)
    if (selected instanceof Promise) {
      return selected.then(instances => {
        exchange.selected = instances
      })
    }
    exchange.selected = selected
  }

  #forward(exchange: HttpExchange): void {
    if (exchange.service === undefined) {
      exchange.error(503, 'no Service found with those values')
      return
    }
    if (exchange.tunnels && exchange.service.protocol.startsWith('grpc')) {
      exchange.error(501, 'WebSockets are not opened to gRPC services')
      return
    }
    if (this.#holdBounds.each > 0 && gathers(exchange)) {
      const pinned = (exchange.rawResponse as Carrier)[EXCHANGE]
      if (pinned !== undefined) pinned.gathering = new Gathering(exchange, this.#holdBounds, this)
    } else {
      this.#send(exchange, undefined)
    }
  }

  gathered(exchange: HttpExchange, gathering: Gathering, error: Error | undefined): void {
    if (error === undefined) this.#send(exchange, gathering.body)
    else this.failed(exchange, error)
  }

  #send(exchange: HttpExchange, held: HeldBody | undefined): void {
    const pinned = (exchange.rawResponse as Carrier)[EXCHANGE]
    if (pinned === undefined) return
    const service = exchange.service!
    exchange.target = pinned.serving.upstreams.of(service)
    // RFC 9113 §8.2.2: HTTP/2 knows no upgrade, so that one goes there as the plain request it is too.
    if (service.protocol === 'grpc' || service.protocol === 'grpcs') exchange.upgrade = undefined
    const forward = new Forward(exchange, this, hasBody(exchange), held)
    pinned.forward = forward
    forward.attempt()
  }

  /** The gateway's own field lines for an answer to what never became a request. */
  answerFields(id: string): string {
    const { ownHeaders, product } = this.#options
    return (
      (ownHeaders.server ? `Server: ${product}\r\n` : '') +
      (ownHeaders.requestId ? `${this.#names.requestId}: ${id}\r\n` : '')
    )
  }

  // ForwardOwner

  upstreamHeaders(exchange: HttpExchange, peer: Peer, bodyLength: number | undefined): string[] {
    const { request, upstream } = exchange
    const { traits, prefix } = exchange.match!
    const { ownHeaders } = this.#options
    return buildUpstreamHeaders({
      rawHeaders: request.rawHeaders,
      edits: upstream.edits,
      host: traits.preserveHost ? request.authority : peer.authority,
      clientIp: request.clientIp,
      remoteAddress: request.remoteAddress,
      scheme: request.scheme,
      forwardedHost: request.host,
      port: exchange.options.listener.port,
      rawPath: request.rawPath,
      prefix: traits.stripPath && prefix !== '/' ? prefix : undefined,
      trusted: request.trusted,
      httpVersion: request.httpVersion,
      requestId: ownHeaders.upstreamRequestId ? exchange.id : undefined,
      requestIdHeader: this.#names.requestId,
      via: this.#options.product,
      upgrade: exchange.upgrade !== undefined,
      bodyLength
    })
  }

  informational(exchange: HttpExchange, status: number, headers: IncomingHttpHeaders): void {
    // RFC 9110 §15.2: 1.0 clients do not know interim responses. Only Early Hints carry meaning on.
    const { link } = headers
    const { raw, rawResponse } = exchange
    if (status !== 103 || exchange.request.httpVersion === '1.0' || link === undefined) return
    if (rawResponse.headersSent || rawResponse.destroyed) return
    // Node's own method refuses values that list several links.
    if (exchange.http2) {
      ;(rawResponse as Http2ServerResponse).stream.additionalHeaders({ ':status': 103, link })
    } else {
      raw.socket.write(`HTTP/1.1 103 Early Hints\r\nLink: ${link}\r\n\r\n`, 'latin1')
    }
  }

  upgraded(exchange: HttpExchange, rawHeaders: readonly (Buffer | string)[], socket: Socket): void {
    // Until whoever speaks the protocol listens, an error of the socket is only its end.
    socket.on('error', () => socket.destroy())
    const upgrade = exchange.upgrade!
    exchange.response.base = filterResponseHeaders(rawHeaders, 101, 'nothing')
    try {
      upgrade.check(exchange)
    } catch (error) {
      socket.destroy()
      this.failed(exchange, error as Error)
      return
    }
    exchange.response.status = exchange.tunnels ? 200 : 101
    const pending = runPhase('response', exchange.selected, exchange, this.#hookFailed)
    if (pending === undefined) upgrade.take(exchange, socket, this.#proxiedFields(exchange))
    else
      pending.then(
        () => upgrade.take(exchange, socket, this.#proxiedFields(exchange)),
        error => {
          socket.destroy()
          this.#crash(exchange, error)
        }
      )
  }

  head(
    exchange: HttpExchange,
    status: number,
    statusText: string | undefined,
    rawHeaders: readonly (Buffer | string)[]
  ): void | Promise<void> {
    const { response } = exchange
    response.status = status
    response.base = filterResponseHeaders(rawHeaders, status, trailersAfter(exchange, status))
    const pending = runPhase('response', exchange.selected, exchange, this.#hookFailed)
    if (pending !== undefined)
      return pending.then(() => this.#writeProxiedHead(exchange, statusText))
    this.#writeProxiedHead(exchange, statusText)
  }

  #writeProxiedHead(exchange: HttpExchange, statusText: string | undefined): void {
    writeHead(exchange, exchange.response.status, statusText, this.#proxiedFields(exchange))
  }

  /** The fields of an upstream's answer as they go to the client, with our own. */
  #proxiedFields(exchange: HttpExchange): string[] {
    const { ownHeaders, product } = this.#options
    const fields = exchange.response.fields()
    let server = false
    let via = -1
    for (let i = 0; i < fields.length; i += 2) {
      const name = fields[i]!
      if (name.length === 6 && name.toLowerCase() === 'server') server = true
      else if (name.length === 3 && name.toLowerCase() === 'via') via = i
    }
    if (ownHeaders.server && !server) fields.push('Server', product)
    if (ownHeaders.via) {
      const own = this.#via[exchange.upstreamVersion]
      if (via === -1) fields.push('Via', own)
      else fields[via + 1] = `${fields[via + 1]}, ${own}`
    }
    if (ownHeaders.latency) {
      fields.push(
        this.#names.upstreamLatency,
        `${Math.round(exchange.firstByteMark - exchange.sentMark)}`,
        this.#names.proxyLatency,
        `${Math.round(exchange.sentMark - exchange.startedMark)}`
      )
    }
    if (exchange.affinityCookie !== undefined) fields.push('Set-Cookie', exchange.affinityCookie)
    if (ownHeaders.requestId) fields.push(this.#names.requestId, exchange.id)
    if (ownHeaders.upstreamStatus) {
      fields.push(this.#names.upstreamStatus, `${exchange.upstreamStatuses.at(-1)}`)
    }
    exchange.response.sent = fields
    return fields
  }

  trailers(exchange: HttpExchange, rawTrailers: readonly (Buffer | string)[]): void {
    if (!wantsTrailers(exchange)) return
    const { maxTrailers } = exchange.options
    if (rawTrailers.length > maxTrailers * 2) {
      const error = new UpstreamTrailers(maxTrailers)
      this.#options.log.error(
        { request_id: exchange.id, code: error.code, service: exchange.service?.name },
        `a response was cut off: ${error.message}`
      )
      throw error
    }
    const fields = filterTrailers(rawTrailers)
    if (exchange.http2) {
      const trailers: Record<string, string> = {}
      for (let i = 0; i < fields.length; i += 2) trailers[fields[i]!] = fields[i + 1]!
      ;(exchange.rawResponse as Http2ServerResponse).addTrailers(trailers)
    } else {
      const pairs: [string, string][] = []
      for (let i = 0; i < fields.length; i += 2) pairs.push([fields[i]!, fields[i + 1]!])
      ;(exchange.rawResponse as ServerResponse).addTrailers(pairs)
    }
  }

  failed(exchange: HttpExchange, error: (Error & { code?: string }) | undefined): void {
    if (error === undefined) {
      exchange.error(503, 'failure to get a peer from the ring-balancer')
    } else {
      const { status, message } = upstreamFailure(error)
      const attempt = exchange.tries.at(-1)
      if (attempt !== undefined) attempt.code = status
      // What the client itself did wrong is nobody's alarm here.
      this.#options.log[status < 500 ? 'debug' : 'error'](
        {
          request_id: exchange.id,
          code: error.code ?? error.name,
          service: exchange.service?.name ?? exchange.service?.id,
          peer: attempt === undefined ? undefined : `${attempt.peer.ip}:${attempt.peer.port}`,
          tries: exchange.tries.length
        },
        `no answer from the upstream: ${error.message}`
      )
      if (status < 500) exchange.closing = true
      if (error.code?.startsWith('POSTERN_DNS')) exchange.error(status, message)
      else this.#fail(exchange, status, message)
    }
    this.#answer(exchange)
  }

  #fail(exchange: HttpExchange, status: number, message: string): void {
    if (exchange.isGrpc) {
      exchange.error(status, message)
      return
    }
    const { accept, 'content-type': contentType } = exchange.request.headers
    const answer = httpLayerBody(status, message, accept, contentType, exchange.id)
    exchange.fail(status, answer.contentType, answer.body)
  }

  #answer(exchange: HttpExchange): void {
    const pending = runPhase('response', exchange.selected, exchange, this.#hookFailed)
    if (pending === undefined) this.#writeAnswer(exchange)
    else
      pending.then(
        () => this.#writeAnswer(exchange),
        error => this.#crash(exchange, error)
      )
  }

  #writeAnswer(exchange: HttpExchange): void {
    const { ownHeaders, product } = this.#options
    const { rawResponse, response } = exchange
    if (rawResponse.headersSent || rawResponse.destroyed) return
    // RFC 9113 §8.5: any 2xx would tell the client that its tunnel is open.
    if (exchange.tunnels && response.status < 300) response.status = 501
    const body = exchange.answer!.body
    const fields = response.fields()
    if (ownHeaders.server) fields.push('Server', product)
    if (ownHeaders.latency) {
      fields.push(
        this.#names.responseLatency,
        `${Math.round(performance.now() - exchange.startedMark)}`
      )
    }
    if (ownHeaders.requestId) fields.push(this.#names.requestId, exchange.id)
    response.sent = fields
    if (exchange.grpcEnding !== undefined) {
      // A gRPC client reads how its call ended from the trailers of a response that is always 200.
      writeHead(exchange, 200, undefined, fields)
      ;(rawResponse as Http2ServerResponse).addTrailers(exchange.grpcEnding)
      rawResponse.end()
      return
    }
    const length = body === undefined ? 0 : Buffer.byteLength(body)
    // RFC 9110 §8.6: no Content-Length with 1xx and 204.
    if (response.status !== 204 && response.status >= 200)
      fields.push('Content-Length', `${length}`)
    if (exchange.closing && !exchange.http2) fields.push('Connection', 'close')
    writeHead(exchange, response.status, undefined, fields)
    if (body !== undefined && exchange.request.method !== 'HEAD') {
      exchange.bytesSent = length
      rawResponse.end(body)
    } else {
      rawResponse.end()
    }
    if (exchange.closing) closeAfter(exchange)
  }

  /** A bug or a hook that broke the exchange: 500 if nothing was sent, else a cut connection. */
  #crash(exchange: HttpExchange, error: unknown): void {
    this.#options.log.error(
      { request_id: exchange.id, err: error },
      'an exchange failed unexpectedly'
    )
    if (exchange.rawResponse.headersSent) {
      exchange.rawResponse.destroy()
      return
    }
    this.#fail(exchange, 500, 'An unexpected error occurred')
    this.#writeAnswer(exchange)
  }

  readonly #hookFailed = (exchange: Exchange, instance: Instance, error: unknown): void => {
    // A body that a hook reads may be the client's fault.
    const { status, message } = upstreamFailure(error as Error)
    this.#options.log[status < 500 ? 'debug' : 'error'](
      { request_id: exchange.id, plugin: instance.plugin.name, err: error },
      `plugin ${instance.plugin.name} failed`
    )
    if (exchange.response.status !== 0) return
    if (status < 500) exchange.error(status, message)
    else this.#fail(exchange as HttpExchange, 500, 'An unexpected error occurred')
  }

  #servingOf(exchange: HttpExchange): Serving {
    return (exchange.rawResponse as Carrier)[EXCHANGE]!.serving
  }

  /** The response is out or its connection gone: log, and let go of what was pinned. */
  finish(pinned: Pinned): void {
    const { exchange, serving, gathering, forward } = pinned
    // A reset HTTP/2 stream counts as finished, so whether we ended it is asked too.
    const { writableEnded, writableFinished } = exchange.rawResponse
    if (!writableEnded || !writableFinished) forward?.abort()
    forward?.settle()
    gathering?.release()
    // 499: the client closed before anything was answered.
    if (exchange.response.status === 0) exchange.response.status = 499
    runLog(exchange.selected, exchange, this.#hookFailed)
    const milliseconds = performance.now() - exchange.startedMark
    countRequest(this.#options.counts, exchange.response.status, milliseconds)
    if (this.#options.accessLog) {
      const { request, response } = exchange
      this.#options.log.info(
        {
          request_id: exchange.id,
          client_ip: request.clientIp,
          method: request.method,
          path: request.path,
          status: response.status,
          ms: Math.round(milliseconds)
        },
        'request'
      )
    }
    if (!exchange.http2) boundUnreadBody(exchange.raw)
    this.#inFlight--
    serving.release()
  }
}

/** Milliseconds the rest of a body that was answered early may take to come. */
const UNREAD_BODY_TIMEOUT = 5000

/** Node reads on what is left of a body so that the connection can be used again; not for ever. */
function boundUnreadBody(raw: RawRequest): void {
  if (raw.complete || raw.socket === null || raw.socket.destroyed) return
  const timer = setTimeout(() => raw.socket?.destroy(), UNREAD_BODY_TIMEOUT)
  timer.unref()
  raw.once('end', () => clearTimeout(timer))
  raw.once('close', () => clearTimeout(timer))
}

/**
 * The same over HTTP/2, where a client that goes on sending is told to stop once it has its answer
 * (RFC 9113 §8.1): the stream would stay open for as long as the client leaves it so.
 */
function stopWhenAnswered(stream: ServerHttp2Stream): void {
  // With the trailers, also where there are none, the answer is complete.
  stream.once('wantTrailers', onAnswered)
  // A head that ends its stream, as that of a 204, is not followed by any.
  stream.once('finish', onAnswered)
}

function onAnswered(this: ServerHttp2Stream): void {
  if (this.readableEnded || this.destroyed) return
  // What lies unread counts against the memory of the whole session, and keeps the stream from ending.
  // Whoever read the body until now may pause it once more.
  this.on('pause', resumeSoon)
  this.resume()
  if (this.closed) return
  if (this.sentTrailers !== undefined) {
    setImmediate(stop, this)
    return
  }
  const timer = setTimeout(stop, UNREAD_BODY_TIMEOUT, this)
  timer.unref()
  this.once('close', () => clearTimeout(timer))
}

function resumeSoon(this: ServerHttp2Stream): void {
  setImmediate(() => this.resume())
}

function stop(stream: ServerHttp2Stream): void {
  if (!stream.readableEnded && !stream.closed) stream.close(constants.NGHTTP2_NO_ERROR)
}

function onClose(this: RawResponse): void {
  const pinned = (this as Carrier)[EXCHANGE]
  if (pinned === undefined) return
  ;(this as Carrier)[EXCHANGE] = undefined as never
  pinned.handler.finish(pinned)
}

/** Fields of a head without the pseudo-header fields, which stand before them (RFC 9113 §8.3). */
function fieldsIn(rawHeaders: readonly string[]): number {
  let at = 0
  while (rawHeaders[at]?.startsWith(':')) at += 2
  return (rawHeaders.length - at) / 2
}

/** Whether a request carries content (RFC 9112 §6: its framing fields say so). */
function hasBody({ raw, upgrade }: HttpExchange): boolean {
  // RFC 8441: what comes on its stream is the other protocol.
  if (upgrade !== undefined) return false
  if ('stream' in raw) return !raw.stream.endAfterHeaders
  const length = raw.headers['content-length']
  return raw.headers['transfer-encoding'] !== undefined || (length !== undefined && length !== '0')
}

/**
 * Whether the body is gathered before the upstream is asked. A gRPC call may answer each message as it
 * comes, so calls stream whatever the route says.
 */
function gathers(exchange: HttpExchange): boolean {
  const { match, service, upstream } = exchange
  return (
    upstream.body === undefined &&
    hasBody(exchange) &&
    match!.traits.requestBuffering &&
    !service!.protocol.startsWith('grpc')
  )
}

/** RFC 9110 §6.5.1: trailers only go to clients that said they take them. */
function wantsTrailers(exchange: HttpExchange): boolean {
  const { te } = exchange.request.headers
  return typeof te === 'string' && listsTrailers(te)
}

/** Where a `Trailer` field may announce them to the client. */
function trailersAfter(exchange: HttpExchange, status: number): TrailersAfter {
  if (!wantsTrailers(exchange)) return 'nothing'
  if (exchange.http2) return 'any'
  const { method, httpVersion } = exchange.request
  const bodiless = status === 204 || status === 304 || method === 'HEAD'
  return bodiless || httpVersion === '1.0' ? 'nothing' : 'chunks'
}

function writeHead(
  exchange: HttpExchange,
  status: number,
  statusText: string | undefined,
  fields: string[]
): void {
  const { rawResponse } = exchange
  if (exchange.http2) {
    ;(rawResponse as Http2ServerResponse).writeHead(status, groupFields(fields))
  } else if (statusText === undefined || statusText === '') {
    ;(rawResponse as ServerResponse).writeHead(status, fields)
  } else {
    ;(rawResponse as ServerResponse).writeHead(status, statusText, fields)
  }
}

/** Ends the connection once the answer is out: what follows on it cannot be trusted. */
function closeAfter(exchange: HttpExchange): void {
  const { rawResponse, raw } = exchange
  if (exchange.http2) return
  rawResponse.once('finish', () => linger(raw.socket))
}
