import type { Static } from 'typebox'
import * as Type from 'typebox'
import { oneOf } from '../schema/fields.ts'
import type { Logger } from './plugin.ts'

const MAX_ENTRIES = 1_000_000

/** The `queue` block of plugins that send records elsewhere. Delays and times in seconds. */
export const QueueSchema = Type.Object(
  {
    max_batch_size: Type.Integer({ minimum: 1, maximum: MAX_ENTRIES, default: 1 }),
    max_coalescing_delay: Type.Number({ minimum: 0, maximum: 3600, default: 1 }),
    max_entries: Type.Integer({ minimum: 1, maximum: MAX_ENTRIES, default: 10_000 }),
    max_bytes: Type.Optional(Type.Integer({ minimum: 1 })),
    max_retry_time: Type.Number({ default: 60 }),
    initial_retry_delay: Type.Number({ minimum: 0.001, maximum: 1_000_000, default: 0.01 }),
    max_retry_delay: Type.Number({ minimum: 0.001, maximum: 1_000_000, default: 60 }),
    concurrency_limit: oneOf([1, -1], { default: 1 })
  },
  { additionalProperties: false, default: {} }
)

export type QueueConfig = Readonly<Static<typeof QueueSchema>>

/** Where a queue delivers, and by which rules. */
export interface Sink {
  readonly config: QueueConfig
  /** Milliseconds one delivery may take before its signal aborts. */
  readonly timeout: number
  /**
   * Delivers a batch; rejects when it did not arrive. No message may hold a secret. The memory of the
   * entries is theirs only until it gives its promise: what is sent later is a copy.
   */
  send(entries: readonly QueuedBytes[], signal: AbortSignal): Promise<void>
  /**
   * Asked once per batch, after its first failure: whether something changed that makes another
   * attempt at once worthwhile.
   */
  recover?(error: unknown): Promise<boolean>
  /** Releases connections, after the last delivery. */
  close?(): Promise<void>
}

/** The bytes of an entry: where they begin in memory that it shares with others, and where they end. */
export interface QueuedBytes {
  readonly memory: Buffer
  readonly start: number
  readonly end: number
}

/** Milliseconds a closing queue has to deliver what it holds. */
const CLOSE_TIMEOUT = 5000
/** A collecting queue does not wait for less than this, in milliseconds. */
const SHORTEST_WAIT = 50
/** Share of the capacity above which a queue warns. */
const WARN_AT = 0.8
/** Bytes of the memory that entries share. */
const SLAB = 65_536
/** Pieces of it that are kept while nothing is in them: 4 MiB. */
const MAX_FREE = 64
/** The longest delay a timer takes. */
const MAX_TIMER = 2 ** 31 - 1

/** Entries on their way to a sink. The oldest are the first to be lost when it is full. */
interface Batch {
  entries: Entry[]
  readonly startedAt: number
  failures: number
  recovered: boolean
}

/** Memory that entries share, and how many of them are still queued. */
interface Slab {
  readonly memory: Buffer
  used: number
  entries: number
}

/** A queued entry; a view of its bytes would take five times the memory and as long as writing them. */
interface Entry extends QueuedBytes {
  /** Undefined for an entry with memory of its own. */
  readonly slab: Slab | undefined
}

const lengthOf = ({ start, end }: QueuedBytes): number => end - start

/**
 * Makes entries of texts, in memory outside the heap that is used again and again: in new memory each,
 * queued entries made for half as many major collections more.
 */
class Memory {
  #slab: Slab = { memory: Buffer.alloc(0), used: 0, entries: 0 }
  readonly #free: Slab[] = []

  store(text: string): Entry {
    // A unit of UTF-16 takes three bytes of UTF-8 at most: counting them would cost as much as writing.
    const most = text.length * 3
    if (most > SLAB / 2) {
      const memory = Buffer.from(text)
      return { memory, start: 0, end: memory.length, slab: undefined }
    }
    if (most > this.#slab.memory.length - this.#slab.used) {
      this.#slab = this.#free.pop() ?? {
        memory: Buffer.allocUnsafeSlow(SLAB),
        used: 0,
        entries: 0
      }
    }
    const slab = this.#slab
    const { memory, used: start } = slab
    slab.used += memory.write(text, start, 'utf8')
    slab.entries++
    return { memory, start, end: slab.used, slab }
  }

  /** The entry's bytes are not read any more. */
  release({ slab }: Entry): void {
    if (slab === undefined || --slab.entries > 0) return
    slab.used = 0
    if (slab !== this.#slab && this.#free.length < MAX_FREE) this.#free.push(slab)
  }
}

/**
 * Collects entries into batches and delivers them one batch at a time, with retries. It outlives the
 * plugin instances that fill it: entries go to the sink attached last, whichever was attached when
 * they came.
 */
export class Queue {
  readonly #name: string
  readonly #log: Logger
  readonly #closeTimeout: number
  readonly #sinks: Sink[] = []
  readonly #closing = new AbortController()
  readonly #tasks = new Set<Promise<void>>()
  /** Settles when no delivery uses the sink any more. */
  readonly #uses = new Map<Sink, Promise<unknown>>()
  /** Waiting entries from `#head` on; those before it are gone. */
  #waiting: Entry[] = []
  #head = 0
  #batch: Batch | undefined
  /** Entries of deliveries that bypass the queue. */
  #bypassing = 0
  #bytes = 0
  readonly #memory = new Memory()
  #worker: Promise<void> | undefined
  #wake: (() => void) | undefined
  #closed = false
  #nearlyFull = false
  #full = false

  /** `name` stands in log lines; `closeTimeout` in milliseconds bounds {@link close}. */
  constructor(name: string, log: Logger, closeTimeout = CLOSE_TIMEOUT) {
    this.#name = name
    this.#log = log
    this.#closeTimeout = closeTimeout
  }

  /** Entries not delivered yet. */
  get length(): number {
    return this.#waiting.length - this.#head + (this.#batch?.entries.length ?? 0) + this.#bypassing
  }

  /**
   * Delivers to this sink from now on. The function given back detaches it: the one attached before
   * takes over, and the sink closes after its last delivery. The last sink stays until {@link close}.
   */
  attach(sink: Sink): () => void {
    this.#sinks.push(sink)
    return () => {
      const index = this.#sinks.indexOf(sink)
      if (index === -1 || this.#sinks.length === 1) return
      this.#sinks.splice(index, 1)
      this.#release(sink)
    }
  }

  /** Takes an entry; never throws and never waits. */
  enqueue(text: string): void {
    const sink = this.#sinks.at(-1)
    if (sink === undefined || this.#closed) return
    const { config } = sink
    const entry = this.#memory.store(text)
    if (config.max_bytes !== undefined && !this.#makeRoom(entry, config.max_bytes)) {
      this.#memory.release(entry)
      return
    }
    if (config.concurrency_limit === -1) {
      this.#bypass(entry, config)
      return
    }
    while (this.length >= config.max_entries && this.#dropOldest('max_entries'));
    this.#waiting.push(entry)
    this.#bytes += lengthOf(entry)
    this.#watchLevel(config)
    this.#worker ??= this.#work()
    if (this.#waiting.length - this.#head >= config.max_batch_size) this.#wake?.()
  }

  /** Delivers what is queued, without retrying for longer than the bound; then closes its sinks. */
  async close(): Promise<void> {
    this.#closed = true
    this.#wake?.()
    const timer = setTimeout(() => this.#closing.abort(), this.#closeTimeout)
    await this.#worker
    await Promise.all(this.#tasks)
    clearTimeout(timer)
    const lost = this.length
    if (lost > 0) this.#report(lost, 'the queue was closed before they could be delivered')
    this.#waiting = []
    this.#head = 0
    this.#batch = undefined
    this.#bytes = 0
    for (const sink of this.#sinks.splice(0)) this.#release(sink)
    await Promise.all(this.#tasks)
  }

  async #work(): Promise<void> {
    while (this.#waiting.length > this.#head && !this.#closing.signal.aborted) {
      const { config } = this.#sinks.at(-1)!
      await this.#collect(config)
      const batch: Batch = {
        entries: this.#take(config.max_batch_size),
        startedAt: performance.now(),
        failures: 0,
        recovered: false
      }
      this.#batch = batch
      await this.#deliver(batch)
      // What closing cut short stays, to be counted as lost.
      if (this.#closing.signal.aborted && batch.entries.length > 0) break
      this.#batch = undefined
      this.#settle(config)
    }
    this.#worker = undefined
  }

  /** Waits until a batch is full or the first entry has waited long enough. */
  async #collect(config: QueueConfig): Promise<void> {
    const end = performance.now() + config.max_coalescing_delay * 1000
    while (!this.#closed && this.#waiting.length - this.#head < config.max_batch_size) {
      const left = end - performance.now()
      if (left < SHORTEST_WAIT) return
      await new Promise<void>(resolve => {
        const timer = setTimeout(resolve, left)
        this.#wake = () => {
          clearTimeout(timer)
          resolve()
        }
      })
      this.#wake = undefined
    }
  }

  #take(count: number): Entry[] {
    const entries = this.#waiting.slice(this.#head, this.#head + count)
    this.#head += entries.length
    this.#compact()
    return entries
  }

  /** Lets go of what lies before the head once it is the larger part. */
  #compact(): void {
    if (this.#head * 2 < this.#waiting.length) return
    this.#waiting = this.#waiting.slice(this.#head)
    this.#head = 0
  }

  /** Tries until the batch is delivered, lost, or the queue closed; leaves it empty unless cut short. */
  async #deliver(batch: Batch): Promise<void> {
    while (batch.entries.length > 0) {
      const sink = this.#sinks.at(-1)!
      try {
        await this.#attempt(sink, batch.entries.slice())
        this.#forget(batch)
        return
      } catch (error) {
        this.#failed(batch, error)
        if (await this.#shouldRetryNow(sink, batch, error)) continue
        if (this.#giveUp(sink.config, batch)) return
        if (this.#closing.signal.aborted) return
        await this.#backOff(sink.config, batch)
        if (this.#closing.signal.aborted) return
      }
    }
  }

  async #attempt(sink: Sink, entries: readonly Entry[]): Promise<void> {
    const controller = new AbortController()
    const abort = () => controller.abort(new Error('not delivered in time'))
    const timer = setTimeout(abort, Math.min(sink.timeout, MAX_TIMER))
    this.#closing.signal.addEventListener('abort', abort)
    if (this.#closing.signal.aborted) abort()
    try {
      const delivery = sink.send(entries, controller.signal)
      this.#use(sink, delivery)
      await delivery
    } finally {
      clearTimeout(timer)
      this.#closing.signal.removeEventListener('abort', abort)
    }
  }

  #failed(batch: Batch, error: unknown): void {
    batch.failures++
    const { message, code } = error as { message?: string; code?: string }
    this.#log.warn(
      { queue: this.#name, entries: batch.entries.length, failures: batch.failures, code },
      `log entries could not be delivered: ${message}`
    )
  }

  async #shouldRetryNow(sink: Sink, batch: Batch, error: unknown): Promise<boolean> {
    // Another sink took over meanwhile, with what made this one fail perhaps put right.
    if (this.#sinks.at(-1) !== sink) return true
    if (batch.recovered || sink.recover === undefined) return false
    batch.recovered = true
    return unlessAborted(sink.recover(error), this.#closing.signal)
  }

  /** Ends the retries of a batch whose time is over; a negative time never retries. */
  #giveUp(config: QueueConfig, batch: Batch): boolean {
    const elapsed = (performance.now() - batch.startedAt) / 1000
    if (config.max_retry_time >= 0 && elapsed <= config.max_retry_time) return false
    this.#report(batch.entries.length, 'max_retry_time has passed')
    this.#forget(batch)
    return true
  }

  async #backOff(config: QueueConfig, batch: Batch): Promise<void> {
    const seconds = Math.min(
      config.max_retry_delay,
      config.initial_retry_delay * 2 ** (batch.failures - 1)
    )
    await delay(Math.min(seconds * 1000, MAX_TIMER), this.#closing.signal)
  }

  #forget(batch: Batch): void {
    for (const entry of batch.entries) this.#discard(entry)
    batch.entries = []
  }

  #discard(entry: Entry): void {
    this.#bytes -= lengthOf(entry)
    this.#memory.release(entry)
  }

  /** Delivers an entry on its own, beside the others; only their number is bounded. */
  #bypass(entry: Entry, config: QueueConfig): void {
    if (this.length >= config.max_entries) {
      this.#reportFull('max_entries')
      this.#memory.release(entry)
      return
    }
    const batch: Batch = {
      entries: [entry],
      startedAt: performance.now(),
      failures: 0,
      recovered: false
    }
    this.#bypassing++
    this.#bytes += lengthOf(entry)
    this.#watchLevel(config)
    const task = this.#deliver(batch).then(() => {
      this.#tasks.delete(task)
      this.#bypassing--
      if (batch.entries.length > 0) {
        this.#report(1, 'the queue was closed before it could be delivered')
        this.#forget(batch)
      }
      this.#settle(config)
    })
    this.#tasks.add(task)
  }

  #makeRoom(entry: Entry, maxBytes: number): boolean {
    const bytes = lengthOf(entry)
    if (bytes > maxBytes) {
      this.#log.error(
        { queue: this.#name, bytes, max_bytes: maxBytes },
        'a log entry is larger than max_bytes and was dropped'
      )
      return false
    }
    while (this.#bytes + bytes > maxBytes && this.#dropOldest('max_bytes'));
    return this.#bytes + bytes <= maxBytes
  }

  /** False when all that is left are deliveries that bypass the queue. */
  #dropOldest(reason: string): boolean {
    this.#reportFull(reason)
    const oldest = this.#batch?.entries.shift() ?? this.#take(1)[0]
    if (oldest === undefined) return false
    this.#discard(oldest)
    return true
  }

  #reportFull(reason: string): void {
    if (this.#full) return
    this.#full = true
    this.#log.error(
      { queue: this.#name, reason },
      'the queue is full: the oldest log entries are dropped until deliveries succeed again'
    )
  }

  #watchLevel(config: QueueConfig): void {
    if (this.#nearlyFull || this.length < config.max_entries * WARN_AT) return
    this.#nearlyFull = true
    this.#log.warn(
      { queue: this.#name, entries: this.length, max_entries: config.max_entries },
      'the queue is filled to 80 %'
    )
  }

  /** The level fell: the next time it rises is worth a line again. */
  #settle(config: QueueConfig): void {
    if (this.length >= config.max_entries * WARN_AT) return
    this.#nearlyFull = false
    this.#full = false
  }

  #report(entries: number, reason: string): void {
    this.#log.error({ queue: this.#name, entries }, `${entries} log entries were lost: ${reason}`)
  }

  /** Notes a delivery, which {@link #release} waits for. */
  #use(sink: Sink, delivery: Promise<void>): void {
    const settled = Promise.allSettled([this.#uses.get(sink), delivery]).then(() => {
      if (this.#uses.get(sink) === settled) this.#uses.delete(sink)
    })
    this.#uses.set(sink, settled)
  }

  #release(sink: Sink): void {
    const task = Promise.resolve(this.#uses.get(sink))
      .then(() => sink.close?.())
      .catch(error =>
        this.#log.warn({ queue: this.#name, code: error.code }, 'a log connection did not close')
      )
      .then(() => {
        this.#tasks.delete(task)
      })
    this.#tasks.add(task)
  }
}

/** Resolves after the delay in milliseconds, or at once when the signal aborts. */
function delay(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise(resolve => {
    const done = () => {
      clearTimeout(timer)
      signal.removeEventListener('abort', done)
      resolve()
    }
    const timer = setTimeout(done, milliseconds)
    signal.addEventListener('abort', done)
    if (signal.aborted) done()
  })
}

/** What the promise gives; false when it rejects or the signal aborts first. */
function unlessAborted(pending: Promise<boolean>, signal: AbortSignal): Promise<boolean> {
  return new Promise(resolve => {
    const settle = (value: boolean) => {
      signal.removeEventListener('abort', onAbort)
      resolve(value)
    }
    const onAbort = () => settle(false)
    signal.addEventListener('abort', onAbort)
    if (signal.aborted) onAbort()
    pending.then(settle, onAbort)
  })
}
