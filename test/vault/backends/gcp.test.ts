import t, { type Test } from 'tap'
import { crc32c } from '../../../src/vault/backends/gcp/crc32c.ts'
import { gcpBackend } from '../../../src/vault/backends/gcp.ts'
import { startUpstream } from '../../harness.ts'
import { backendContract } from '../backend-contract.ts'
import { PROJECT, startFakeGcp } from '../gcp-server.ts'

await backendContract(t, 'gcp', async () => {
  const gcp = await startFakeGcp()
  return {
    type: gcpBackend,
    config: { project_id: PROJECT, endpoint_url: gcp.url, auth_method_order: 'legacy' },
    environment: { env: { GCE_METADATA_HOST: gcp.url }, log: { info() {}, warn() {} } },
    put: async (resource, value) =>
      gcp.secrets.put(
        `secrets/${resource}`,
        typeof value === 'string' ? value : JSON.stringify(value)
      ),
    remove: async resource => gcp.secrets.remove(`secrets/${resource}`),
    resource: name => name,
    fault: kind => gcp.fault(kind),
    connections: () => gcp.connections,
    close: () => gcp.close()
  }
})

async function open(t: Test, more: Readonly<Record<string, string>> = {}) {
  const gcp = await startFakeGcp()
  const backend = await gcpBackend.open(
    { project_id: PROJECT, endpoint_url: gcp.url, auth_method_order: 'legacy', ...more },
    { env: { GCE_METADATA_HOST: gcp.url }, log: { info() {}, warn() {} } }
  )
  t.teardown(async () => {
    await backend.close!()
    await gcp.close()
  })
  const signal = () => AbortSignal.timeout(10_000)
  return {
    gcp,
    backend,
    fetch: (resource: string, version?: string) => backend.fetch(resource, version, signal())
  }
}

await t.test(
  'versions by number and alias; the newest is the latest, whatever its state',
  async t => {
    const { gcp, fetch } = await open(t)
    gcp.secrets.put('secrets/db', 'one')
    gcp.secrets.put('secrets/db', 'two')
    gcp.secrets.alias('secrets/db', 'stable', '1')
    for (const [version, value, number] of [
      [undefined, 'two', '2'],
      ['latest', 'two', '2'],
      ['1', 'one', '1'],
      ['stable', 'one', '1']
    ] as const) {
      t.same(await fetch('db', version), { value, version: number }, `version ${version}`)
    }
    t.equal(await fetch('db', '7'), undefined)
    gcp.secrets.setState('secrets/db', '2', 'DISABLED')
    const disabled = { code: 'POSTERN_VAULT_DENIED', message: /disabled/ }
    await t.rejects(fetch('db'), disabled)
    gcp.secrets.setState('secrets/db', '2', 'DESTROYED')
    await t.rejects(fetch('db'), { code: 'POSTERN_VAULT_ABSENT', message: /was destroyed/ })
  }
)

await t.test('regional secrets have a path of their own', async t => {
  const { gcp, fetch } = await open(t, { location: 'europe-west3' })
  gcp.secrets.put('secrets/db', 'global')
  gcp.secrets.put('locations/europe-west3/secrets/db', 'regional')
  t.same(await fetch('db'), { value: 'regional', version: '1' })
})

await t.test('what was damaged on its way is not used', async t => {
  const { gcp, fetch } = await open(t)
  gcp.secrets.put('secrets/db', 'canary')
  gcp.damage = body => body.replace('Y2FuYXJ5', 'Y2FuYXJ6')
  await t.rejects(fetch('db'), { code: 'POSTERN_VAULT_UNREACHABLE', message: /checksum/ })
  gcp.damage = body => body.replace(/,"dataCrc32c":"\d+"/, '')
  t.match(await fetch('db'), { value: 'canary' }, 'a checksum is checked where there is one')
})

await t.test('bytes that are no text are malformed, and so are names that cannot be', async t => {
  const { gcp, fetch } = await open(t)
  gcp.secrets.put('secrets/db', Buffer.from([0xff, 0x00]))
  for (const [name, version] of [['db'], ['a/b'], ['db', 'no version'], ['..']] as const) {
    await t.rejects(fetch(name, version), { code: 'POSTERN_VAULT_MALFORMED' })
  }
  t.equal(gcp.count('access'), 1)
})

await t.test('each refusal is told as what it is', async t => {
  const { gcp, fetch } = await open(t)
  gcp.secrets.put('secrets/db', 'one')
  for (const [status, code, message] of [
    [
      'PERMISSION_DENIED',
      'DENIED',
      /lacks the permission, or there is no such secret \(IAM_PERMISSION_DENIED\)/
    ],
    ['FAILED_PRECONDITION', 'DENIED', /cannot be given as it is/],
    ['INVALID_ARGUMENT', 'MALFORMED', /does not take this name/],
    ['RESOURCE_EXHAUSTED', 'THROTTLED', /quota/],
    ['UNAVAILABLE', 'UNREACHABLE', /503 \(UNAVAILABLE\)/]
  ] as const) {
    gcp.refused.set('access', status)
    const error = await fetch('db').catch(error => error)
    t.match(error, { code: `POSTERN_VAULT_${code}`, message }, status)
    t.notMatch(error.message, /canary/)
  }
})

await t.test('a page of something else is not taken for an absence', async t => {
  await using page = await startUpstream((_, response) => {
    response.writeHead(404, { 'Content-Type': 'text/html' }).end('<h1>canary</h1>')
  })
  await using gcp = await startFakeGcp()
  const backend = await gcpBackend.open(
    { project_id: PROJECT, endpoint_url: page.url, auth_method_order: 'legacy' },
    { env: { GCE_METADATA_HOST: gcp.url }, log: { info() {}, warn() {} } }
  )
  await t.rejects(backend.fetch('db', undefined, AbortSignal.timeout(10_000)), {
    code: 'POSTERN_VAULT_UNREACHABLE',
    message: /404, and not as Secret Manager does/
  })
  await backend.close!()
})

await t.test('the pause that is asked for, also by a proxy before Google', async t => {
  await using busy = await startUpstream((_, response) => {
    response.writeHead(429, { 'Retry-After': '3' })
    response.end('{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","message":"canary"}}')
  })
  await using gcp = await startFakeGcp()
  const backend = await gcpBackend.open(
    { project_id: PROJECT, endpoint_url: busy.url, auth_method_order: 'legacy' },
    { env: { GCE_METADATA_HOST: gcp.url }, log: { info() {}, warn() {} } }
  )
  await t.rejects(backend.fetch('db', undefined, AbortSignal.timeout(10_000)), {
    code: 'POSTERN_VAULT_THROTTLED',
    retryAfter: 3
  })
  await backend.close!()
})

await t.test(
  'a token that is not accepted any more is replaced at once, and only once',
  async t => {
    const { gcp, fetch, backend } = await open(t)
    gcp.secrets.put('secrets/db', 'one')
    t.match(await fetch('db'), { value: 'one' })
    t.ok(backend.health!().tokenExpiresAt! > Date.now() + 3000_000)
    gcp.tokens.clear()
    t.match(await fetch('db'), { value: 'one' })
    t.equal(gcp.count('access'), 3)
    gcp.refused.set('access', 'UNAUTHENTICATED')
    await t.rejects(fetch('db'), { code: 'POSTERN_VAULT_DENIED' })
    t.equal(gcp.count('access'), 5)
  }
)

await t.test('settings that cannot work are told before anything is asked', async t => {
  const environment = { env: {}, log: { info() {}, warn() {} } }
  for (const [config, env] of [
    [{ project_id: 'a/b' }, {}],
    [{ project_id: PROJECT, location: 'a.b/' }, {}],
    [{ project_id: PROJECT }, { GCP_AUTH_METHOD_ORDER: 'other' }]
  ] as const) {
    await t.rejects(async () => gcpBackend.open(config, { ...environment, env }), {
      code: 'POSTERN_VAULT_SETTINGS'
    })
  }
})

await t.test('the checksum is CRC-32C', async t => {
  // The check value of the catalogue of parametrised CRC algorithms, and RFC 3720 §B.4.
  t.equal(crc32c(Buffer.from('123456789')), 0xe3069283)
  t.equal(crc32c(Buffer.alloc(32)), 0x8a9136aa)
})
