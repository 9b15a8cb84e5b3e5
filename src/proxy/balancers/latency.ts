import type { Balancer, Candidate } from '../balancer.ts'
import { lowestScore } from './lowest-score.ts'

/** Milliseconds in which a sample loses all but 1/e of its weight. */
const DECAY = 10_000

/**
 * The average after a sample: a slower one counts at once in full, a faster one by how long ago the
 * last was (peak EWMA).
 */
export function peakEwma(average: number, averageAt: number, sample: number, now: number): number {
  if (sample > average) return sample
  const kept = Math.exp(-Math.max(0, now - averageAt) / DECAY)
  return average * kept + sample * (1 - kept)
}

/**
 * The address that answers soonest: its average response time by its weight and by the requests under
 * way to it. An average fades, so that an address that was slow is tried again; one without an
 * average begins at the mean of the others.
 */
export function latency<C extends Candidate>(candidates: readonly C[]): Balancer<C> {
  let mean = 0
  let now = 0
  const score = ({ latency, latencyAt, inFlight, weight }: C): number => {
    const known = latency * Math.exp(-Math.max(0, now - latencyAt) / DECAY)
    return ((latency === 0 ? mean : known) * (inFlight + 1)) / weight
  }
  const lowest = lowestScore(candidates, score)
  return {
    pick(request, tried) {
      now = Date.now()
      let sum = 0
      let known = 0
      for (const candidate of candidates) {
        if (candidate.latency === 0) continue
        sum += candidate.latency
        known++
      }
      // Any value serves before there is one: only ratios matter.
      mean = known === 0 ? 1 : sum / known
      return lowest.pick(request, tried)
    }
  }
}
