import { type IncomingMessage, ServerResponse } from 'node:http'
import type { Duplex } from 'node:stream'
import { type FastifyInstance, type FastifyRequest, fastify } from 'fastify'
import type { Logger } from '../plugins/plugin.ts'
import type { ExchangeOptions, HttpExchange } from './exchange.ts'
import type { Handler } from './handler.ts'
import type { Peer } from './upstream.ts'

/** Fields of the opening handshake (RFC 6455 §4.1) that each hop makes itself. */
const HANDSHAKE = new Set([
  'connection',
  'upgrade',
  'content-length',
  'sec-websocket-key',
  'sec-websocket-version',
  'sec-websocket-extensions',
  'sec-websocket-protocol'
])

/** Where one admitted upgrade goes; found by its raw request. */
interface Destination {
  readonly origin: string
  readonly headers: Readonly<Record<string, string>>
}

/** Whether a request asks for a WebSocket; every other `Upgrade` is served as a plain request. */
export function isWebSocketUpgrade(request: IncomingMessage): boolean {
  return request.method === 'GET' && request.headers.upgrade?.toLowerCase() === 'websocket'
}

/**
 * Carries WebSocket traffic through @fastify/http-proxy: requests run through the life of every
 * other request up to forwarding; what is admitted is handed to a Fastify instance that never
 * listens. Instances are made on first use, one per TLS verification policy.
 */
export class WebSockets {
  readonly #handler: Handler
  readonly #log: Logger
  readonly #tlsVerify: boolean
  readonly #carriers = new Map<boolean, Promise<FastifyInstance>>()
  readonly #destinations = new WeakMap<IncomingMessage, Destination>()
  readonly #sockets = new Set<Duplex>()

  constructor(handler: Handler, log: Logger, tlsVerify: boolean) {
    this.#handler = handler
    this.#log = log
    this.#tlsVerify = tlsVerify
  }

  async serve(
    raw: IncomingMessage,
    socket: Duplex,
    head: Buffer,
    options: ExchangeOptions
  ): Promise<void> {
    const response = new ServerResponse(raw)
    response.assignSocket(socket as never)
    response.shouldKeepAlive = false
    response.once('finish', () => socket.end())
    const abandon = () => response.destroy()
    socket.once('error', abandon)
    const exchange = this.#handler.begin(raw, response, raw.url!, options)
    if (!(await this.#handler.admit(exchange))) return
    const peer = await this.#pick(exchange)
    if (peer === undefined || socket.destroyed) return
    response.detachSocket(socket as never)
    response.removeAllListeners('finish')
    this.#destinations.set(raw, this.#destination(exchange, peer))
    const { path, query } = exchange.upstream
    raw.url = query === undefined ? path : `${path}?${query}`
    exchange.response.status = 101
    this.#sockets.add(socket)
    socket.once('close', () => {
      this.#sockets.delete(socket)
      response.emit('close')
    })
    const carrier = await this.#carrier(exchange.service!.tls_verify ?? this.#tlsVerify)
    carrier.server.emit('upgrade', raw, socket, head)
  }

  async #pick(exchange: HttpExchange): Promise<Peer | undefined> {
    try {
      const peer = await this.#handler.targetOf(exchange).pick(exchange, undefined)
      if (peer === undefined) this.#handler.failed(exchange, undefined)
      return peer
    } catch (error) {
      this.#handler.failed(exchange, error as Error)
      return undefined
    }
  }

  #destination(exchange: HttpExchange, peer: Peer): Destination {
    const headers: Record<string, string> = {}
    const fields = this.#handler.upstreamHeaders(exchange, peer, true)
    for (let i = 0; i < fields.length; i += 2) {
      const name = fields[i]!
      if (!HANDSHAKE.has(name.toLowerCase())) headers[name] = fields[i + 1]!
    }
    // Over TLS the name must stand in the URL: SNI and verification follow it.
    const { scheme } = this.#handler.targetOf(exchange)
    const host = scheme === 'https' ? exchange.service!.host : peer.ip
    const bracketed = host.includes(':') ? `[${host}]` : host
    return { origin: `${scheme}://${bracketed}:${peer.port}`, headers }
  }

  #carrier(verify: boolean): Promise<FastifyInstance> {
    let carrier = this.#carriers.get(verify)
    if (carrier === undefined) {
      carrier = this.#open(verify)
      this.#carriers.set(verify, carrier)
    }
    return carrier
  }

  async #open(verify: boolean): Promise<FastifyInstance> {
    const { default: proxy } = await import('@fastify/http-proxy')
    const app = fastify({ logger: false })
    await app.register(proxy, {
      upstream: '',
      websocket: true,
      replyOptions: {
        getUpstream: (request: FastifyRequest) =>
          this.#destinations.get(request.raw as IncomingMessage)!.origin
      },
      wsClientOptions: {
        rejectUnauthorized: verify,
        rewriteRequestHeaders: (_headers: unknown, request: FastifyRequest) =>
          this.#destinations.get(request.raw as IncomingMessage)!.headers
      }
    } as never)
    await app.ready()
    return app
  }

  /** Open WebSocket connections of this thread. */
  get open(): number {
    return this.#sockets.size
  }

  /** Ends every connection. */
  async close(): Promise<void> {
    for (const carrier of this.#carriers.values()) {
      await (await carrier)
        .close()
        .catch(error => this.#log.warn({ err: error }, 'websocket carrier'))
    }
    for (const socket of this.#sockets) socket.destroy()
  }
}
