import { once } from 'node:events'
import { type AddressInfo, createServer, type Socket } from 'node:net'
import t from 'tap'
import { until } from '../../../harness.ts'
import { appRole, folder, opener } from '../../hcv/scenarios.ts'
import { type FakeVault, startFakeVault } from '../../hcv-server.ts'

const LOGIN = /^auth\/approle\/login$/
const RENEW = /^auth\/token\/renew-self$/

// Most of these wait for something, so they do so side by side.
t.jobs = 4
const buffered = true

async function withSecret(): Promise<FakeVault> {
  const vault = await startFakeVault()
  for (const name of ['app', 'other']) {
    await vault.call('POST', `secret/data/${name}`, { data: { a: '1' } })
  }
  return vault
}

const count = (vault: FakeVault, path: RegExp) =>
  vault.seen.filter(seen => path.test(seen.path)).length

void t.test('many who ask at once share one login', { buffered }, async t => {
  await using vault = await withSecret()
  const { settings } = await appRole(vault)
  const { open } = opener(t)
  const [one, two] = [await open(settings), await open({ ...settings, mount: '/secret' })]
  const reads = Array.from({ length: 20 }, (_, i) => (i % 2 === 0 ? one : two).fetch('app'))
  for (const fetched of await Promise.all(reads)) t.strictSame(fetched?.value, { a: '1' })
  t.equal(count(vault, LOGIN), 1)
  // So do those who find the same token dead.
  for (const { headers } of [...vault.seen]) vault.tokens.revoke(String(headers['x-vault-token']))
  vault.seen.length = 0
  await Promise.all(Array.from({ length: 20 }, () => one.fetch('app')))
  t.equal(count(vault, LOGIN), 1)
})

void t.test('a refused login is not repeated at once', { buffered }, async t => {
  await using vault = await withSecret()
  const { settings } = await appRole(vault)
  const { open } = opener(t)
  const { fetch } = await open({ ...settings, approle_secret_id: 'wrong' })
  for (let i = 0; i < 10; i++) {
    await t.rejects(fetch('app'), { code: 'POSTERN_VAULT_DENIED', message: /a login \(approle\)/ })
  }
  t.equal(count(vault, LOGIN), 1)
  await until(async () => {
    await fetch('app').catch(() => {})
    return count(vault, LOGIN) === 2
  }, 'it is tried again after a pause')
})

void t.test('a login that hangs holds nobody beyond his own patience', { buffered }, async t => {
  await using vault = await withSecret()
  const { settings } = await appRole(vault)
  const { backend, fetch } = await opener(t).open(settings)
  await vault.fault('black-hole', LOGIN)
  await t.rejects(backend.fetch('app', undefined, AbortSignal.timeout(50)), {
    code: 'POSTERN_VAULT_UNREACHABLE'
  })
  await t.rejects(backend.fetch('app', undefined, AbortSignal.abort()), {
    code: 'POSTERN_VAULT_UNREACHABLE'
  })
  // Healing ends the connections held back, and with them the login under way.
  await vault.fault(undefined)
  t.ok(await until(() => fetch('app').catch(() => undefined), 'the next login succeeds'))
})

void t.test('a login that hangs ends with the last who waits for it', { buffered }, async t => {
  let connections = 0
  const open = new Set<Socket>()
  const hole = createServer(socket => {
    connections++
    open.add(socket)
    socket
      .on('error', () => {})
      .on('close', () => open.delete(socket))
      .resume()
  }).listen(0, '127.0.0.1')
  await once(hole, 'listening')
  t.teardown(() => hole.close())
  const { port } = hole.address() as AddressInfo
  const { backend } = await opener(t).open({
    port,
    auth_method: 'userpass',
    userpass_username: 'ada',
    userpass_password: 'canary'
  })
  for (const nth of [1, 2]) {
    await t.rejects(backend.fetch('app', undefined, AbortSignal.timeout(500)), {
      code: 'POSTERN_VAULT_UNREACHABLE'
    })
    t.equal(connections, nth, 'each read makes a login of its own')
  }
  await until(() => open.size === 0, 'no login goes on')
})

void t.test('a login whose answer holds no token', { buffered }, async t => {
  await using vault = await withSecret()
  const { settings } = await appRole(vault)
  const { fetch } = await opener(t).open(settings)
  vault.override = { path: LOGIN, status: 200, body: { auth: null } }
  await t.rejects(fetch('app'), { code: 'POSTERN_VAULT_UNREACHABLE', message: /holds no token/ })
})

void t.test(
  'a renewal that fails is tried again and told; one that is refused makes a login',
  { buffered },
  async t => {
    await using vault = await withSecret()
    const { settings } = await appRole(vault, { token_ttl: '7s' })
    const { open, warnings } = opener(t)
    const { backend, fetch } = await open(settings)
    await fetch('app')
    const first = backend.health!().tokenExpiresAt!
    vault.override = { path: RENEW, status: 503, times: 1 }
    await until(() => backend.health!().tokenExpiresAt! > first + 1000, 'it is renewed')
    t.equal(count(vault, RENEW), 2)
    t.equal(count(vault, LOGIN), 1)
    t.match(warnings, [/could not be prolonged.*"vault":"127\.0\.0\.1:\d+".*answered 503/])
    vault.override = { path: RENEW, status: 403 }
    await until(() => count(vault, LOGIN) === 2, 'a new login')
    t.ok(await fetch('app'))
    t.equal(warnings.length, 1)
  }
)

void t.test(
  'a token that has ended while its vault was away is followed by another',
  { buffered },
  async t => {
    await using vault = await withSecret()
    const { settings } = await appRole(vault, { token_ttl: '1s', token_max_ttl: '1s' })
    const { open, warnings } = opener(t)
    const { fetch } = await open(settings)
    await fetch('app')
    await vault.fault('refused')
    await until(() => warnings.length > 0, 'prolonging fails')
    await t.rejects(fetch('app'), { code: 'POSTERN_VAULT_UNREACHABLE', message: /ECONNREFUSED/ })
    await vault.fault(undefined)
    t.ok(await until(() => fetch('app').catch(() => undefined), 'it reads again'))
  }
)

void t.test(
  'where no look at a token is allowed, it is doubted once, not at each refusal',
  { buffered },
  async t => {
    await using vault = await withSecret()
    const { settings } = await appRole(vault, { token_no_default_policy: true })
    await vault.call('PUT', 'sys/policies/acl/gateway', {
      policy: 'path "secret/data/app" { capabilities = ["read"] }'
    })
    for (const status of [403, 404]) {
      vault.override = { path: /^sys\/internal/, status }
      vault.seen.length = 0
      const { fetch, close } = await opener(t).open(settings)
      for (let i = 0; i < 5; i++) await t.rejects(fetch('other'), { code: 'POSTERN_VAULT_DENIED' })
      t.equal(count(vault, LOGIN), 2, `${status}`)
      t.ok(await fetch('app'))
      await close()
    }
  }
)

void t.test(
  'a token that dies right after a refusal is replaced at once',
  { buffered },
  async t => {
    await using vault = await withSecret()
    for (const terms of [{}, { token_no_default_policy: true }]) {
      const { settings } = await appRole(vault, terms)
      await vault.call('PUT', 'sys/policies/acl/gateway', {
        policy: 'path "secret/data/app" { capabilities = ["read"] }'
      })
      const { fetch, close } = await opener(t).open(settings)
      vault.seen.length = 0
      for (let i = 0; i < 3; i++) {
        await t.rejects(fetch('other'), { code: 'POSTERN_VAULT_DENIED' })
        vault.tokens.revokeAll()
        await t.rejects(fetch('other'), { code: 'POSTERN_VAULT_DENIED' }, 'refused with both')
        t.equal(count(vault, LOGIN), 2 + 2 * i)
        vault.tokens.revokeAll()
        t.ok(await fetch('app'))
        t.equal(count(vault, LOGIN), 3 + 2 * i, 'one login for each death, none for a refusal')
      }
      await close()
    }
  }
)

void t.test('a look that gets no answer makes no login', { buffered }, async t => {
  await using vault = await withSecret()
  const { settings } = await appRole(vault, { token_no_default_policy: true })
  await vault.call('PUT', 'sys/policies/acl/gateway', {
    policy: 'path "secret/data/app" { capabilities = ["read"] }'
  })
  const { fetch } = await opener(t).open(settings)
  for (const path of [/lookup-self$/, /^sys\/internal/]) {
    vault.override = { path, status: 503 }
    await t.rejects(fetch('other'), { code: 'POSTERN_VAULT_DENIED' })
  }
  t.equal(count(vault, LOGIN), 1)
})

void t.test(
  'closing gives the token back, but not one with leases or one that was given',
  { buffered },
  async t => {
    await using vault = await withSecret()
    const { settings } = await appRole(vault)
    const { open } = opener(t)
    const own = await open(settings)
    await own.fetch('app')
    t.equal(vault.tokens.alive, 1)
    await own.close()
    t.equal(vault.tokens.alive, 0)

    await vault.call('POST', 'sys/mounts/database', { type: 'database' })
    await vault.call('POST', 'database/roles/app', { default_ttl: '1h', max_ttl: '2h' })
    await vault.call('PUT', 'sys/policies/acl/gateway', {
      policy: 'path "database/*" { capabilities = ["read"] }'
    })
    const leasing = await open({ ...settings, kv: 'v1', mount: 'database' })
    t.equal((await leasing.fetch('creds/app'))?.ttl, 2400)
    await leasing.close()
    t.equal(vault.tokens.alive, 1, 'the credentials taken out live on with their token')

    const { auth } = await vault.call('POST', 'auth/token/create', {})
    const given = await open({ port: vault.port, kv: 'v2', token: auth.client_token })
    await given.fetch('app')
    await given.close()
    t.equal(vault.tokens.alive, 2)
    await Promise.resolve(given.backend.close?.())
    t.equal(vault.tokens.alive, 2, 'closing twice is closing once')
  }
)

void t.test('closing is bounded where the vault hangs', { buffered }, async t => {
  await using vault = await withSecret()
  const { settings } = await appRole(vault)
  const { fetch, close } = await opener(t).open(settings)
  await fetch('app')
  await vault.fault('black-hole')
  await t.resolves(close())
})

void t.test('a token file that is missing is told by its path', { buffered }, async t => {
  await using vault = await withSecret()
  const { file } = await folder(t)
  const { open } = opener(t)
  const { fetch } = await open({ port: vault.port, kv: 'v2', token_file: '/nowhere/token' })
  await t.rejects(fetch('app'), {
    message: /\/nowhere\/token \(token_file\) cannot be read: ENOENT/
  })
  const byFile = await open({
    port: vault.port,
    kv: 'v2',
    token_file: await file('token', 'root\n')
  })
  t.ok(await byFile.fetch('app'))
  t.strictSame(byFile.backend.health!(), {}, 'a root token never ends')
})
