import { giveBack } from '../memory.ts'
import { ByteBlock } from './byte-block.ts'

/** Bodies a thread holds at their full size at a time. */
const BODIES = 32

/** How much of request bodies is held in memory, in one thread. */
export class HoldBounds {
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

/** Bytes from which on a piece is kept as it came; the objects of smaller ones would outweigh them. */
const LARGE = 16_384
/** Bytes of a block that smaller pieces are copied into, at most. */
const BLOCK = 65_536

/** A request body as far as it is held in memory, in pieces. */
export class HeldBody {
  readonly #bounds: HoldBounds | undefined
  #owned: boolean
  #pieces: Buffer[] = []
  /** Where small pieces are put together; the last of all while it is there. */
  #tail: ByteBlock | undefined = undefined
  /** Readers that have not said that they are done. */
  #readers = 0
  #released = false
  length = 0
  /** Whether nothing comes after it. */
  whole = false

  /**
   * `owned`: nobody else has a view of the memory of the pieces, so that it is given back as soon as
   * the body is released and no reader is left. `bounds` is told then too.
   */
  constructor(owned: boolean, bounds?: HoldBounds) {
    this.#owned = owned
    this.#bounds = bounds
  }

  /** A body that is whole already. */
  static of(bytes: Buffer): HeldBody {
    const body = new HeldBody(false)
    for (let at = 0; at < bytes.length; at += BLOCK) body.append(bytes.subarray(at, at + BLOCK))
    body.whole = true
    return body
  }

  append(piece: Buffer): void {
    this.length += piece.length
    if (piece.length >= LARGE) {
      this.#endTail()
      this.#pieces.push(piece)
      return
    }
    if (this.#tail !== undefined && this.#tail.length + piece.length > BLOCK) this.#endTail()
    if (this.#tail === undefined) {
      this.#tail = new ByteBlock(BLOCK)
      this.#tail.append(piece)
    } else {
      this.#tail.append(piece)
      if (this.#owned) giveBack(piece)
    }
  }

  #endTail(): void {
    if (this.#tail === undefined) return
    this.#pieces.push(this.#tail.bytes())
    this.#tail = undefined
  }

  /** All of it as latin1 text; for a small one. */
  text(): string {
    this.#endTail()
    let text = ''
    for (const piece of this.#pieces) text += piece.toString('latin1')
    return text
  }

  /** The pieces in their order, for a reader that says when it is {@link done}; they stay until then. */
  read(): readonly Buffer[] {
    this.#endTail()
    this.#readers++
    return this.#pieces
  }

  /** A reader needs the pieces no longer. One that failed is never sure of it, and does not tell. */
  done(): void {
    this.#readers--
    this.#giveBack()
  }

  /** The pieces in their order, for a reader that does not tell when it is done: it keeps their memory. */
  lend(): readonly Buffer[] {
    this.#endTail()
    this.#owned = false
    return this.#pieces
  }

  /** No other reader will come. */
  release(): void {
    if (this.#released) return
    this.#released = true
    this.#bounds?.give(this.length)
    this.#endTail()
    this.#giveBack()
  }

  #giveBack(): void {
    if (!this.#released || this.#readers > 0) return
    if (this.#owned) for (const piece of this.#pieces) giveBack(piece)
    this.#pieces = []
  }
}
