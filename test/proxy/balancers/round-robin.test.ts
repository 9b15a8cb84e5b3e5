import fc from 'fast-check'
import t from 'tap'
import { roundRobin } from '../../../src/proxy/balancers/round-robin.ts'
import { balanced, balancerContract, candidates, distribution } from './contract.ts'

await t.test('contract', t => balancerContract(t, roundRobin))

await t.test('each turn gives every candidate its weight exactly, wherever it begins', async t => {
  fc.assert(
    fc.property(
      fc.array(fc.integer({ min: 1, max: 20 }), { minLength: 1, maxLength: 8 }),
      weights => {
        const all = candidates(...weights)
        const total = weights.reduce((sum, weight) => sum + weight, 0)
        t.same(distribution(roundRobin(all), all, total), weights)
      }
    )
  )
})

await t.test('a heavy candidate does not get its requests in a row', async t => {
  const all = candidates(5, 1, 1)
  const balancer = roundRobin(all)
  const order = Array.from({ length: 14 }, () => all.indexOf(balancer.pick(balanced(), undefined)!))
  t.notMatch(order.join(''), '00000', order.join(''))
})

await t.test('large coprime weights', async t => {
  const all = candidates(65_535, 65_521, 1)
  const counts = distribution(roundRobin(all), all, 8192)
  t.ok(Math.abs(counts[0]! - counts[1]!) < 10, counts.join(' '))
  t.ok(counts[2]! >= 1 && counts[2]! <= 3)
})

await t.test('what an unavailable one would get goes to the others by their weights', async t => {
  const all = candidates(2, 1, 1)
  all[2]!.available = false
  const counts = distribution(roundRobin(all), all, 400)
  t.equal(counts[2], 0)
  t.ok(counts[0]! > counts[1]!)
})
