import { monitorEventLoopDelay } from 'node:perf_hooks'

/** How late an event loop runs what is due, in seconds: half of the samples, 99 % of them, all. */
export interface LoopDelay {
  readonly p50: number
  readonly p99: number
  readonly max: number
}

/** Milliseconds between two samples. */
const RESOLUTION = 20
/** Milliseconds after which one of the two monitors begins anew. */
const TURN = 30_000

/**
 * Watches how late this thread's event loop is. Two monitors begin anew in turn, and the older one is
 * read: it tells of the last 30 to 60 seconds, however many read it and whenever they do.
 */
export class LoopDelayMonitor {
  #older = monitorEventLoopDelay({ resolution: RESOLUTION })
  #newer = monitorEventLoopDelay({ resolution: RESOLUTION })

  constructor() {
    this.#older.enable()
    this.#newer.enable()
    setInterval(() => this.turn(), TURN).unref()
  }

  /** Forgets what was seen before the last turn. */
  turn(): void {
    const older = this.#older
    older.reset()
    this.#older = this.#newer
    this.#newer = older
  }

  read(): LoopDelay {
    const delay = this.#older
    return {
      p50: late(delay.percentile(50)),
      p99: late(delay.percentile(99)),
      max: late(delay.max)
    }
  }
}

/** A sample, in nanoseconds, holds the time to the next one too. */
function late(nanoseconds: number): number {
  return Math.max(0, nanoseconds / 1e9 - RESOLUTION / 1e3)
}
