import t, { type Test } from 'tap'
import { memoryStore, type OwnedStore, redisStore } from '../src/store.ts'
import { until } from './harness.ts'
import { startRedis, withoutRedis, withoutRedisServer } from './redis.ts'

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

t.test('the store in Redis', { skip: withoutRedis }, async t => {
  const redis = await startRedis()
  t.teardown(() => redis.close())
  const store = await redisStore(redis.url, silent)
  t.teardown(() => store.close())
  await until(
    () =>
      store
        .get('x')
        .then(() => true)
        .catch(() => false),
    'a connection'
  )
  await contract(t, store, `store-test-${process.pid}`)
})

t.test(
  'a Redis that is away or silent costs no more than the bound',
  {
    skip: withoutRedisServer
  },
  async t => {
    const redis = await startRedis({ own: true, password: 'p4ssw0rd' })
    t.teardown(() => redis.close())
    const lines: unknown[] = []
    const log = { ...silent, warn: (...line: unknown[]) => lines.push(line) }
    const store = await redisStore(redis.url, log)
    t.teardown(() => store.close())
    await until(
      () =>
        store.set('key', 'value', 1000).then(
          () => true,
          () => false
        ),
      'a connection'
    )
    redis.freeze()
    await t.rejects(store.get('key'), { code: 'POSTERN_STORE_TIMEOUT' })
    redis.thaw()
    t.equal(await store.get('key'), 'value')
    await redis.stop()
    await until(
      () =>
        store.get('key').then(
          () => false,
          () => true
        ),
      'a refusal'
    )
    await redis.start()
    await until(
      () =>
        store.set('key', 'value', 1).then(
          () => true,
          () => false
        ),
      'a new connection'
    )
    t.match(lines[0], [{}, 'the session store is away'])
    t.notMatch(JSON.stringify(lines), /p4ssw0rd/)
  }
)
