import { type ClientHttp2Session, connect as connectHttp2 } from 'node:http2'
import type { Socket } from 'node:net'
import type { TLSSocket } from 'node:tls'
import createError from '@fastify/error'
import { type buildConnector, Dispatcher, errors } from 'undici'
import { Http2Call } from './call.ts'

const UpstreamBusy = createError(
  'POSTERN_UPSTREAM_BUSY',
  'Every connection to the upstream is in use, and too many requests wait for one',
  503
)
const NoHttp2 = createError('POSTERN_UPSTREAM_PROTOCOL', 'The upstream does not speak HTTP/2', 502)

/** Bounds of the connections to one address. Times in milliseconds. */
export interface Http2PoolOptions {
  readonly connect: buildConnector.connector
  /** Open connections at most. */
  readonly connections: number
  /** Requests that may wait for one; more are refused. */
  readonly maxWaiting: number
  readonly idleTimeout: number
  /** Requests over one connection, after which it is replaced. */
  readonly maxRequests: number
}

/** Streams at a time before the upstream has said how many it takes. */
const INITIAL_STREAMS = 100

/** One connection: how many requests it has, had, and may have. */
class Session {
  readonly http2: ClientHttp2Session
  readonly calls = new Set<Http2Call>()
  requests = 0
  /** No new requests: it is closing, in doubt, or has had its share. */
  retired = false
  #idle: NodeJS.Timeout | undefined = undefined

  constructor(http2: ClientHttp2Session) {
    this.http2 = http2
  }

  get open(): boolean {
    return !this.retired && !this.http2.closed && !this.http2.destroyed
  }

  get free(): boolean {
    const limit = this.http2.remoteSettings?.maxConcurrentStreams ?? INITIAL_STREAMS
    return this.open && this.calls.size < limit
  }

  retire(): void {
    this.retired = true
    if (this.calls.size === 0) this.http2.close()
  }

  /** Closes it when it has been without requests for so long. */
  rest(milliseconds: number): void {
    this.#idle = setTimeout(() => this.retire(), milliseconds)
    this.#idle.unref()
  }

  wake(): void {
    clearTimeout(this.#idle)
  }
}

/**
 * HTTP/2 connections to one address, as an undici dispatcher: few of them, with as many requests each
 * as the upstream allows.
 */
export class Http2Pool extends Dispatcher {
  readonly #origin: URL
  readonly #options: Http2PoolOptions
  readonly #sessions = new Set<Session>()
  readonly #waiting: Http2Call[] = []
  #connecting = 0
  #closed = false
  #onDrained: (() => void) | undefined = undefined

  constructor(origin: URL, options: Http2PoolOptions) {
    super()
    this.#origin = origin
    this.#options = options
  }

  override dispatch(
    options: Dispatcher.DispatchOptions,
    handler: Dispatcher.DispatchHandler
  ): boolean {
    const call = new Http2Call(options, handler)
    if (this.#closed) {
      call.fail(new errors.ClientDestroyedError())
      return false
    }
    for (const session of this.#sessions) {
      if (!session.free) continue
      this.#send(session, call)
      return true
    }
    if (this.#waiting.length >= this.#options.maxWaiting) {
      call.fail(new UpstreamBusy())
      return false
    }
    this.#waiting.push(call)
    this.#open()
    return false
  }

  #send(session: Session, call: Http2Call): void {
    session.wake()
    session.calls.add(call)
    call.reused = session.requests > 0
    session.requests++
    if (session.requests >= this.#options.maxRequests) session.retired = true
    const scheme = this.#origin.protocol.slice(0, -1)
    call.send(headers => {
      const stream = session.http2.request(headers)
      stream.once('close', () => this.#onStreamClosed(session, call))
      return stream
    }, scheme)
  }

  #onStreamClosed(session: Session, call: Http2Call): void {
    session.calls.delete(call)
    // Silence may mean that nobody is there any more: its other requests will tell.
    if (call.timedOut) session.retired = true
    if (session.calls.size === 0) {
      if (session.open && !this.#closed) session.rest(this.#options.idleTimeout)
      else session.http2.close()
    }
    this.#serveWaiting()
  }

  #serveWaiting(): void {
    for (const session of this.#sessions) {
      while (session.free && this.#waiting.length > 0) {
        const call = this.#waiting.shift()!
        if (!call.aborted) this.#send(session, call)
      }
    }
    if (this.#waiting.length > 0) this.#open()
  }

  #open(): void {
    // One at a time: what waits mostly fits on the next.
    if (this.#connecting > 0 || this.#sessions.size >= this.#options.connections) return
    this.#connecting++
    const { hostname, protocol, port, host } = this.#origin
    const bare = hostname.startsWith('[') ? hostname.slice(1, -1) : hostname
    this.#options.connect({ hostname: bare, host, protocol, port }, (error, socket) => {
      this.#connecting--
      if (error !== null) this.#refuse(error)
      else if (this.#closed) socket.destroy()
      else if ((socket as TLSSocket).alpnProtocol !== 'h2') {
        socket.destroy()
        this.#refuse(new NoHttp2())
      } else this.#adopt(socket)
    })
  }

  /** A connection that could not be made is the failure of those that waited for it. */
  #refuse(error: Error): void {
    for (const call of this.#waiting.splice(0)) call.fail(error)
  }

  #adopt(socket: Socket): void {
    const http2 = connectHttp2(this.#origin, {
      createConnection: () => socket,
      settings: { enablePush: false }
    })
    const session = new Session(http2)
    this.#sessions.add(session)
    // Each request hears of it from its own stream.
    http2.on('error', () => session.retire())
    http2.on('goaway', () => session.retire())
    http2.on('remoteSettings', () => this.#serveWaiting())
    http2.once('close', () => {
      session.wake()
      this.#sessions.delete(session)
      if (this.#closed && this.#sessions.size === 0) this.#onDrained?.()
      else this.#serveWaiting()
    })
    this.#serveWaiting()
    if (session.calls.size === 0) session.rest(this.#options.idleTimeout)
  }

  /** Resolves when what is under way has ended. */
  override close(): Promise<void>
  override close(callback: () => void): void
  override close(callback?: () => void): Promise<void> | void {
    if (callback !== undefined) {
      void this.close().then(callback)
      return
    }
    this.#closed = true
    this.#refuse(new errors.ClientDestroyedError())
    for (const session of this.#sessions) session.retire()
    if (this.#sessions.size === 0) return Promise.resolve()
    return new Promise(resolve => {
      this.#onDrained = resolve
    })
  }

  /** Cuts what is under way. */
  override destroy(error?: Error | null): Promise<void>
  override destroy(callback: () => void): void
  override destroy(error: Error | null, callback: () => void): void
  override destroy(
    errorOrCallback?: Error | null | (() => void),
    callback?: () => void
  ): Promise<void> | void {
    const error = typeof errorOrCallback === 'function' ? null : (errorOrCallback ?? null)
    const then = typeof errorOrCallback === 'function' ? errorOrCallback : callback
    const done = this.close()
    for (const { calls, http2 } of this.#sessions) {
      for (const call of calls) call.fail(error ?? new errors.ClientDestroyedError())
      http2.destroy()
    }
    if (then === undefined) return done
    void done.then(then)
  }
}
