import t from 'tap'
import { type Carrier, Jar, newId, type Session } from '../../../src/plugins/session/jar.ts'
import { Keys } from '../../../src/plugins/session/keys.ts'
import { until } from '../../harness.ts'
import { startRedis, withoutRedisServer } from '../../redis.ts'
import { Browser } from './browser.ts'
import { serve } from './serve.ts'

t.test(
  'nodes share sessions in Redis, and stand its absence',
  {
    skip: withoutRedisServer
  },
  async t => {
    const redis = await startRedis({ own: true })
    t.teardown(() => redis.close())
    const config = { storage: 'kong', store_metadata: true, remember: true }
    const env = { POSTERN_SESSION_REDIS_URL: redis.url }
    const configs = { '/plain': config, '/hashed': { ...config, hash_subject: true } }
    const one = await serve(t, configs, { env })
    const other = await serve(t, configs, { env })
    const { browser } = one
    const login = await until(async () => {
      const answer = await browser.logIn('annas-key', '/plain')
      return answer.lines.length > 0 ? answer : undefined
    }, 'a connection to Redis')
    t.equal(login.status, 200)
    const elsewhere = new Browser(other.gateway, browser.cookies)
    t.equal((await elsewhere.fetch('/plain')).json().headers['x-consumer-username'], 'anna')
    const keys = async () => (await redis.command('KEYS', '*')) as string[]
    const names = (await keys()).map(key => key.replace(/[\w-]{43}$/, 'ID')).sort()
    t.same(names, [
      'postern:store:session-index:remember:default:anna:ID',
      'postern:store:session-index:session:default:anna:ID',
      'postern:store:session:remember:ID',
      'postern:store:session:session:ID'
    ])
    for (const key of await keys()) {
      const value = await redis.command('GET', key)
      t.notMatch(value, /anna|aaaa/, 'nothing in it can be read')
      t.ok(Number(await redis.command('TTL', key)) > 0)
    }
    await elsewhere.fetch('/plain?session_logout', { method: 'POST' })
    t.same(await keys(), [])
    t.equal((await browser.fetch('/plain')).status, 401)
    await until(
      async () => (await browser.logIn('annas-key', '/hashed')).lines.length > 0,
      'a connection to Redis'
    )
    t.ok((await keys()).some(key => /session-index:session:default:[0-9a-f]{64}:/.test(key)))

    browser.cookies.clear()
    await browser.logIn('annas-key', '/plain')
    await redis.stop()
    t.equal((await browser.fetch('/plain')).status, 401, 'it counts as a request without a session')
    const logout = await browser.fetch('/plain?session_logout', { method: 'POST' })
    t.equal(logout.status, 401)
    const blind = await browser.logIn('annas-key', '/plain')
    t.equal(blind.status, 200, 'who has a key is served')
    t.same(blind.lines, [])
  }
)

t.test('requests that come at once share the note of their use', async t => {
  const now = Date.now()
  const timeouts = { absolute: 86_400, rolling: 3600, idling: 900 }
  const jar = new Jar({
    name: 'session',
    keys: new Keys('a secret of this test'),
    timeouts,
    attributes: {},
    persistent: false,
    store: undefined,
    staleTtl: 0,
    indexed: undefined
  })
  const at = (cookies: Carrier['cookies'], now: number): Carrier => ({ cookies, binding: '', now })
  const sealedIn = (lines: unknown): string => /^session=([^;]*)/.exec((lines as string[])[0]!)![1]!
  const times = { created: now, renewed: now, touched: now }
  const session: Session = { id: newId(), times, identities: [], outdated: false }
  const cookies = { session: sealedIn(jar.save(session, at({}, now))) }
  const touch = (when: number): string => {
    const carrier = at(cookies, when)
    const found = jar.open(carrier) as Session
    return sealedIn(jar.touch({ ...found, times: { ...found.times, touched: when } }, carrier))
  }
  const first = touch(now + 61_000)
  t.equal(touch(now + 61_400), first)
  t.equal(touch(now + 61_900), first)
  t.not(touch(now + 62_100), first, 'not for long')
  const opened = jar.open(at({ session: first }, now + 62_000)) as Session
  t.equal(opened.times.touched, now + 61_000)
})
