import t from 'tap'
import { startGateway, startUpstream, type TestGateway, until } from '../harness.ts'
import { appRole } from '../vault/hcv/scenarios.ts'
import { startLastingOpenBao } from './openbao.ts'
import { missing } from './server.ts'
import { traffic } from './traffic.ts'

const skip = missing('bao')

/** Basic credentials of a user whose name and password are one secret. */
const basic = (n: number) => `Basic ${Buffer.from(`user-${n}:password-${n}`).toString('base64')}`

const pair = (n: number) => ({ data: { user: `user-${n}`, password: `password-${n}` } })

/** A gateway whose one consumer is known by the pair in the vault. */
function gatewayOn(upstream: string, vault: object, env: Record<string, string> = {}) {
  return startGateway(
    {
      vaults: [{ name: 'hcv', prefix: 'bao', config: { ttl: 1, ...vault } }],
      services: [
        {
          name: 'echo',
          url: upstream,
          routes: [{ name: 'echo', paths: ['/'] }],
          plugins: [{ name: 'basic-auth' }]
        }
      ],
      consumers: [
        {
          username: 'anna',
          basicauth_credentials: [
            { username: '{vault://bao/pair/user}', password: '{vault://bao/pair/password}' }
          ]
        }
      ]
    },
    { env: { POSTERN_VAULT_ROTATION_INTERVAL: '1', ...env }, workers: 2 }
  )
}

const statusOf = async (gateway: TestGateway, n: number) =>
  (await gateway.fetch('/', { headers: { authorization: basic(n) } })).status

await t.test('rotations under traffic, by timer: nothing fails', { skip }, async t => {
  await using bao = await startLastingOpenBao()
  await using upstream = await startUpstream()
  await bao.call('POST', 'secret/data/pair', pair(0))
  const { settings } = await appRole(bao, { token_ttl: '3s', token_max_ttl: '6s' })
  await using gateway = await gatewayOn(upstream.url, settings)
  let inForce = 0
  await using load = traffic(() => statusOf(gateway, inForce))
  for (let n = 1; n <= 5; n++) {
    await bao.call('POST', 'secret/data/pair', pair(n))
    await until(async () => (await statusOf(gateway, n)) === 200, `pair ${n} to be in force`)
    inForce = n
  }
  await load.stop()
  t.strictSame(load.failures, [])
  t.ok(load.served > 100, `${load.served} requests were served`)
  await until(async () => (await statusOf(gateway, 0)) === 401, 'the first pair to be forgotten')
})

await t.test('metrics tell when the token ends, as the vault itself does', { skip }, async t => {
  await using bao = await startLastingOpenBao()
  await using upstream = await startUpstream()
  await bao.call('POST', 'secret/data/pair', pair(0))
  const { settings } = await appRole(bao, { token_ttl: '9s', token_max_ttl: '1h' })
  const given = await bao.call('POST', 'auth/token/create', {
    policies: ['gateway'],
    ttl: '9s',
    explicit_max_ttl: '1h'
  })
  const byToken = { port: bao.port, kv: 'v2', token: given.auth.client_token }
  /** When the vault ends the gateway's token, in Unix seconds: the one its login gave, or its own. */
  const ends: Readonly<Record<string, () => Promise<number>>> = {
    async approle() {
      const { keys } = (await bao.call('LIST', 'auth/token/accessors')).data
      const found = await Promise.all(
        (keys as string[]).map(accessor =>
          bao.call('POST', 'auth/token/lookup-accessor', { accessor }).catch(() => undefined)
        )
      )
      const { data } = found.find(each => each?.data.path === 'auth/approle/login')
      return Date.parse(data.expire_time) / 1000
    },
    async token() {
      const { token } = byToken
      const { data } = await bao.call('POST', 'auth/token/lookup', { token })
      return Date.parse(data.expire_time) / 1000
    }
  }
  for (const [method, vaultSays] of Object.entries(ends)) {
    await using gateway = await gatewayOn(upstream.url, method === 'token' ? byToken : settings)
    const told = async () => {
      const { body } = await gateway.status('/metrics')
      return Number(
        /^postern_vault_token_expiry_timestamp_seconds\{vault="bao"\} (.+)$/m.exec(body)?.[1]
      )
    }
    const first = await vaultSays()
    t.ok(Math.abs((await told()) - first) < 2, `${method}: ${await told()} is about ${first}`)
    await until(async () => (await vaultSays()) > first + 3, 'it is renewed')
    await until(
      async () => Math.abs((await told()) - (await vaultSays())) < 2,
      'the metric follows the renewal'
    )
  }
})

await t.test('sealed, unsealed, killed and back under traffic', { skip }, async t => {
  await using bao = await startLastingOpenBao()
  await using upstream = await startUpstream()
  await bao.call('POST', 'secret/data/pair', pair(0))
  const { settings } = await appRole(bao, { token_ttl: '3s' })
  await using gateway = await gatewayOn(upstream.url, settings)
  let inForce = 0
  await using load = traffic(() => statusOf(gateway, inForce))
  const failing = async () => JSON.stringify((await gateway.status('/vaults')).json())

  await bao.seal()
  t.match(await until(async () => (await failing()).match(/it is sealed/), 'it is told'), [
    'it is sealed'
  ])
  await bao.unseal()
  await bao.call('POST', 'secret/data/pair', pair(1))
  await until(async () => (await statusOf(gateway, 1)) === 200, 'rotation goes on', 60_000)
  inForce = 1

  await bao.kill()
  t.ok(await until(async () => (await failing()).match(/ECONNREFUSED/), 'it is told'))
  await bao.start()
  await bao.unseal()
  await bao.call('POST', 'secret/data/pair', pair(2))
  await until(async () => (await statusOf(gateway, 2)) === 200, 'rotation goes on again', 60_000)
  inForce = 2
  await load.stop()
  t.strictSame(load.failures, [])
  t.ok(load.served > 100, `${load.served} requests were served`)
  t.notMatch(await failing(), /password-\d|s\.[A-Za-z0-9]{24}/, 'no secret is shown')
})

await t.test(
  'a start without the vault lists what lacks, or starts degraded',
  { skip },
  async t => {
    await using bao = await startLastingOpenBao()
    await using upstream = await startUpstream()
    await bao.call('POST', 'secret/data/pair', pair(0))
    const { settings } = await appRole(bao)
    await bao.seal()
    const error = await gatewayOn(upstream.url, settings).catch((error: Error) => error)
    t.match(String(error), /vault:\/\/bao\/pair\/user.*it is sealed/s)
    await using gateway = await gatewayOn(upstream.url, settings, {
      POSTERN_VAULT_START: 'degraded'
    })
    t.not(await statusOf(gateway, 0), 200)
    t.equal((await gateway.status('/status/ready')).status, 503)
    await bao.unseal()
    await until(async () => (await statusOf(gateway, 0)) === 200, 'it is whole', 60_000)
  }
)
