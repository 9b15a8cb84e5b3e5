import { globSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { connect, getCACertificates, setDefaultCACertificates } from 'node:tls'
import t, { type Test } from 'tap'
import { parse } from 'yaml'
import { certificateFor, rsaCertificateFor } from '../certificates.ts'
import { startGateway, startUpstream, type TestGateway, until } from '../harness.ts'
import { OWNER, startFakeAws } from './aws-server.ts'
import {
  CLIENT,
  CLIENT_SECRET,
  FEDERATED_TOKEN,
  startAzureCloud,
  TENANT,
  VAULT_HOST
} from './azure-server.ts'
import { API_KEY, JWT, startFakeConjur } from './conjur-server.ts'
import { startFaultProxy } from './fault-proxy.ts'
import { PROJECT, SERVICE_ACCOUNT, startFakeGcp } from './gcp-server.ts'
import { ROOT_TOKEN, startFakeVault } from './hcv-server.ts'
import { startInterceptingProxy } from './intercepting-proxy.ts'

// Each example of a vault serves as it stands, but for where its vault and its files are. Those of
// HashiCorp Vault that are for an auth method or an engine are tested with it.
const examples = join(import.meta.dirname, '../../config/examples')
const tested = new Set<string>()

// SDKs read the environment of the process: nothing of the machine's own may show through.
for (const name of Object.keys(process.env)) {
  if (/^(AWS|AZURE|IDENTITY|IMDS|MSI|GOOGLE|GCP)_/.test(name)) delete process.env[name]
}

interface Changes {
  /** Settings of the vault that say where something is. */
  readonly config?: Readonly<Record<string, unknown>>
  readonly env?: Readonly<Record<string, string>>
}

/** Starts a gateway with an example; its service leads to an upstream of the test. */
async function serve(t: Test, name: string, { config, env }: Changes): Promise<TestGateway> {
  tested.add(name)
  const document = parse(readFileSync(join(examples, `vault-${name}.yaml`), 'utf8'))
  const [vault] = document.vaults
  for (const field of Object.keys(config ?? {})) {
    if (!(field in vault.config || /^(sts_)?endpoint_url$/.test(field)))
      throw new Error(`${name} has no ${field}`)
  }
  Object.assign(vault.config, config)
  const upstream = await startUpstream()
  document.services[0].url = upstream.url
  const gateway = await startGateway(document, {
    env: { POSTERN_PROXY_LISTEN: '127.0.0.1:0, 127.0.0.1:0 ssl', ...env }
  })
  t.teardown(async () => {
    await gateway.close()
    await upstream.close()
  })
  return gateway
}

async function admits(t: Test, gateway: TestGateway, headers: Record<string, string>) {
  t.equal((await gateway.fetch('/orders', { headers })).status, 200)
  t.equal((await gateway.fetch('/orders')).status, 401)
}

const byKey = { apikey: 'the-key-of-the-shop' }
const byName = { authorization: `Basic ${Buffer.from('shop:the-word').toString('base64')}` }
const LOGIN = JSON.stringify({ user: 'shop', password: 'the-word' })

function folder(t: Test, files: Readonly<Record<string, string>>): string {
  const path = mkdtempSync(join(tmpdir(), 'postern-examples-'))
  t.teardown(() => rmSync(path, { recursive: true, force: true }))
  for (const [name, text] of Object.entries(files)) writeFileSync(join(path, name), text)
  return path
}

await t.test('env and fs', async t => {
  const env = { SHOP_API_KEY: byKey.apikey }
  await admits(t, await serve(t, 'env', { env }), byKey)
  const prefix = folder(t, { 'shop.json': JSON.stringify({ key: byKey.apikey }) })
  await admits(t, await serve(t, 'fs', { config: { prefix } }), byKey)
})

await t.test('aws', async t => {
  await using aws = await startFakeAws()
  aws.secrets.put('shop/login', LOGIN)
  aws.secrets.put('api-key', byKey.apikey)
  Object.assign(process.env, {
    AWS_ACCESS_KEY_ID: OWNER.id,
    AWS_SECRET_ACCESS_KEY: OWNER.secret
  })
  t.teardown(() => {
    for (const name of ['AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY']) delete process.env[name]
  })
  await admits(t, await serve(t, 'aws', { config: { endpoint_url: aws.url } }), byName)
  const partner = await serve(t, 'aws-role', {
    config: { endpoint_url: aws.url, sts_endpoint_url: aws.url },
    env: {
      PARTNER_ACCESS_KEY_ID: OWNER.id,
      PARTNER_SECRET_ACCESS_KEY: OWNER.secret,
      PARTNER_EXTERNAL_ID: 'external'
    }
  })
  await admits(t, partner, byKey)
  t.equal(aws.count('AssumeRole'), 1)
})

await t.test('gcp', async t => {
  const certificate = await certificateFor(
    'secretmanager.europe-west3.rep.googleapis.com',
    'oauth2.googleapis.com'
  )
  setDefaultCACertificates([...getCACertificates('default'), certificate.cert])
  await using plain = await startFakeGcp()
  await using google = await startFakeGcp(certificate)
  await using proxy = await startInterceptingProxy(google.port)
  plain.secrets.put('secrets/shop-login', LOGIN)
  google.secrets.put('locations/europe-west3/secrets/shop-key', byKey.apikey)
  const machine = await serve(t, 'gcp', {
    config: { project_id: PROJECT, endpoint_url: plain.url },
    env: { GCE_METADATA_HOST: plain.url, HOME: '/nowhere' }
  })
  await admits(t, machine, byName)
  const account = await serve(t, 'gcp-service-account', {
    config: { project_id: PROJECT },
    env: {
      HTTPS_PROXY: proxy.url,
      POSTERN_VAULT_FS_PREFIX: folder(t, { 'gateway-key.json': JSON.stringify(SERVICE_ACCOUNT) })
    }
  })
  await admits(t, account, byKey)
})

await t.test('azure', async t => {
  await using cloud = await startAzureCloud()
  const { azure } = cloud
  const machine = await startFaultProxy(azure.url)
  process.env.AZURE_POD_IDENTITY_AUTHORITY_HOST = machine.url
  t.teardown(() => {
    delete process.env.AZURE_POD_IDENTITY_AUTHORITY_HOST
    return machine.close()
  })
  azure.secrets.put('shop-key', byKey.apikey)
  const config = { vault_uri: `https://${VAULT_HOST}` }
  const env = { HTTPS_PROXY: String(cloud.environment.env.HTTPS_PROXY) }
  const bySecret = { ...env, AZURE_CLIENT_SECRET: CLIENT_SECRET }
  await admits(t, await serve(t, 'azure', { config, env: bySecret }), byKey)

  const { cert, key } = await rsaCertificateFor('gateway')
  azure.registered = cert
  const files = folder(t, { 'gateway.pem': cert + key, token: FEDERATED_TOKEN })
  const byCertificate = { ...config, client_certificate: join(files, 'gateway.pem') }
  await admits(t, await serve(t, 'azure-certificate', { config: byCertificate, env }), byKey)

  const workload = {
    ...env,
    AZURE_TENANT_ID: TENANT,
    AZURE_CLIENT_ID: CLIENT,
    AZURE_FEDERATED_TOKEN_FILE: join(files, 'token')
  }
  await admits(t, await serve(t, 'azure-workload-identity', { config, env: workload }), byKey)
  t.equal(azure.count('metadata'), 0)
  await admits(t, await serve(t, 'azure-managed-identity', { config, env }), byKey)

  const site = await certificateFor('shop.example.com')
  azure.secrets.put('shop', `${site.key}\n${site.cert}\n`, 'application/x-pem-file')
  const gateway = await serve(t, 'azure-certs', { config, env })
  const shown = await new Promise(resolve => {
    const { port } = new URL(gateway.tlsUrl!)
    const options = { port: Number(port), servername: 'shop.example.com', ca: site.cert }
    const socket = connect(options, () => {
      resolve(socket.getPeerCertificate().subject.CN)
      socket.destroy()
    })
    socket.on('error', resolve)
  })
  t.equal(shown, 'shop.example.com')
  t.ok(azure.count('metadata') > 0)
})

await t.test('conjur', async t => {
  const tls = await certificateFor('127.0.0.1')
  const plain = await startFakeConjur()
  const secure = await startFakeConjur({ tls })
  t.teardown(() => Promise.all([plain.close(), secure.close()]))
  plain.put('apps/shop/user', 'shop')
  plain.put('apps/shop/password', 'the-word')
  secure.put('apps/shop/key', byKey.apikey)
  const env = { CONJUR_API_KEY: API_KEY }
  await admits(t, await serve(t, 'conjur', { config: { endpoint_url: plain.url }, env }), byName)
  const files = folder(t, { token: JWT, 'ca.pem': tls.cert })
  const config = {
    endpoint_url: secure.url,
    jwt_file: join(files, 'token'),
    ca_cert: join(files, 'ca.pem')
  }
  await admits(t, await serve(t, 'conjur-jwt', { config }), byKey)
})

await t.test('hcv', async t => {
  const tls = await certificateFor('127.0.0.1')
  await using vault = await startFakeVault({ tls })
  await using collector = await startUpstream()
  const inWeb = { 'x-vault-namespace': 'web' }
  await vault.call('POST', 'sys/namespaces/web')
  const kv = { type: 'kv', options: { version: '2' } }
  await vault.call('POST', 'sys/mounts/secret', kv, inWeb)
  const data = { url: collector.url, token: 'the-token-of-the-collector' }
  await vault.call('POST', 'secret/data/logs/collector', { data }, inWeb)
  const files = folder(t, { 'ca.pem': tls.cert, token: `${ROOT_TOKEN}\n` })
  const gateway = await serve(t, 'hcv', {
    config: {
      host: '127.0.0.1',
      port: vault.port,
      ssl_ca: join(files, 'ca.pem'),
      token_file: join(files, 'token')
    }
  })
  t.equal((await gateway.fetch('/orders')).status, 200)
  const record = await until(() => collector.requests[0], 'a record')
  t.equal(record.headers.authorization, `Bearer ${data.token}`)
})

await t.test('no example is left out', async t => {
  const all = globSync('vault-*.yaml', { cwd: examples })
    .map(file => file.slice('vault-'.length, -'.yaml'.length))
    .filter(name => !name.startsWith('hcv-'))
  t.same([...tested].toSorted(), all.toSorted())
})
