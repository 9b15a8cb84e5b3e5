import t from 'tap'
import { opener } from '../../hcv/scenarios.ts'
import { type FakeVault, startFakeVault } from '../../hcv-server.ts'

const RENEW = /^sys\/leases\/renew$/

async function withDatabase(role: object): Promise<FakeVault> {
  const vault = await startFakeVault()
  await vault.call('POST', 'sys/mounts/database', { type: 'database' })
  await vault.call('POST', 'database/roles/app', role)
  return vault
}

const due = () => new Promise(resolve => setTimeout(resolve, 2100))

await t.test('a lease that was revoked is followed by another', async t => {
  await using vault = await withDatabase({ default_ttl: '6s', max_ttl: '1h' })
  const { fetch } = await opener(t).open({ port: vault.port, token: 'root', mount: 'database' })
  const first = await fetch('creds/app')
  t.equal(first?.ttl, 4)
  vault.leases.revoke(vault.leases.ids[0]!)
  await due()
  const next = await fetch('creds/app')
  t.not(next?.version, first?.version)
  t.ok(vault.seen.some(({ path, body }) => RENEW.test(path) && body.increment === 6))
})

await t.test(
  'a renewal that finds the vault away is a failed read, not a new credential',
  async t => {
    await using vault = await withDatabase({ default_ttl: '6s', max_ttl: '1h' })
    const { fetch } = await opener(t).open({ port: vault.port, token: 'root', mount: 'database' })
    const first = await fetch('creds/app')
    await due()
    vault.override = { path: RENEW, status: 503 }
    await t.rejects(fetch('creds/app'), { code: 'POSTERN_VAULT_UNREACHABLE' })
    vault.override = { path: RENEW, status: 429, headers: { 'retry-after': '3' } }
    await t.rejects(fetch('creds/app'), { code: 'POSTERN_VAULT_THROTTLED', retryAfter: 3 })
    vault.override = undefined
    t.equal((await fetch('creds/app'))?.version, first?.version)
  }
)

await t.test('a lease ends with the token that took it out', async t => {
  await using vault = await withDatabase({ default_ttl: '1h', max_ttl: '2h' })
  const { auth } = await vault.call('POST', 'auth/token/create', { ttl: '10s', policies: ['root'] })
  const settings = { port: vault.port, mount: 'database', token: auth.client_token }
  const { fetch } = await opener(t).open(settings)
  const ttl = (await fetch('creds/app'))?.ttl
  t.ok(ttl !== undefined && ttl >= 7 && ttl <= 9, `${ttl} s of a token of 10 s`)
})

await t.test('what is no lease has no ttl: a key-value entry, an answer without data', async t => {
  await using vault = await withDatabase({})
  await vault.call('POST', 'sys/mounts/plain', { type: 'kv' })
  await vault.call('POST', 'plain/app', { ttl: '30s', a: '1' })
  const { fetch } = await opener(t).open({ port: vault.port, token: 'root', mount: 'plain' })
  t.strictSame(await fetch('app'), { value: { ttl: '30s', a: '1' } })
  vault.override = { path: /plain/, status: 204, body: '' }
  await t.rejects(fetch('app'), { code: 'POSTERN_VAULT_MALFORMED', message: /holds no data/ })
})
