import { BodyAborted, BodyTimeout, BodyTooLarge } from '../errors.ts'
import type { HttpExchange } from './exchange.ts'
import { HeldBody, type HoldBounds } from './held-body.ts'

/** Whoever waits for a body to be gathered. */
export interface GatheringOwner {
  /** The most bytes of a body; 0 is unlimited. */
  readonly maxBodySize: number
  /** It is whole, or as much of it as may be held; an error says that no more of it comes. */
  gathered(exchange: HttpExchange, gathering: Gathering, error: Error | undefined): void
}

/**
 * Reads the client's body before an upstream is asked, so that a slow client holds no connection to
 * one and an attempt can be repeated. What goes beyond the bounds is left to be streamed.
 */
export class Gathering {
  readonly #exchange: HttpExchange
  readonly #bounds: HoldBounds
  readonly #owner: GatheringOwner
  #timer: NodeJS.Timeout | undefined
  /** What was gathered. */
  readonly body: HeldBody

  constructor(exchange: HttpExchange, bounds: HoldBounds, owner: GatheringOwner) {
    const { raw } = exchange
    this.#exchange = exchange
    this.#bounds = bounds
    this.#owner = owner
    // Pieces of HTTP/2 may stand in memory together with others.
    this.body = new HeldBody(!exchange.http2, bounds)
    this.#timer = setTimeout(this.#onTimeout, exchange.options.bodyTimeout)
    exchange.acceptBody()
    raw.on('data', this.#onData)
    raw.on('end', this.#onEnd)
    raw.on('close', this.#onGone)
    raw.on('error', this.#onGone)
  }

  readonly #onData = (chunk: Buffer): void => {
    const exchange = this.#exchange
    const { maxBodySize } = this.#owner
    exchange.bytesReceived += chunk.length
    if (maxBodySize > 0 && exchange.bytesReceived > maxBodySize) {
      this.#conclude(new BodyTooLarge(maxBodySize))
      return
    }
    this.#timer!.refresh()
    // Taken first: what has come is held, whether there was room for it or not.
    const hasRoom = this.#bounds.take(chunk.length)
    this.body.append(chunk)
    if (!hasRoom || this.body.length >= this.#bounds.each) this.#conclude(undefined)
  }

  readonly #onEnd = (): void => {
    this.body.whole = true
    this.#conclude(this.#exchange.trailersProblem())
  }

  readonly #onGone = (): void => this.#conclude(new BodyAborted())

  readonly #onTimeout = (): void => this.#conclude(new BodyTimeout())

  #conclude(error: Error | undefined): void {
    this.#detach()
    this.#owner.gathered(this.#exchange, this, error)
  }

  #detach(): void {
    const { raw } = this.#exchange
    clearTimeout(this.#timer)
    this.#timer = undefined
    if (!this.body.whole) raw.pause()
    raw.off('data', this.#onData)
    raw.off('end', this.#onEnd)
    raw.off('close', this.#onGone)
    raw.off('error', this.#onGone)
  }

  /** The bytes are needed no longer. Ends what is under way, of which the owner is not told. */
  release(): void {
    if (this.#timer !== undefined) this.#detach()
    this.body.release()
  }
}
