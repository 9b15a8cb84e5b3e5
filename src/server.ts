import { createHmac } from 'node:crypto'
import { unlink } from 'node:fs/promises'
import http, { type IncomingMessage, type ServerResponse } from 'node:http'
import http2, { type Http2ServerRequest, type Http2ServerResponse } from 'node:http2'
import https from 'node:https'
import net, { type AddressInfo, type Socket } from 'node:net'
import tls, { type SecureContext, type TLSSocket, type TlsOptions } from 'node:tls'
import { type FastifyInstance, fastify } from 'fastify'
import { askedName } from './listener/client-hello.ts'
import { guardSession } from './listener/http2-guard.ts'
import { claim, listenAt } from './listener/listen.ts'
import { isHttp2Preface, readPreamble, takeProxyHeader } from './listener/proxy-protocol.ts'
import { type ParserError, Refusals } from './listener/refusal.ts'
import { turnsOf } from './listener/turns.ts'
import type { Logger } from './plugins/plugin.ts'
import type { ExchangeOptions, RawRequest, RawResponse } from './proxy/exchange.ts'
import type { Handler } from './proxy/handler.ts'
import type { CertificateStore, ContextPolicy, Material } from './proxy/tls.ts'
import { isHandshake, isWebSocketUpgrade, KEEP_ALIVE, type WebSockets } from './proxy/websocket.ts'

/** Bounds of what clients may take. */
export interface ClientLimits {
  /** Milliseconds for the whole head of a request to arrive, and for a TLS handshake. */
  readonly headerTimeout: number
  /** Milliseconds an idle client connection is kept. */
  readonly keepAliveTimeout: number
  /** Requests of one connection. */
  readonly keepAliveRequests: number
  /** Bytes of a request head. */
  readonly maxHeaderSize: number
  /** Fields of a request head. */
  readonly maxHeaders: number
  /** Connections of this listener in this thread. */
  readonly maxConnections: number
}

/** How TLS is spoken with clients, whatever the certificate. */
export interface ClientTls {
  /** Whether clients are asked for a certificate. */
  readonly requestCert: boolean
  /** 48 bytes that all threads share, so that each resumes the sessions of the others. */
  readonly ticketKeys: Uint8Array
}

/** What a listener of the data plane needs. */
export interface ServerOptions {
  readonly host: string
  readonly port: number
  /** The path of a Unix socket, instead of host and port. */
  readonly path: string | undefined
  readonly ssl: boolean
  readonly http2: boolean
  /** Every connection begins with a PROXY protocol header. */
  readonly proxyProtocol: boolean
  readonly backlog: number | undefined
  /** Share the port with the other threads' listeners. */
  readonly reusePort: boolean
  /** Whether no other thread of this process listens at the address yet. */
  readonly first: boolean
  readonly limits: ClientLimits
  readonly tls: ClientTls
  readonly handler: Handler
  readonly webSockets: WebSockets
  readonly log: Logger
  readonly exchange: Omit<ExchangeOptions, 'listener'>
  /** The certificates of new handshakes. */
  certificates(): CertificateStore
}

/** Milliseconds between two lines that tell of refused connections. */
const REFUSALS_TOLD = 60_000

const METHODS: ReadonlySet<string> = new Set(http.METHODS)

/** A listener that is open. */
export interface Listening {
  /** 0 for a Unix socket. */
  readonly port: number
  /** Stops accepting; resolves when no connection is left. */
  close(): Promise<void>
  /** Closes connections that serve no request. */
  closeIdle(): void
  /** Takes over the certificate of clients that name no server, and the policy, for new handshakes. */
  renewCertificate(): void
}

/**
 * Opens one listener: Fastify with a single catch-all route whose reply is taken over at once, since
 * routes here are data that change while it listens. One server accepts and speaks HTTP/1.1; what
 * begins as HTTP/2 (by ALPN, or by its preface without TLS) goes to a second one that never listens.
 * Rejects with the system's error when the address cannot be bound.
 */
export async function openServer(options: ServerOptions): Promise<Listening> {
  const listener = {
    port: options.port,
    ssl: options.ssl,
    clientCertificates: options.tls.requestCert
  }
  const exchangeOptions: ExchangeOptions = { ...options.exchange, listener }
  const { handler, limits } = options
  let draining = false
  const server = createServer(options)
  const second = options.http2 ? createHttp2Server(options) : undefined
  const sessions = new Set<http2.ServerHttp2Session>()
  const refusals = new Refusals(id => handler.answerFields(id))
  const app: FastifyInstance = fastify({
    logger: false,
    exposeHeadRoutes: false,
    // The router is ours: Fastify's sees one path and never judges the client's.
    rewriteUrl: () => '/',
    serverFactory(serve) {
      // Fastify would answer methods it does not know; over HTTP/1.1 none of them comes this far.
      const serveHttp2 = (raw: Http2ServerRequest, response: Http2ServerResponse): void => {
        if (METHODS.has(raw.method)) serve(raw as never, response as never)
        else takeOver(raw, response, raw.url)
      }
      for (const event of ['request', 'checkContinue', 'checkExpectation']) {
        server.on(event, serve as never)
        second?.on(event, serveHttp2)
      }
      return server as never
    },
    clientErrorHandler: (error, socket) =>
      refusals.parserError(error as Error as ParserError, socket)
  })
  app.removeAllContentTypeParsers()
  app.addContentTypeParser('*', (_request, _payload, done) => done(null))
  const takeOver = (raw: RawRequest, rawResponse: RawResponse, target: string): void => {
    if ('stream' in raw) {
      handler.serve(raw, rawResponse, target, exchangeOptions)
      return
    }
    const response = rawResponse as ServerResponse
    const turns = turnsOf(raw.socket)
    if (draining || ++turns.requests >= limits.keepAliveRequests) response.shouldKeepAlive = false
    if (turns.take(response)) handler.serve(raw, response, target, exchangeOptions)
    else turns.wait(response, () => handler.serve(raw, response, target, exchangeOptions))
  }
  app.addHook('onRequest', (request, reply) => {
    reply.hijack()
    takeOver(request.raw as RawRequest, reply.raw as RawResponse, request.originalUrl)
  })
  app.all('/', (_request, reply) => reply)

  server.on('upgrade', (raw: IncomingMessage, socket: Socket, head: Buffer) => {
    const serve = (): void => options.webSockets.serve(raw, socket, head, exchangeOptions)
    const turns = turnsOf(socket)
    if (turns.current === undefined) serve()
    else turns.wait(undefined, serve)
  })
  server.on('connect', (_raw: IncomingMessage, socket: Socket) => refusals.connect(socket))
  second?.on('session', (session: http2.ServerHttp2Session) => {
    if (draining) session.close()
    sessions.add(session)
    session.once('close', () => sessions.delete(session))
    guardSession(session, {
      idleTimeout: limits.keepAliveTimeout,
      maxRequests: limits.keepAliveRequests
    })
  })
  second?.on('sessionError', () => {})
  second?.on('connect', (raw: Http2ServerRequest, response: Http2ServerResponse) => {
    const { ':protocol': protocol } = raw.headers
    if (protocol === 'websocket' && isHandshake(raw.headers)) {
      options.webSockets.serveStream(raw, response, exchangeOptions)
      return
    }
    // RFC 8441 §4 names other protocols; without any, CONNECT asks for a tunnel to another host.
    response.writeHead(protocol === undefined ? 405 : protocol === 'websocket' ? 400 : 501).end()
  })

  // The last of these comes first: connections count before anything is read of them.
  if (second !== undefined) routeHttp2(server, second, options)
  if (options.ssl) routePairs(server, options)
  intercept(server, 'connection', (socket, next) => {
    if (!admit(socket)) {
      tellRefused()
      if (options.ssl || options.proxyProtocol) socket.destroy()
      else refusals.overload(socket)
    } else if (options.proxyProtocol) takeProxyHeader(socket, limits.headerTimeout, next)
    else next()
  })
  let open = 0
  function admit(socket: Socket): boolean {
    if (open >= limits.maxConnections) return false
    open++
    socket.once('close', () => open--)
    return true
  }
  let refused = 0
  let told = Number.NEGATIVE_INFINITY
  function tellRefused(): void {
    refused++
    const now = performance.now()
    if (now - told < REFUSALS_TOLD) return
    told = now
    options.log.warn(
      { listen: options.path ?? `${options.host}:${listener.port}`, open, refused },
      'connections are refused: as many are open as POSTERN_MAX_CONNECTIONS allows this thread'
    )
    refused = 0
  }

  await app.ready()
  await listen(server, options)
  const { port } = options.path === undefined ? (server.address() as AddressInfo) : { port: 0 }
  listener.port = port
  return {
    port,
    renewCertificate() {
      if (!('setSecureContext' in server)) return
      server.setSecureContext(secureContext(options, options.certificates()))
    },
    closeIdle() {
      server.closeIdleConnections()
    },
    async close() {
      draining = true
      const closed = new Promise<void>(resolve => server.close(() => resolve()))
      for (const session of sessions) session.close()
      server.closeIdleConnections()
      await closed
    }
  }
}

type Server = http.Server | https.Server

/** Puts `first` before what a server does with an event; `next` goes on with that. */
function intercept(
  server: Server,
  event: 'connection' | 'secureConnection',
  first: (socket: Socket, next: () => void) => void
): void {
  const listeners = server.listeners(event)
  server.removeAllListeners(event)
  server.on(event, (socket: Socket) =>
    first(socket, () => {
      for (const listener of listeners) listener.call(server, socket)
    })
  )
}

/** Hands connections that speak HTTP/2 to the server for it. */
function routeHttp2(server: Server, second: http2.Http2Server, options: ServerOptions): void {
  const toHttp2 = (socket: Socket): void => {
    // Sessions close idle; what finds a client gone whose streams are silent is this.
    socket.setKeepAlive(true, KEEP_ALIVE)
    second.emit('connection', socket)
  }
  if (options.ssl) {
    intercept(server, 'secureConnection', (socket, next) => {
      if ((socket as TLSSocket).alpnProtocol === 'h2') toHttp2(socket)
      else next()
    })
    return
  }
  intercept(server, 'connection', (socket, next) => {
    readPreamble(socket, options.limits.headerTimeout, bytes => {
      const decided = isHttp2Preface(bytes)
      return decided === undefined
        ? undefined
        : { skip: 0, next: decided ? () => toHttp2(socket) : next }
    })
  })
}

/**
 * Hands connections that ask for a name with a pair of certificates to a TLS server with that pair for
 * its own, so that OpenSSL chooses of both: Node takes one certificate over from a context chosen
 * during the handshake. Nothing is read ahead where no name has a pair.
 */
function routePairs(server: Server, options: ServerOptions): void {
  const servers = new WeakMap<Material, tls.Server>()
  const serverOf = (pair: Material, store: CertificateStore): tls.Server => {
    const standing = servers.get(pair)
    if (standing !== undefined) return standing
    const made = tls.createServer({
      ...secureContext(options, store, pair),
      ...handshakeOptions(options)
    })
    made.on('secureConnection', socket => server.emit('secureConnection', socket))
    made.on('tlsClientError', (error, socket) => server.emit('tlsClientError', error, socket))
    servers.set(pair, made)
    return made
  }
  intercept(server, 'connection', (socket, next) => {
    if (!options.certificates().hasPairs) {
      next()
      return
    }
    readPreamble(socket, options.limits.headerTimeout, bytes => {
      const name = askedName(bytes)
      if (name === undefined) return undefined
      const store = options.certificates()
      const pair = store.pair(name)
      if (pair === undefined) return { skip: 0, next }
      const own = serverOf(pair, store)
      return { skip: 0, next: () => own.emit('connection', socket) }
    })
  })
}

const SETTING = 'POSTERN_PROXY_LISTEN'

/** Listens; a Unix socket that nobody serves any more is replaced. */
async function listen(server: Server, options: ServerOptions): Promise<void> {
  const { path, host, port, reusePort, backlog } = options
  if (path !== undefined && (await isAbandoned(path))) await unlink(path)
  if (path === undefined && reusePort && options.first) await claim({ host, port }, SETTING)
  await listenAt(
    server,
    {
      ...(path === undefined ? { host, port, reusePort } : { path }),
      ...(backlog === undefined ? {} : { backlog })
    },
    SETTING
  )
}

function isAbandoned(path: string): Promise<boolean> {
  return new Promise(resolve => {
    const socket = net.connect(path)
    socket.once('connect', () => {
      socket.destroy()
      resolve(false)
    })
    socket.once('error', (error: NodeJS.ErrnoException) => resolve(error.code === 'ECONNREFUSED'))
  })
}

function createServer(options: ServerOptions): Server {
  const { limits } = options
  const parsing: http.ServerOptions = {
    keepAliveTimeout: limits.keepAliveTimeout,
    headersTimeout: limits.headerTimeout,
    // A body may take as long as it keeps coming: proxy/request-body.ts times the pauses.
    requestTimeout: 0,
    connectionsCheckingInterval: Math.max(50, Math.min(1000, Math.floor(limits.headerTimeout / 4))),
    maxHeaderSize: limits.maxHeaderSize,
    // Framing is judged by proxy/framing.ts, which answers in the client's own content type.
    requireHostHeader: false,
    insecureHTTPParser: false,
    shouldUpgradeCallback: isWebSocketUpgrade,
    noDelay: true
  }
  const server = options.ssl
    ? https.createServer({ ...parsing, ...tlsOptions(options) })
    : http.createServer(parsing)
  // Node would drop what exceeds its own bound silently; the handler counts, and refuses.
  server.maxHeadersCount = 0
  return server
}

function createHttp2Server({ limits }: ServerOptions): http2.Http2Server {
  return http2.createServer({
    // The handler counts, and tells why it refuses; who sends far more has the stream reset. The
    // pseudo-header fields count here.
    maxHeaderListPairs: limits.maxHeaders * 2 + 4,
    maxSessionInvalidFrames: 100,
    maxSessionRejectedStreams: 100,
    maxSettings: 16,
    // Mebibytes of header tables, frames and queues. A stream has up to 192 KiB under way for a slow
    // client (what was read ahead, a read more, and what it uploads), and there may be 128 of them;
    // the rest is for what Node goes on counting of streams that were cut off, see guardSession.
    maxSessionMemory: 64,
    settings: {
      enablePush: false,
      enableConnectProtocol: true,
      maxConcurrentStreams: 128,
      maxHeaderListSize: limits.maxHeaderSize
    }
  })
}

/** What TLS needs with the certificate `of` a store, its default when none is told. */
function secureContext(
  { tls: { ticketKeys } }: ServerOptions,
  { unnamed, policy }: CertificateStore,
  of: Material = unnamed
): TlsOptions {
  return {
    cert: [...of.cert],
    key: [...of.key],
    ...policy,
    ticketKeys: ticketKeysFor(ticketKeys, policy.ca)
  }
}

/** A session that was opened under other authorities is not resumed: its client is verified anew. */
function ticketKeysFor(shared: Uint8Array, authorities: ContextPolicy['ca']): Buffer {
  const mixed = createHmac('sha384', shared)
  if (authorities !== undefined) mixed.update(String(authorities))
  return mixed.digest()
}

/** How a handshake goes, whatever the certificate. */
function handshakeOptions({ limits, http2, tls: { requestCert } }: ServerOptions): TlsOptions {
  return {
    handshakeTimeout: limits.headerTimeout,
    ALPNProtocols: http2 ? ['h2', 'http/1.1'] : ['http/1.1'],
    // Who may come without is decided per request, which can be told so; a handshake cannot.
    requestCert,
    rejectUnauthorized: false
  }
}

function tlsOptions(options: ServerOptions): TlsOptions {
  return {
    ...secureContext(options, options.certificates()),
    ...handshakeOptions(options),
    // Node 24.20 made a chosen context replace every certificate of the connection. Before, a default
    // one of another key type stayed among them: clients were shown the certificate of another name.
    SNICallback(
      servername: string,
      done: (error: Error | null, context?: SecureContext) => void
    ): void {
      try {
        done(null, options.certificates().context(servername))
      } catch (error) {
        done(error as Error)
      }
    }
  }
}
