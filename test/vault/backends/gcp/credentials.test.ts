import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { getCACertificates, setDefaultCACertificates } from 'node:tls'
import t, { type Test } from 'tap'
import { gcpBackend } from '../../../../src/vault/backends/gcp.ts'
import { certificateFor } from '../../../certificates.ts'
import {
  type FakeGcp,
  PROJECT,
  REFRESH_TOKEN,
  SERVICE_ACCOUNT,
  SUBJECT_TOKEN,
  startFakeGcp
} from '../../gcp-server.ts'
import { type InterceptingProxy, startInterceptingProxy } from '../../intercepting-proxy.ts'

// Google's own names lead to the fake: by the proxy of the environment, under a trusted certificate.
const certificate = await certificateFor(
  'secretmanager.googleapis.com',
  'secretmanager.europe-west3.rep.googleapis.com',
  'oauth2.googleapis.com',
  'sts.googleapis.com'
)
setDefaultCACertificates([...getCACertificates('default'), certificate.cert])

interface Cloud {
  readonly gcp: FakeGcp
  readonly proxy: InterceptingProxy
}

async function start(t: Test): Promise<Cloud> {
  const gcp = await startFakeGcp(certificate)
  const proxy = await startInterceptingProxy(gcp.port)
  t.teardown(async () => {
    await proxy[Symbol.asyncDispose]()
    await gcp.close()
  })
  gcp.secrets.put('secrets/db', 'one')
  return { gcp, proxy }
}

async function read(
  t: Test,
  { proxy }: Cloud,
  env: Readonly<Record<string, string>>,
  config: Readonly<Record<string, string>> = {}
) {
  const backend = await gcpBackend.open(
    { project_id: PROJECT, ...config },
    {
      env: { HOME: '/nowhere', HTTPS_PROXY: proxy.url, ...env },
      log: { info() {}, warn() {} }
    }
  )
  t.teardown(() => backend.close!())
  return {
    backend,
    fetch: () => backend.fetch('db', undefined, AbortSignal.timeout(10_000))
  }
}

/** A metadata server without TLS, as they are. */
async function startMetadata(t: Test): Promise<FakeGcp> {
  const metadata = await startFakeGcp()
  t.teardown(() => metadata.close())
  return metadata
}

await t.test('a service account by its JSON, in the environment and in the settings', async t => {
  const cloud = await start(t)
  const json = JSON.stringify(SERVICE_ACCOUNT)
  for (const [env, config] of [
    [{ GCP_SERVICE_ACCOUNT: json }, {}],
    [{}, { service_account: json }]
  ] as const) {
    const { fetch, backend } = await read(t, cloud, env, config)
    t.match(await fetch(), { value: 'one' })
    t.match(await fetch(), { value: 'one' })
    t.type(backend.health!().tokenExpiresAt, 'number')
  }
  t.equal(cloud.gcp.count('token'), 2, 'each vault asks for a token once')
  t.same(
    new Set(cloud.proxy.tunnels),
    new Set(['oauth2.googleapis.com:443', 'secretmanager.googleapis.com:443'])
  )
})

await t.test('regional secrets are asked for at the endpoint of their region', async t => {
  const cloud = await start(t)
  cloud.gcp.secrets.put('locations/europe-west3/secrets/db', 'regional')
  const { fetch } = await read(
    t,
    cloud,
    { GCP_SERVICE_ACCOUNT: JSON.stringify(SERVICE_ACCOUNT) },
    { location: 'europe-west3' }
  )
  t.match(await fetch(), { value: 'regional' })
  t.ok(cloud.proxy.tunnels.includes('secretmanager.europe-west3.rep.googleapis.com:443'))
})

await t.test('application default credentials: the file of the variable', async t => {
  const cloud = await start(t)
  const dir = t.testdir({ 'key.json': JSON.stringify(SERVICE_ACCOUNT) })
  const env = { GOOGLE_APPLICATION_CREDENTIALS: join(dir, 'key.json') }
  t.match(await (await read(t, cloud, env)).fetch(), { value: 'one' })
  const missing = await read(t, cloud, { GOOGLE_APPLICATION_CREDENTIALS: join(dir, 'none') })
  await t.rejects(missing.fetch(), { code: 'POSTERN_VAULT_SETTINGS', message: /ENOENT/ })
})

await t.test('application default credentials: the login of a user', async t => {
  const cloud = await start(t)
  const dir = t.testdir({})
  await mkdir(join(dir, '.config/gcloud'), { recursive: true })
  await writeFile(
    join(dir, '.config/gcloud/application_default_credentials.json'),
    JSON.stringify({
      type: 'authorized_user',
      client_id: 'id',
      client_secret: 'secret',
      refresh_token: REFRESH_TOKEN
    })
  )
  t.match(await (await read(t, cloud, { HOME: dir })).fetch(), { value: 'one' })
})

await t.test('application default credentials: workload identity federation', async t => {
  const cloud = await start(t)
  const dir = t.testdir({ token: SUBJECT_TOKEN })
  const json = JSON.stringify({
    type: 'external_account',
    audience:
      '//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/k',
    subject_token_type: 'urn:ietf:params:oauth:token-type:jwt',
    token_url: 'https://sts.googleapis.com/v1/token',
    credential_source: { file: join(dir, 'token') }
  })
  await writeFile(join(dir, 'federation.json'), json)
  const env = { GOOGLE_APPLICATION_CREDENTIALS: join(dir, 'federation.json') }
  // The library makes this one exchange by itself, so it looks at the environment of the process.
  process.env.HTTPS_PROXY = cloud.proxy.url
  t.teardown(() => {
    delete process.env.HTTPS_PROXY
  })
  t.match(await (await read(t, cloud, env)).fetch(), { value: 'one' })
  t.ok(cloud.proxy.tunnels.includes('sts.googleapis.com:443'))
})

await t.test('application default credentials: the metadata server, without the proxy', async t => {
  const cloud = await start(t)
  const metadata = await startMetadata(t)
  const { fetch } = await read(t, cloud, {
    GCE_METADATA_HOST: `127.0.0.1:${metadata.port}`,
    HTTP_PROXY: 'http://127.0.0.1:1'
  })
  await t.rejects(fetch(), { code: 'POSTERN_VAULT_DENIED' }, 'each fake knows its own tokens')
  for (const token of metadata.tokens) cloud.gcp.tokens.add(token)
  t.match(await fetch(), { value: 'one' })
})

await t.test('order: what comes first when there are both', async t => {
  const cloud = await start(t)
  const metadata = await startMetadata(t)
  const env = {
    GCP_SERVICE_ACCOUNT: JSON.stringify(SERVICE_ACCOUNT),
    GCE_METADATA_HOST: `127.0.0.1:${metadata.port}`
  }
  await (await read(t, cloud, env)).fetch()
  t.equal(metadata.count('metadata'), 0, 'adc: the JSON')
  const legacy = await read(t, cloud, { ...env, GCP_AUTH_METHOD_ORDER: 'legacy' })
  await legacy.fetch().catch(() => {})
  t.ok(metadata.count('metadata') > 0, 'legacy: the metadata server')
  const alone = { ...env, GCE_METADATA_HOST: '127.0.0.1:1', GCP_AUTH_METHOD_ORDER: 'legacy' }
  t.match(await (await read(t, cloud, alone)).fetch(), { value: 'one' }, 'legacy: then the JSON')
})

await t.test('refusals of a token say why, and nothing of what was sent or answered', async t => {
  const cloud = await start(t)
  cloud.gcp.refused.set('token', 'refused')
  const { fetch } = await read(t, cloud, { GCP_SERVICE_ACCOUNT: JSON.stringify(SERVICE_ACCOUNT) })
  const error = await fetch().catch(error => error)
  t.equal(error.code, 'POSTERN_VAULT_DENIED')
  t.match(error.message, /credentials are refused \(invalid_grant\)/)
  t.notMatch(error.message, /canary/)
  cloud.gcp.refused.clear()
  t.match(await fetch(), { value: 'one' }, 'the next read asks again')
})

await t.test('a metadata server that gives no token says so', async t => {
  const cloud = await start(t)
  const metadata = await startMetadata(t)
  const { fetch } = await read(t, cloud, { GCE_METADATA_HOST: `127.0.0.1:${metadata.port}` })
  for (const [status, message] of [
    ['404', /no service account is attached/],
    ['500', /metadata server answered 500/]
  ] as const) {
    metadata.refused.set('metadata', status)
    await t.rejects(fetch(), { code: 'POSTERN_VAULT_UNREACHABLE', message })
  }
})

await t.test('without any credentials the vault is unreachable', async t => {
  const cloud = await start(t)
  for (const order of ['adc', 'legacy']) {
    const { fetch } = await read(t, cloud, {
      GCE_METADATA_HOST: '127.0.0.1:1',
      GCP_AUTH_METHOD_ORDER: order
    })
    await t.rejects(fetch(), { code: 'POSTERN_VAULT_UNREACHABLE', message: /metadata server/ })
  }
})

await t.test('JSON that is none is told without quoting it', async t => {
  const cloud = await start(t)
  for (const json of ['{"canary', '{"canary": 1}', '[]']) {
    const { fetch } = await read(t, cloud, {}, { service_account: json })
    const error = await fetch().catch(error => error)
    t.equal(error.code, 'POSTERN_VAULT_SETTINGS', json)
    t.notMatch(error.message, /canary/)
  }
})
