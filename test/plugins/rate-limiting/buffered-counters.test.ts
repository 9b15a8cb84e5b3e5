import t from 'tap'
import { startGateway, startUpstream, until } from '../../harness.ts'
import { limitedRoute, remainingOfDay as remaining } from '../../rate-limiting.ts'
import { redisBlock, startRedis, withoutRedisServer } from '../../redis.ts'

const upstream = await startUpstream()
t.teardown(() => upstream.close())
const limited = limitedRoute.bind(undefined, upstream.url)

t.test('buffered counters', { skip: withoutRedisServer }, async t => {
  const redis = await startRedis({ own: true })
  t.teardown(() => redis.close())
  const gateway = await startGateway({})
  t.teardown(() => gateway.close())
  const other = await startGateway({})
  t.teardown(() => other.close())

  /** The one counter that Redis has; every test starts without any. */
  const counted = async (): Promise<number> => {
    const keys = (await redis.command('KEYS', 'ratelimit:*')) as string[]
    return keys.length === 1 ? Number(await redis.command('GET', keys[0]!)) : Number.NaN
  }

  await t.test('nodes bring their counts together', async t => {
    await redis.command('FLUSHALL')
    const document = limited(redisBlock(redis), { day: 100, sync_rate: 0.1 })
    await gateway.reload(document)
    await other.reload(document)
    for (let i = 0; i < 10; i++) t.equal((await gateway.fetch('/')).status, 200)
    for (let i = 0; i < 5; i++) t.equal((await other.fetch('/')).status, 200)
    let asked = 15
    for (const node of [other, gateway]) {
      await until(async () => {
        asked++
        return (await remaining(node)) === String(100 - asked)
      }, 'the count of both to be known')
    }
    await until(async () => (await counted()) === asked, 'Redis to have them all')
  })

  await t.test('what is refused is not counted', async t => {
    await redis.command('FLUSHALL')
    const document = limited(redisBlock(redis), { day: 5, sync_rate: 0.05 })
    await gateway.reload(document)
    const statuses: number[] = []
    await until(async () => {
      statuses.push((await gateway.fetch('/')).status)
      return statuses.length === 15
    }, 'the last answer')
    t.same(statuses, [...Array(5).fill(200), ...Array(10).fill(429)])
    await until(async () => (await counted()) === 5, 'Redis to have those that passed')
    await other.reload(document)
    t.equal((await other.fetch('/')).status, 429, 'another node knows by asking')
    await until(async () => (await counted()) === 5, 'that question to be taken back')
  })

  await t.test('requests that come before a counter is known wait for one reading', async t => {
    await redis.command('FLUSHALL')
    await gateway.reload(limited(redisBlock(redis), { day: 5, year: 100, sync_rate: 60 }))
    const answers = await Promise.all(Array.from({ length: 9 }, () => gateway.fetch('/')))
    t.equal(answers.filter(({ status }) => status === 200).length, 5)
    await gateway.reload({})
    await until(
      async () => ((await redis.command('KEYS', 'ratelimit:*')) as string[]).length === 2,
      'both counters'
    )
    for (const key of (await redis.command('KEYS', 'ratelimit:*')) as string[]) {
      await until(async () => (await redis.command('GET', key)) === '5', 'a flush at the end')
      t.ok(Number(await redis.command('TTL', key)) > 0)
    }
  })

  await t.test('what could not be synchronised is kept and sent later', async t => {
    await redis.command('FLUSHALL')
    const block = { ...redisBlock(redis), timeout: 500 }
    await gateway.reload(limited(block, { day: 50, sync_rate: 0.2 }))
    t.equal(await remaining(gateway), '49')
    await redis.stop()
    for (const left of ['48', '47', '46', '45']) t.equal(await remaining(gateway), left)
    await redis.start()
    await until(async () => (await counted()) === 4, 'the counts of that while')
    await gateway.fetch('/')
    await gateway.reload({})
    await until(async () => (await counted()) === 5, 'the last one, sent at the end')
  })
})
