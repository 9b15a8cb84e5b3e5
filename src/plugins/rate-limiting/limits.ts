import type { Exchange } from '../plugin.ts'
import { type Period, periods, secondsLeft } from './periods.ts'

/** The limit of one period, with what is written about it. */
export interface Limit {
  readonly period: Period
  readonly limit: number
  readonly limitHeader: string
  readonly remainingHeader: string
}

/** What a policy found about a request. */
export interface Verdict {
  readonly passes: boolean
  /** How many were counted before this request, in the order of the limits. */
  readonly counted: readonly number[]
}

/** Counts requests of an identifier against the limits of an instance. */
export interface Policy {
  /** `now` in Unix milliseconds. Rejects when it cannot be told. */
  take(identifier: string, now: number): Verdict | Promise<Verdict>
  close?(): void | Promise<void>
}

/** The limits of a configuration, shortest period first. */
export function limitsOf(config: Readonly<Partial<Record<Period['name'], number>>>): Limit[] {
  return periods.flatMap(period => {
    const limit = config[period.name]
    if (limit === undefined) return []
    const limitHeader = `X-RateLimit-Limit-${period.title}`
    return [
      { period, limit, limitHeader, remainingHeader: `X-RateLimit-Remaining-${period.title}` }
    ]
  })
}

/** Whether these counts leave room for one more. */
export function passes(limits: readonly Limit[], counted: readonly number[]): boolean {
  for (let i = 0; i < limits.length; i++) if (counted[i]! >= limits[i]!.limit) return false
  return true
}

/**
 * Tells the client its limits, and what remains of each after this request. `RateLimit-*` describe
 * the one with the least left, of several the longest.
 */
export function tell(
  { response }: Exchange,
  limits: readonly Limit[],
  verdict: Verdict,
  now: number
): void {
  let tightest = limits[0]!
  let least = Number.POSITIVE_INFINITY
  for (let i = 0; i < limits.length; i++) {
    const each = limits[i]!
    const before = each.limit - verdict.counted[i]!
    const remaining = Math.max(0, verdict.passes ? before - 1 : before)
    if (remaining <= least) {
      least = remaining
      tightest = each
    }
    response.setHeader(each.limitHeader, String(each.limit))
    response.setHeader(each.remainingHeader, String(remaining))
  }
  const reset = String(secondsLeft(tightest.period, now))
  response.setHeader('RateLimit-Limit', String(tightest.limit))
  response.setHeader('RateLimit-Remaining', String(least))
  response.setHeader('RateLimit-Reset', reset)
  if (!verdict.passes) response.setHeader('Retry-After', reset)
}
