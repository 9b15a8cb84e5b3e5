import type { Dispatcher } from 'undici'
import type { ForwardOptions, PooledCall } from '../pool.ts'

/** A handler that is done with the bytes of a body when `onResponseData` returns, borrowed ones too. */
export interface BorrowingHandler extends Dispatcher.DispatchHandler {
  readonly borrows: true
}

/** What carries a call: a connection, as far as the call acts on it. */
export interface Carrier {
  pause(): void
  resume(): void
  /** Ends the connection, and the call with this error. */
  fail(error: Error): void
}

/**
 * One request on its way over a pool: undici's controller for its handler. It lets go of the
 * connection when the response is whole, so whatever comes late cannot touch the next request there.
 */
export class Call implements PooledCall {
  readonly options: ForwardOptions
  readonly handler: Dispatcher.DispatchHandler
  readonly version = '1.1'
  /** Whether the handler is a {@link BorrowingHandler}. */
  readonly borrows: boolean
  /** Undefined while it waits for a connection and after its end. */
  connection: Carrier | undefined = undefined
  rawHeaders: string[] | null = null
  rawTrailers: string[] | null = null
  aborted = false
  reason: Error | null = null
  paused = false
  /** `performance.now()` by which something must have come; Infinity while nothing is expected. */
  deadline = Number.POSITIVE_INFINITY
  /** Whether what must come is that the upstream takes more of the body. */
  sending = false
  /** Whether the head of the final response came. */
  answered = false
  /** Whether its connection had carried another request before. */
  reused = false
  /** Milliseconds without a byte of the body; 0 waits for ever. */
  bodyTimeout: number

  constructor(options: ForwardOptions, handler: Dispatcher.DispatchHandler) {
    this.options = options
    this.handler = handler
    this.borrows = (handler as Partial<BorrowingHandler>).borrows === true
    this.bodyTimeout = options.bodyTimeout ?? 0
  }

  pause(): void {
    if (this.paused || this.connection === undefined) return
    this.paused = true
    this.connection.pause()
  }

  resume(): void {
    if (!this.paused) return
    this.paused = false
    this.connection?.resume()
  }

  /** Ends a request that was not sent. */
  refuse(error: Error): void {
    this.handler.onResponseError?.(this, error)
  }

  /** Ends the request; its handler hears of it once, unless it has ended already. */
  abort(reason: Error): void {
    if (this.aborted) return
    this.aborted = true
    this.reason = reason
    this.connection?.fail(reason)
  }
}
