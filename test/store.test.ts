import { join } from 'node:path'
import t, { type Test } from 'tap'
import type { Logger } from '../src/plugins/plugin.ts'
import { memoryStore, type OwnedStore, redisStore } from '../src/store.ts'
import { startGateway, startUpstream, until } from './harness.ts'
import { Browser } from './plugins/session/browser.ts'
import { documentOf } from './plugins/session/serve.ts'
import { startRedis, withoutRedis, withoutRedisServer } from './redis.ts'
import { startTestVault } from './vault/fault-backend.ts'

// Threads start slowly on a busy machine.
t.setTimeout(120_000)

const silent = { debug() {}, info() {}, warn() {}, error() {} }

async function contract(t: Test, store: OwnedStore, key: string): Promise<void> {
  t.equal(await store.get(key), undefined)
  await store.set(key, 'one', 1000)
  await store.set(key, 'two', 1000)
  t.equal(await store.get(key), 'two')
  await store.expire(key, 0.05)
  await until(async () => (await store.get(key)) === undefined, 'the end of an entry')
  await store.expire(key, 1000)
  t.equal(await store.get(key), undefined, 'what is absent stays so')
  await store.set(key, '', 0.3)
  await store.expire(key, 1000)
  t.equal(await store.get(key), '')
  await store.delete(key)
  await store.delete(key)
  t.equal(await store.get(key), undefined)
  await store.set(key, 'ended already', 0)
  await until(async () => (await store.get(key)) === undefined, 'the end of an entry')
}

t.test('the store in memory', async t => {
  const store = memoryStore()
  await contract(t, store, 'key')
  await store.set('key', 'value', 1000)
  await store.close()
  t.equal(await store.get('key'), undefined)
})

const options = (log: Logger = silent) => ({ log, refresh: async () => {} })

t.test('the store in Redis', { skip: withoutRedis }, async t => {
  const redis = await startRedis()
  t.teardown(() => redis.close())
  const store = redisStore(redis.url, options())
  t.teardown(() => store.close())
  await contract(t, store, `store-test-${process.pid}`)
})

t.test('a store whose address has no value yet', { skip: withoutRedis }, async t => {
  const redis = await startRedis()
  t.teardown(() => redis.close())
  const store = redisStore(undefined, options())
  t.teardown(() => store.close())
  await t.rejects(store.get('key'), { code: 'POSTERN_SECRET_UNAVAILABLE' })
  store.use(redis.url)
  await contract(t, store, `store-test-later-${process.pid}`)
})

t.test('TLS is verified', { skip: withoutRedisServer }, async t => {
  const redis = await startRedis({ tls: true })
  t.teardown(() => redis.close())
  const store = redisStore(redis.url, options())
  t.teardown(() => store.close())
  await t.rejects(store.get('key'), { code: 'POSTERN_REDIS_AWAY', message: /CERT/ })
})

const yes = (): boolean => true
const no = (): boolean => false
const denied = ({ code }: { code?: string }): boolean => code === 'POSTERN_REDIS_DENIED'

/** Tries until the store answers. */
const answers = (store: OwnedStore): Promise<boolean> =>
  until(() => store.get('key').then(yes, no), 'an answer')

t.test(
  'a Redis that is away or silent costs no more than the bound',
  { skip: withoutRedisServer },
  async t => {
    const redis = await startRedis({ own: true, password: 'p4ssw0rd' })
    t.teardown(() => redis.close())
    const lines: unknown[] = []
    const log = { ...silent, warn: (...line: unknown[]) => lines.push(line) }
    const store = redisStore(redis.url, options(log))
    t.teardown(() => store.close())
    await store.set('key', 'value', 1000)
    redis.freeze()
    await t.rejects(store.get('key'), { code: 'POSTERN_REDIS_AWAY', message: /2000 ms/ })
    redis.thaw()
    await answers(store)
    t.equal(await store.get('key'), 'value')
    await redis.stop()
    await until(() => store.get('key').then(no, yes), 'a refusal')
    await redis.start()
    await answers(store)
    t.match(lines[0], [{ redis: /^127/ }, 'Redis is away'])
    t.notMatch(JSON.stringify(lines), /p4ssw0rd/)
  }
)

t.test('credentials that change', { skip: withoutRedisServer }, async t => {
  const redis = await startRedis({ password: 'admin-password', users: { app: 'first-word' } })
  t.teardown(() => redis.close())
  const url = (password: string, database = 0): string =>
    `redis://app:${password}@${redis.host}:${redis.port}/${database}`
  const users = async (): Promise<number> =>
    String(await redis.command('CLIENT', 'LIST')).match(/user=app/g)?.length ?? 0
  let vault = url('first-word')
  let refreshes = 0
  const store = redisStore(vault, {
    log: silent,
    async refresh() {
      refreshes++
      store.use(vault)
    }
  })
  t.teardown(() => store.close())

  await t.test('a refusal has them read again once, and is repeated', async t => {
    await store.set('key', 'value', 1000)
    await redis.command('ACL', 'SETUSER', 'app', 'resetpass', '>second/word')
    await redis.command('CLIENT', 'KILL', 'USER', 'app')
    vault = url('second%2Fword')
    await until(() => store.get('key').then(value => value === 'value', no), 'the new ones')
    t.equal(refreshes, 1)
    t.equal(await users(), 1)
  })

  await t.test('those that the server does not know yet cost nothing', async t => {
    store.use(url('third-word'))
    for (let i = 0; i < 5; i++) t.equal(await store.get('key'), 'value', 'by the former ones')
    await redis.command('ACL', 'SETUSER', 'app', '>third-word')
    // The former connection ends as soon as the new one works.
    await redis.command('ACL', 'SETUSER', 'app', '<second/word')
    await until(async () => {
      await store.get('key')
      return (await users()) === 1
    }, 'one connection')
    t.equal(await store.get('key'), 'value')
  })

  await t.test('calls under way end as they began; another database is another store', async t => {
    const under = Array.from({ length: 20 }, () => store.get('key'))
    store.use(url('third-word', 1))
    t.same(new Set(await Promise.all(under)), new Set(['value']))
    t.equal(await store.get('key'), undefined)
    store.use(url('third-word', 0))
    store.use(url('third-word', 0))
    t.equal(await store.get('key'), 'value')
    await until(async () => (await users()) === 1, 'the others to be closed')
  })

  await t.test('those that stay wrong are refused', async t => {
    await redis.command('ACL', 'SETUSER', 'app', 'resetpass', '>fourth-word')
    await redis.command('CLIENT', 'KILL', 'USER', 'app')
    await until(() => store.get('key').then(no, denied), 'a refusal')
    const before = refreshes
    await Promise.allSettled(Array.from({ length: 20 }, () => store.get('key')))
    t.ok(refreshes - before <= 1, `${refreshes - before} reads of the vault`)
    vault = url('fourth-word')
    await until(() => store.get('key').then(value => value === 'value', no), 'the right ones')
  })
})

t.test('the Redis of sessions of a gateway', { skip: withoutRedisServer }, async t => {
  await using upstream = await startUpstream()
  await using redis = await startRedis({ password: 'admin-word', users: { app: 'first-word' } })
  await using vault = await startTestVault()
  vault.put('redis', { password: 'first-word' })
  await using gateway = await startGateway(
    documentOf(upstream.url, { '/in': { storage: 'kong' } }),
    {
      workers: 2,
      env: {
        POSTERN_VAULT_BACKENDS: join(import.meta.dirname, 'vault/fault-backend.ts'),
        // Without a ttl nothing is read again by time.
        POSTERN_VAULT_HTTP_URL: vault.url,
        POSTERN_SESSION_REDIS_URL: `redis://app:{vault://http/redis/password}@${redis.host}:${redis.port}`
      }
    }
  )
  const browser = new Browser(gateway)
  await browser.logIn('annas-key', '/in')
  t.equal((await browser.fetch('/in')).status, 200)

  await t.test('a refusal has the vault asked again, and no session is lost', async t => {
    await redis.command('ACL', 'SETUSER', 'app', 'resetpass', '>second-word')
    vault.put('redis', { password: 'second-word' })
    const reads = vault.reads('redis')
    await redis.command('CLIENT', 'KILL', 'USER', 'app')
    await until(async () => (await browser.fetch('/in')).status === 200, 'the new password')
    t.equal(vault.reads('redis'), reads + 1)
  })

  await t.test('a rotation loses none either, whichever side is first', async t => {
    const failures: number[] = []
    let stop = false
    const load = async (): Promise<void> => {
      while (!stop) {
        const { status } = await browser.fetch('/in', { headers: { connection: 'close' } })
        if (status !== 200) failures.push(status)
      }
    }
    const clients = [load(), load()]
    vault.put('redis', { password: 'third-word' })
    t.equal(await gateway.gateway.refresh('http'), 1)
    t.equal((await browser.fetch('/in')).status, 200, 'Redis does not know it yet')
    await redis.command('ACL', 'SETUSER', 'app', '>third-word')
    await redis.command('ACL', 'SETUSER', 'app', '>fourth-word')
    vault.put('redis', { password: 'fourth-word' })
    t.equal(await gateway.gateway.refresh('http'), 1)
    t.equal((await browser.fetch('/in')).status, 200)
    stop = true
    await Promise.all(clients)
    t.same(failures, [])
  })

  await t.test('what is no address any more changes nothing', async t => {
    vault.put('redis', { password: '%zz' })
    t.equal(await gateway.gateway.refresh('http'), 0)
    t.equal((await browser.fetch('/in')).status, 200)
  })
})
