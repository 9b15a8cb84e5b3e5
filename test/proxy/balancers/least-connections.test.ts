import t from 'tap'
import { leastConnections } from '../../../src/proxy/balancers/least-connections.ts'
import { balanced, balancerContract, candidates } from './contract.ts'

await t.test('contract', t => balancerContract(t, leastConnections))

await t.test('the one with the fewest requests for its weight', async t => {
  const all = candidates(100, 100, 300)
  const balancer = leastConnections(all)
  t.equal(balancer.pick(balanced(), undefined), all[2])
  all[2]!.inFlight = 3
  all[0]!.inFlight = 1
  t.equal(balancer.pick(balanced(), undefined), all[1], '1/100 is less than 4/300')
  all[1]!.inFlight = 5
  t.equal(balancer.pick(balanced(), undefined), all[2])
})

await t.test('requests that last spread by weight', async t => {
  const all = candidates(100, 200, 100)
  const balancer = leastConnections(all)
  for (let i = 0; i < 400; i++) balancer.pick(balanced(), undefined)!.inFlight++
  t.same(
    all.map(({ inFlight }) => inFlight),
    [100, 200, 100]
  )
})

await t.test('equal ones take turns', async t => {
  const all = candidates(100, 100, 100)
  const balancer = leastConnections(all)
  const picked = new Set([1, 2, 3].map(() => balancer.pick(balanced(), undefined)))
  t.equal(picked.size, 3)
})
