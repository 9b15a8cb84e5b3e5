import type { Test } from 'tap'
import type { BalancedRequest, Balancer, Candidate } from '../../../src/proxy/balancer.ts'

/** An address of a test, whose state the test sets. */
export interface FakeCandidate extends Candidate {
  weight: number
  available: boolean
  inFlight: number
  latency: number
  latencyAt: number
}

/** Candidates with these weights, at 10.0.0.0 and so on. */
export function candidates(...weights: number[]): FakeCandidate[] {
  return weights.map((weight, index) => ({
    key: `10.0.0.${index}:80`,
    weight,
    available: true,
    inFlight: 0,
    latency: 0,
    latencyAt: 0
  }))
}

type Facts = Partial<BalancedRequest['request']> &
  Pick<Partial<BalancedRequest>, 'consumer' | 'credential'>

/** A request as balancers see it. */
export function balanced({ consumer, credential, ...request }: Facts = {}): BalancedRequest {
  return {
    request: {
      clientIp: '127.0.0.1',
      path: '/',
      query: undefined,
      headers: {},
      captures: undefined,
      ...request
    },
    consumer,
    credential,
    affinity: undefined,
    affinityCookie: undefined
  }
}

/** How often each candidate was picked over so many requests, in the order of the candidates. */
export function distribution(
  balancer: Balancer<FakeCandidate>,
  all: readonly FakeCandidate[],
  requests: number,
  request: (i: number) => BalancedRequest = i => balanced({ path: `/${i}` })
): number[] {
  const counts = all.map(() => 0)
  for (let i = 0; i < requests; i++) {
    const picked = balancer.pick(request(i), undefined)
    if (picked !== undefined) counts[all.indexOf(picked)]!++
  }
  return counts
}

type Make = (candidates: readonly FakeCandidate[]) => Balancer<FakeCandidate>

/** What every algorithm keeps to. */
export async function balancerContract(t: Test, make: Make): Promise<void> {
  await t.test('none to choose from, and only one', async t => {
    t.equal(make([]).pick(balanced(), undefined), undefined)
    const [one] = candidates(100) as [FakeCandidate]
    const balancer = make([one])
    t.equal(balancer.pick(balanced(), undefined), one)
    t.equal(balancer.pick(balanced(), new Set([one])), one, 'tried, but there is no other')
    one.available = false
    t.equal(balancer.pick(balanced(), undefined), undefined)
    one.available = true
    t.equal(balancer.pick(balanced(), undefined), one, 'back again')
  })

  await t.test('never one that is not available', async t => {
    const all = candidates(100, 100, 100, 100)
    const balancer = make(all)
    all[1]!.available = false
    all[2]!.available = false
    const counts = distribution(balancer, all, 200)
    t.equal(counts[1]! + counts[2]!, 0)
    t.equal(counts[0]! + counts[3]!, 200)
    for (const each of all) each.available = false
    t.equal(balancer.pick(balanced(), undefined), undefined)
  })

  await t.test('a retry gets another, for as long as there is one', async t => {
    const all = candidates(100, 100, 50)
    const balancer = make(all)
    for (let i = 0; i < 50; i++) {
      const request = balanced({ path: `/${i}` })
      const tried = new Set<FakeCandidate>()
      while (tried.size < all.length) {
        const picked = balancer.pick(request, tried)!
        if (tried.has(picked)) t.fail(`${picked.key} was tried`)
        tried.add(picked)
      }
      t.ok(tried.has(balancer.pick(request, tried)!))
    }
    all[0]!.available = false
    const tried = new Set([all[1]!, all[2]!])
    t.not(balancer.pick(balanced(), tried), all[0], 'one that was tried before one that is down')
  })

  await t.test('every candidate is used by many requests of many clients', async t => {
    const all = candidates(100, 100, 100)
    const balancer = make(all)
    const counts = all.map(() => 0)
    for (let i = 0; i < 300; i++) {
      const picked = balancer.pick(balanced({ path: `/${i}`, clientIp: `10.1.0.${i}` }), undefined)!
      counts[all.indexOf(picked)]!++
      // As the data plane does: the request is under way and gets slower by it.
      picked.inFlight++
    }
    for (const [index, count] of counts.entries()) t.ok(count > 30, `${index}: ${count} of 300`)
  })
}
