import type { Logger } from '../plugin.ts'
import type { RedisAccess } from '../redis.ts'
import { type Limit, type Policy, passes, type Verdict } from './limits.ts'
import { COUNT, counterKeys, script } from './redis-counters.ts'

/** Adds to each key what was counted here, 0 only reads, and gives the counts of all nodes. */
const SYNCHRONISE = script(`
local counts = {}
for i, key in ipairs(KEYS) do
  local more = tonumber(ARGV[2 * i - 1])
  if more == 0 then
    counts[i] = tonumber(redis.call('GET', key) or '0')
  else
    counts[i] = redis.call('INCRBY', key, more)
    if redis.call('TTL', key) < 0 then redis.call('EXPIRE', key, ARGV[2 * i]) end
  end
end
return counts`)

/** Keys of one script, so that Redis serves others in between. */
const BATCH = 500
/** Most counters a thread holds; the oldest give way. */
const MAX_COUNTERS = 100_000

/** A counter as this thread knows it. */
interface Counter {
  /** What Redis had when it was asked last. */
  known: number
  /** What was counted here since; -1 takes back what reading it had added. */
  more: number
  /** Seconds a new key lives in Redis. */
  readonly life: number
  /** Unix milliseconds. */
  readonly expiresAt: number
  /** Whether a request asked for it since it was synchronised. */
  used: boolean
}

/**
 * Counters that are kept here and brought together with Redis every so often. They outlive the
 * plugin instances that use them; Redis is reached by the instance attached last.
 */
export class BufferedCounters {
  readonly #interval: number
  readonly #log: Logger
  readonly #counters = new Map<string, Counter>()
  readonly #reading = new Map<string, Promise<void>>()
  readonly #attached: RedisAccess[] = []
  #timer: NodeJS.Timeout | undefined
  #synchronising: Promise<void> | undefined
  #failing = false

  /** `interval` in milliseconds. */
  constructor(interval: number, log: Logger) {
    this.#interval = interval
    this.#log = log
  }

  /** Reaches Redis by this from now on; what is given back detaches it. The last one stays. */
  attach(redis: RedisAccess): () => Promise<void> {
    this.#attached.push(redis)
    return async () => {
      redis.close()
      if (this.#attached.length > 1) this.#attached.splice(this.#attached.indexOf(redis), 1)
      await this.#synchronising
    }
  }

  /** Counts without waiting when all these counters are known here; undefined when one is not. */
  takeKnown(keys: readonly string[], limits: readonly Limit[], now: number): Verdict | undefined {
    for (const key of keys) if (!((this.#counters.get(key)?.expiresAt ?? 0) > now)) return undefined
    return this.#take(keys, limits)
  }

  /** The same, after reading those that are not known; rejects when they cannot be read. */
  async takeUnknown(
    keys: readonly string[],
    limits: readonly Limit[],
    now: number
  ): Promise<Verdict> {
    const unknown: number[] = []
    for (const [i, key] of keys.entries()) {
      const held = (this.#counters.get(key)?.expiresAt ?? 0) > now
      if (!held && !this.#reading.has(key)) unknown.push(i)
    }
    if (unknown.length > 0) this.#read(keys, limits, unknown, now)
    await Promise.all(keys.map(key => this.#reading.get(key)))
    return this.#take(keys, limits)
  }

  /** Brings what was counted into Redis a last time. */
  async close(): Promise<void> {
    clearTimeout(this.#timer)
    await this.#synchronising
    if (this.#counters.size > 0) await this.#synchronise()
    clearTimeout(this.#timer)
    this.#counters.clear()
  }

  #take(keys: readonly string[], limits: readonly Limit[]): Verdict {
    const counters = keys.map(key => this.#counters.get(key))
    const counted = counters.map(counter => (counter ? counter.known + counter.more : 0))
    const pass = passes(limits, counted)
    for (const counter of counters) {
      if (counter === undefined) continue
      counter.used = true
      if (pass) counter.more++
    }
    this.#schedule()
    return { passes: pass, counted }
  }

  /** One reading of a counter serves all requests that wait for it. */
  #read(
    keys: readonly string[],
    limits: readonly Limit[],
    unknown: readonly number[],
    now: number
  ): void {
    const asked = unknown.map(i => keys[i]!)
    const lives = unknown.map(i => String(limits[i]!.period.seconds))
    const read = this.#attached
      .at(-1)!
      .script(COUNT, asked, lives)
      .then(reply => {
        for (const [n, i] of unknown.entries()) {
          const { period } = limits[i]!
          this.#hold(keys[i]!, {
            known: (reply as readonly number[])[n]!,
            more: -1,
            life: period.seconds,
            expiresAt: now + period.seconds * 1000,
            used: true
          })
        }
      })
      .finally(() => {
        for (const key of asked) this.#reading.delete(key)
      })
    for (const key of asked) this.#reading.set(key, read)
  }

  #hold(key: string, counter: Counter): void {
    this.#counters.delete(key)
    this.#counters.set(key, counter)
    if (this.#counters.size <= MAX_COUNTERS) return
    const [oldest] = this.#counters.keys()
    this.#counters.delete(oldest!)
  }

  #schedule(): void {
    if (this.#timer !== undefined || this.#synchronising !== undefined) return
    this.#timer = setTimeout(() => void this.#synchronise(), this.#interval)
    this.#timer.unref()
  }

  #synchronise(): Promise<void> {
    this.#timer = undefined
    this.#synchronising = this.#exchange().finally(() => {
      this.#synchronising = undefined
      if (this.#counters.size > 0) this.#schedule()
    })
    return this.#synchronising
  }

  async #exchange(): Promise<void> {
    const now = Date.now()
    const due: [string, Counter][] = []
    for (const entry of this.#counters) {
      const [key, counter] = entry
      if (counter.expiresAt <= now || (counter.more === 0 && !counter.used)) {
        this.#counters.delete(key)
      } else due.push(entry)
    }
    try {
      for (let at = 0; at < due.length; at += BATCH) await this.#send(due.slice(at, at + BATCH))
      this.#failing = false
    } catch (error) {
      // What was not sent stays, and is sent with the next.
      if (!this.#failing) {
        this.#log.error(
          { plugin: 'rate-limiting', err: error },
          'counters could not be synchronised with Redis'
        )
      }
      this.#failing = true
    }
  }

  async #send(batch: readonly (readonly [string, Counter])[]): Promise<void> {
    const sent = batch.map(([, counter]) => counter.more)
    for (const [, counter] of batch) counter.used = false
    const keys = batch.map(([key]) => key)
    const values = batch.flatMap(([, counter], i) => [String(sent[i]), String(counter.life)])
    const reply = await this.#attached.at(-1)!.script(SYNCHRONISE, keys, values)
    for (const [i, [, counter]] of batch.entries()) {
      counter.known = (reply as readonly number[])[i]!
      counter.more -= sent[i]!
    }
  }
}

/** Counts here, and with Redis every `sync_rate` seconds; refused requests are not counted. */
export class BufferedPolicy implements Policy {
  readonly #limits: readonly Limit[]
  readonly #prefix: string
  readonly #counters: BufferedCounters
  readonly #detach: () => Promise<void>

  /** `prefix` tells the instance's scope. */
  constructor(
    limits: readonly Limit[],
    prefix: string,
    counters: BufferedCounters,
    redis: RedisAccess
  ) {
    this.#limits = limits
    this.#prefix = prefix
    this.#counters = counters
    this.#detach = counters.attach(redis)
  }

  take(identifier: string, now: number): Verdict | Promise<Verdict> {
    const keys = counterKeys(this.#limits, this.#prefix + identifier, now)
    return (
      this.#counters.takeKnown(keys, this.#limits, now) ??
      this.#counters.takeUnknown(keys, this.#limits, now)
    )
  }

  close(): Promise<void> {
    return this.#detach()
  }
}
