/** What stands where a secret stood. */
export const MASK = '[secret]'

/** Shortest value that is looked for in text; shorter ones would blank out half of it. */
const LEAST = 8
/** Values that are in force no more and still masked, at most; the oldest give way. */
const MAX_RETIRED = 10_000
/** Multiplier of the rolling hash (Karp and Rabin), and its power that the oldest character has. */
const BASE = 0x01000193
const TOP = Array.from({ length: LEAST - 1 }).reduce<number>(power => Math.imul(power, BASE), 1)

/**
 * Masks known secrets in text, however many there are: one pass with a rolling hash over windows of
 * 8 characters tells in a few nanoseconds a character that a text holds none.
 */
export class Redactor {
  /** What each name holds: the current value, the previous one, one that is to come. */
  readonly #held = new Map<string, readonly string[]>()
  /** How many names hold each value; 0 for those in force no more, oldest first. */
  readonly #holders = new Map<string, number>()
  readonly #retired = new Set<string>()
  /** Forms as they may stand in text, by the hash of the window in their middle. */
  readonly #index = new Map<number, string[]>()
  /** One bit for each hash that the index may have. */
  #filter = new Uint32Array(0)
  /** Hashes put into the filter since it was made, gone ones included. */
  #marked = 0

  /** Masks these values from now on. What the name held before stays masked as a retired value. */
  hold(name: string, values: readonly string[]): void {
    const long = values.filter(value => value.length >= LEAST)
    const before = this.#held.get(name) ?? []
    if (before.length === long.length && before.every((value, i) => value === long[i])) return
    if (long.length === 0) this.#held.delete(name)
    else this.#held.set(name, long)
    for (const value of long) {
      const holders = this.#holders.get(value)
      if (holders === undefined) for (const form of formsOf(value)) this.#add(form)
      this.#holders.set(value, (holders ?? 0) + 1)
      this.#retired.delete(value)
    }
    for (const value of before) this.#release(value)
  }

  /** Retires what every name holds for which `keep` is false. */
  retain(keep: (name: string) => boolean): void {
    for (const name of this.#held.keys()) if (!keep(name)) this.hold(name, [])
  }

  #release(value: string): void {
    const holders = this.#holders.get(value)! - 1
    this.#holders.set(value, holders)
    if (holders > 0) return
    this.#retired.add(value)
    if (this.#retired.size <= MAX_RETIRED) return
    const [oldest] = this.#retired
    this.#retired.delete(oldest!)
    this.#holders.delete(oldest!)
    for (const form of formsOf(oldest!)) this.#remove(form)
  }

  #add(form: string): void {
    const hash = hashAt(form, middleOf(form))
    const others = this.#index.get(hash)
    if (others !== undefined) others.push(form)
    else {
      this.#index.set(hash, [form])
      this.#mark(hash)
    }
  }

  #remove(form: string): void {
    const hash = hashAt(form, middleOf(form))
    const forms = this.#index.get(hash)!
    if (forms.length === 1) this.#index.delete(hash)
    else forms.splice(forms.indexOf(form), 1)
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
        for (const form of this.#index.get(hash) ?? NONE) {
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

/** A value as it may stand in text: itself, in JSON, in a URL, and the lines of a longer one (PEM). */
function formsOf(value: string): ReadonlySet<string> {
  const forms = new Set([value, JSON.stringify(value).slice(1, -1)])
  if (value.isWellFormed()) forms.add(encodeURIComponent(value))
  if (value.includes('\n')) {
    for (const line of value.split(/\r?\n/)) {
      if (line.length >= 2 * LEAST && !line.startsWith('-----')) forms.add(line)
    }
  }
  return forms
}

/** The redactor of this thread: everything it writes about itself goes through it. */
export const redactor = new Redactor()
