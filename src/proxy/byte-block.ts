/** Least bytes of a block that is to grow. */
const LEAST = 4096

/**
 * Bytes that come in pieces, kept in one block of memory: a sender of many tiny pieces makes it hold
 * no more than twice what it sent, where an object for each piece would take hundreds of times as much.
 */
export class ByteBlock {
  #block: Buffer | undefined = undefined
  #length = 0
  readonly #expected: number

  /** `expected` is how many bytes come at most. */
  constructor(expected: number) {
    this.#expected = expected
  }

  get length(): number {
    return this.#length
  }

  append(piece: Buffer): void {
    const end = this.#length + piece.length
    if (this.#block === undefined) {
      // Most are whole with the first piece, which then needs no copy.
      this.#block = piece
    } else {
      if (end > this.#block.length) this.#grow(end)
      piece.copy(this.#block, this.#length)
    }
    this.#length = end
  }

  #grow(least: number): void {
    // Never at once what a sender only announces.
    const size = Math.max(LEAST, least, Math.min(this.#length * 2, this.#expected))
    const block = Buffer.allocUnsafeSlow(size)
    this.#block!.copy(block, 0, 0, this.#length)
    this.#block = block
  }

  /** All of them, as a view of the block. */
  bytes(): Buffer {
    return this.#block?.subarray(0, this.#length) ?? Buffer.alloc(0)
  }
}
