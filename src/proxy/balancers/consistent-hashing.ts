import xxhash from 'xxhash-wasm'
import type { BalancedRequest, Balancer, Candidate } from '../balancer.ts'

const { h32 } = await xxhash()

/** Positions of a ring at least, whatever `slots` says. */
const MIN_SLOTS = 1000
/** Points on the ring of an address of average weight. */
const POINTS = 160

/** Gives what is hashed of a request. */
export type HashInput = (request: BalancedRequest) => string

/**
 * Consistent hashing on a ring (as ketama does): each address owns points that follow from its key
 * alone, so that an address that comes or goes moves only the keys next to its own points, and every
 * thread and node has the same ring.
 */
export function consistentHashing<C extends Candidate>(
  candidates: readonly C[],
  slots: number,
  input: HashInput
): Balancer<C> {
  const ring = buildRing(candidates, Math.max(slots, MIN_SLOTS))
  return {
    pick(request, tried) {
      if (candidates.length === 0) return undefined
      request.affinity ??= input(request)
      const start = h32(request.affinity) % ring.length
      let last: C | undefined
      let before = -1
      for (let i = 0; i < ring.length; i++) {
        const index = ring[start >= i ? start - i : start - i + ring.length]!
        if (index === before) continue
        before = index
        const candidate = candidates[index]!
        if (!candidate.available) continue
        if (tried === undefined || !tried.has(candidate)) return candidate
        last ??= candidate
      }
      return last
    }
  }
}

/** The index of each position's owner, whose is the next point at or below it. */
function buildRing(candidates: readonly Candidate[], slots: number): Uint16Array {
  const total = candidates.reduce((sum, { weight }) => sum + weight, 0)
  const points = new Map<number, number>()
  for (const [index, { key, weight }] of candidates.entries()) {
    const share = (weight / total) * candidates.length
    const count = Math.max(1, Math.floor(share * POINTS))
    for (let i = 1; i <= count; i++) {
      const position = h32(`${key} ${i}`) % slots
      const owner = points.get(position)
      // Whose the position is must not depend on the order of the targets.
      if (owner === undefined || key < candidates[owner]!.key) points.set(position, index)
    }
  }
  const ring = new Uint16Array(slots)
  let owner = 0
  for (let i = slots - 1; i >= 0; i--) {
    if (!points.has(i)) continue
    owner = points.get(i)!
    break
  }
  for (let i = 0; i < slots; i++) {
    owner = points.get(i) ?? owner
    ring[i] = owner
  }
  return ring
}
