import t from 'tap'
import { gcpBackend } from '../../src/vault/backends/gcp.ts'
import { backendContract } from '../vault/backend-contract.ts'
import { startFaultProxy } from '../vault/fault-proxy.ts'
import { type Fault, RETRY_AFTER, type ServiceAnswer } from '../vault/fault-server.ts'
import { PROJECT, startFakeGcp } from '../vault/gcp-server.ts'
import { asGoogle, startGcpEmulator } from './gcp-emulator.ts'
import { rotationAndOutage } from './rotation.ts'
import { missing } from './server.ts'

const skip = missing('server-rest')

const refusal = (code: number, status: string): ServiceAnswer => ({
  status: code,
  headers: { 'Retry-After': String(RETRY_AFTER) },
  body: { error: { code, status, message: 'canary: refused' } }
})
const refusals: Partial<Record<Fault, ServiceAnswer>> = {
  denied: refusal(403, 'PERMISSION_DENIED'),
  absent: refusal(404, 'NOT_FOUND'),
  throttled: refusal(429, 'RESOURCE_EXHAUSTED'),
  unavailable: refusal(503, 'UNAVAILABLE')
}

/** The emulator behind a proxy; tokens, which it does not ask for, are those of the fake's metadata. */
async function start() {
  const emulator = await startGcpEmulator()
  const proxy = await startFaultProxy(emulator.url, { refusals, amend: asGoogle })
  const google = await startFakeGcp()
  return {
    emulator,
    proxy,
    config: { project_id: PROJECT, endpoint_url: proxy.url, auth_method_order: 'legacy' },
    env: { GCE_METADATA_HOST: google.url },
    async [Symbol.asyncDispose]() {
      await google.close()
      await proxy.close()
      await emulator[Symbol.asyncDispose]()
    }
  }
}

// The emulator is unlike Google in this: its errors are texts of gRPC, nothing is denied or throttled,
// there are neither regions nor aliases, and `latest` passes over what is disabled. The proxy and the
// fake of `npm test` stand for those.
await t.test('the Secret Manager emulator', { skip }, async t => {
  await backendContract(t, 'gcp', async () => {
    const { emulator, proxy, config, env, ...running } = await start()
    return {
      type: gcpBackend,
      config,
      environment: { env, log: { info() {}, warn() {} } },
      put: (resource, value) =>
        emulator.put(resource, typeof value === 'string' ? value : JSON.stringify(value)),
      remove: resource => emulator.remove(resource),
      resource: name => name,
      fault: kind => proxy.fault(kind),
      connections: () => proxy.connections,
      close: () => running[Symbol.asyncDispose]()
    }
  })

  await t.test('versions and their states', async t => {
    await using running = await start()
    const { emulator, config, env } = running
    const backend = await gcpBackend.open(config, { env, log: { info() {}, warn() {} } })
    t.teardown(() => backend.close!())
    const fetch = (version?: string) => backend.fetch('db', version, AbortSignal.timeout(20_000))
    await emulator.put('db', 'one')
    await emulator.put('db', 'two')
    t.match(await fetch(), { value: 'two' })
    t.same(await fetch('1'), { value: 'one', version: '1' })
    t.equal(await fetch('7'), undefined)
    await emulator.turn('db', '1', 'disable')
    await t.rejects(fetch('1'), { code: 'POSTERN_VAULT_DENIED' })
    await emulator.turn('db', '1', 'enable')
    t.match(await fetch('1'), { value: 'one' })
  })
})

await t.test('a rotation and an outage of the emulator, under traffic', { skip }, async t => {
  await using running = await start()
  const { emulator, config, env } = running
  await rotationAndOutage(t, {
    vault: { name: 'gcp', config },
    env,
    put: value => emulator.put('partner', value),
    kill: () => emulator.kill(),
    start: () => emulator.start()
  })
})
