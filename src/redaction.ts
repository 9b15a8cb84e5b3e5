import { parseReference } from './vault/reference.ts'

/** What stands where a secret stood. */
export const MASK = '[secret]'

/** Shortest value that is looked for in text; shorter ones would blank out half of it. */
const LEAST = 8
/** Values that are in force no more and still masked; beyond them the oldest give way, some at once. */
const MAX_RETIRED = 10_000
const RETIRED_BLOCK = 100
/** Multiplier of the rolling hash (Karp and Rabin), and its power that the oldest character has. */
const BASE = 0x01000193
const TOP = Array.from({ length: LEAST - 1 }).reduce<number>(power => Math.imul(power, BASE), 1)

/** A text that is looked for. */
interface Form {
  readonly text: string
  /** Names that hold it as a value. */
  holders: number
  /** Values, in force or gone, that may stand in text like this. */
  values: number
}

/**
 * Masks known secrets in text, however many there are: one pass with a rolling hash over windows of
 * 8 characters tells in a few nanoseconds a character that a text holds none.
 */
export class Redactor {
  /** What each name holds: the current value, the previous one, one that is to come. */
  readonly #held = new Map<string, string | readonly string[]>()
  /** Values in force no more, oldest first. */
  readonly #retired = new Set<string>()
  /** Forms by the hash of the window in their middle; nearly always one alone. */
  readonly #index = new Map<number, Form | readonly Form[]>()
  /** One bit for each hash that the index may have. */
  #filter = new Uint32Array(0)
  /** Hashes put into the filter since it was made, gone ones included. */
  #marked = 0

  /**
   * Masks these values from now on, but for the default that a reference states itself. What the name
   * held before stays masked as a retired value.
   */
  hold(name: string, values: readonly string[]): void {
    const fallback = defaultOf(name)
    const long = values.filter(
      (value, i) => value.length >= LEAST && values.indexOf(value) === i && value !== fallback
    )
    const before = listOf(this.#held.get(name))
    if (before.length === long.length && before.every((value, i) => value === long[i])) return
    if (long.length === 0) this.#held.delete(name)
    else this.#held.set(name, long.length === 1 ? long[0]! : long)
    for (const value of long) if (!before.includes(value)) this.#take(value)
    for (const value of before) if (!long.includes(value)) this.#release(value)
  }

  /** Retires what every name holds for which `keep` is false. */
  retain(keep: (name: string) => boolean): void {
    for (const name of this.#held.keys()) if (!keep(name)) this.hold(name, NONE)
  }

  #take(value: string): void {
    const form = this.#formOf(value)
    form.holders++
    if (form.holders > 1 || this.#retired.delete(value)) return
    for (const other of otherFormsOf(value)) this.#formOf(other).values++
  }

  #release(value: string): void {
    if (--this.#formOf(value).holders > 0) return
    this.#retired.add(value)
    if (this.#retired.size < MAX_RETIRED + RETIRED_BLOCK) return
    // A set finds its first member by going over the places of those that went.
    let spare = RETIRED_BLOCK
    for (const oldest of this.#retired) {
      if (spare-- === 0) return
      this.#retired.delete(oldest)
      this.#drop(this.#formOf(oldest))
      for (const other of otherFormsOf(oldest)) {
        const form = this.#formOf(other)
        form.values--
        this.#drop(form)
      }
    }
  }

  /** The form of this text, made if it is new. */
  #formOf(text: string): Form {
    const hash = hashAt(text, middleOf(text))
    const known = this.#index.get(hash)
    for (const form of listOf(known)) if (form.text === text) return form
    const form = { text, holders: 0, values: 0 }
    if (known === undefined) {
      this.#index.set(hash, form)
      this.#mark(hash)
    } else this.#index.set(hash, [...listOf(known), form])
    return form
  }

  /** Forgets a form that stands for nothing any more. */
  #drop(form: Form): void {
    if (form.holders > 0 || form.values > 0 || this.#retired.has(form.text)) return
    const hash = hashAt(form.text, middleOf(form.text))
    const rest = listOf(this.#index.get(hash)).filter(each => each !== form)
    if (rest.length === 0) this.#index.delete(hash)
    else this.#index.set(hash, rest)
  }

  #mark(hash: number): void {
    // At least 16 bits a hash, so that nearly every window is told by one look.
    if (++this.#marked * 16 > this.#filter.length * 32) {
      this.#filter = new Uint32Array(2 ** Math.ceil(Math.log2(this.#index.size + 1)))
      this.#marked = this.#index.size
      for (const each of this.#index.keys()) setBit(this.#filter, each)
    } else setBit(this.#filter, hash)
  }

  /** Text without the secrets. */
  text(text: string): string {
    const spans = this.#spans(text)
    if (spans.length === 0) return text
    let masked = ''
    let from = 0
    for (const { start, end } of spans) {
      masked += text.slice(from, start) + MASK
      from = end
    }
    return masked + text.slice(from)
  }

  /** A line of JSON without the secrets; it stays JSON. */
  json(line: string): string {
    if (this.#spans(line).length === 0) return line
    try {
      const ending = line.endsWith('\n') ? '\n' : ''
      return JSON.stringify(this.value(JSON.parse(line))) + ending
    } catch {
      return this.text(line)
    }
  }

  /** Plain data without the secrets: texts, member names, and numbers that are one. */
  value(value: unknown): unknown {
    if (typeof value === 'string') return this.text(value)
    if (typeof value === 'number') {
      const text = String(value)
      return this.#spans(text).length === 0 ? value : this.text(text)
    }
    if (Array.isArray(value)) return value.map(item => this.value(item))
    if (typeof value !== 'object' || value === null) return value
    return Object.fromEntries(
      Object.entries(value).map(([key, member]) => [this.text(key), this.value(member)])
    )
  }

  /** Where secrets stand, in order; those that overlap are one span. */
  #spans(text: string): readonly Span[] {
    if (this.#index.size === 0 || text.length < LEAST) return NONE
    let spans: Span[] | undefined
    let hash = hashAt(text, 0)
    for (let at = 0; ; at++) {
      if (hasBit(this.#filter, hash)) {
        for (const { text: form } of listOf(this.#index.get(hash))) {
          const start = at - middleOf(form)
          if (start < 0 || !text.startsWith(form, start)) continue
          spans ??= []
          spans.push({ start, end: start + form.length })
        }
      }
      const next = at + LEAST
      if (next >= text.length) return spans === undefined ? NONE : merge(spans)
      hash =
        (Math.imul(hash - Math.imul(text.charCodeAt(at), TOP), BASE) + text.charCodeAt(next)) | 0
    }
  }
}

interface Span {
  readonly start: number
  readonly end: number
}

const NONE: readonly never[] = []

/** What is kept without a list when it is one alone. */
/** What a name that ends with a reference states as its `?default=`, for all to read. */
function defaultOf(name: string): string | undefined {
  const at = name.includes('default=') ? name.indexOf('{vault://') : -1
  return at === -1 ? undefined : parseReference(name.slice(at)).fallback
}

function listOf<T extends string | Form>(kept: T | readonly T[] | undefined): readonly T[] {
  if (kept === undefined) return NONE
  return Array.isArray(kept) ? kept : [kept as T]
}

function merge(spans: readonly Span[]): readonly Span[] {
  const merged: Span[] = []
  for (const span of spans.toSorted((a, b) => a.start - b.start)) {
    const last = merged.at(-1)
    if (last === undefined || span.start >= last.end) merged.push(span)
    else merged[merged.length - 1] = { start: last.start, end: Math.max(last.end, span.end) }
  }
  return merged
}

/** Values begin and end alike (`sk_live_`, `https://`, PEM); in the middle they differ. */
function middleOf(form: string): number {
  return (form.length - LEAST) >>> 1
}

function setBit(filter: Uint32Array, hash: number): void {
  const bit = (hash ^ (hash >>> 15)) & (filter.length * 32 - 1)
  filter[bit >>> 5]! |= 1 << (bit & 31)
}

function hasBit(filter: Uint32Array, hash: number): boolean {
  const bit = (hash ^ (hash >>> 15)) & (filter.length * 32 - 1)
  return (filter[bit >>> 5]! & (1 << (bit & 31))) !== 0
}

function hashAt(text: string, from: number): number {
  let hash = 0
  for (let i = from; i < from + LEAST; i++) {
    hash = (Math.imul(hash, BASE) + text.charCodeAt(i)) | 0
  }
  return hash
}

/** Text that stands in JSON and in a URL as it is. */
const PLAIN = /^[\w.~!*'()-]+$/

/** A value as it may stand in text besides itself: in JSON, in a URL, and the lines of a longer one (PEM). */
function otherFormsOf(value: string): Iterable<string> {
  if (PLAIN.test(value)) return NONE
  const forms = new Set([JSON.stringify(value).slice(1, -1)])
  if (value.isWellFormed()) forms.add(encodeURIComponent(value))
  if (value.includes('\n')) {
    for (const line of value.split(/\r?\n/)) {
      if (line.length >= 2 * LEAST && !line.startsWith('-----')) forms.add(line)
    }
  }
  forms.delete(value)
  return forms
}

/** The redactor of this thread: everything it writes about itself goes through it. */
export const redactor = new Redactor()
