import type { Socket } from 'node:net'
import createError from '@fastify/error'
import { type buildConnector, Dispatcher, errors } from 'undici'
import type { HeldBody } from './held-body.ts'

const UpstreamBusy = createError(
  'POSTERN_UPSTREAM_BUSY',
  'Every connection to the upstream is in use, and too many requests wait for one',
  503
)
const QueueTimeout = createError(
  'POSTERN_UPSTREAM_QUEUE_TIMEOUT',
  'Every connection to the upstream is in use, and none came free within %d ms',
  503
)

/** Bounds of the connections to one address. Times in milliseconds. */
export interface PoolBounds {
  readonly connect: buildConnector.connector
  /** Open connections at most. */
  readonly connections: number
  /** Requests that may wait for one; more are refused. */
  readonly maxWaiting: number
  /** How long a request waits for one. */
  readonly waitTimeout: number
  readonly idleTimeout: number
  /** Requests over one connection, after which it is replaced. */
  readonly maxRequests: number
}

/** What a request is dispatched with: undici's options, and what those do not know. */
export interface ForwardOptions extends Omit<Dispatcher.DispatchOptions, 'body'> {
  readonly body?: Dispatcher.DispatchOptions['body'] | HeldBody
  /** Milliseconds the upstream may take nothing of a {@link HeldBody}; 0 waits for ever. */
  readonly writeTimeout?: number
}

/** The two ways a dispatcher of undici ends, each with a promise or a callback, on top of one. */
export abstract class EndingDispatcher extends Dispatcher {
  /** Resolves when nothing is under way any more; with `error` what is ends with that. */
  protected abstract finish(error: Error | undefined): Promise<void>

  /** Resolves when what is under way has ended. */
  override close(): Promise<void>
  override close(callback: () => void): void
  override close(callback?: () => void): Promise<void> | void {
    const done = this.finish(undefined)
    if (callback === undefined) return done
    void done.then(callback)
  }

  /** Cuts what is under way. */
  override destroy(error?: Error | null): Promise<void>
  override destroy(callback: () => void): void
  override destroy(error: Error | null, callback: () => void): void
  override destroy(
    errorOrCallback?: Error | null | (() => void),
    callback?: () => void
  ): Promise<void> | void {
    const then = typeof errorOrCallback === 'function' ? errorOrCallback : callback
    const error = typeof errorOrCallback === 'function' ? null : errorOrCallback
    const done = this.finish(error ?? new errors.ClientDestroyedError())
    if (then === undefined) return done
    void done.then(then)
  }
}

/** A request of a pool, which is undici's controller for its handler too. */
export interface PooledCall extends Dispatcher.DispatchController {
  readonly options: ForwardOptions
  readonly handler: Dispatcher.DispatchHandler
  /** The protocol version of its answer, as `Via` writes it. */
  readonly version: '1.1' | '2'
  /** Ends a request that was not sent. */
  refuse(error: Error): void
}

interface Waiting<C> {
  readonly call: C
  /** `performance.now()` after which it is refused. */
  readonly until: number
}

/**
 * What pools of any HTTP version have in common: requests that wait for a connection, for a bounded
 * time and in a bounded number, the opening of connections, and the end of it all. As undici's
 * dispatchers it never throws for what the network does: the handler hears of it.
 */
export abstract class Pool<C extends PooledCall> extends EndingDispatcher {
  protected readonly origin: URL
  protected readonly bounds: PoolBounds
  protected closed = false
  protected connecting = 0
  readonly #waiting: Waiting<C>[] = []
  #timer: NodeJS.Timeout | undefined = undefined
  readonly #drained = Promise.withResolvers<void>()

  constructor(origin: URL, bounds: PoolBounds) {
    super()
    this.origin = origin
    this.bounds = bounds
  }

  /** Connections there are, busy or not. */
  protected abstract get size(): number

  /** A connection stands; serves what waits. */
  protected abstract adopt(socket: Socket): void

  /** A connection could not be made. */
  protected abstract onConnectFailed(error: Error): void

  /** Closes what is idle, and lets the rest end. */
  protected abstract retire(): void

  /** Ends the requests under way with `error`. */
  protected abstract cut(error: Error): void

  protected get waiting(): number {
    return this.#waiting.length
  }

  /** Has a request wait for a connection; gives whether it may. */
  protected enqueue(call: C): boolean {
    // Those a connection is being opened for do not wait for another's.
    if (this.#waiting.length - this.connecting >= this.bounds.maxWaiting) {
      call.refuse(new UpstreamBusy())
      return false
    }
    this.#waiting.push({ call, until: performance.now() + this.bounds.waitTimeout })
    if (this.#waiting.length === 1) this.#arm()
    return true
  }

  /** The next waiting request that was not aborted meanwhile. */
  protected next(): C | undefined {
    for (;;) {
      const first = this.#waiting.shift()
      if (first === undefined) return undefined
      const { call } = first
      if (!call.aborted) return call
      call.refuse(call.reason ?? new errors.RequestAbortedError())
    }
  }

  /** Takes every waiting request away. */
  protected takeAll(): C[] {
    const all: C[] = []
    for (let call = this.next(); call !== undefined; call = this.next()) all.push(call)
    return all
  }

  /** Ends every waiting request with `error`. */
  protected refuseAll(error: Error): void {
    for (const call of this.takeAll()) call.refuse(error)
  }

  /** One timer serves all that wait: they came in the order in which they are due. */
  #arm(): void {
    const first = this.#waiting[0]
    clearTimeout(this.#timer)
    if (first === undefined) return
    this.#timer = setTimeout(this.#expire, Math.max(1, first.until - performance.now()))
    this.#timer.unref()
  }

  readonly #expire = (): void => {
    const now = performance.now()
    while (this.#waiting.length > 0 && this.#waiting[0]!.until <= now) {
      const { call } = this.#waiting.shift()!
      const error =
        this.connecting > 0
          ? new errors.ConnectTimeoutError()
          : new QueueTimeout(this.bounds.waitTimeout)
      call.refuse(call.reason ?? error)
    }
    this.#arm()
    this.checkDrained()
  }

  /** Opens one more connection. */
  protected open(): void {
    this.connecting++
    const { hostname, protocol, port, host } = this.origin
    const bare = hostname.startsWith('[') ? hostname.slice(1, -1) : hostname
    this.bounds.connect({ hostname: bare, host, protocol, port }, (error, socket) => {
      this.connecting--
      if (error !== null) this.onConnectFailed(error)
      // A pool that is closing serves those who wait still.
      else if (this.closed && this.#waiting.length === 0) socket.destroy()
      else this.adopt(socket)
      this.checkDrained()
    })
  }

  /** Call it when a connection, or the last that waited, has gone. */
  protected checkDrained(): void {
    if (!this.closed || this.size > 0 || this.#waiting.length > 0) return
    clearTimeout(this.#timer)
    this.#drained.resolve()
  }

  protected override finish(error: Error | undefined): Promise<void> {
    this.closed = true
    this.retire()
    if (error !== undefined) {
      this.refuseAll(error)
      this.cut(error)
    }
    this.checkDrained()
    return this.#drained.promise
  }
}
