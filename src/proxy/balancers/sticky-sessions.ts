import { hash } from 'node:crypto'
import { cookieOf } from '../affinity.ts'
import type { Balancer, Candidate } from '../balancer.ts'
import { roundRobin } from './round-robin.ts'

/** The cookie that ties a client to an address. */
export interface StickyCookie {
  readonly name: string
  readonly path: string
}

/** Tells an address to clients without saying what it is. */
const idOf = (key: string): string => hash('sha256', key, 'hex').slice(0, 16)

/**
 * The address a client's cookie names, for as long as it is available. A client without one, or whose
 * address is gone, is given another in turn and told so.
 */
export function stickySessions<C extends Candidate>(
  candidates: readonly C[],
  { name, path }: StickyCookie
): Balancer<C> {
  const byId = new Map(candidates.map(candidate => [idOf(candidate.key), candidate]))
  const ids = new Map([...byId].map(([id, candidate]) => [candidate, id]))
  const others = roundRobin(candidates)
  return {
    pick(request, tried) {
      request.affinity ??= cookieOf(request, name) ?? ''
      const bound = byId.get(request.affinity)
      if (bound?.available && tried?.has(bound) !== true) return bound
      const picked = others.pick(request, tried)
      if (picked !== undefined) {
        const id = ids.get(picked) ?? idOf(picked.key)
        request.affinityCookie = `${name}=${id}; Path=${path}; SameSite=Lax; HttpOnly`
      }
      return picked
    }
  }
}
