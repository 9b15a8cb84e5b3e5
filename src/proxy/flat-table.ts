/**
 * Numbers and text of an index in memory that threads share: one thread makes it, any number look
 * things up in it without building or copying anything. What is read together stands together: text
 * in memory of its own made a look-up among 10,000 routes wait for a third more of the caches' misses.
 */
export interface FlatTable {
  /** Nothing begins at 0, which so stands for nothing. */
  readonly words: Int32Array
  /** The same memory as code units, two to a word. */
  readonly text: Uint16Array
}

/** Words of a slot: the hash of its key, and the value. */
const SLOT = 2

function hash(text: string, from: number, to: number): number {
  let sum = 0x811c9dc5
  for (let i = from; i < to; i++) sum = Math.imul(sum ^ text.charCodeAt(i), 0x01000193)
  return sum ^ (sum >>> 15)
}

/** How many words as many code units take. */
const wordsOf = (units: number): number => (units + 1) >> 1

/** Whether the text in a word and those after it is that of `other` from `from` on, as long as it has to be. */
export function sameText(
  text: Uint16Array,
  word: number,
  length: number,
  other: string,
  from: number
): boolean {
  if (other.length - from < length) return false
  const start = word * 2
  for (let i = 0; i < length; i++) if (text[start + i] !== other.charCodeAt(from + i)) return false
  return true
}

/** What {@link FlatTableWriter.index} holds for a part of a text: where it stands, 0 for nothing. */
export function lookUp(
  { words, text }: FlatTable,
  index: number,
  key: string,
  from = 0,
  to = key.length
): number {
  const mask = words[index]!
  const length = to - from
  const sum = hash(key, from, to)
  for (let slot = sum & mask; ; slot = (slot + 1) & mask) {
    const at = index + 1 + slot * SLOT
    const value = words[at + 1]!
    if (value === 0) return 0
    if (words[at] !== sum || words[value - 1] !== length) continue
    if (sameText(text, value - 1 - wordsOf(length), length, key, from)) return value
  }
}

/** Writes a {@link FlatTable}. */
export class FlatTableWriter {
  #words = new Int32Array(1024)
  #text = new Uint16Array(this.#words.buffer)
  #length = 1

  /** Takes as many words, all 0; gives where they begin. */
  reserve(count: number): number {
    const at = this.#length
    this.#length += count
    if (this.#length > this.#words.length) {
      const larger = new Int32Array(this.#length * 2)
      larger.set(this.#words)
      this.#words = larger
      this.#text = new Uint16Array(larger.buffer)
    }
    return at
  }

  set(at: number, word: number): void {
    this.#words[at] = word
  }

  /** Writes text into the next words. */
  write(text: string): void {
    const start = this.reserve(wordsOf(text.length)) * 2
    for (let i = 0; i < text.length; i++) this.#text[start + i] = text.charCodeAt(i)
  }

  /** Writes a key of an index; gives where what it stands for has to begin, right behind it. */
  key(text: string): number {
    this.write(text)
    this.set(this.reserve(1), text.length)
    return this.#length
  }

  /** Writes a hash table of what stands behind keys, by them; gives where it stands, 0 for an empty one. */
  index(values: ReadonlyMap<string, number>): number {
    if (values.size === 0) return 0
    // At most two thirds of the slots are taken: a look-up meets two or three.
    const mask = 2 ** Math.ceil(Math.log2(values.size * 1.5 + 1)) - 1
    const index = this.reserve(1 + (mask + 1) * SLOT)
    this.set(index, mask)
    for (const [key, value] of values) {
      const sum = hash(key, 0, key.length)
      let slot = sum & mask
      while (this.#words[index + 1 + slot * SLOT + 1] !== 0) slot = (slot + 1) & mask
      const at = index + 1 + slot * SLOT
      this.set(at, sum)
      this.set(at + 1, value)
    }
    return index
  }

  finish(): FlatTable {
    const words = new Int32Array(new SharedArrayBuffer(this.#length * 4))
    words.set(this.#words.subarray(0, this.#length))
    return { words, text: new Uint16Array(words.buffer) }
  }
}
