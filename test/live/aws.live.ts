import t from 'tap'
import { awsBackend } from '../../src/vault/backends/aws.ts'
import { startGateway, startUpstream, until } from '../harness.ts'
import { refusals } from '../vault/aws-server.ts'
import { backendContract } from '../vault/backend-contract.ts'
import { startFaultProxy } from '../vault/fault-proxy.ts'
import { KEYS, REGION, startMoto } from './moto.ts'
import { missing } from './server.ts'
import { traffic } from './traffic.ts'

const skip = missing('moto_server')

for (const name of Object.keys(process.env)) if (name.startsWith('AWS_')) delete process.env[name]

// moto is unlike AWS in this: an absence comes with 404 instead of 400, signatures are not checked, and
// nothing is throttled or denied. The proxy of the contract and the fake of `npm test` stand for those.
// A stage that was moved by hand moto finds only where it is asked for by name.
await t.test('moto', { skip }, async t => {
  await backendContract(t, 'aws', async () => {
    const moto = await startMoto()
    const proxy = await startFaultProxy(moto.url, { refusals })
    return {
      type: awsBackend,
      config: { region: REGION, endpoint_url: proxy.url, ...KEYS },
      put: (resource, value) =>
        moto.put(resource, typeof value === 'string' ? value : JSON.stringify(value)),
      remove: resource => moto.remove(resource),
      resource: name => `contract/${name}`,
      fault: kind => proxy.fault(kind),
      connections: () => proxy.connections,
      async close() {
        await proxy.close()
        await moto[Symbol.asyncDispose]()
      }
    }
  })

  await t.test('what stands where', async t => {
    await using moto = await startMoto()
    const open = async (config: Readonly<Record<string, string>>) => {
      const backend = await awsBackend.open(
        { region: REGION, endpoint_url: moto.url, ...config },
        { env: process.env, log: { info() {}, warn() {} } }
      )
      t.teardown(() => backend.close!())
      const signal = () => AbortSignal.timeout(20_000)
      return {
        fetch: (name: string, version?: string) => backend.fetch(name, version, signal()),
        probe: (name: string, version?: string) => backend.probe!(name, version, signal())
      }
    }

    await t.test('values, versions, stages, bytes, absences', async t => {
      const { fetch, probe } = await open(KEYS)
      const name = 'shop/login'
      const first = await moto.put(name, '{"a":1}')
      t.same(await fetch(name), { value: '{"a":1}', version: first })
      t.equal(await probe(name), first)
      const second = await moto.put(name, Buffer.from('bytes'))
      t.same(await fetch(name), { value: 'bytes', version: second })
      t.match(await fetch(name, '2'), { value: '{"a":1}' })
      t.match(await fetch(name, first), { value: '{"a":1}' })
      t.equal(await probe(name), second)
      t.equal(await probe(name, 'AWSPREVIOUS'), first)
      t.equal(await fetch('never'), undefined)
      t.equal(await probe('never'), undefined)
      t.equal(await fetch(name, 'no-such-stage'), undefined)
      await moto.remove(name)
      t.equal(await fetch(name), undefined)
    })

    await t.test('a role that STS lets the gateway assume', async t => {
      await moto.put('role', 'one')
      const { fetch } = await open({
        ...KEYS,
        assume_role_arn: 'arn:aws:iam::123456789012:role/gateway',
        sts_endpoint_url: moto.url
      })
      t.match(await fetch('role'), { value: 'one' })
    })

    await t.test('instance metadata', async t => {
      await moto.put('imds', 'one')
      process.env.AWS_EC2_METADATA_SERVICE_ENDPOINT = moto.url
      t.teardown(() => delete process.env.AWS_EC2_METADATA_SERVICE_ENDPOINT)
      const { fetch } = await open({})
      t.match(await fetch('imds'), { value: 'one' })
    })
  })
})

await t.test('a rotation in the four steps of AWS, an outage, under traffic', { skip }, async t => {
  await using moto = await startMoto()
  await using upstream = await startUpstream()
  const first = await moto.put('shop/partner', '{"key":"key-1"}')
  await using gateway = await startGateway(
    {
      vaults: [
        {
          name: 'aws',
          prefix: 'aws-live',
          config: { region: REGION, endpoint_url: moto.url, ttl: 1, ...KEYS }
        }
      ],
      services: [
        {
          name: 'echo',
          url: upstream.url,
          routes: [{ name: 'echo', paths: ['/'] }],
          plugins: [{ name: 'key-auth' }]
        }
      ],
      consumers: [
        {
          username: 'now',
          keyauth_credentials: [{ key: '{vault://aws-live/shop%2Fpartner/key?version=AWSCURRENT}' }]
        }
      ]
    },
    { env: { POSTERN_VAULT_ROTATION_INTERVAL: '1', POSTERN_SECRET_GRACE: '1' }, workers: 2 }
  )
  const statusOf = async (key: string) =>
    (await gateway.fetch('/', { headers: { apikey: key } })).status
  const vaults = async () => (await gateway.status('/vaults')).body
  let inForce = 'key-1'
  await using load = traffic(() => statusOf(inForce))

  // createSecret and setSecret: the new value waits under AWSPENDING; testSecret reads it.
  const second = await moto.put('shop/partner', '{"key":"key-2"}', {
    VersionStages: ['AWSPENDING']
  })
  const reads = upstream.requests.length
  await until(() => upstream.requests.length > reads + 200, 'some time with a pending version')
  t.equal(await statusOf('key-2'), 401, 'what is pending is not in force')
  // finishSecret moves AWSCURRENT.
  await moto.stage('shop/partner', 'AWSCURRENT', second, first)
  await until(async () => (await statusOf('key-2')) === 200, 'the new key is in force')
  inForce = 'key-2'
  await until(async () => (await statusOf('key-1')) === 401, 'the old key is no longer accepted')

  await moto.kill()
  await until(async () => /ECONNREFUSED/.test(await vaults()), 'the outage is told')
  t.equal(await statusOf('key-2'), 200, 'the last good value serves')
  await moto.start()
  await until(
    async () => /nothing is stored there/.test(await vaults()),
    'the loss is told',
    60_000
  )
  t.equal(
    await statusOf('key-2'),
    200,
    'a value that is gone from its vault is kept, as on_denied says'
  )
  await moto.put('shop/partner', '{"key":"key-3"}')
  await until(async () => (await statusOf('key-3')) === 200, 'rotation goes on', 60_000)
  inForce = 'key-3'
  await load.stop()
  t.strictSame(load.failures, [])
  t.ok(load.served > 100, `${load.served} requests were served`)
  t.notMatch(await vaults(), /key-\d/, 'no secret is shown')
})
