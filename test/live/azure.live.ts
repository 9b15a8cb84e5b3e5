import t from 'tap'
import { azureBackend } from '../../src/vault/backends/azure.ts'
import { azureCertsBackend } from '../../src/vault/backends/azure-certs.ts'
import { certificateFor } from '../certificates.ts'
import { trustedCertificate, VAULT_HOST } from '../vault/azure-server.ts'
import { backendContract } from '../vault/backend-contract.ts'
import { startFaultProxy } from '../vault/fault-proxy.ts'
import { type Fault, RETRY_AFTER, type ServiceAnswer } from '../vault/fault-server.ts'
import { startInterceptingProxy } from '../vault/intercepting-proxy.ts'
import { asAzure, startLowkeyVault } from './lowkey-vault.ts'
import { rotationAndOutage } from './rotation.ts'
import { missing } from './server.ts'

const skip = missing('java', 'lowkey-vault-app.jar')

for (const name of Object.keys(process.env)) {
  if (/^(AZURE|IDENTITY|IMDS|MSI)_/.test(name)) delete process.env[name]
}

const refusal = (status: number, code: string, inner?: string): ServiceAnswer => ({
  status,
  headers: { 'Retry-After': String(RETRY_AFTER) },
  body: { error: { code, message: 'canary: refused', innererror: inner && { code: inner } } }
})
const refusals: Partial<Record<Fault, ServiceAnswer>> = {
  denied: refusal(403, 'Forbidden', 'AccessDenied'),
  absent: refusal(404, 'SecretNotFound'),
  throttled: refusal(429, 'Throttled'),
  unavailable: refusal(503, 'InternalServerError')
}

const config = { vault_uri: `https://${VAULT_HOST}`, auth_method: 'managed_identity' }

/** Lowkey Vault under a name of Azure, so that the challenge it answers with is for that service. */
async function start() {
  const lowkey = await startLowkeyVault()
  const vault = await startFaultProxy(lowkey.url, {
    refusals,
    headers: { host: lowkey.host },
    tls: await trustedCertificate(),
    amend: asAzure
  })
  const proxy = await startInterceptingProxy(vault.port)
  process.env.AZURE_POD_IDENTITY_AUTHORITY_HOST = lowkey.metadataUrl
  return {
    lowkey,
    vault,
    env: { HTTPS_PROXY: proxy.url },
    async [Symbol.asyncDispose]() {
      await proxy[Symbol.asyncDispose]()
      await vault.close()
      await lowkey[Symbol.asyncDispose]()
    }
  }
}

// Lowkey Vault is unlike Azure in this: the code of a 404 is the name of a class, a disabled secret is
// not found, any token will do, and nothing is throttled. The proxy and the fake of `npm test` stand
// for those.
await t.test('Lowkey Vault', { skip }, async t => {
  await backendContract(t, 'azure', async () => {
    const { lowkey, vault, env, ...running } = await start()
    return {
      type: azureBackend,
      config,
      environment: { env, log: { info() {}, warn() {} } },
      put: (resource, value) =>
        lowkey.put(resource, typeof value === 'string' ? value : JSON.stringify(value)),
      remove: resource => lowkey.remove(resource),
      resource: name => name,
      fault: kind => vault.fault(kind),
      connections: () => vault.connections,
      close: () => running[Symbol.asyncDispose]()
    }
  })

  await t.test('versions by their ids, and a certificate', async t => {
    await using running = await start()
    const { lowkey, env } = running
    const environment = { env, log: { info() {}, warn() {} } }
    const [secrets, certificates] = await Promise.all([
      azureBackend.open(config, environment),
      azureCertsBackend.open(config, environment)
    ])
    t.teardown(() => Promise.all([secrets.close!(), certificates.close!()]))
    const signal = () => AbortSignal.timeout(20_000)
    const first = await lowkey.put('db', 'one')
    const second = await lowkey.put('db', 'two')
    t.same(await secrets.fetch('db', undefined, signal()), { value: 'two', version: second })
    t.same(await secrets.fetch('db', first, signal()), { value: 'one', version: first })
    t.equal(await secrets.fetch('db', '0'.repeat(32), signal()), undefined)
    t.ok(secrets.health!().tokenExpiresAt! > Date.now(), 'the end of the token is told')
    const { cert, key } = await certificateFor('gateway.example')
    await lowkey.put('site', `${key}\n${cert}\n`, 'application/x-pem-file')
    const fetched = await certificates.fetch('site', undefined, signal())
    t.match(fetched?.value, { cert: /BEGIN CERTIFICATE/, key: /PRIVATE KEY/ })
  })
})

await t.test('a rotation and an outage of Lowkey Vault, under traffic', { skip }, async t => {
  await using running = await start()
  const { lowkey, env } = running
  await rotationAndOutage(t, {
    vault: { name: 'azure', config },
    env,
    put: value => lowkey.put('partner', value),
    kill: () => lowkey.kill(),
    start: () => lowkey.start()
  })
})
