import type { Balancer, Candidate } from '../balancer.ts'

/**
 * Picks the candidate of the lowest score. Equal ones take turns: the look begins elsewhere each time.
 */
export function lowestScore<C extends Candidate>(
  candidates: readonly C[],
  score: (candidate: C) => number
): Balancer<C> {
  let start = 0
  return {
    pick(_request, tried) {
      start = start + 1 >= candidates.length ? 0 : start + 1
      let best: C | undefined
      let bestScore = Number.POSITIVE_INFINITY
      let bestTried = true
      for (let i = 0; i < candidates.length; i++) {
        const at = start + i
        const candidate = candidates[at < candidates.length ? at : at - candidates.length]!
        if (!candidate.available) continue
        const wasTried = tried?.has(candidate) === true
        if (wasTried && !bestTried) continue
        const its = score(candidate)
        if (its < bestScore || wasTried !== bestTried || best === undefined) {
          best = candidate
          bestScore = its
          bestTried = wasTried
        }
      }
      return best
    }
  }
}
