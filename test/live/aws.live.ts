import {
  CreateSecretCommand,
  DeleteSecretCommand,
  PutSecretValueCommand,
  SecretsManagerClient
} from '@aws-sdk/client-secrets-manager'
import t from 'tap'
import { awsBackend } from '../../src/vault/backends/aws.ts'
import { freePort, missing, startServer } from './server.ts'

const REGION = 'eu-central-1'
const KEYS = { access_key_id: 'test', secret_access_key: 'test' }

for (const name of Object.keys(process.env)) if (name.startsWith('AWS_')) delete process.env[name]

// moto is unlike AWS in this: an absence comes with 404 instead of 400, signatures are not checked, and
// nothing is throttled or denied. The fake of `npm test` stands for those.
await t.test('moto', { skip: missing('moto_server') }, async t => {
  const port = await freePort()
  const url = `http://127.0.0.1:${port}`
  await using _server = await startServer({
    command: 'moto_server',
    args: ['-H', '127.0.0.1', '-p', String(port)],
    ready: async () => (await fetch(`${url}/moto-api/data.json`)).ok
  })
  const admin = new SecretsManagerClient({
    region: REGION,
    endpoint: url,
    credentials: { accessKeyId: 'test', secretAccessKey: 'test' }
  })
  t.teardown(() => admin.destroy())
  const open = async (config: Readonly<Record<string, string>>) => {
    const backend = await awsBackend.open(
      { region: REGION, endpoint_url: url, ...config },
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
    const Name = 'shop/login'
    const first = await admin.send(new CreateSecretCommand({ Name, SecretString: '{"a":1}' }))
    t.same(await fetch(Name), { value: '{"a":1}', version: first.VersionId })
    t.equal(await probe(Name), first.VersionId)
    const second = await admin.send(
      new PutSecretValueCommand({ SecretId: Name, SecretBinary: Buffer.from('bytes') })
    )
    t.same(await fetch(Name), { value: 'bytes', version: second.VersionId })
    t.match(await fetch(Name, '2'), { value: '{"a":1}' })
    t.match(await fetch(Name, first.VersionId), { value: '{"a":1}' })
    t.equal(await probe(Name), second.VersionId)
    t.equal(await probe(Name, 'AWSPREVIOUS'), first.VersionId)
    t.equal(await fetch('never'), undefined)
    t.equal(await probe('never'), undefined)
    t.equal(await fetch(Name, 'no-such-stage'), undefined)
    await admin.send(new DeleteSecretCommand({ SecretId: Name, ForceDeleteWithoutRecovery: true }))
    t.equal(await fetch(Name), undefined)
  })

  await t.test('a role that STS lets the gateway assume', async t => {
    await admin.send(new CreateSecretCommand({ Name: 'role', SecretString: 'one' }))
    const { fetch } = await open({
      ...KEYS,
      assume_role_arn: 'arn:aws:iam::123456789012:role/gateway',
      sts_endpoint_url: url
    })
    t.match(await fetch('role'), { value: 'one' })
  })

  await t.test('instance metadata', async t => {
    await admin.send(new CreateSecretCommand({ Name: 'imds', SecretString: 'one' }))
    process.env.AWS_EC2_METADATA_SERVICE_ENDPOINT = url
    const { fetch } = await open({})
    t.match(await fetch('imds'), { value: 'one' })
  })
})
