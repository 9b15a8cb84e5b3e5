/** Chooses among weighted peers. */
export interface Balancer<P> {
  /** The next peer, not one of `avoid` while another is left; undefined when every weight is 0. */
  pick(avoid?: ReadonlySet<P>): P | undefined
}

/** A peer and its share of the requests; weight 0 gets none. */
export interface Weighted<P> {
  readonly peer: P
  readonly weight: number
}

const gcd = (a: number, b: number): number => (b === 0 ? a : gcd(b, a % b))

/**
 * Round-robin by weight. The order of one turn is laid out once, smoothly (a peer of weight 3 among
 * weights of 1 does not get its three requests in a row), so that a pick only advances a pointer.
 */
export function roundRobin<P>(entries: readonly Weighted<P>[]): Balancer<P> {
  const wheel = turn(entries.filter(({ weight }) => weight > 0))
  if (wheel.length === 0) return { pick: () => undefined }
  if (new Set(wheel).size === 1) return { pick: () => wheel[0] }
  let next = 0
  return {
    pick(avoid) {
      for (let i = 0; i < wheel.length; i++) {
        const peer = wheel[next]!
        next = next + 1 === wheel.length ? 0 : next + 1
        if (avoid === undefined || !avoid.has(peer)) return peer
      }
      const peer = wheel[next]!
      next = next + 1 === wheel.length ? 0 : next + 1
      return peer
    }
  }
}

/** Slots of one turn at most; coprime large weights are scaled down to fit. */
const MAX_TURN = 8192

function turn<P>(entries: readonly Weighted<P>[]): P[] {
  const divisor = entries.reduce((common, { weight }) => gcd(common, weight), 0)
  const total = entries.reduce((sum, { weight }) => sum + weight / divisor, 0)
  const scale = total > MAX_TURN ? MAX_TURN / total : 1
  const credits = entries.map(({ peer, weight }) => ({
    peer,
    share: Math.max(1, Math.round((weight / divisor) * scale)),
    credit: 0
  }))
  const slots = credits.reduce((sum, { share }) => sum + share, 0)
  const wheel: P[] = []
  for (let i = 0; i < slots; i++) {
    let best = credits[0]!
    for (const entry of credits) {
      entry.credit += entry.share
      if (entry.credit > best.credit) best = entry
    }
    best.credit -= slots
    wheel.push(best.peer)
  }
  return wheel
}
