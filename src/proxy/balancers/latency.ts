import type { Balancer, Candidate } from '../balancer.ts'
import { nodeClock } from '../clock.ts'
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

/** One that has not answered yet: since when it waits for a turn, and how many it had in vain. */
interface Unknown {
  since: number
  turns: number
}

/**
 * The address that answers soonest: its average response time by its weight and by the requests under
 * way to it. An average fades, so that an address that was slow is tried again; one without an
 * average begins at the mean of the others, and higher with each turn that brought no answer.
 */
export function latency<C extends Candidate>(candidates: readonly C[]): Balancer<C> {
  let mean = 0
  let now = nodeClock()
  const unknown = new Map<C, Unknown>(candidates.map(each => [each, { since: now, turns: 0 }]))
  const faded = (value: number, since: number): number =>
    value * Math.exp(-Math.max(0, now - since) / DECAY)
  const average = (candidate: C): number => {
    if (candidate.latency > 0) return faded(candidate.latency, candidate.latencyAt)
    const { since, turns } = unknown.get(candidate)!
    return faded(mean * (1 + turns), since)
  }
  const lowest = lowestScore(
    candidates,
    candidate => (average(candidate) * (candidate.inFlight + 1)) / candidate.weight
  )
  return {
    pick(request, tried) {
      now = nodeClock()
      let sum = 0
      let known = 0
      for (const candidate of candidates) {
        if (candidate.latency === 0) continue
        sum += candidate.latency
        known++
      }
      // Any value serves before there is one: only ratios matter.
      mean = known === 0 ? 1 : sum / known
      const picked = lowest.pick(request, tried)
      if (picked?.latency === 0) {
        const entry = unknown.get(picked)!
        entry.since = now
        entry.turns++
      }
      return picked
    }
  }
}
