import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { startGateway, startUpstream, until } from '../harness.ts'
import { startProcess } from '../process.ts'
import { limitedRoute, remainingOfDay as remaining } from '../rate-limiting.ts'
import { redisBlock, startRedis, withoutRedisServer } from '../redis.ts'

const upstream = await startUpstream()
t.teardown(() => upstream.close())
const limited = limitedRoute.bind(undefined, upstream.url)

t.test('a Redis that comes and goes', { skip: withoutRedisServer }, async t => {
  const redis = await startRedis({ own: true })
  t.teardown(() => redis.close())
  const gateway = await startGateway({})
  t.teardown(() => gateway.close())

  await t.test(
    'requests pass while Redis is away, without limits, and fail when told to',
    async t => {
      const block = { ...redisBlock(redis), timeout: 500 }
      const tolerant = limited(block, { day: 50 })
      await gateway.reload(tolerant)
      t.equal(await remaining(gateway), '49')
      await redis.stop()
      for (let i = 0; i < 5; i++) {
        const passed = await gateway.fetch('/')
        t.equal(passed.status, 200)
        t.notOk(Object.keys(passed.headers).some(name => name.includes('ratelimit')))
      }
      await gateway.reload(limited(block, { day: 50, fault_tolerant: false }))
      const failed = await gateway.fetch('/')
      t.equal(failed.status, 500)
      t.equal(failed.json().message, 'An unexpected error occurred')
      await redis.start()
      await until(
        async () => (await gateway.fetch('/')).status === 200,
        'the connection to come back'
      )
      t.match(await remaining(gateway), /^4\d$/)
    }
  )

  await t.test('a Redis that takes too long is away too', async t => {
    await gateway.reload(limited({ ...redisBlock(redis), timeout: 300 }, { day: 50 }))
    t.equal(await remaining(gateway), '49')
    redis.freeze()
    t.teardown(() => redis.thaw())
    const passed = await Promise.all([1, 2, 3].map(() => gateway.fetch('/')))
    for (const { status, headers } of passed) {
      t.equal(status, 200)
      t.notOk('ratelimit-limit' in headers)
    }
    redis.thaw()
    await until(async () => (await remaining(gateway)) !== undefined, 'limits to be told again')
  })
})

t.test('TLS', { skip: withoutRedisServer }, async t => {
  const redis = await startRedis({ tls: true, password: 'tls-password' })
  t.teardown(() => redis.close())
  const { host, port } = redis
  const directory = t.testdir({ 'ca.pem': redis.ca! })
  const routes = (name: string, block: object) => ({
    name,
    url: upstream.url,
    routes: [
      {
        name,
        paths: [`/${name}`],
        plugins: [
          {
            name: 'rate-limiting',
            config: {
              day: 5,
              policy: 'redis',
              redis: { host, port, password: 'tls-password', ssl: true, ...block }
            }
          }
        ]
      }
    ]
  })
  const file = join(directory, 'postern.json')
  await writeFile(
    file,
    JSON.stringify({
      _format_version: '3.0',
      services: [
        routes('named', { server_name: 'redis.test' }),
        routes('other', { server_name: 'other.test' }),
        routes('unverified', { ssl_verify: false, server_name: 'other.test' })
      ]
    })
  )
  await using gateway = await startProcess(file, {
    NODE_EXTRA_CA_CERTS: join(directory, 'ca.pem'),
    POSTERN_LOG_LEVEL: 'info'
  })
  const limit = async (path: string): Promise<string | null> =>
    (await fetch(gateway.url + path)).headers.get('x-ratelimit-remaining-day')
  t.equal(await limit('/named'), '4', 'a certificate for server_name is trusted')
  t.equal(await limit('/other'), null, 'one for another name is not')
  t.equal(await limit('/unverified'), '4', 'unless nothing is verified')
  const line = gateway.lines().find(({ msg }) => String(msg).includes('failed to get usage'))
  t.equal(line?.code, 'POSTERN_REDIS_AWAY')
  t.match(line?.msg, 'ERR_TLS_CERT_ALTNAME_INVALID')
  t.notMatch(gateway.written().stdout, 'tls-password')
})
