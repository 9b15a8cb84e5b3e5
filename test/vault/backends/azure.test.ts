import t, { type Test } from 'tap'
import { azureBackend } from '../../../src/vault/backends/azure.ts'
import { BY_SECRET, CLIENT_SECRET, startAzureCloud } from '../azure-server.ts'
import { backendContract } from '../backend-contract.ts'

await backendContract(t, 'azure', async () => {
  const cloud = await startAzureCloud()
  const { azure } = cloud
  return {
    type: azureBackend,
    config: BY_SECRET,
    environment: cloud.environment,
    secrets: [CLIENT_SECRET],
    put: async (resource, value) =>
      azure.secrets.put(resource, typeof value === 'string' ? value : JSON.stringify(value)),
    remove: async resource => azure.secrets.remove(resource),
    resource: name => name,
    fault: kind => azure.fault(kind),
    connections: () => azure.connections,
    close: () => cloud[Symbol.asyncDispose]()
  }
})

async function open(t: Test) {
  const cloud = await startAzureCloud()
  const backend = await azureBackend.open(BY_SECRET, cloud.environment)
  t.teardown(async () => {
    await backend.close!()
    await cloud[Symbol.asyncDispose]()
  })
  return {
    azure: cloud.azure,
    backend,
    fetch: (resource: string, version?: string) =>
      backend.fetch(resource, version, AbortSignal.timeout(10_000))
  }
}

await t.test('versions by id', async t => {
  const { azure, fetch } = await open(t)
  const first = azure.secrets.put('db', 'one')
  const second = azure.secrets.put('db', 'two')
  t.same(await fetch('db'), { value: 'two', version: second })
  t.same(await fetch('db', first), { value: 'one', version: first })
  t.equal(await fetch('db', '0'.repeat(32)), undefined)
})

await t.test('one challenge and one token for all reads', async t => {
  const { azure, fetch, backend } = await open(t)
  azure.secrets.put('db', 'one')
  await fetch('db')
  await Promise.all(Array.from({ length: 5 }, () => fetch('db')))
  t.equal(azure.tokens.size, 1)
  t.equal(azure.count('vault'), 7)
  t.ok(backend.health!().tokenExpiresAt! > Date.now() + 3000_000)
})

await t.test('disabled is told from forbidden, and each refusal as what it is', async t => {
  const { azure, fetch } = await open(t)
  azure.secrets.put('db', 'one')
  azure.secrets.disable('db')
  await t.rejects(fetch('db'), {
    code: 'POSTERN_VAULT_DENIED',
    message: /it is disabled \(SecretDisabled\)/
  })
  for (const [refusal, code, message] of [
    [[403, 'Forbidden', 'AccessDenied'], 'DENIED', /lacks the permission/],
    [[403, 'Forbidden', 'ForbiddenByRbac'], 'DENIED', /no role/],
    [[403, 'Forbidden', 'ForbiddenByFirewall'], 'DENIED', /firewall/],
    [[403, 'Forbidden', 'SomethingNew'], 'DENIED', /may not \(SomethingNew\)/],
    [[400, 'BadParameter'], 'MALFORMED', /BadParameter/],
    [[429, 'Throttled'], 'THROTTLED', /too often/],
    [[500, 'InternalServerError'], 'UNREACHABLE', /500 \(InternalServerError\)/],
    [[404, 'VaultNotFound'], 'UNREACHABLE', /404 \(VaultNotFound\)/],
    [[403, ''], 'UNREACHABLE', /403, and not as a vault does/]
  ] as const) {
    azure.refusal = refusal
    const error = await fetch('db').catch(error => error)
    t.equal(error.code, `POSTERN_VAULT_${code}`, refusal.join(' '))
    t.match(error.message, message)
    t.notMatch(error.message, /canary/)
  }
})

await t.test(
  'a token that is not accepted any more is replaced at once, and only once',
  async t => {
    const { azure, fetch } = await open(t)
    azure.secrets.put('db', 'one')
    t.match(await fetch('db'), { value: 'one' })
    azure.tokens.clear()
    t.match(await fetch('db'), { value: 'one' })
    t.equal(azure.tokens.size, 1)
  }
)

await t.test('names and versions that cannot be are malformed, and not asked for', async t => {
  const { azure, fetch } = await open(t)
  for (const [name, version] of [
    ['a/b'],
    ['..'],
    ['a_b'],
    ['db', '2'],
    ['db', '../keys']
  ] as const) {
    await t.rejects(fetch(name, version), { code: 'POSTERN_VAULT_MALFORMED' })
  }
  t.equal(azure.requests.length, 0)
})
