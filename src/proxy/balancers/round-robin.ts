import type { Balancer, Candidate } from '../balancer.ts'

/** Entries of a wheel at most; coprime large weights are scaled down to fit. */
const MAX_TURN = 8192

/**
 * Round-robin by weight. The order of one turn is laid out once, smoothly (an address of weight 3
 * among weights of 1 does not get its three requests in a row), so that a pick only advances a
 * pointer. Each balancer begins elsewhere, so that threads do not all begin with the same address.
 */
export function roundRobin<C extends Candidate>(candidates: readonly C[]): Balancer<C> {
  const wheel = turn(candidates)
  let next = Math.floor(Math.random() * wheel.length)
  return {
    pick(_request, tried) {
      let last: C | undefined
      for (let i = 0; i < wheel.length; i++) {
        const candidate = wheel[next]!
        next = next + 1 === wheel.length ? 0 : next + 1
        if (!candidate.available) continue
        if (tried === undefined || !tried.has(candidate)) return candidate
        last ??= candidate
      }
      return last
    }
  }
}

const gcd = (a: number, b: number): number => (b === 0 ? a : gcd(b, a % b))

function turn<C extends Candidate>(candidates: readonly C[]): C[] {
  const divisor = candidates.reduce((common, { weight }) => gcd(common, weight), 0)
  const total = candidates.reduce((sum, { weight }) => sum + weight / divisor, 0)
  const scale = total > MAX_TURN ? MAX_TURN / total : 1
  const entries = candidates.map(candidate => ({
    candidate,
    share: Math.max(1, Math.round((candidate.weight / divisor) * scale)),
    credit: 0
  }))
  const slots = entries.reduce((sum, { share }) => sum + share, 0)
  if (slots === candidates.length) return [...candidates]
  const wheel: C[] = []
  for (let i = 0; i < slots; i++) {
    let best = entries[0]!
    for (const entry of entries) {
      entry.credit += entry.share
      if (entry.credit > best.credit) best = entry
    }
    best.credit -= slots
    wheel.push(best.candidate)
  }
  return wheel
}
