import { type Static, Type } from 'typebox'

/** The QUEUE block of the log plugins. Delays and times in seconds. */
export const QueueSchema = Type.Object(
  {
    concurrency_limit: Type.Unsafe<1 | -1>({ enum: [-1, 1], default: 1 }),
    initial_retry_delay: Type.Number({ minimum: 0.001, maximum: 1000000, default: 0.01 }),
    max_batch_size: Type.Integer({ minimum: 1, maximum: 1000000, default: 1 }),
    max_bytes: Type.Optional(Type.Integer({ minimum: 1 })),
    max_coalescing_delay: Type.Number({ minimum: 0, maximum: 3600, default: 1 }),
    max_entries: Type.Integer({ minimum: 1, maximum: 1000000, default: 10000 }),
    max_retry_delay: Type.Number({ minimum: 0.001, maximum: 1000000, default: 60 }),
    max_retry_time: Type.Number({ default: 60 })
  },
  { additionalProperties: false, default: {} }
)

export type QueueOptions = Static<typeof QueueSchema>

/** Delivers one batch; rejecting has it repeated. Messages of its errors are logged. */
export type Send = (batch: readonly string[]) => Promise<void>

export interface QueueLog {
  warn(fields: object, message: string): void
  error(fields: object, message: string): void
}

/** Milliseconds entries may still take at shutdown. */
const FLUSH_TIME = 5000
/** Share of `max_entries` at which a warning is logged. */
const WARN_AT = 0.8
/** Sends under way at once where the queue is bypassed. */
const MAX_UNQUEUED = 1000

/**
 * Entries on their way to a log server: batched, repeated with back-off, bounded. The options and
 * the way to send are those set last, so that what waits leaves with the newest secret.
 */
export class Queue {
  #entries: string[] = []
  #bytes = 0
  #options: QueueOptions
  #send: Send
  #log: QueueLog
  #working: Promise<void> | undefined
  #wake: (() => void) | undefined
  #closing = false
  #closedAt = 0
  #warned = false
  #full = false
  #unqueued = 0

  constructor(options: QueueOptions, send: Send, log: QueueLog) {
    this.#options = options
    this.#send = send
    this.#log = log
  }

  /** From now on everything, what waits included, is sent this way. */
  configure(options: QueueOptions, send: Send, log: QueueLog): void {
    this.#options = options
    this.#send = send
    this.#log = log
  }

  get length(): number {
    return this.#entries.length
  }

  /** Adds an entry; drops the oldest when there is no room. Never throws. */
  add(entry: string): void {
    const { max_bytes: maxBytes, max_entries: maxEntries } = this.#options
    if (this.#options.concurrency_limit === -1) {
      this.#sendAlone(entry)
      return
    }
    const size = Buffer.byteLength(entry)
    if (maxBytes !== undefined && size > maxBytes) {
      this.#log.error({ bytes: size }, 'a queue entry is larger than max_bytes and was dropped')
      return
    }
    while (this.#entries.length >= maxEntries || (maxBytes !== undefined && this.#bytes + size > maxBytes)) {
      this.#bytes -= Buffer.byteLength(this.#entries.shift()!)
      if (!this.#full) {
        this.#full = true
        this.#log.error({}, 'queue full, dropping old entries until processing is successful again')
      }
    }
    this.#entries.push(entry)
    this.#bytes += size
    if (!this.#warned && this.#entries.length >= maxEntries * WARN_AT) {
      this.#warned = true
      this.#log.warn({ entries: this.#entries.length, max_entries: maxEntries }, 'a queue is filling up')
    }
    this.#wake?.()
    this.#working ??= this.#work().finally(() => {
      this.#working = undefined
    })
  }

  async #work(): Promise<void> {
    while (this.#entries.length > 0) {
      await this.#coalesce()
      const batch = this.#entries.slice(0, this.#options.max_batch_size)
      await this.#deliver(batch)
    }
  }

  /** Waits for a batch to fill, at most the coalescing delay. */
  async #coalesce(): Promise<void> {
    const { max_batch_size: size, max_coalescing_delay: delay } = this.#options
    if (size === 1) return
    const until = Date.now() + delay * 1000
    while (this.#entries.length < size && !this.#closing) {
      const left = until - Date.now()
      if (left <= 0) return
      await this.#pause(left)
    }
  }

  /** Sleeps until the time is over, an entry comes or the queue closes. */
  #pause(milliseconds: number): Promise<void> {
    return new Promise(resolve => {
      const timer = setTimeout(done, milliseconds)
      const wake = (): void => {
        clearTimeout(timer)
        done()
      }
      this.#wake = wake
      function done(): void {
        resolve()
      }
    })
  }

  async #deliver(batch: readonly string[]): Promise<void> {
    const sent = await this.#repeat(batch)
    // Entries dropped for room meanwhile were the oldest, so part of this batch may be gone already.
    let removed = 0
    while (removed < batch.length && this.#entries[0] === batch[removed]) {
      this.#bytes -= Buffer.byteLength(this.#entries.shift()!)
      removed++
    }
    if (removed === 0) {
      const first = batch.indexOf(this.#entries[0] ?? '')
      if (first !== -1) {
        for (const entry of this.#entries.splice(0, batch.length - first)) this.#bytes -= Buffer.byteLength(entry)
      }
    }
    if (!sent) return
    this.#full = false
    if (this.#entries.length < this.#options.max_entries * WARN_AT) this.#warned = false
  }

  /** Sends a batch until it is taken or its time is over; gives whether it was taken. */
  async #repeat(batch: readonly string[]): Promise<boolean> {
    const startedAt = Date.now()
    for (let attempt = 0; ; attempt++) {
      try {
        await this.#send(batch)
        return true
      } catch (error) {
        const { max_retry_time: limit, max_retry_delay: cap, initial_retry_delay: first } = this.#options
        const overdue = (Date.now() - startedAt) / 1000 > limit
        const ending = this.#closing && Date.now() - this.#closedAt > FLUSH_TIME
        if (overdue || ending) {
          this.#log.error(
            { entries: batch.length },
            `could not send entries due to max_retry_time exceeded. ${batch.length} queue entries were lost: ${(error as Error).message}`
          )
          return false
        }
        this.#log.warn({ attempt: attempt + 1 }, (error as Error).message)
        const delay = Math.min(cap, first * 2 ** attempt) * 1000
        await this.#sleep(this.#closing ? Math.min(delay, 200) : delay)
      }
    }
  }

  /** Sleeps the whole time unless the queue closes. */
  async #sleep(milliseconds: number): Promise<void> {
    const until = Date.now() + milliseconds
    const wasClosing = this.#closing
    while (Date.now() < until && (wasClosing || !this.#closing)) await this.#pause(until - Date.now())
  }

  #sendAlone(entry: string): void {
    if (this.#unqueued >= MAX_UNQUEUED) {
      this.#log.error({}, 'too many sends are under way; an entry was dropped')
      return
    }
    this.#unqueued++
    void this.#repeat([entry]).finally(() => {
      this.#unqueued--
    })
  }

  /** Sends what is left, at most five seconds. */
  async close(): Promise<void> {
    this.#closing = true
    this.#closedAt = Date.now()
    this.#wake?.()
    const deadline = new Promise<void>(resolve => setTimeout(resolve, FLUSH_TIME + 1000).unref())
    await Promise.race([this.#working, deadline])
  }
}
