import {
  SecretsManagerClient as Client,
  CreateSecretCommand,
  DescribeSecretCommand,
  GetSecretValueCommand,
  type SecretsManagerClient
} from '@aws-sdk/client-secrets-manager'
import t from 'tap'
import { until } from '../harness.ts'
import { OWNER, startFakeAws } from '../vault/aws-server.ts'
import { type HcvServer, ROOT_TOKEN, startFakeVault } from '../vault/hcv-server.ts'
import { REGION, startMoto } from './moto.ts'
import { startOpenBao } from './openbao.ts'
import { missing } from './server.ts'

// The fakes of `npm test` answer as the real servers do: the same requests are sent to both, and what
// a client goes by must be equal: status, members, and the words of an error.

/** One request below `/v1/`. */
interface Sent {
  readonly method?: string
  readonly path: string
  readonly body?: object
  readonly headers?: Readonly<Record<string, string>>
}

/** What differs from run to run: ids, times, tokens. */
const CHANGES = /_time|request_id|accessor|lease_id|token$|^id$|expire|ttl|duration|entity/

/** The answer without what differs from run to run; of those members it tells only the type. */
function shapeOf(value: unknown, name = ''): unknown {
  if (value === null || typeof value !== 'object') return CHANGES.test(name) ? typeof value : value
  if (Array.isArray(value)) return value.map(each => shapeOf(each))
  return Object.fromEntries(
    Object.entries(value)
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .map(([key, each]) => [key, shapeOf(each, key)])
  )
}

async function answerOf(server: HcvServer, { method = 'GET', path, body, headers }: Sent) {
  const response = await fetch(`${server.url}/v1/${path}`, {
    method,
    headers: { 'x-vault-token': ROOT_TOKEN, ...headers },
    ...(body === undefined ? {} : { body: JSON.stringify(body) })
  })
  const text = await response.text()
  return { status: response.status, body: text === '' ? '' : shapeOf(JSON.parse(text)) }
}

const REQUESTS: readonly Sent[] = [
  { path: 'secret/data/app' },
  { path: 'secret/metadata/app' },
  { method: 'POST', path: 'secret/data/app', body: { data: { a: '1' } } },
  { path: 'secret/data/app' },
  { path: 'secret/metadata/app' },
  { path: 'secret/data/app?version=7' },
  { method: 'DELETE', path: 'secret/data/app' },
  { path: 'secret/data/app' },
  { path: 'plain/app' },
  { method: 'POST', path: 'plain/app', body: { a: '1', n: 1 } },
  { path: 'plain/app' },
  { path: 'nowhere/app' },
  { path: 'secret/app' },
  { path: 'secret/data/app', headers: { 'x-vault-token': 'wrong' } },
  { path: 'secret/data/app', headers: { 'x-vault-namespace': 'nowhere' } },
  { path: 'auth/token/lookup-self', headers: { 'x-vault-token': 'wrong' } },
  { method: 'POST', path: 'auth/token/renew-self', headers: { 'x-vault-token': 'wrong' } },
  { path: 'sys/internal/ui/mounts', headers: { 'x-vault-token': 'wrong' } },
  { method: 'POST', path: 'sys/wrapping/unwrap', headers: { 'x-vault-token': 'wrong' } },
  {
    method: 'POST',
    path: 'auth/approle/login',
    body: { role_id: 'none', secret_id: 'none' },
    headers: { 'x-vault-token': '' }
  },
  {
    method: 'POST',
    path: 'auth/userpass/login/nobody',
    body: { password: 'none' },
    headers: { 'x-vault-token': '' }
  },
  { method: 'POST', path: 'auth/nowhere/login', body: {}, headers: { 'x-vault-token': '' } }
]

await t.test('the fake vault answers as OpenBao does', { skip: missing('bao') }, async t => {
  await using real = await startOpenBao()
  await using fake = await startFakeVault()
  for (const server of [real, fake]) {
    await server.call('POST', 'sys/mounts/plain', { type: 'kv' })
    await server.call('POST', 'sys/auth/approle', { type: 'approle' })
    await server.call('POST', 'sys/auth/userpass', { type: 'userpass' })
  }
  await until(
    async () => (await answerOf(real, { path: 'secret/data/app' })).status === 404,
    'the key-value engine is ready'
  )
  for (const sent of REQUESTS) {
    t.strictSame(
      await answerOf(fake, sent),
      await answerOf(real, sent),
      `${sent.method ?? 'GET'} ${sent.path} ${JSON.stringify(sent.headers ?? {})}`
    )
  }
})

await t.test(
  'the fake AWS answers as moto does, but for the status of an absence',
  { skip: missing('moto_server') },
  async t => {
    await using moto = await startMoto()
    await using fake = await startFakeAws()
    const client = (endpoint: string) =>
      new Client({
        region: REGION,
        endpoint,
        maxAttempts: 1,
        credentials: { accessKeyId: OWNER.id, secretAccessKey: OWNER.secret }
      })
    const clients = [client(fake.url), client(moto.url)] as const
    t.teardown(() => {
      for (const each of clients) each.destroy()
    })
    const outcome = async (
      each: SecretsManagerClient,
      command: GetSecretValueCommand | DescribeSecretCommand
    ) => {
      try {
        const { $metadata, ...answer } = await each.send(command as GetSecretValueCommand)
        const { SecretString, VersionStages } = answer
        return { status: $metadata.httpStatusCode, SecretString, VersionStages }
      } catch (error) {
        return (error as Error).name
      }
    }
    await moto.client.send(new CreateSecretCommand({ Name: 'db', SecretString: 'one' }))
    await moto.put('db', 'two')
    fake.secrets.put('db', 'one')
    fake.secrets.put('db', 'two')
    const unknown = '00000000-0000-4000-8000-000000000000'
    for (const command of [
      { SecretId: 'db' },
      { SecretId: 'db', VersionStage: 'AWSPREVIOUS' },
      { SecretId: 'db', VersionStage: 'NONE' },
      { SecretId: 'db', VersionId: unknown },
      { SecretId: 'never' }
    ].map(input => new GetSecretValueCommand(input))) {
      const [played, real] = await Promise.all(clients.map(each => outcome(each, command)))
      t.strictSame(played, real, JSON.stringify(command.input))
    }
    const command = new DescribeSecretCommand({ SecretId: 'never' })
    const [played, real] = await Promise.all(clients.map(each => outcome(each, command)))
    t.strictSame(played, real, 'DescribeSecret of what was never stored')
  }
)
