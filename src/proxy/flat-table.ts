import { endianness } from 'node:os'

/**
 * Numbers and text of an index in memory that threads share: one thread makes it, any number look
 * things up in it without building or copying anything.
 */
export interface FlatTable {
  /** Nothing begins at 0, which so stands for nothing. */
  readonly words: Int32Array
  /** Code units. */
  readonly text: Uint16Array
}

/** Words of a slot: the hash of its key, where the key stands in the text, its length, the value. */
const SLOT = 4

function hash(text: string, from: number, to: number): number {
  let sum = 0x811c9dc5
  for (let i = from; i < to; i++) sum = Math.imul(sum ^ text.charCodeAt(i), 0x01000193)
  return sum ^ (sum >>> 15)
}

/** Whether the text at `start` is that of `other` from `from` on, as long as it has to be. */
export function sameText(
  text: Uint16Array,
  start: number,
  length: number,
  other: string,
  from: number
): boolean {
  if (other.length - from < length) return false
  for (let i = 0; i < length; i++) if (text[start + i] !== other.charCodeAt(from + i)) return false
  return true
}

/** The value that {@link FlatTableWriter.index} gave a part of a text; 0 when it gave none. */
export function lookUp(
  { words, text }: FlatTable,
  index: number,
  key: string,
  from = 0,
  to = key.length
): number {
  const mask = words[index]!
  const sum = hash(key, from, to)
  for (let slot = sum & mask; ; slot = (slot + 1) & mask) {
    const at = index + 1 + slot * SLOT
    const value = words[at + 3]!
    if (value === 0) return 0
    if (words[at] !== sum || words[at + 2] !== to - from) continue
    if (sameText(text, words[at + 1]!, to - from, key, from)) return value
  }
}

/** Writes a {@link FlatTable}. */
export class FlatTableWriter {
  #words = new Int32Array(1024)
  #length = 1
  readonly #texts: string[] = []
  #textLength = 0

  /** Takes as many words, all 0; gives where they begin. */
  reserve(count: number): number {
    const at = this.#length
    this.#length += count
    if (this.#length > this.#words.length) {
      const larger = new Int32Array(this.#length * 2)
      larger.set(this.#words)
      this.#words = larger
    }
    return at
  }

  set(at: number, word: number): void {
    this.#words[at] = word
  }

  /** Where the next word will stand. */
  get length(): number {
    return this.#length
  }

  /** Gives where the text begins. */
  write(text: string): number {
    const at = this.#textLength
    this.#texts.push(text)
    this.#textLength += text.length
    return at
  }

  /** Writes a hash table of values by text, none of which is 0; gives where it stands, 0 for an empty one. */
  index(values: ReadonlyMap<string, number>): number {
    if (values.size === 0) return 0
    // At most two thirds of the slots are taken: a look-up meets two or three.
    const mask = 2 ** Math.ceil(Math.log2(values.size * 1.5 + 1)) - 1
    const index = this.reserve(1 + (mask + 1) * SLOT)
    this.set(index, mask)
    for (const [key, value] of values) {
      const sum = hash(key, 0, key.length)
      let slot = sum & mask
      while (this.#words[index + 1 + slot * SLOT + 3] !== 0) slot = (slot + 1) & mask
      const at = index + 1 + slot * SLOT
      this.set(at, sum)
      this.set(at + 1, this.write(key))
      this.set(at + 2, key.length)
      this.set(at + 3, value)
    }
    return index
  }

  finish(): FlatTable {
    const words = new Int32Array(new SharedArrayBuffer(this.#length * 4))
    words.set(this.#words.subarray(0, this.#length))
    const text = new Uint16Array(new SharedArrayBuffer(this.#textLength * 2))
    const bytes = Buffer.from(text.buffer)
    bytes.write(this.#texts.join(''), 'utf16le')
    // Numbers stand in the processor's own order.
    if (endianness() === 'BE') bytes.swap16()
    return { words, text }
  }
}
