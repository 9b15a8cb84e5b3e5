import pLimit from 'p-limit'
import { VaultThrottled, VaultUnreachable } from '../errors.ts'
import type { Observe, ReadOutcome } from './observation.ts'

/** What time and chance are to the vault layer. */
export interface Clock {
  /** Milliseconds of a clock that no one sets: it neither jumps nor runs backwards. */
  readonly now: () => number
  /** 0 to 1, for jitter. */
  readonly random: () => number
}

export interface GateOptions extends Clock {
  /** The vault's name and type, for events. */
  readonly vault: string
  readonly type: string
  /** Calls at a time at most. */
  readonly concurrency: number
  readonly observe: Observe
}

/** First pause after a vault asked to be asked less, and the longest without its word, in milliseconds. */
const PAUSE_BASE = 1000
const PAUSE_CAP = 300_000
/** Longest pause a vault can ask for, in milliseconds. */
const ASKED_CAP = 3_600_000
/** Milliseconds of a time-out that one block of the thread can use up at most. */
const STEP = 100
/** How long a vault that lets every call run into its time-out is left alone, in milliseconds. */
const DEAF_PAUSE = 5000

const OUTCOMES: Readonly<Record<string, ReadOutcome>> = {
  POSTERN_VAULT_DENIED: 'denied',
  POSTERN_VAULT_ABSENT: 'absent',
  POSTERN_VAULT_THROTTLED: 'throttled',
  POSTERN_VAULT_MALFORMED: 'malformed',
  POSTERN_VAULT_SETTINGS: 'malformed'
}

/** Errors of calls that ran into their time-out. */
const timedOut = new WeakSet<object>()

/** What an error of a backend says of the call; an error without one of the codes is `unreachable`. */
export function outcomeOf(error: unknown): Exclude<ReadOutcome, 'ok'> {
  const { code } = error as { readonly code?: string }
  return (OUTCOMES[code ?? ''] ?? 'unreachable') as Exclude<ReadOutcome, 'ok'>
}

/** The code that failure is told under: the error's own if it is one of a vault's. */
export function codeOf(error: unknown): string {
  const { code } = error as { readonly code?: string }
  return code !== undefined && code in OUTCOMES ? code : 'POSTERN_VAULT_UNREACHABLE'
}

/**
 * Stands before one vault: bounds how many calls run at a time and how long each takes, and slows
 * down when the vault says so. Other vaults have gates of their own.
 */
export class Gate {
  readonly #options: GateOptions
  readonly #limit: ReturnType<typeof pLimit>
  readonly #underWay = new Set<AbortController>()
  #pausedUntil = Number.NEGATIVE_INFINITY
  #strikes = 0
  /** Calls in a row that got no answer in time. */
  #unanswered = 0
  #deafUntil = Number.NEGATIVE_INFINITY
  #closed = false

  constructor(options: GateOptions) {
    this.#options = options
    this.#limit = pLimit(options.concurrency)
  }

  /** When this vault may be asked again, on the gate's clock; in the past unless it is paused. */
  get pausedUntil(): number {
    return this.#pausedUntil
  }

  get paused(): boolean {
    return this.#options.now() < this.#pausedUntil
  }

  /**
   * Runs a call when its turn comes, for at most `timeout` seconds. Rejects with what the call threw;
   * with VaultUnreachable when it took too long; with VaultThrottled, without a call, during a pause;
   * with VaultUnreachable, without a call, for a while after none of the last ones got an answer, so
   * that many resources do not wait for as many time-outs. `begun` is called when the turn comes.
   */
  run<T>(
    operation: 'fetch' | 'probe',
    resource: string,
    timeout: number,
    call: (signal: AbortSignal) => Promise<T | undefined>,
    begun: () => void = () => {}
  ): Promise<T | undefined> {
    return this.#limit(async () => {
      if (this.#closed) throw noLongerUsed()
      if (this.paused) {
        const seconds = Math.ceil((this.#pausedUntil - this.#options.now()) / 1000)
        throw new VaultThrottled(resource, 'it asked for a pause, which is not over', seconds)
      }
      if (this.#options.now() < this.#deafUntil) {
        throw new VaultUnreachable(resource, `the last ${this.#unanswered} calls got no answer`)
      }
      begun()
      const startedAt = this.#options.now()
      let outcome: ReadOutcome = 'ok'
      try {
        const result = await this.#within(resource, timeout, call)
        outcome = result === undefined ? 'absent' : 'ok'
        this.#recover()
        this.#unanswered = 0
        return result
      } catch (error) {
        outcome = outcomeOf(error)
        if (outcome === 'throttled') this.#slowDown(error)
        if (timedOut.has(error as object)) this.#hearNothing()
        else this.#unanswered = 0
        throw error
      } finally {
        const { vault, type, now, observe } = this.#options
        observe({
          kind: 'read',
          vault,
          type,
          operation,
          outcome,
          seconds: (now() - startedAt) / 1000
        })
      }
    })
  }

  async #within<T>(
    resource: string,
    timeout: number,
    call: (signal: AbortSignal) => Promise<T>
  ): Promise<T> {
    const aborter = new AbortController()
    const aborted = Promise.withResolvers<never>()
    aborter.signal.addEventListener('abort', () => aborted.reject(aborter.signal.reason))
    const stop = afterServed(timeout * 1000, () => {
      const error = new VaultUnreachable(resource, `no answer within ${timeout} s`)
      timedOut.add(error)
      aborter.abort(error)
    })
    this.#underWay.add(aborter)
    try {
      // The race is for backends whose libraries do not heed the signal.
      return await Promise.race([call(aborter.signal), aborted.promise])
    } finally {
      stop()
      this.#underWay.delete(aborter)
    }
  }

  #hearNothing(): void {
    if (++this.#unanswered >= this.#options.concurrency)
      this.#deafUntil = this.#options.now() + DEAF_PAUSE
  }

  /** Exponential with jitter, but never shorter than the vault asks for; and fewer calls at a time. */
  #slowDown(error: unknown): void {
    // Calls that were under way together are one strike.
    if (this.paused) return
    const { now, random, observe, vault, type } = this.#options
    const asked = error instanceof VaultThrottled ? (error.retryAfter ?? 0) : 0
    const own = Math.min(PAUSE_BASE * 2 ** this.#strikes, PAUSE_CAP)
    const pause = Math.max(Math.min(asked * 1000, ASKED_CAP), own) * (1 + random() / 4)
    this.#strikes++
    this.#pausedUntil = now() + pause
    this.#limit.concurrency = Math.max(1, Math.floor(this.#limit.concurrency / 2))
    observe({ kind: 'paused', vault, type, seconds: pause / 1000 })
  }

  /** Each answer after a pause takes one step back to full speed. */
  #recover(): void {
    if (this.#strikes > 0) this.#strikes--
    const { concurrency } = this.#options
    if (this.#limit.concurrency < concurrency) this.#limit.concurrency++
  }

  /** Ends every call under way; no other begins. */
  close(): void {
    this.#closed = true
    for (const aborter of this.#underWay) aborter.abort(noLongerUsed())
  }
}

/**
 * Calls `over` after milliseconds in which this thread could have read an answer; gives what stops it.
 * While something blocks the thread, answers lie in their sockets: however long that takes, it counts
 * as one step, and what lies there then is read before `over` is called.
 */
function afterServed(milliseconds: number, over: () => void): () => void {
  let timer: NodeJS.Timeout
  let immediate: NodeJS.Immediate | undefined
  const wait = (left: number): void => {
    const step = Math.min(left, STEP)
    timer = setTimeout(() => {
      if (left > step) wait(left - step)
      else immediate = setImmediate(over)
    }, step)
  }
  wait(milliseconds)
  return () => {
    clearTimeout(timer)
    clearImmediate(immediate)
  }
}

function noLongerUsed(): Error {
  return new VaultUnreachable('it', 'the gateway no longer uses this vault')
}
