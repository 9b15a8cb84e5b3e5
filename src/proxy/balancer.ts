import type { IncomingHttpHeaders } from 'node:http'

/** An address as balancers see it. */
export interface Candidate {
  /** What it is, the same in every thread and on every node: `ip:port`. */
  readonly key: string
  /** Its share of the requests, more than 0. */
  readonly weight: number
  /** Whether it may be used now. Changes while the balancer stands. */
  readonly available: boolean
  /** Requests this thread has under way to it. Changes. */
  readonly inFlight: number
  /** Moving average of its response time, and when that last changed by the clock of the node, in milliseconds. Change. */
  readonly latency: number
  readonly latencyAt: number
}

/** What balancers look at of a request, and leave with it for its retries. */
export interface BalancedRequest {
  readonly request: {
    readonly clientIp: string
    /** Normalised. */
    readonly path: string
    readonly query: string | undefined
    readonly headers: IncomingHttpHeaders
    readonly captures: Readonly<Record<string, string>> | undefined
  }
  readonly consumer: { readonly id: string } | undefined
  readonly credential: { readonly id: string } | undefined
  /** What ties the request to an address, once it was asked for; it stays over retries. */
  affinity: string | undefined
  /** A `Set-Cookie` value for the response. */
  affinityCookie: string | undefined
}

/**
 * Chooses among addresses; one is made for each set of them. An address that is not available is
 * never chosen, one of `tried` only when every available one was tried.
 */
export interface Balancer<C extends Candidate> {
  /** Undefined when none is available. */
  pick(request: BalancedRequest, tried: ReadonlySet<C> | undefined): C | undefined
}
