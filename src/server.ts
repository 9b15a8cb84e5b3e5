import http, { type IncomingMessage, type ServerResponse } from 'node:http'
import http2 from 'node:http2'
import https from 'node:https'
import type { AddressInfo, Socket } from 'node:net'
import type { SecureContext } from 'node:tls'
import { type FastifyInstance, fastify } from 'fastify'
import type { ExchangeOptions, RawRequest, RawResponse } from './proxy/exchange.ts'
import type { Handler } from './proxy/handler.ts'
import type { CertificateStore } from './proxy/tls.ts'
import { isWebSocketUpgrade, type WebSockets } from './proxy/websocket.ts'

/** What a listener of the data plane needs. */
export interface ServerOptions {
  readonly host: string
  readonly port: number
  readonly ssl: boolean
  readonly http2: boolean
  readonly backlog: number | undefined
  /** Share the port with the other threads' listeners. */
  readonly reusePort: boolean
  /** Milliseconds for the whole head of a request to arrive. */
  readonly headerTimeout: number
  /** Milliseconds an idle client connection is kept. */
  readonly keepAliveTimeout: number
  /** Bytes of a request head. */
  readonly maxHeaderSize: number
  readonly handler: Handler
  readonly webSockets: WebSockets
  readonly exchange: Omit<ExchangeOptions, 'listener'>
  /** The certificates of new handshakes. */
  certificates(): CertificateStore
}

/** A listener that is open. */
export interface Listening {
  readonly port: number
  /** Stops accepting; resolves when no connection is left. */
  close(): Promise<void>
  /** Closes connections that serve no request. */
  closeIdle(): void
  /** Takes over the certificate of clients that name no server, for new handshakes. */
  renewCertificate(): void
}

type AnyServer = http.Server | https.Server | http2.Http2SecureServer

/**
 * Opens one listener: Fastify with a single catch-all route whose reply is taken over at once, since
 * routes here are data that change while it listens. Rejects with the system's error when the
 * address cannot be bound.
 */
export async function openServer(options: ServerOptions): Promise<Listening> {
  const exchangeOptions: { listener: { port: number; ssl: boolean } } & typeof options.exchange = {
    ...options.exchange,
    listener: { port: options.port, ssl: options.ssl }
  }
  let draining = false
  const sessions = new Set<http2.ServerHttp2Session>()
  const server = createServer(options)
  const app: FastifyInstance = fastify({
    logger: false,
    exposeHeadRoutes: false,
    // The router is ours: Fastify's sees one path and never judges the client's.
    rewriteUrl: () => '/',
    serverFactory: listener => {
      server.on('request', listener as never)
      return server as never
    }
  })
  app.removeAllContentTypeParsers()
  app.addContentTypeParser('*', (_request, _payload, done) => done(null))
  const takeOver = (raw: RawRequest, response: RawResponse, target: string): void => {
    if (draining && raw.httpVersion !== '2.0') (response as ServerResponse).shouldKeepAlive = false
    options.handler.serve(raw, response, target, exchangeOptions)
  }
  app.addHook('onRequest', (request, reply) => {
    reply.hijack()
    takeOver(request.raw as RawRequest, reply.raw as RawResponse, request.originalUrl)
  })
  app.all('/', (_request, reply) => reply)
  server.on('upgrade', (raw: IncomingMessage, socket: Socket, head: Buffer) => {
    options.webSockets.serve(raw, socket, head, exchangeOptions).catch(() => socket.destroy())
  })
  server.on('session', (session: http2.ServerHttp2Session) => {
    sessions.add(session)
    session.once('close', () => sessions.delete(session))
  })
  await app.ready()
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject)
    server.listen(
      {
        host: options.host,
        port: options.port,
        reusePort: options.reusePort,
        ...(options.backlog === undefined ? {} : { backlog: options.backlog })
      },
      resolve
    )
  })
  const { port } = server.address() as AddressInfo
  exchangeOptions.listener.port = port
  return {
    port,
    renewCertificate() {
      if (!('setSecureContext' in server)) return
      const { cert, key } = options.certificates().unnamed
      server.setSecureContext({ cert: [...cert], key: [...key], minVersion: 'TLSv1.2' })
    },
    closeIdle() {
      if ('closeIdleConnections' in server) server.closeIdleConnections()
    },
    async close() {
      draining = true
      const closed = new Promise<void>(resolve => server.close(() => resolve()))
      for (const session of sessions) session.close()
      if ('closeIdleConnections' in server) server.closeIdleConnections()
      await closed
    }
  }
}

function createServer(options: ServerOptions): AnyServer {
  const parsing = {
    keepAliveTimeout: options.keepAliveTimeout,
    headersTimeout: options.headerTimeout,
    requestTimeout: 0,
    maxHeaderSize: options.maxHeaderSize,
    // Framing is judged by proxy/framing.ts, which answers in the client's own content type.
    requireHostHeader: false,
    insecureHTTPParser: false,
    shouldUpgradeCallback: isWebSocketUpgrade,
    noDelay: true
  }
  if (!options.ssl) return refuseMalformed(http.createServer(parsing), options)
  const { cert, key } = options.certificates().unnamed
  const tls = {
    minVersion: 'TLSv1.2' as const,
    cert: [...cert],
    key: [...key],
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
  if (options.http2) {
    return refuseMalformed(
      http2.createSecureServer({
        ...parsing,
        ...tls,
        allowHTTP1: true
      } as http2.SecureServerOptions),
      options
    )
  }
  return refuseMalformed(https.createServer({ ...parsing, ...tls }), options)
}

const REFUSALS: Readonly<Record<string, readonly [status: string, message: string]>> = {
  HPE_HEADER_OVERFLOW: ['400 Bad Request', 'Request header or cookie too large'],
  ERR_HTTP_REQUEST_TIMEOUT: ['408 Request Timeout', 'Request timeout']
}

/** Answers what the parser refused: there is no request to run through the handler. */
function refuseMalformed<S extends AnyServer>(server: S, options: ServerOptions): S {
  server.on('clientError', (error: Error & { code?: string }, socket: Socket) => {
    if (error.code === 'ECONNRESET' || !socket.writable || socket.bytesWritten > 0) {
      socket.destroy()
      return
    }
    const [status, message] = REFUSALS[error.code ?? ''] ?? ['400 Bad Request', 'Bad request']
    const id = crypto.randomUUID().replaceAll('-', '')
    const body = `${message}\nrequest_id: ${id}\n`
    socket.end(
      `HTTP/1.1 ${status}\r\nContent-Type: text/plain; charset=utf-8\r\n` +
        `${options.handler.answerFields(id)}Content-Length: ${body.length}\r\nConnection: close\r\n\r\n${body}`
    )
  })
  return server
}
