import t from 'tap'
import { latency, peakEwma } from '../../../src/proxy/balancers/latency.ts'
import { nodeClock } from '../../../src/proxy/clock.ts'
import { until } from '../../harness.ts'
import { balanced, balancerContract, candidates, distribution } from './contract.ts'

await t.test('contract', t => balancerContract(t, latency))

await t.test('a slower sample counts at once, a faster one by the time since the last', async t => {
  t.equal(peakEwma(0, 0, 10, 1000), 10)
  t.equal(peakEwma(10, 1000, 50, 1001), 50)
  const soon = peakEwma(50, 1000, 10, 1001)
  const later = peakEwma(50, 1000, 10, 11_000)
  t.ok(soon > 49 && soon < 50, `${soon}`)
  t.ok(later > 24 && later < 25, `${later}: 50/e + 10(1 - 1/e)`)
  t.equal(peakEwma(50, 2000, 10, 1000), 50, 'a clock that went back')
})

await t.test('the fastest for its weight and its requests under way', async t => {
  const all = candidates(100, 100, 100)
  const now = nodeClock()
  for (const [index, milliseconds] of [30, 10, 20].entries()) {
    all[index]!.latency = milliseconds
    all[index]!.latencyAt = now
  }
  const balancer = latency(all)
  t.same(distribution(balancer, all, 20), [0, 20, 0])
  all[1]!.inFlight = 2
  t.equal(balancer.pick(balanced(), undefined), all[2], '3 × 10 is slower than 20')
  all[0]!.weight = 200
  all[2]!.inFlight = 1
  t.equal(balancer.pick(balanced(), undefined), all[0])
})

await t.test(
  'a new one begins at the mean, a slow one is tried again when its average has faded',
  async t => {
    const all = candidates(100, 100, 100)
    const now = nodeClock()
    all[0]!.latency = 10
    all[1]!.latency = 1000
    all[0]!.latencyAt = now
    all[1]!.latencyAt = now
    const balancer = latency(all)
    t.equal(balancer.pick(balanced(), undefined), all[0])
    t.equal(balancer.pick(balanced(), new Set([all[0]!])), all[2], 'the mean, 505, is below 1000')
    all[1]!.latencyAt = now - 120_000
    t.equal(balancer.pick(balanced(), undefined), all[1])
  }
)

await t.test('one that has not answered gets its turn, and few while it never answers', async t => {
  const all = candidates(100, 100)
  const balancer = latency(all)
  const pick = () => balancer.pick(balanced(), undefined)
  // The other is asked again and again, so that its average does not fade.
  all[0]!.latency = 10
  all[0]!.latencyAt = nodeClock() + 60_000
  await until(() => pick() === all[1], 'its turn')
  for (let i = 0; i < 100; i++) if (pick() === all[1]) t.fail('another turn at once')
  all[1]!.latency = 5
  all[1]!.latencyAt = nodeClock()
  t.equal(pick(), all[1], 'it has answered, and sooner')
})

await t.test('the time of day may be set without anyone noticing', async t => {
  const all = candidates(100, 100)
  const balancer = latency(all)
  const now = nodeClock()
  for (const [index, milliseconds] of [1000, 10].entries()) {
    all[index]!.latency = milliseconds
    all[index]!.latencyAt = now
  }
  const time = Date.now
  t.teardown(() => {
    Date.now = time
  })
  for (const leap of [-86_400_000, 86_400_000]) {
    Date.now = () => time() + leap
    t.same(distribution(balancer, all, 10), [0, 10])
    all[0]!.latencyAt = now - 120_000
    t.equal(balancer.pick(balanced(), undefined), all[0], 'its average has faded')
    all[0]!.latencyAt = now
  }
})
