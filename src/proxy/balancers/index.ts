import type { Upstream } from '../../schema/entities.ts'
import { compileHashInput } from '../affinity.ts'
import type { Balancer, Candidate } from '../balancer.ts'
import { consistentHashing } from './consistent-hashing.ts'
import { latency } from './latency.ts'
import { leastConnections } from './least-connections.ts'
import { roundRobin } from './round-robin.ts'
import { stickySessions } from './sticky-sessions.ts'

/** Makes the balancer of an algorithm for a set of addresses, each of weight more than 0. */
export type BalancerFactory = <C extends Candidate>(candidates: readonly C[]) => Balancer<C>

/** Every algorithm, by its name in `algorithm`: what it makes of an upstream's fields. */
export const algorithms: Readonly<
  Record<Upstream['algorithm'], (upstream: Upstream) => BalancerFactory>
> = {
  'round-robin': () => roundRobin,
  'least-connections': () => leastConnections,
  latency: () => latency,
  'consistent-hashing': upstream => {
    const input = compileHashInput(upstream)
    return candidates => consistentHashing(candidates, upstream.slots, input)
  },
  'sticky-sessions': upstream => {
    const cookie = {
      name: upstream.sticky_sessions_cookie!,
      path: upstream.sticky_sessions_cookie_path ?? '/'
    }
    return candidates => stickySessions(candidates, cookie)
  }
}
