import t from 'tap'
import { startGateway, startUpstream, type TestGateway } from '../../harness.ts'
import { limitedRoute, remainingOfDay as remaining } from '../../rate-limiting.ts'
import { redisBlock, startRedis, withoutRedis } from '../../redis.ts'

const upstream = await startUpstream()
t.teardown(() => upstream.close())
const limited = limitedRoute.bind(undefined, upstream.url)

t.test('counters in Redis', { skip: withoutRedis }, async t => {
  const redis = await startRedis()
  t.teardown(() => redis.close())
  const gateway = await startGateway({}, { workers: 2 })
  t.teardown(() => gateway.close())

  await t.test('all threads and nodes count together', async t => {
    const document = limited(redisBlock(redis), { day: 60, year: 1000 })
    await gateway.reload(document)
    const other = await startGateway(document)
    t.teardown(() => other.close())
    const statuses: number[] = []
    const client = async (node: TestGateway): Promise<void> => {
      for (let i = 0; i < 10; i++) {
        statuses.push((await node.fetch('/', { headers: { connection: 'close' } })).status)
      }
    }
    await Promise.all(
      [gateway, gateway, gateway, other, gateway, other, gateway, other].map(client)
    )
    t.equal(statuses.filter(status => status === 200).length, 60)
    t.equal(statuses.filter(status => status === 429).length, 20)
    const last = await gateway.fetch('/')
    t.match(last.headers, {
      'x-ratelimit-remaining-day': '0',
      'x-ratelimit-remaining-year': String(1000 - 80),
      'ratelimit-limit': '60'
    })
  })

  await t.test(
    'counters have the names that Kong gives them, and end with their period',
    async t => {
      await gateway.reload({
        services: [{ url: upstream.url, routes: [{ paths: ['/'] }] }],
        plugins: [
          {
            name: 'rate-limiting',
            config: {
              hour: 50,
              month: 50,
              limit_by: 'header',
              header_name: 'x-who',
              policy: 'redis',
              redis: redisBlock(redis)
            }
          }
        ]
      })
      const who = `who-${process.pid}-${Date.now()}`
      await gateway.fetch('/', { headers: { 'x-who': who } })
      const scope = '00000000-0000-0000-0000-000000000000:00000000-0000-0000-0000-000000000000'
      const now = new Date()
      const month = Date.UTC(now.getUTCFullYear(), now.getUTCMonth())
      const key = `ratelimit:${scope}:${who}:${month}:month`
      t.equal(await redis.command('GET', key), '1')
      const left = Number(await redis.command('TTL', key))
      t.ok(left > 2_592_000 - 60 && left <= 2_592_000)
      const hours = (await redis.command('KEYS', `ratelimit:${scope}:${who}:*:hour`)) as string[]
      t.equal(hours.length, 1)
      t.equal(Number(hours[0]!.split(':').at(-2)) % 3_600_000, 0)
    }
  )

  await t.test('a script that Redis forgot is sent again', async t => {
    await gateway.reload(limited(redisBlock(redis), { day: 50 }))
    t.equal(await remaining(gateway), '49')
    await redis.command('SCRIPT', 'FLUSH')
    t.equal(await remaining(gateway), '48')
  })
})
