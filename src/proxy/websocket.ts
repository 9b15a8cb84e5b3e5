import { createHash } from 'node:crypto'
import {
  Agent,
  type ClientRequest,
  type IncomingHttpHeaders,
  type IncomingMessage,
  ServerResponse
} from 'node:http'
import type { Http2ServerRequest, Http2ServerResponse } from 'node:http2'
import type { Socket } from 'node:net'
import { type FastifyInstance, type FastifyReply, type FastifyRequest, fastify } from 'fastify'
import type { WebSocket, WebSocketServer } from 'ws'
import { UpgradeRefused } from '../errors.ts'
import { linger } from '../listener/turns.ts'
import type { ExchangeOptions, HttpExchange, RawRequest, Upgrade } from './exchange.ts'
import type { Handler } from './handler.ts'
import { isFieldValue } from './headers.ts'
import { join } from './websocket-link.ts'
import { asHandshake, type ClientSide, tunnelOf } from './websocket-tunnel.ts'

/** RFC 6455 §1.3: what a server appends to the key it proves to have read. */
const GUID = '258EAFA5-E914-47DA-95CA-C5AB0DC85B11'
/** RFC 6455 §4.1: 16 bytes in base64. */
const KEY = /^[+/0-9A-Za-z]{22}==$/
/** RFC 6455 §4.1: a list of tokens. */
const PROTOCOLS = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+(?:[\t ]*,[\t ]*[!#$%&'*+.^_`|~0-9A-Za-z-]+)*$/
const DEFLATE = /^permessage-deflate(?:[\t ]*;|$)/i
/** What is offered to upstreams of clients that offer it (RFC 7692 §7.1). */
const DEFLATE_OFFER = 'permessage-deflate; client_max_window_bits'
/** Level and memory for many connections rather than for the last percent of size. */
const DEFLATE_OPTIONS = { zlibDeflateOptions: { level: 3, memLevel: 7 } }
/** Fields of the answer that the gateway's own handshake with the client has. */
const OWN_FIELDS = new Set([
  'sec-websocket-accept',
  'sec-websocket-protocol',
  'sec-websocket-extensions'
])
/** Milliseconds without a byte before the system asks whether a peer is still there. */
export const KEEP_ALIVE = 60_000
/** Milliseconds clients have to answer the closing handshake when the gateway ends. */
const CLOSE_TIMEOUT = 1000
/** What came with a handshake over HTTP/2, where data stands apart from it. */
const NO_BYTES = Buffer.alloc(0)

/**
 * Whether a request is a WebSocket handshake (RFC 6455 §4.2.1). Every other one that asks for an
 * upgrade, a malformed handshake too, is served as the plain request it is without that.
 */
export function isWebSocketUpgrade({ method, headers }: IncomingMessage): boolean {
  return (
    method === 'GET' &&
    headers.upgrade?.toLowerCase() === 'websocket' &&
    KEY.test(headers['sec-websocket-key'] ?? '') &&
    headers['transfer-encoding'] === undefined &&
    isHandshake(headers)
  )
}

/** Whether the fields that a handshake has over any version of HTTP make one (RFC 8441 §5). */
export function isHandshake(headers: IncomingHttpHeaders): boolean {
  return (
    headers['sec-websocket-version'] === '13' &&
    PROTOCOLS.test(headers['sec-websocket-protocol'] ?? 'none') &&
    (headers['content-length'] ?? '0') === '0'
  )
}

/** A handshake the upstream has agreed to, on its way to the client. */
interface Handshake {
  /** The upstream's connection. */
  readonly socket: Socket
  /** What the upstream chose, as its fields say. */
  readonly protocol: string | undefined
  readonly extensions: string | undefined
  /** Field lines for the client besides those of the handshake itself. */
  readonly lines: readonly string[]
  /** Whether the connection is the library's. */
  taken: boolean
}

const HANDSHAKE = Symbol('handshake')
type Shaken = Record<string, string> & { [HANDSHAKE]: Handshake }

/**
 * Gives the client side of @fastify/http-proxy the connection whose handshake was made before: no
 * request is sent, the answer to it is the one the upstream gave.
 */
class HandshakeAgent extends Agent {
  addRequest(request: ClientRequest, { headers }: { readonly headers: Shaken }): void {
    const handshake = headers[HANDSHAKE]
    const { socket, protocol, extensions } = handshake
    handshake.taken = true
    process.nextTick(() => {
      if (socket.destroyed) {
        request.emit('error', new Error('the upstream closed the connection'))
        return
      }
      const answer = {
        headers: {
          upgrade: 'websocket',
          'sec-websocket-accept': acceptOf(String(request.getHeader('sec-websocket-key'))),
          'sec-websocket-protocol': protocol,
          'sec-websocket-extensions': extensions
        }
      }
      request.emit('upgrade', answer, socket, Buffer.alloc(0))
    })
  }
}

function acceptOf(key: string): string {
  return createHash('sha1').update(`${key}${GUID}`).digest('base64')
}

/** The value of a field in a flat list; values of repeated fields are joined. */
function fieldOf(fields: readonly string[], name: string): string | undefined {
  let value: string | undefined
  for (let i = 0; i < fields.length; i += 2) {
    if (fields[i]!.toLowerCase() !== name) continue
    value = value === undefined ? fields[i + 1]! : `${value}, ${fields[i + 1]}`
  }
  return value
}

/**
 * Carries WebSocket traffic through @fastify/http-proxy. A handshake runs through the life of every
 * other request and is made with the upstream first: an upstream that refuses it answers the client
 * itself, and one that fails is retried. What was agreed on is handed to a Fastify instance that
 * never listens, made on first use.
 */
export class WebSockets implements Upgrade {
  readonly #handler: Handler
  readonly #maxMessage: number
  #carrier: Promise<FastifyInstance> | undefined = undefined
  #server: WebSocketServer | undefined = undefined
  readonly #heads = new WeakMap<object, Buffer>()
  readonly #handshakes = new WeakMap<object, Handshake>()
  /** The clients' sides. */
  readonly #open = new Set<WebSocket>()

  /** `maxMessage` in bytes. */
  constructor(handler: Handler, maxMessage: number) {
    this.#handler = handler
    this.#maxMessage = maxMessage
  }

  /** Serves a handshake; `head` is what the client sent after it. */
  serve(raw: IncomingMessage, socket: Socket, head: Buffer, options: ExchangeOptions): void {
    const response = new ServerResponse(raw)
    response.shouldKeepAlive = false
    response.assignSocket(socket)
    // The server has let go of this connection: what it would do for a response is done here.
    socket.on('error', () => socket.destroy())
    socket.on('drain', () => response.emit('drain'))
    socket.once('close', () => response.emit('close'))
    response.once('finish', () => {
      response.emit('close')
      linger(socket)
    })
    offerDeflateOnly(raw)
    this.#heads.set(raw, head)
    this.#handler.serve(raw, response, raw.url!, options, this)
  }

  /** Serves a handshake over HTTP/2 (RFC 8441 §5): an extended CONNECT that {@link isHandshake}. */
  serveStream(
    raw: Http2ServerRequest,
    response: Http2ServerResponse,
    options: ExchangeOptions
  ): void {
    asHandshake(raw)
    offerDeflateOnly(raw)
    this.#handler.serve(raw, response, raw.url, options, this)
  }

  check({ raw, response }: HttpExchange): void {
    const { headers } = raw
    const accept = fieldOf(response.base, 'sec-websocket-accept')
    if (accept !== acceptOf(headers['sec-websocket-key']!)) {
      throw new UpgradeRefused('Sec-WebSocket-Accept is not the one for the key')
    }
    const protocol = fieldOf(response.base, 'sec-websocket-protocol')
    const offered = headers['sec-websocket-protocol']?.split(',').map(each => each.trim())
    if (protocol !== undefined && !offered?.includes(protocol)) {
      throw new UpgradeRefused('its subprotocol was not offered')
    }
    const extensions = fieldOf(response.base, 'sec-websocket-extensions')
    if (
      extensions !== undefined &&
      (headers['sec-websocket-extensions'] === undefined ||
        !DEFLATE.test(extensions) ||
        extensions.includes(','))
    ) {
      throw new UpgradeRefused('its extension was not offered')
    }
  }

  take(exchange: HttpExchange, upstream: Socket, fields: readonly string[]): void {
    const { raw } = exchange
    const { base } = exchange.response
    const handshake: Handshake = {
      socket: upstream,
      protocol: fieldOf(base, 'sec-websocket-protocol'),
      extensions: fieldOf(base, 'sec-websocket-extensions'),
      lines: linesOf(fields),
      taken: false
    }
    const abandon = (): void => {
      if (!handshake.taken) upstream.destroy()
    }
    if (('stream' in raw ? raw.stream : raw.socket).destroyed) {
      abandon()
      return
    }
    upstream.setKeepAlive(true, KEEP_ALIVE)
    const { request, socket } =
      'stream' in raw ? tunnelOf(raw) : connectionOf(raw, exchange.rawResponse as ServerResponse)
    socket.once('close', abandon)
    // The client is offered what the upstream chose, so that this is what the library chooses.
    request.headers = {
      ...request.headers,
      'sec-websocket-protocol': handshake.protocol,
      'sec-websocket-extensions': handshake.extensions && raw.headers['sec-websocket-extensions']
    }
    request.url = '/'
    this.#handshakes.set(request, handshake)
    this.#carrier ??= this.#openCarrier()
    this.#carrier.then(
      carrier =>
        carrier.server.emit('upgrade', request, socket, this.#heads.get(request) ?? NO_BYTES),
      () => socket.destroy()
    )
  }

  async #openCarrier(): Promise<FastifyInstance> {
    const { default: proxy } = await import('@fastify/http-proxy')
    const app = fastify({ logger: false })
    const handshakeOf = (request: FastifyRequest): Handshake => this.#handshakes.get(request.raw)!
    // Pings go through to the other end, which answers them: nobody answers in its place.
    const speech = {
      autoPong: false,
      maxPayload: this.#maxMessage,
      perMessageDeflate: DEFLATE_OPTIONS
    }
    await app.register(proxy, {
      upstream: '',
      websocket: true,
      preHandler: (_request: FastifyRequest, reply: FastifyReply, done: () => void) => {
        this.#watch((reply as unknown as { wsProxy: { wss: WebSocketServer } }).wsProxy.wss)
        done()
      },
      replyOptions: { getUpstream: () => 'http://upstream' },
      wsServerOptions: speech,
      wsClientOptions: {
        ...speech,
        agent: new HandshakeAgent(),
        rewriteRequestHeaders: (_headers: unknown, request: FastifyRequest) => ({
          [HANDSHAKE]: handshakeOf(request)
        })
      },
      wsHooks: {
        onConnect: (_context: unknown, source: WebSocket, target: WebSocket) =>
          this.#connected(source, target)
      }
    } as never)
    await app.ready()
    return app
  }

  /** Adds the fields of the upstream's answer, as plugins left them, to the one for the client. */
  #watch(server: WebSocketServer): void {
    if (this.#server !== undefined) return
    this.#server = server
    server.on('headers', (lines: string[], raw: IncomingMessage) => {
      lines.push(...this.#handshakes.get(raw)!.lines)
    })
  }

  #connected(source: WebSocket, target: WebSocket): void {
    if (source.readyState === source.CLOSED) {
      target.terminate()
      return
    }
    this.#open.add(source)
    source.once('close', () => this.#open.delete(source))
    join(source, target)
    // The pool handed it over paused.
    target.resume()
  }

  /** Open WebSocket connections of this thread. */
  get open(): number {
    return this.#open.size
  }

  /** Ends every connection with 1001 (going away). */
  async close(): Promise<void> {
    const carrier = await this.#carrier
    if (carrier === undefined) return
    for (const source of this.#open) source.close(1001)
    const end = performance.now() + CLOSE_TIMEOUT
    while (this.#open.size > 0 && performance.now() < end) {
      await new Promise(resolve => setTimeout(resolve, 20))
    }
    for (const source of this.#open) source.terminate()
    await carrier.close()
  }
}

/** Takes the connection of a handshake over HTTP/1.1 from its response. */
function connectionOf(request: IncomingMessage, response: ServerResponse): ClientSide {
  const { socket } = request
  response.detachSocket(socket)
  socket.setKeepAlive(true, KEEP_ALIVE)
  return { request, socket }
}

/** Offers the upstream no extension but the one that is spoken here. */
function offerDeflateOnly({ headers, rawHeaders }: RawRequest): void {
  const offered = headers['sec-websocket-extensions']
  if (offered === undefined) return
  const fields: string[] = []
  for (let i = 0; i < rawHeaders.length; i += 2) {
    const name = rawHeaders[i]!
    if (name.toLowerCase() !== 'sec-websocket-extensions') fields.push(name, rawHeaders[i + 1]!)
  }
  if (offered.split(',').some(offer => DEFLATE.test(offer.trim()))) {
    fields.push('Sec-WebSocket-Extensions', DEFLATE_OFFER)
  } else {
    delete headers['sec-websocket-extensions']
  }
  // HTTP/2 requests have no other list.
  rawHeaders.splice(0, rawHeaders.length, ...fields)
}

/** Field lines besides those that the handshake with the client has of its own. */
function linesOf(fields: readonly string[]): string[] {
  const lines: string[] = []
  for (let i = 0; i < fields.length; i += 2) {
    const name = fields[i]!
    const value = fields[i + 1]!
    if (!OWN_FIELDS.has(name.toLowerCase()) && isFieldValue(value)) lines.push(`${name}: ${value}`)
  }
  return lines
}
