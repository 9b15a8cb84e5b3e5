import { hash, randomBytes } from 'node:crypto'
import { LRUCache } from 'lru-cache'
import { periods } from './periods.ts'

/** What is counted for, as the table knows it: made of text by {@link CounterTable.identify}. */
export interface Identity {
  /** 64 bits of a keyed digest. Only identities with neighbouring `start`s are ever compared. */
  readonly tag: bigint
  /** Where its search begins. */
  readonly start: number
}

/** The window is over: {@link CounterTable.take} came upon a later one. */
export const OVER = -1

/** Words of a slot: the tag, then the count. */
const WORDS = 2
const HEADER_WORDS = 8
/** Slots a search looks at; at nine tenths full it hardly ever needs them all. */
const MAX_PROBES = 64
/** Looks at a slot that another thread is about to fill before it is taken out of use. */
const PATIENCE = 2000
const MAX_KNOWN = 10_000

/** A count is stored plus one, so that 0 tells a slot which is being filled. */
const ONE = 1n
const LOW = 0xffff_ffffn
const UNUSABLE = LOW
/** Highest limit the table can tell from a count. */
export const MAX_LIMIT = 0xffff_fff0

/** Bytes of shared memory for this many slots for each of the periods, a power of two. */
export function tableBytes(slots: number): number {
  return (HEADER_WORDS + periods.length * slots * WORDS) * BigUint64Array.BYTES_PER_ELEMENT
}

/**
 * Counters in memory that several threads share, without locks, so a thread that dies or stalls in
 * the middle of anything holds up no other.
 *
 * Each period has a region of its own, an open-addressing hash table of slots. A slot is two 64-bit
 * words: the *tag* of an identity, and its *count* together with the window it counts in. Both
 * halves of the count word change in one compare-and-swap, so no update is lost and none lands in
 * another window. A slot whose window is over is free, for nothing ever empties it: from the start
 * of a window until its end slots are only filled. That is what makes the first free slot of a
 * search the same for all threads, and an identity has one slot.
 *
 * Filling a slot takes three swaps: the count word says *being filled in window w*, then the tag is
 * written, then the count word says *ready*. Threads that meet a slot in between wait for a
 * moment and then make it unusable until its window is over; its filler, should it only have
 * stalled, sees that at its last swap and searches on.
 *
 * Where a search finds {@link MAX_PROBES} other identities of the same window, the one with the
 * smallest count gives way: those that send many requests, which limits are there for, stay.
 * `evictions` counts that.
 *
 * Tags are keyed with random bits made at the first use of the memory, so clients cannot choose
 * names that share a place or a tag. Two identities are confused when they agree in 64 bits of
 * SHA-256 and lie within 64 slots of each other: with 100,000 at once the odds are about 1 in 10^13.
 */
export class CounterTable {
  readonly #words: BigUint64Array
  readonly #slots: number
  readonly #seed: string
  readonly #known = new LRUCache<string, Identity>({ max: MAX_KNOWN })
  /** How many identities of a current window gave way to others, by doing of this thread. */
  evictions = 0

  constructor(memory: SharedArrayBuffer) {
    this.#words = new BigUint64Array(memory)
    this.#slots = (this.#words.length - HEADER_WORDS) / (periods.length * WORDS)
    if (!Number.isInteger(Math.log2(this.#slots))) {
      throw new TypeError('The memory of a counter table is as long as tableBytes() says')
    }
    this.#seed = `${this.#seedWord(0)}:${this.#seedWord(1)}:`
  }

  /** The first thread to ask decides. */
  #seedWord(index: number): bigint {
    const mine = randomBytes(8).readBigUInt64LE() | 1n
    const there = Atomics.compareExchange(this.#words, index, 0n, mine)
    return there === 0n ? mine : there
  }

  identify(text: string): Identity {
    let identity = this.#known.get(text)
    if (identity === undefined) {
      const digest = hash('sha256', this.#seed + text, 'buffer')
      const tag = digest.readBigUInt64LE(0)
      identity = { tag, start: digest.readUInt32LE(8) & (this.#slots - 1) }
      this.#known.set(text, identity)
    }
    return identity
  }

  /**
   * Counts one more in this window when fewer than `limit` are counted there. Gives how many were
   * counted before; it was taken when that is less than the limit. Gives {@link OVER} when another
   * thread counts in a later window already, which may have cost this one its count; what is later
   * is passed over with `clockSetBack`.
   */
  take(
    period: number,
    identity: Identity,
    window: number,
    limit: number,
    clockSetBack = false
  ): number {
    const words = this.#words
    for (;;) {
      const slot = this.#slotOf(period, identity, window, clockSetBack)
      if (slot === OVER) return OVER
      if (slot === undefined) return 0
      for (;;) {
        const word = Atomics.load(words, slot + 1)
        if (!isCount(word, window)) break
        const counted = countOf(word)
        if (counted >= limit) return counted
        if (Atomics.compareExchange(words, slot + 1, word, word + ONE) === word) return counted
      }
    }
  }

  /** Takes back one that {@link take} counted, unless the window is over. */
  release(period: number, identity: Identity, window: number, clockSetBack = false): void {
    const words = this.#words
    const slot = this.#slotOf(period, identity, window, clockSetBack)
    if (slot === OVER || slot === undefined) return
    for (;;) {
      const word = Atomics.load(words, slot + 1)
      if (!isCount(word, window) || countOf(word) === 0) return
      if (Atomics.compareExchange(words, slot + 1, word, word - ONE) === word) return
    }
  }

  /** How many are counted in this window. */
  counted(period: number, identity: Identity, window: number): number {
    return Math.max(0, this.take(period, identity, window, 0, true))
  }

  /** Gives up what this thread holds; the counters stay in the shared memory. */
  close(): void {
    this.#known.clear()
  }

  /** Index of the identity's slot, filled now if it had none; undefined when there is no room at all. */
  #slotOf(
    period: number,
    { tag, start }: Identity,
    window: number,
    clockSetBack: boolean
  ): number | undefined {
    const words = this.#words
    const region = HEADER_WORDS + period * this.#slots * WORDS
    const mine = tagIn(tag, window)
    let smallest: number | undefined
    let smallestWord = 0n
    for (let probe = 0; probe < MAX_PROBES; probe++) {
      const slot = region + ((start + probe) & (this.#slots - 1)) * WORDS
      let word = Atomics.load(words, slot + 1)
      while (windowOf(word) < window) {
        if (this.#fill(slot, word, mine, window)) return slot
        word = Atomics.load(words, slot + 1)
      }
      word = this.#settled(slot, word)
      if (windowOf(word) > window && !clockSetBack) return OVER
      if (windowOf(word) > window || (word & LOW) === UNUSABLE) continue
      if (Atomics.load(words, slot) === mine) return slot
      if (windowOf(Atomics.load(words, slot + 1)) !== window) {
        // Filled anew in between, so that was not the tag of this window: look again.
        probe--
        continue
      }
      if (smallest === undefined || word < smallestWord) {
        smallest = slot
        smallestWord = word
      }
    }
    if (smallest === undefined) return undefined
    if (!this.#fill(smallest, smallestWord, mine, window)) {
      return this.#slotOf(period, { tag, start }, window, clockSetBack)
    }
    this.evictions++
    return smallest
  }

  /** Makes the slot with this count word that of a tag; false when another thread was faster. */
  #fill(slot: number, word: bigint, tag: bigint, window: number): boolean {
    const words = this.#words
    const filling = BigInt(window) << 32n
    const before = Atomics.load(words, slot)
    if (Atomics.compareExchange(words, slot + 1, word, filling) !== word) return false
    const there = Atomics.compareExchange(words, slot, before, tag)
    if (there !== before) {
      // A thread that had stalled wrote its tag late, and will not use the slot.
      Atomics.compareExchange(words, slot + 1, filling, filling | UNUSABLE)
      return false
    }
    if (Atomics.compareExchange(words, slot + 1, filling, filling | ONE) === filling) return true
    // This thread stalled, and the slot was given up meanwhile: leave it as it was.
    Atomics.compareExchange(words, slot, tag, before)
    return false
  }

  /** The count word once nobody is filling the slot any more. */
  #settled(slot: number, word: bigint): bigint {
    let seen = word
    for (let looks = 0; (seen & LOW) === 0n; looks++) {
      if (looks >= PATIENCE) {
        Atomics.compareExchange(this.#words, slot + 1, seen, seen | UNUSABLE)
      }
      seen = Atomics.load(this.#words, slot + 1)
    }
    return seen
  }
}

/**
 * What the tag word holds in this window. It differs from window to window, so the swap of a thread
 * that stalled in an earlier one fails.
 */
function tagIn(tag: bigint, window: number): bigint {
  return tag ^ BigInt(window)
}

function windowOf(word: bigint): number {
  return Number(word >> 32n)
}

function isCount(word: bigint, window: number): boolean {
  const low = word & LOW
  return windowOf(word) === window && low !== 0n && low !== UNUSABLE
}

function countOf(word: bigint): number {
  return Number(word & LOW) - 1
}
