import type { Socket } from 'node:net'
import { type Dispatcher, errors } from 'undici'
import { WriteTimeout } from '../../errors.ts'
import { type ForwardOptions, Pool, type PoolBounds } from '../pool.ts'
import { Call } from './call.ts'
import { Connection, type ConnectionOwner } from './connection.ts'

/** Bounds of the connections to one address. */
export interface Http1PoolOptions extends PoolBounds {
  /** Bytes of a response head or trailer section. */
  readonly maxHeadSize: number
}

/**
 * HTTP/1.1 connections to one address, as an undici dispatcher. It does what a proxy needs of one
 * and no more (no pipelining, no redirects), which is what its speed comes from: one
 * object per request, one timer per pool, field names and values never leave being strings.
 */
export class Http1Pool extends Pool<Call> implements ConnectionOwner {
  readonly #maxHeadSize: number
  readonly #connections = new Set<Connection>()
  /** Free ones, the last used at the end: a few connections stay warm and the rest age out. */
  readonly #free: Connection[] = []
  #timer: NodeJS.Timeout | undefined = undefined
  /** `performance.now()` of the next sweep. */
  #sweepAt = Number.POSITIVE_INFINITY

  constructor(origin: URL, options: Http1PoolOptions) {
    super(origin, options)
    this.#maxHeadSize = options.maxHeadSize
  }

  protected override get size(): number {
    return this.#connections.size
  }

  override dispatch(options: ForwardOptions, handler: Dispatcher.DispatchHandler): boolean {
    const call = new Call(options, handler)
    if (this.closed) {
      call.refuse(new errors.ClientDestroyedError())
      return false
    }
    const connection = this.#take()
    if (connection !== undefined) {
      this.#send(connection, call)
      return true
    }
    if (this.enqueue(call)) this.#openOne()
    return false
  }

  #take(): Connection | undefined {
    const now = performance.now()
    for (;;) {
      const connection = this.#free.pop()
      if (connection === undefined) return undefined
      if (!connection.dead && now - connection.idleSince < this.#idleLimit(connection)) {
        return connection
      }
      connection.socket.destroy()
    }
  }

  #idleLimit(connection: Connection): number {
    return Math.min(this.bounds.idleTimeout, connection.idleHint)
  }

  #send(connection: Connection, call: Call): void {
    try {
      connection.send(call)
    } catch (error) {
      // Nothing was sent, so the connection is as good as before.
      this.onFree(connection)
      call.refuse(error as Error)
    }
  }

  #openOne(): void {
    if (this.connecting >= this.waiting) return
    if (this.#connections.size + this.connecting < this.bounds.connections) this.open()
  }

  /** A connection that could not be made is the failure of the request that waited longest. */
  protected override onConnectFailed(error: Error): void {
    // That one's time ends by itself, and this attempt may have begun for another before it.
    if (!(error instanceof errors.ConnectTimeoutError)) {
      this.next()?.refuse(error)
    }
    this.#openOne()
  }

  protected override adopt(socket: Socket): void {
    const connection = new Connection(socket, this, this.#maxHeadSize)
    this.#connections.add(connection)
    this.onFree(connection)
  }

  onFree(connection: Connection): void {
    if (connection.requests >= this.bounds.maxRequests || connection.dead) {
      connection.socket.destroy()
      return
    }
    const call = this.next()
    if (call !== undefined) {
      this.#send(connection, call)
      return
    }
    if (this.closed) {
      connection.socket.destroy()
      return
    }
    connection.idleSince = performance.now()
    this.#free.push(connection)
    this.#sweepBy(connection.idleSince + this.#idleLimit(connection))
  }

  onGone(connection: Connection): void {
    this.#connections.delete(connection)
    const index = this.#free.indexOf(connection)
    if (index !== -1) this.#free.splice(index, 1)
    this.#openOne()
    this.checkDrained()
    this.#letGo()
  }

  /** Its timer would hold a pool that nobody uses any more for as long as an idle connection lives. */
  #letGo(): void {
    if (this.closed && this.#connections.size === 0) clearTimeout(this.#timer)
  }

  watch(call: Call): void {
    this.#sweepBy(call.deadline)
  }

  /** One timer serves every deadline of the pool: it is set for the earliest and then looks at all. */
  #sweepBy(time: number): void {
    if (time >= this.#sweepAt) return
    this.#sweepAt = time
    clearTimeout(this.#timer)
    this.#timer = setTimeout(this.#sweep, Math.max(1, time - performance.now()))
    this.#timer.unref()
  }

  readonly #sweep = (): void => {
    const now = performance.now()
    this.#sweepAt = Number.POSITIVE_INFINITY
    let next = Number.POSITIVE_INFINITY
    for (const connection of this.#connections) {
      const { call } = connection
      if (call === undefined) {
        const end = connection.idleSince + this.#idleLimit(connection)
        if (end <= now) connection.socket.destroy()
        else next = Math.min(next, end)
      } else if (call.deadline <= now) {
        connection.fail(overdue(call))
      } else {
        next = Math.min(next, call.deadline)
      }
    }
    this.#sweepBy(next)
  }

  protected override retire(): void {
    for (const connection of this.#free.splice(0)) connection.socket.destroy()
    this.#letGo()
  }

  protected override cut(error: Error): void {
    for (const connection of this.#connections) connection.fail(error)
  }
}

/** The error of a request for which what was due did not happen. */
function overdue({ answered, sending }: Call): Error {
  if (answered) return new errors.BodyTimeoutError()
  return sending ? new WriteTimeout() : new errors.HeadersTimeoutError()
}
