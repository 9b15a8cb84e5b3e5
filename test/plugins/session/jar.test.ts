import t from 'tap'
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
