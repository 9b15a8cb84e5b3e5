import { BodyAborted, BodyTimeout, BodyTooLarge } from '../errors.ts'
import { ByteBlock } from './byte-block.ts'
import type { HttpExchange } from './exchange.ts'

/** Bodies a thread holds at their full size at a time. */
const BODIES = 32

/** How much of request bodies is held in memory, in one thread. */
export class GatherBounds {
  /** Bytes of one body, after which the rest of it streams; 0 holds nothing. */
  readonly each: number
  #free: number

  constructor(each: number) {
    this.each = each
    this.#free = each * BODIES
  }

  /** Counts bytes that are held; gives whether there is room for more. */
  take(bytes: number): boolean {
    this.#free -= bytes
    return this.#free > 0
  }

  give(bytes: number): void {
    this.#free += bytes
  }
}

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
  readonly #bounds: GatherBounds
  readonly #owner: GatheringOwner
  #block: ByteBlock
  #timer: NodeJS.Timeout | undefined
  #held = 0
  /** Whether the body has ended within the bounds. */
  whole = false

  constructor(exchange: HttpExchange, bounds: GatherBounds, owner: GatheringOwner) {
    const { raw } = exchange
    this.#exchange = exchange
    this.#bounds = bounds
    this.#owner = owner
    const length = Number(raw.headers['content-length'] ?? Number.POSITIVE_INFINITY)
    this.#block = new ByteBlock(Math.min(length, bounds.each))
    this.#timer = setTimeout(this.#onTimeout, exchange.options.bodyTimeout)
    exchange.acceptBody()
    raw.on('data', this.#onData)
    raw.on('end', this.#onEnd)
    raw.on('close', this.#onGone)
    raw.on('error', this.#onGone)
  }

  /** What was gathered; nothing once it is released. */
  get bytes(): Buffer {
    return this.#block.bytes()
  }

  readonly #onData = (chunk: Buffer): void => {
    const exchange = this.#exchange
    const { maxBodySize } = this.#owner
    exchange.bytesReceived += chunk.length
    if (maxBodySize > 0 && exchange.bytesReceived > maxBodySize) {
      this.#conclude(new BodyTooLarge(maxBodySize))
      return
    }
    this.#block.append(chunk)
    this.#held += chunk.length
    this.#timer!.refresh()
    // Taken first: what has come is held, whether there was room for it or not.
    const hasRoom = this.#bounds.take(chunk.length)
    if (!hasRoom || this.#block.length >= this.#bounds.each) this.#conclude(undefined)
  }

  readonly #onEnd = (): void => {
    this.whole = true
    this.#conclude(undefined)
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
    if (!this.whole) raw.pause()
    raw.off('data', this.#onData)
    raw.off('end', this.#onEnd)
    raw.off('close', this.#onGone)
    raw.off('error', this.#onGone)
  }

  /** The bytes are needed no longer. Ends what is under way, of which the owner is not told. */
  release(): void {
    if (this.#timer !== undefined) this.#detach()
    this.#bounds.give(this.#held)
    this.#held = 0
    this.#block = new ByteBlock(0)
  }
}
