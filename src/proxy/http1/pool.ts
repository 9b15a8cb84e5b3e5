import type { Socket } from 'node:net'
import createError from '@fastify/error'
import { type buildConnector, Dispatcher, errors } from 'undici'
import { Call } from './call.ts'
import { Connection, type ConnectionOwner } from './connection.ts'

const UpstreamBusy = createError(
  'POSTERN_UPSTREAM_BUSY',
  'Every connection to the upstream is in use, and too many requests wait for one',
  503
)

/** Bounds of the connections to one address. Times in milliseconds. */
export interface Http1PoolOptions {
  readonly connect: buildConnector.connector
  /** Open connections at most. */
  readonly connections: number
  /** Requests that may wait for one; more are refused. */
  readonly maxWaiting: number
  readonly idleTimeout: number
  /** Requests over one connection, after which it is replaced. */
  readonly maxRequests: number
  /** Bytes of a response head or trailer section. */
  readonly maxHeadSize: number
}

/**
 * HTTP/1.1 connections to one address, as an undici dispatcher. It does what a proxy needs of one
 * and no more (no pipelining, no upgrade, no redirects), which is what its speed comes from: one
 * object per request, one timer per pool, field names and values never leave being strings.
 */
export class Http1Pool extends Dispatcher implements ConnectionOwner {
  readonly #origin: URL
  readonly #options: Http1PoolOptions
  readonly #connections = new Set<Connection>()
  /** Free ones, the last used at the end: a few connections stay warm and the rest age out. */
  readonly #free: Connection[] = []
  readonly #waiting: Call[] = []
  #connecting = 0
  #closed = false
  #onDrained: (() => void) | undefined = undefined
  #timer: NodeJS.Timeout | undefined = undefined
  /** `performance.now()` of the next sweep. */
  #sweepAt = Number.POSITIVE_INFINITY

  constructor(origin: URL, options: Http1PoolOptions) {
    super()
    this.#origin = origin
    this.#options = options
  }

  /** Requests under way or waiting. */
  get pending(): number {
    return this.#connections.size - this.#free.length + this.#waiting.length
  }

  /** As undici's: never throws for what the network does, the handler hears of it. */
  override dispatch(
    options: Dispatcher.DispatchOptions,
    handler: Dispatcher.DispatchHandler
  ): boolean {
    const call = new Call(options, handler)
    if (this.#closed) {
      handler.onResponseError?.(call, new errors.ClientDestroyedError())
      return false
    }
    const connection = this.#take()
    if (connection !== undefined) {
      this.#send(connection, call)
      return true
    }
    // Those a connection is being opened for do not wait for another's.
    if (this.#waiting.length - this.#connecting >= this.#options.maxWaiting) {
      handler.onResponseError?.(call, new UpstreamBusy())
      return false
    }
    this.#waiting.push(call)
    this.#open()
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
    return Math.min(this.#options.idleTimeout, connection.idleHint)
  }

  #send(connection: Connection, call: Call): void {
    try {
      connection.send(call)
    } catch (error) {
      // Nothing was sent, so the connection is as good as before.
      this.onFree(connection)
      call.handler.onResponseError?.(call, error as Error)
    }
  }

  #open(): void {
    const { connections, connect, maxHeadSize } = this.#options
    if (this.#connecting >= this.#waiting.length) return
    if (this.#connections.size + this.#connecting >= connections) return
    this.#connecting++
    const { hostname, protocol, port, host } = this.#origin
    const bare = hostname.startsWith('[') ? hostname.slice(1, -1) : hostname
    connect({ hostname: bare, host, protocol, port }, (error, socket) => {
      this.#connecting--
      if (error !== null) this.#refuseOne(error)
      else if (this.#closed) socket.destroy()
      else this.#adopt(socket, maxHeadSize)
    })
  }

  /** A connection that could not be made is the failure of the request that waited longest. */
  #refuseOne(error: Error): void {
    const call = this.#next()
    call?.handler.onResponseError?.(call, error)
    this.#open()
  }

  #adopt(socket: Socket, maxHeadSize: number): void {
    const connection = new Connection(socket, this, maxHeadSize)
    this.#connections.add(connection)
    this.onFree(connection)
  }

  /** The next waiting request that was not aborted meanwhile. */
  #next(): Call | undefined {
    for (;;) {
      const call = this.#waiting.shift()
      if (call === undefined) return undefined
      if (!call.aborted) return call
      call.handler.onResponseError?.(call, call.reason ?? new errors.RequestAbortedError())
    }
  }

  onFree(connection: Connection): void {
    if (connection.requests >= this.#options.maxRequests || connection.dead) {
      connection.socket.destroy()
      return
    }
    const call = this.#next()
    if (call !== undefined) {
      this.#send(connection, call)
      return
    }
    if (this.#closed) {
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
    this.#open()
    if (this.#closed && this.#connections.size === 0) this.#onDrained?.()
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
        connection.fail(
          call.answered ? new errors.BodyTimeoutError() : new errors.HeadersTimeoutError()
        )
      } else {
        next = Math.min(next, call.deadline)
      }
    }
    this.#sweepBy(next)
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
    for (const connection of this.#free.splice(0)) connection.socket.destroy()
    return new Promise(resolve => {
      const drained = (): void => {
        clearTimeout(this.#timer)
        resolve()
      }
      if (this.#connections.size === 0 && this.#waiting.length === 0) drained()
      else this.#onDrained = drained
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
    for (let call = this.#next(); call !== undefined; call = this.#next()) {
      call.handler.onResponseError?.(call, error ?? new errors.ClientDestroyedError())
    }
    for (const connection of this.#connections) {
      connection.fail(error ?? new errors.ClientDestroyedError())
    }
    if (then === undefined) return done
    void done.then(then)
  }
}
