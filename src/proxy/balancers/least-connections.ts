import type { Balancer, Candidate } from '../balancer.ts'
import { lowestScore } from './lowest-score.ts'

/** The address with the fewest requests under way for its weight. */
export function leastConnections<C extends Candidate>(candidates: readonly C[]): Balancer<C> {
  return lowestScore(candidates, ({ inFlight, weight }) => (inFlight + 1) / weight)
}
