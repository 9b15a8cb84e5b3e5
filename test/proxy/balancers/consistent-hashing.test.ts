import t from 'tap'
import type { BalancedRequest } from '../../../src/proxy/balancer.ts'
import { consistentHashing } from '../../../src/proxy/balancers/consistent-hashing.ts'
import { balanced, balancerContract, candidates, distribution } from './contract.ts'

const byPath = ({ request }: BalancedRequest): string => request.path
const SLOTS = 10_000

await t.test('contract', t => balancerContract(t, all => consistentHashing(all, SLOTS, byPath)))

await t.test(
  'the same key goes to the same address, in every ring of the same addresses',
  async t => {
    const all = candidates(100, 100, 50, 100)
    const one = consistentHashing(all, SLOTS, byPath)
    const other = consistentHashing(all.toReversed(), SLOTS, byPath)
    for (let i = 0; i < 500; i++) {
      const request = () => balanced({ path: `/${i}` })
      const picked = one.pick(request(), undefined)
      if (picked !== one.pick(request(), undefined)) t.fail(`/${i} moved`)
      if (picked !== other.pick(request(), undefined))
        t.fail(`/${i} depends on the order of targets`)
    }
    t.pass()
  }
)

await t.test('removing one of 10 targets moves at most 15 % of the keys', async t => {
  const all = candidates(...Array.from({ length: 10 }, () => 100))
  const before = consistentHashing(all, SLOTS, byPath)
  for (const removed of all) {
    const after = consistentHashing(
      all.filter(each => each !== removed),
      SLOTS,
      byPath
    )
    let moved = 0
    let strayed = 0
    for (let i = 0; i < 2000; i++) {
      const path = `/key/${i}`
      const was = before.pick(balanced({ path }), undefined)
      const is = after.pick(balanced({ path }), undefined)
      if (was !== is) moved++
      if (was !== is && was !== removed) strayed++
    }
    t.ok(moved <= 300, `${removed.key}: ${moved} of 2000 keys moved`)
    t.ok(strayed <= 40, `${strayed} of them from targets that stayed`)
  }
})

await t.test('a target that is down moves its own keys only, and gets them back', async t => {
  const all = candidates(100, 100, 100, 100)
  const balancer = consistentHashing(all, SLOTS, byPath)
  const paths = Array.from({ length: 300 }, (_, i) => `/${i}`)
  const pick = (path: string) => balancer.pick(balanced({ path }), undefined)
  const before = paths.map(pick)
  all[2]!.available = false
  for (const [index, path] of paths.entries()) {
    const now = pick(path)
    if (before[index] !== all[2] && now !== before[index]) t.fail(`${path} moved`)
    if (now === all[2]) t.fail(`${path} went to what is down`)
  }
  all[2]!.available = true
  t.same(
    paths.map(path => pick(path)!.key),
    before.map(each => each!.key)
  )
})

await t.test('shares follow weights', async t => {
  const all = candidates(300, 100, 100)
  const counts = distribution(consistentHashing(all, SLOTS, byPath), all, 5000)
  const [first = 0, second = 0, third = 0] = counts
  t.ok(first > 2500 && first < 3500, counts.join(' '))
  t.ok(second > 600 && third > 600, counts.join(' '))
})

await t.test('more slots, finer shares: at least 1000, up to 65,536', async t => {
  const all = candidates(...Array.from({ length: 40 }, () => 100))
  const worst = (slots: number): number => {
    const counts = distribution(consistentHashing(all, slots, byPath), all, 8000)
    return Math.max(...counts.map(count => Math.abs(count - 200)))
  }
  t.ok(worst(65_536) < worst(10), 'the largest deviation from an equal share')
  t.equal(worst(10), worst(1000))
})

await t.test('what is hashed is asked for once, and kept over retries', async t => {
  let asked = 0
  const all = candidates(100, 100)
  const balancer = consistentHashing(all, 10, request => `${++asked}${request.request.path}`)
  const request = balanced()
  const first = balancer.pick(request, undefined)!
  const second = balancer.pick(request, new Set([first]))
  t.not(second, first)
  t.equal(asked, 1)
})
