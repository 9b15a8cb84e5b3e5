import t from 'tap'
import { stickySessions } from '../../../src/proxy/balancers/sticky-sessions.ts'
import { balanced, balancerContract, candidates } from './contract.ts'

const cookie = { name: 'bound', path: '/app' }

await t.test('contract', t => balancerContract(t, all => stickySessions(all, cookie)))

/** The `Cookie` header a client sends after a `Set-Cookie`. */
const sent = (setCookie: string | undefined): string => setCookie!.split(';')[0]!

await t.test(
  'a client stays with its address, and is told of another when that is gone',
  async t => {
    const all = candidates(100, 100, 100)
    const balancer = stickySessions(all, cookie)
    const first = balanced()
    const bound = balancer.pick(first, undefined)!
    t.match(first.affinityCookie, /^bound=[0-9a-f]{16}; Path=\/app; SameSite=Lax; HttpOnly$/)
    t.notMatch(first.affinityCookie, bound.key)
    const headers = { cookie: `other=1; ${sent(first.affinityCookie)}` }
    for (let i = 0; i < 10; i++) {
      const again = balanced({ headers })
      t.equal(balancer.pick(again, undefined), bound)
      t.equal(again.affinityCookie, undefined)
    }
    t.equal(
      stickySessions(all, cookie).pick(balanced({ headers }), undefined),
      bound,
      'other threads'
    )
    bound.available = false
    const moved = balanced({ headers })
    const next = balancer.pick(moved, undefined)!
    t.not(next, bound)
    t.ok(moved.affinityCookie)
    bound.available = true
    const retried = balanced({ headers })
    const other = balancer.pick(retried, new Set([bound]))!
    t.not(other, bound)
    t.equal(
      balancer.pick(balanced({ headers: { cookie: sent(retried.affinityCookie) } }), undefined),
      other
    )
  }
)

await t.test('a cookie that names nothing counts as none', async t => {
  const all = candidates(100, 100)
  const request = balanced({ headers: { cookie: 'bound=made-up' } })
  t.ok(stickySessions(all, cookie).pick(request, undefined))
  t.ok(request.affinityCookie)
})
