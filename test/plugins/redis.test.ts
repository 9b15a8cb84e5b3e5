import { rename, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { startGateway, startUpstream, until } from '../harness.ts'
import { limitedRoute, remainingOfDay as remaining } from '../rate-limiting.ts'
import { startRedis, withoutRedisServer } from '../redis.ts'
import { ROOT_TOKEN, startFakeVault } from '../vault/hcv-server.ts'

const upstream = await startUpstream()
t.teardown(() => upstream.close())
const limited = limitedRoute.bind(undefined, upstream.url)

t.test('credentials', { skip: withoutRedisServer }, async t => {
  const redis = await startRedis({ password: 'admin-password', users: { app: 'first-password' } })
  t.teardown(() => redis.close())
  const { host, port } = redis
  const gateway = await startGateway({}, { workers: 2, env: { POSTERN_VAULT_FS_PREFIX: '/' } })
  t.teardown(() => gateway.close())
  const secret = join(gateway.directory, 'redis.json')
  const store = async (username: string, password: string): Promise<void> => {
    await writeFile(
      `${secret}.next`,
      JSON.stringify({ host, port: String(port), username, password })
    )
    await rename(`${secret}.next`, secret)
  }
  const from = (key: string): string => `{vault://fs${secret}/${key}}`
  const block = {
    host: from('host'),
    port: from('port'),
    username: from('username'),
    password: from('password'),
    server_name: 'redis.test'
  }

  await t.test('host, port, user and password may all be references', async t => {
    await store('app', 'first-password')
    await gateway.reload(limited(block, { day: 50 }))
    t.equal(await remaining(gateway), '49')
    const clients = String(await redis.command('CLIENT', 'LIST'))
    t.match(clients, /user=app/)
  })

  await t.test('a rotated password is taken over without a failure, and counters stay', async t => {
    const document = limited(block, { day: 500, fault_tolerant: false })
    await gateway.reload(document)
    let asked = 0
    let stop = false
    const failures: number[] = []
    const load = async (): Promise<void> => {
      while (!stop) {
        const { status } = await gateway.fetch('/', { headers: { connection: 'close' } })
        asked++
        if (status !== 200) failures.push(status)
      }
    }
    const clients = [load(), load()]
    for (const password of ['second-password', 'third-password', 'fourth-password']) {
      await redis.command('ACL', 'SETUSER', 'app', `>${password}`)
      await store('app', password)
      const before = asked
      await until(() => asked > before + 10, 'requests in between')
    }
    stop = true
    await Promise.all(clients)
    t.same(failures, [])
    t.equal(await remaining(gateway), String(500 - asked - 1))
  })

  await t.test('a refused password is read again at once, and the call repeated', async t => {
    await using vault = await startFakeVault()
    const put = (password: string) =>
      vault.call('POST', 'secret/data/redis', { data: { username: 'app', password } })
    await put('fourth-password')
    // Without a ttl nothing but the refusal has the vault read again.
    const config = { protocol: 'http', host: '127.0.0.1', port: vault.port, token: ROOT_TOKEN }
    const key = (name: string): string => `{vault://hcv-here/redis/${name}}`
    const credentials = { host, port, username: key('username'), password: key('password') }
    await gateway.reload({
      vaults: [
        { name: 'hcv', prefix: 'hcv-here', config: { ...config, mount: 'secret', kv: 'v2' } }
      ],
      ...limited(credentials, { day: 500, fault_tolerant: false })
    })
    t.equal((await gateway.fetch('/')).status, 200)
    await redis.command('ACL', 'SETUSER', 'app', 'resetpass', '>fifth-password')
    await put('fifth-password')
    await redis.command('CLIENT', 'KILL', 'USER', 'app')
    await until(
      async () => (await gateway.fetch('/')).status === 200,
      'the new password to be used'
    )
  })

  await t.test('a password that stays wrong is Redis being away', async t => {
    await gateway.reload(limited({ host, port, password: 'wrong-password' }, { day: 5 }))
    t.equal(await remaining(gateway), undefined)
    t.equal((await gateway.fetch('/')).status, 200)
    t.equal((await gateway.status('/status/ready')).status, 200)
  })
})
