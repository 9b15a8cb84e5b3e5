import t from 'tap'
import { startGateway, startUpstream, until } from '../harness.ts'
import { limitedRoute, remainingOfDay as remaining } from '../rate-limiting.ts'
import { startRedis, type TestRedis, withoutRedisServer } from '../redis.ts'
import { startOpenBao } from './openbao.ts'
import { missing } from './server.ts'
import { traffic } from './traffic.ts'

// A real Redis whose password is a secret of a real OpenBao.

const skip = withoutRedisServer || missing('bao')

/** A gateway that counts in this Redis as the user of the secret `redis`; `ttl` is that of the vault. */
function gatewayOn(upstream: string, redis: TestRedis, baoPort: number, ttl: number) {
  const { host, port } = redis
  const user = { username: '{vault://bao/redis/user}', password: '{vault://bao/redis/password}' }
  return startGateway(
    {
      vaults: [
        { name: 'hcv', prefix: 'bao', config: { port: baoPort, kv: 'v2', token: 'root', ttl } }
      ],
      ...limitedRoute(upstream, { host, port, ...user }, { day: 100_000, fault_tolerant: false })
    },
    { env: { POSTERN_VAULT_ROTATION_INTERVAL: '1' }, workers: 2 }
  )
}

// What refusals may have read again is bounded, so that case has one rotation.
for (const [how, ttl, rotations] of [
  ['by timer', 1, 3],
  ['by a refusal alone', 0, 1]
] as const) {
  await t.test(`a password that rotates, taken over ${how}: nothing fails`, { skip }, async t => {
    await using bao = await startOpenBao()
    await using redis = await startRedis({ password: 'admin', users: { app: 'password-0' } })
    await using upstream = await startUpstream()
    const put = (n: number) =>
      bao.call('POST', 'secret/data/redis', { data: { user: 'app', password: `password-${n}` } })
    await until(() => put(0).catch(() => false), 'the key-value engine is ready')
    await using gateway = await gatewayOn(upstream.url, redis, bao.port, ttl)
    await using load = traffic(async () => (await gateway.fetch('/')).status)
    for (let n = 1; n <= rotations; n++) {
      // As a rotation does it: the next password is known before the last one ends.
      await redis.command('ACL', 'SETUSER', 'app', `>password-${n}`)
      await put(n)
      if (ttl > 0) {
        const version = new RegExp(`"version": ?"${n + 1}@`)
        await until(async () => version.test((await gateway.status('/vaults')).body), 'it is read')
      }
      await redis.command('ACL', 'SETUSER', 'app', `<password-${n - 1}`)
      await redis.command('CLIENT', 'KILL', 'USER', 'app')
      const before = load.served
      await until(() => load.served > before + 50, 'requests go on')
    }
    await load.stop()
    t.strictSame(load.failures, [])
    t.equal(await remaining(gateway), String(100_000 - load.served - 1), 'each was counted once')
    t.match(String(await redis.command('CLIENT', 'LIST')), /user=app/)
    t.notMatch((await gateway.status('/vaults')).body, /password-\d/)
  })
}

await t.test('a Redis that is away and comes back empty', { skip }, async t => {
  await using bao = await startOpenBao()
  await using redis = await startRedis({ password: 'admin', users: { app: 'password-0' } })
  await using upstream = await startUpstream()
  const data = { user: 'app', password: 'password-0' }
  await until(
    () => bao.call('POST', 'secret/data/redis', { data }).catch(() => false),
    'the key-value engine is ready'
  )
  await using gateway = await gatewayOn(upstream.url, redis, bao.port, 1)
  t.equal(await remaining(gateway), '99999')
  await redis.stop()
  await until(
    async () => (await gateway.fetch('/')).status >= 500,
    'what may not pass uncounted is refused'
  )
  await redis.start()
  await until(async () => (await gateway.fetch('/')).status === 200, 'it counts again')
})
