import { createPrivateKey } from 'node:crypto'
import { rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { azureBackend } from '../../../../src/vault/backends/azure.ts'
import { rsaCertificateFor } from '../../../certificates.ts'
import {
  type AzureCloud,
  CLIENT,
  CLIENT_SECRET,
  FEDERATED_TOKEN,
  startAzureCloud,
  startFakeAzure,
  TENANT,
  VAULT_HOST
} from '../../azure-server.ts'
import { RETRY_AFTER } from '../../fault-server.ts'

/** The SDK reads some of the environment of the process: nothing of the machine's own may show through. */
for (const name of Object.keys(process.env)) {
  if (/^(AZURE|IDENTITY|IMDS|MSI)_/.test(name)) delete process.env[name]
}

async function start(t: Test): Promise<AzureCloud> {
  const cloud = await startAzureCloud()
  t.teardown(() => cloud[Symbol.asyncDispose]())
  cloud.azure.secrets.put('db', 'one')
  return cloud
}

async function read(
  t: Test,
  cloud: AzureCloud,
  config: Readonly<Record<string, string>>,
  env: Readonly<Record<string, string>> = {}
) {
  const backend = await azureBackend.open(
    { vault_uri: `https://${VAULT_HOST}`, ...config },
    cloud.environmentWith(env)
  )
  t.teardown(() => backend.close!())
  return () => backend.fetch('db', undefined, AbortSignal.timeout(10_000))
}

const APPLICATION = { tenant_id: TENANT, client_id: CLIENT }

await t.test('client secret, from the settings and from variables by their prefix', async t => {
  const cloud = await start(t)
  const settings = await read(t, cloud, { ...APPLICATION, client_secret: CLIENT_SECRET })
  t.match(await settings(), { value: 'one' })
  const variables = await read(
    t,
    cloud,
    { credentials_prefix: 'TEAM' },
    {
      TEAM_TENANT_ID: TENANT,
      TEAM_CLIENT_ID: CLIENT,
      TEAM_CLIENT_SECRET: CLIENT_SECRET,
      AZURE_CLIENT_SECRET: 'that of another team'
    }
  )
  t.match(await variables(), { value: 'one' })
})

await t.test('client certificate, as PEM and as a file', async t => {
  const cloud = await start(t)
  const { cert, key } = await rsaCertificateFor('gateway')
  cloud.azure.registered = cert
  const pem = await read(t, cloud, { ...APPLICATION, client_certificate: cert + key })
  t.match(await pem(), { value: 'one' })
  const dir = t.testdir({ 'client.pem': cert + key })
  const file = await read(t, cloud, APPLICATION, {
    AZURE_CLIENT_CERTIFICATE_PATH: join(dir, 'client.pem')
  })
  t.match(await file(), { value: 'one' })
  const locked = createPrivateKey(key).export({
    type: 'pkcs8',
    format: 'pem',
    cipher: 'aes-256-cbc',
    passphrase: 'canary-word'
  })
  const certificate = { ...APPLICATION, client_certificate: cert + locked }
  const unlocked = await read(t, cloud, {
    ...certificate,
    client_certificate_password: 'canary-word'
  })
  t.match(await unlocked(), { value: 'one' })
  for (const [wrong, message] of [
    [{}, /client_certificate holds no key that can be read without a password/],
    [{ client_certificate_password: 'wrong' }, /client_certificate_password does not open/],
    [{ client_certificate: key }, /client_certificate holds no certificate/],
    [{ client_certificate: cert }, /client_certificate holds no key/],
    [{ client_certificate: join(dir, 'none.pem') }, /none.pem cannot be read/]
  ] as const) {
    const error = await (await read(t, cloud, { ...certificate, ...wrong }))().catch(error => error)
    t.match(error, { code: 'POSTERN_VAULT_SETTINGS', message })
    t.notMatch(error.message, /canary|wrong|BEGIN/)
  }
  cloud.azure.registered = (await rsaCertificateFor('another')).cert
  const wrong = await read(t, cloud, { ...APPLICATION, client_certificate: cert + key })
  await t.rejects(wrong(), { code: 'POSTERN_VAULT_DENIED', message: /not registered/ })
})

await t.test('workload identity, as in Kubernetes', async t => {
  const cloud = await start(t)
  const dir = t.testdir({ token: FEDERATED_TOKEN })
  const env = {
    AZURE_TENANT_ID: TENANT,
    AZURE_CLIENT_ID: CLIENT,
    AZURE_FEDERATED_TOKEN_FILE: join(dir, 'token'),
    AZURE_AUTHORITY_HOST: 'https://login.microsoftonline.com/'
  }
  t.match(await (await read(t, cloud, {}, env))(), { value: 'one' })
  const { AZURE_FEDERATED_TOKEN_FILE: federated_token_file } = env
  const settings = {
    ...APPLICATION,
    federated_token_file,
    authority_host: 'https://login.microsoftonline.com'
  }
  t.match(await (await read(t, cloud, settings))(), { value: 'one' }, 'by settings alone')
  await writeFile(join(dir, 'token'), 'e30.e30.canary')
  const refused = await read(t, cloud, {}, env)
  await t.rejects(refused(), {
    code: 'POSTERN_VAULT_DENIED',
    message: /no federated credential of the application fits the token \(AADSTS70021\)/
  })
  await rm(join(dir, 'token'))
  const missing = await read(t, cloud, {}, env)
  await t.rejects(missing(), { code: 'POSTERN_VAULT_SETTINGS', message: /token cannot be read/ })
})

await t.test(
  'managed identity, of the machine and by its client id, without the proxy',
  async t => {
    const cloud = await start(t)
    await using machine = await startFakeAzure()
    process.env.AZURE_POD_IDENTITY_AUTHORITY_HOST = machine.url
    t.teardown(() => {
      delete process.env.AZURE_POD_IDENTITY_AUTHORITY_HOST
    })
    const env = { HTTP_PROXY: 'http://127.0.0.1:1' }
    for (const config of [{}, { client_id: CLIENT }]) {
      const fetch = await read(t, cloud, config, env)
      // Each fake knows its own tokens.
      await t.rejects(fetch(), { code: 'POSTERN_VAULT_DENIED' })
      for (const token of machine.tokens) cloud.azure.tokens.add(token)
      t.match(await fetch(), { value: 'one' })
    }
    t.ok(machine.count('metadata') >= 2)
    t.equal(cloud.azure.count('login'), 0, 'nothing else is tried')
    const other = await read(t, cloud, { client_id: 'not-assigned' }, env)
    await t.rejects(other(), { code: 'POSTERN_VAULT_UNREACHABLE', message: /no token can be had/ })
  }
)

await t.test(
  'the method is chosen by what is configured, and told when it lacks something',
  async t => {
    const cloud = await start(t)
    for (const [config, message] of [
      [{ auth_method: 'client_secret', ...APPLICATION }, /AZURE_CLIENT_SECRET/],
      [{ auth_method: 'workload_identity', tenant_id: TENANT }, /AZURE_CLIENT_ID, AZURE_FEDERATED/],
      [{ auth_method: 'client_certificate', credentials_prefix: 'B' }, /B_CLIENT_CERTIFICATE_PATH/],
      [
        { ...APPLICATION, client_secret: 'x', tenant_id: 'no tenant' },
        /tenant_id \(AZURE_TENANT_ID\)/
      ],
      [{ vault_uri: 'http://plain' }, /vault_uri is no https URL/]
    ] as const) {
      await t.rejects(read(t, cloud, config), { code: 'POSTERN_VAULT_SETTINGS', message })
    }
    const preferred = await read(
      t,
      cloud,
      { ...APPLICATION, auth_method: 'client_secret', client_secret: CLIENT_SECRET },
      { AZURE_FEDERATED_TOKEN_FILE: '/nowhere' }
    )
    t.match(await preferred(), { value: 'one' })
  }
)

await t.test(
  'refusals of Entra ID are told by their code, and nothing of what was sent',
  async t => {
    const cloud = await start(t)
    const config = { ...APPLICATION, client_secret: 'canary-secret' }
    for (const [entra, message] of [
      [undefined, /the client secret is wrong \(AADSTS7000215\)/],
      ['7000222', /the client secret has expired/],
      ['700016', /no such application in the tenant/],
      ['90002', /no such tenant/],
      ['900999', /the credentials are refused \(AADSTS900999\)/]
    ] as const) {
      cloud.azure.entra = entra
      const fetch = await read(t, cloud, config)
      const error = await fetch().catch(error => error)
      t.equal(error.code, 'POSTERN_VAULT_DENIED')
      t.match(error.message, message)
      t.notMatch(error.message, /canary/)
    }
  }
)

await t.test('trouble of Entra ID is no refusal, whatever code it gives', async t => {
  const cloud = await start(t)
  for (const [entra, code, message] of [
    ['90033', 'UNREACHABLE', /identity service gives no token, it answered 503/],
    ['90036', 'UNREACHABLE', /identity service gives no token, it answered 500/],
    ['90055', 'THROTTLED', /identity service is asked too often/]
  ] as const) {
    cloud.azure.entra = entra
    const fetch = await read(t, cloud, { ...APPLICATION, client_secret: CLIENT_SECRET })
    const error = await fetch().catch(error => error)
    t.equal(error.code, `POSTERN_VAULT_${code}`)
    t.match(error.message, message)
    if (code === 'THROTTLED') t.equal(error.retryAfter, RETRY_AFTER)
    t.notMatch(error.message, /canary/)
    cloud.azure.entra = undefined
    t.match(await fetch(), { value: 'one' }, 'and it passes')
  }
})

await t.test('an authority that cannot be asked is told at once', async t => {
  const cloud = await start(t)
  const fetch = await read(t, cloud, {
    ...APPLICATION,
    client_secret: CLIENT_SECRET,
    authority_host: 'https://login.example.invalid'
  })
  await t.rejects(fetch(), { code: 'POSTERN_VAULT_UNREACHABLE', message: /no token can be had/ })
})
