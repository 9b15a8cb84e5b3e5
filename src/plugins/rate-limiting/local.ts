import type { Logger } from '../plugin.ts'
import { type CounterTable, type Identity, OVER } from './counter-table.ts'
import type { Limit, Policy, Verdict } from './limits.ts'

/** Least time between two warnings about a full table, in milliseconds. */
const WARN_PAUSE = 60_000

/**
 * Counts in memory that the threads of the node share. A request takes one of every period or none,
 * so refused requests are not counted.
 */
export class LocalPolicy implements Policy {
  readonly #limits: readonly Limit[]
  readonly #prefix: string
  readonly #table: CounterTable
  readonly #log: Logger
  #evictions: number
  #nextWarning = 0

  /** `prefix` tells the instance's scope. */
  constructor(limits: readonly Limit[], prefix: string, table: CounterTable, log: Logger) {
    this.#limits = limits
    this.#prefix = prefix
    this.#table = table
    this.#log = log
    this.#evictions = table.evictions
  }

  take(identifier: string, now: number): Verdict {
    const identity = this.#table.identify(this.#prefix + identifier)
    // A window that ends between reading the clock and counting: the request belongs to the next.
    const verdict = this.#attempt(identity, now, false) ?? this.#attempt(identity, Date.now(), true)
    if (this.#table.evictions !== this.#evictions) this.#warn(now)
    return verdict!
  }

  /** Undefined when a window is over by another thread's clock; never with `clockSetBack`. */
  #attempt(identity: Identity, now: number, clockSetBack: boolean): Verdict | undefined {
    const limits = this.#limits
    const table = this.#table
    const counted: number[] = []
    for (let i = 0; i < limits.length; i++) {
      const { period, limit } = limits[i]!
      const before = table.take(period.index, identity, period.windowAt(now), limit, clockSetBack)
      if (before === OVER || before >= limit) {
        this.#release(identity, now, i, clockSetBack)
        if (before === OVER) return undefined
        counted.push(before)
        return this.#refusal(identity, now, counted)
      }
      counted.push(before)
    }
    return { passes: true, counted }
  }

  /** Gives back what was taken of the first `count` periods. */
  #release(identity: Identity, now: number, count: number, clockSetBack: boolean): void {
    for (let i = 0; i < count; i++) {
      const { period } = this.#limits[i]!
      this.#table.release(period.index, identity, period.windowAt(now), clockSetBack)
    }
  }

  #refusal(identity: Identity, now: number, counted: number[]): Verdict {
    for (let i = counted.length; i < this.#limits.length; i++) {
      const { period } = this.#limits[i]!
      counted.push(this.#table.counted(period.index, identity, period.windowAt(now)))
    }
    return { passes: false, counted }
  }

  #warn(now: number): void {
    this.#evictions = this.#table.evictions
    if (now < this.#nextWarning) return
    this.#nextWarning = now + WARN_PAUSE
    this.#log.warn(
      { plugin: 'rate-limiting' },
      'more clients at once than there are counters: those with the fewest requests are forgotten; count in Redis'
    )
  }
}
