import {
  type ClientHttp2Session,
  type ClientHttp2Stream,
  connect as connectHttp2,
  constants
} from 'node:http2'
import type { Socket } from 'node:net'
import type { TLSSocket } from 'node:tls'
import createError from '@fastify/error'
import { type Dispatcher, errors } from 'undici'
import { type ForwardOptions, Pool, type PoolBounds } from '../pool.ts'
import { type Carrier, Http2Call } from './call.ts'

const NoHttp2 = createError('POSTERN_UPSTREAM_PROTOCOL', 'The upstream does not speak HTTP/2', 502)

/** Streams of one connection at a time, however many the upstream takes: the rest goes over more. */
const MAX_STREAMS = 100
/** Bytes of a response, and of all of a connection, that may be under way unread. */
const STREAM_WINDOW = 262_144
const CONNECTION_WINDOW = 1_048_576
/** Mebibytes of a connection: what may be under way of all its streams, and what is lost of some. */
const SESSION_MEMORY = 64
/**
 * Bytes that may have been queued for streams when they were cut off. Node counts them against that
 * memory for good, and resets every answer once it is full.
 */
const MAX_LOST = 16 * 1024 * 1024
/** Times a request is sent anew that the upstream said it had not begun (RFC 9113 §8.7). */
const MAX_REFUSALS = 3

/** One connection: how many requests it has, had, and may have. */
class Session {
  readonly http2: ClientHttp2Session
  readonly calls = new Set<Http2Call>()
  requests = 0
  /** Bytes queued for streams that were cut off. */
  lost = 0
  /** No new requests: it is closing, in doubt, or has had its share. */
  retired = false
  /** The last stream the upstream will have worked on, after it said that it goes away. */
  lastStream = Number.POSITIVE_INFINITY
  /** Whether the upstream has said how many requests it takes. */
  settled = false
  /** Streams the upstream takes at a time; none before it has said so (RFC 9113 §3.4: at once). */
  #streams = 0
  #idle: NodeJS.Timeout | undefined = undefined

  constructor(http2: ClientHttp2Session) {
    this.http2 = http2
  }

  get open(): boolean {
    return !this.retired && !this.http2.closed && !this.http2.destroyed
  }

  get free(): boolean {
    return this.open && this.calls.size < this.#streams
  }

  /** Whether it may come to take requests, and takes none yet. */
  get fresh(): boolean {
    return this.open && this.#streams === 0
  }

  /** Takes over how many streams the upstream takes now. */
  settle(): void {
    this.settled = true
    const { maxConcurrentStreams = MAX_STREAMS } = this.http2.remoteSettings
    this.#streams = Math.min(maxConcurrentStreams, MAX_STREAMS)
  }

  retire(): void {
    this.retired = true
    if (this.calls.size === 0) this.http2.close()
  }

  /** Closes it when it has been without requests for so long. */
  rest(milliseconds: number): void {
    clearTimeout(this.#idle)
    this.#idle = setTimeout(() => this.retire(), milliseconds)
    this.#idle.unref()
  }

  wake(): void {
    clearTimeout(this.#idle)
  }
}

/** Takes over a connection that speaks HTTP/1.1 instead, with the requests that waited for it. */
export type Http1Takeover = (waiting: readonly Http2Call[]) => void

/**
 * HTTP/2 connections to one address, as an undici dispatcher: few of them, with as many requests each
 * as the upstream allows.
 */
export class Http2Pool extends Pool<Http2Call> {
  readonly #sessions = new Set<Session>()
  readonly #onHttp1: Http1Takeover | undefined

  /** `onHttp1` undefined: an upstream that does not speak HTTP/2 is a failure. */
  constructor(origin: URL, bounds: PoolBounds, onHttp1?: Http1Takeover) {
    super(origin, bounds)
    this.#onHttp1 = onHttp1
  }

  protected override get size(): number {
    return this.#sessions.size
  }

  override dispatch(options: ForwardOptions, handler: Dispatcher.DispatchHandler): boolean {
    const call = new Http2Call(options, handler)
    if (this.closed) {
      call.fail(new errors.ClientDestroyedError())
      return false
    }
    return this.#place(call)
  }

  #place(call: Http2Call): boolean {
    for (const session of this.#sessions) {
      if (!session.free) continue
      this.#send(session, call)
      return true
    }
    if (this.enqueue(call)) this.#openOne()
    return false
  }

  #send(session: Session, call: Http2Call): void {
    session.wake()
    session.calls.add(call)
    call.reused = session.requests > 0
    session.requests++
    if (session.requests >= this.bounds.maxRequests) session.retired = true
    const scheme = this.origin.protocol.slice(0, -1)
    const carrier: Carrier = {
      open: (headers, options) => {
        const stream = session.http2.request(headers, options)
        stream.once('close', () => {
          if (!stream.writableFinished) {
            session.lost += stream.writableLength
            if (session.lost > MAX_LOST) session.retired = true
          }
          this.#onStreamClosed(session, call)
        })
        return stream
      },
      again: stream => this.#again(session, call, stream),
      // Silence may mean that nobody is there any more: its other requests will tell.
      doubt: () => {
        session.retired = true
      }
    }
    call.send(carrier, scheme)
    // Nothing went out, so no stream will tell of its end.
    if (!call.sent) this.#onStreamClosed(session, call)
  }

  /**
   * Whether a request that failed is sent once more, over another connection: the upstream said that
   * it had not begun with it, so that it makes no difference what it would have done.
   */
  #again(session: Session, call: Http2Call, stream: ClientHttp2Stream | undefined): boolean {
    const id = stream?.id ?? 0
    const begun = id === 0 ? session.open : id <= session.lastStream
    if (begun && stream?.rstCode !== constants.NGHTTP2_REFUSED_STREAM) return false
    if (call.refusals >= MAX_REFUSALS || !call.repeatable) return false
    call.refusals++
    // One that refuses streams without going away is to be left alone until it has served some.
    session.retired = true
    setImmediate(() => {
      if (!call.aborted) this.#place(call)
    })
    return true
  }

  #onStreamClosed(session: Session, call: Http2Call): void {
    session.calls.delete(call)
    if (session.calls.size === 0) {
      if (session.open && !this.closed) session.rest(this.bounds.idleTimeout)
      else session.http2.close()
    }
    this.#serveWaiting()
  }

  #serveWaiting(): void {
    for (const session of this.#sessions) {
      while (session.free) {
        const call = this.next()
        if (call === undefined) break
        this.#send(session, call)
      }
    }
    if (this.waiting > 0) this.#openOne()
  }

  #openOne(): void {
    // One at a time: what waits mostly fits on the next.
    if (this.connecting > 0 || this.#sessions.size >= this.bounds.connections) return
    for (const session of this.#sessions) if (session.fresh) return
    this.open()
  }

  /** A connection that could not be made is the failure of those that waited for it. */
  protected override onConnectFailed(error: Error): void {
    this.refuseAll(error)
  }

  protected override adopt(socket: Socket): void {
    if ((socket as TLSSocket).alpnProtocol !== 'h2') {
      socket.destroy()
      if (this.#onHttp1 === undefined) this.refuseAll(new NoHttp2())
      else this.#onHttp1(this.takeAll())
      return
    }
    const http2 = connectHttp2(this.origin, {
      createConnection: () => socket,
      maxSessionMemory: SESSION_MEMORY,
      settings: { enablePush: false, initialWindowSize: STREAM_WINDOW }
    })
    const session = new Session(http2)
    this.#sessions.add(session)
    http2.once('connect', () => http2.setLocalWindowSize(CONNECTION_WINDOW))
    let cause: Error = new errors.SocketError('other side closed')
    // Each request hears of it from its own stream.
    http2.on('error', error => {
      cause = error
      session.retire()
    })
    http2.on('goaway', (_code, lastStream) => {
      session.lastStream = lastStream
      session.retire()
    })
    http2.on('remoteSettings', () => {
      session.settle()
      this.#serveWaiting()
      if (session.calls.size === 0) session.rest(this.bounds.idleTimeout)
      if (this.closed) session.retire()
    })
    const gone = (): void => {
      session.wake()
      session.retired = true
      if (!this.#sessions.delete(session)) return
      // It ended before it began, as when the upstream refuses the certificate of TLS 1.3.
      if (!session.settled) this.refuseAll(cause)
      this.#serveWaiting()
      this.checkDrained()
    }
    http2.once('close', gone)
    // Node ends the session of a TLS alert without telling, and leaves its socket open.
    socket.once('error', error => {
      cause = error
      socket.destroy()
    })
    socket.once('close', gone)
    // An upstream that never says what it takes is as good as none.
    session.rest(this.bounds.waitTimeout)
  }

  protected override retire(): void {
    if (this.waiting > 0) return
    for (const session of this.#sessions) session.retire()
  }

  protected override cut(error: Error): void {
    for (const { calls, http2 } of this.#sessions) {
      for (const call of calls) call.fail(error)
      http2.destroy()
    }
  }
}
