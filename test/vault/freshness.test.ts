import { join } from 'node:path'
import t from 'tap'
import { startGateway, startUpstream, type TestUpstream, until } from '../harness.ts'
import { startTestVault } from './fault-backend.ts'

const MODULE = join(import.meta.dirname, 'fault-backend.ts')

/** A route whose one consumer has these keys. */
const keyed = (
  upstream: TestUpstream,
  keys: readonly string[],
  vaults: readonly object[] = []
) => ({
  vaults,
  services: [
    {
      name: 'echo',
      url: upstream.url,
      routes: [{ name: 'echo', paths: ['/'] }],
      plugins: [{ name: 'key-auth' }]
    }
  ],
  consumers: [{ username: 'anna', keyauth_credentials: keys.map(key => ({ key })) }]
})

await t.test('grace: of the gateway, of a vault, of a reference', async t => {
  await using upstream = await startUpstream()
  await using vault = await startTestVault()
  const names = ['gateway', 'reference', 'vault', 'both']
  for (const name of names) vault.put(name, `${name}-old`)
  const brief = { name: 'http', prefix: 'brief', config: { url: vault.url, ttl: 1, grace: 4 } }
  await using gateway = await startGateway(
    keyed(
      upstream,
      [
        '{vault://http/gateway}',
        '{vault://http/reference?grace=4}',
        '{vault://brief/vault}',
        '{vault://brief/both?grace=3600}'
      ],
      [brief]
    ),
    {
      env: {
        POSTERN_VAULT_BACKENDS: MODULE,
        POSTERN_VAULT_HTTP_URL: vault.url,
        POSTERN_VAULT_HTTP_TTL: '1',
        POSTERN_VAULT_ROTATION_INTERVAL: '1',
        POSTERN_SECRET_GRACE: '3600'
      }
    }
  )
  const accepted = async (apikey: string) =>
    (await gateway.fetch('/', { headers: { apikey } })).status === 200
  for (const name of names) {
    t.ok(await accepted(`${name}-old`))
    t.notOk(await accepted(`${name}-new`))
  }
  for (const name of names) vault.put(name, `${name}-new`)
  await Promise.all(
    names.map(async name => {
      await until(() => accepted(`${name}-new`), `${name}: the new key in force`)
      t.ok(await accepted(`${name}-old`), `${name}: the old key verifies in its grace`)
    })
  )
  for (const name of ['reference', 'vault'])
    await until(async () => !(await accepted(`${name}-old`)), `${name}: its grace to end`, 30_000)
  for (const name of names) t.ok(await accepted(`${name}-new`), `${name}: the new key stays`)
  for (const name of ['gateway', 'both'])
    t.ok(await accepted(`${name}-old`), `${name}: its grace is longer`)
})

await t.test('a rotation interval of one second is one second', async t => {
  await using upstream = await startUpstream()
  await using vault = await startTestVault()
  vault.put('key', 'a-key')
  await using gateway = await startGateway(keyed(upstream, ['{vault://http/key}']), {
    env: {
      POSTERN_VAULT_BACKENDS: MODULE,
      POSTERN_VAULT_HTTP_URL: vault.url,
      POSTERN_VAULT_HTTP_TTL: '1',
      POSTERN_VAULT_ROTATION_INTERVAL: '1'
    }
  })
  t.equal(gateway.gateway.settings.vaultRotationInterval, 1)
  const seen: number[] = []
  await until(() => {
    while (seen.length < vault.probes('key')) seen.push(performance.now())
    return seen.length >= 5
  }, 'five looks')
  const pauses = seen.slice(1).map((at, i) => at - seen[i]!)
  // A busy machine makes single looks late, never all of them by as much as a longer interval would.
  const shortest = Math.min(...pauses)
  t.ok(shortest < 1500, `the shortest pause is ${shortest} ms`)
  const whole = seen.at(-1)! - seen[0]!
  t.ok(whole > 3000, `four pauses took ${whole} ms`)
  t.equal(vault.reads('key'), 1, 'an unchanged version is not read again')
})

await t.test('names in a list of what the env vault may read come from vaults, too', async t => {
  await using upstream = await startUpstream()
  const config = keyed(
    upstream,
    ['{vault://mine/the-key}'],
    [{ name: 'env', prefix: 'mine', config: { allow: ['OTHER_*', '{vault://env/allowed}'] } }]
  )
  const env = { THE_KEY: 'a-key', ALLOWED: 'THE_*' }
  await using gateway = await startGateway(config, { env })
  t.equal((await gateway.fetch('/', { headers: { apikey: 'a-key' } })).status, 200)
  await t.rejects(startGateway(config, { env: { ...env, ALLOWED: 'NO_*' } }), {
    message: /does not allow this variable/
  })
  await t.rejects(startGateway(config, { env: { ...env, ALLOWED: 'no pattern' } }), {
    message: /allow/
  })
})
