/** Longest a timer waits, in milliseconds. */
const MAX_DELAY = 2 ** 31 - 1

/**
 * When the previous values of references stop verifying. One timer for all of them, so that what
 * was rotated together ends together.
 */
export class Graces {
  /** On the clock of `performance.now`. */
  readonly #ends = new Map<string, number>()
  readonly #ended: (references: readonly string[]) => void
  #timer: NodeJS.Timeout | undefined
  #wakesAt = Number.POSITIVE_INFINITY

  constructor(ended: (references: readonly string[]) => void) {
    this.#ended = ended
  }

  /** Starts the grace of references anew; `seconds` gives how long that of each is. */
  start(references: Iterable<string>, seconds: (reference: string) => number): void {
    const now = performance.now()
    let first = Number.POSITIVE_INFINITY
    for (const text of references) {
      const end = now + seconds(text) * 1000
      this.#ends.set(text, end)
      first = Math.min(first, end)
    }
    this.#wake(first, now)
  }

  /** Whether the grace of a reference is running. */
  has(reference: string): boolean {
    return this.#ends.has(reference)
  }

  #wake(at: number, now: number): void {
    if (at >= this.#wakesAt) return
    clearTimeout(this.#timer)
    this.#wakesAt = at
    this.#timer = setTimeout(() => this.#end(), Math.min(Math.max(at - now, 0), MAX_DELAY))
    this.#timer.unref()
  }

  #end(): void {
    const now = performance.now()
    const ended: string[] = []
    let next = Number.POSITIVE_INFINITY
    this.#wakesAt = next
    for (const [text, end] of this.#ends) {
      // A timer may come a little early.
      if (end <= now + 1) ended.push(text)
      else next = Math.min(next, end)
    }
    for (const text of ended) this.#ends.delete(text)
    this.#wake(next, now)
    if (ended.length > 0) this.#ended(ended)
  }

  close(): void {
    clearTimeout(this.#timer)
    this.#ends.clear()
    this.#wakesAt = Number.NEGATIVE_INFINITY
  }
}
