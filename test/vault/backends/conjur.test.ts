import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { conjurBackend } from '../../../src/vault/backends/conjur.ts'
import { startUpstream, until } from '../../harness.ts'
import { backendContract } from '../backend-contract.ts'
import { ACCOUNT, API_KEY, JWT, LOGIN, startFakeConjur } from '../conjur-server.ts'

const environment = { env: {}, log: { info() {}, warn() {} } }
const signal = () => AbortSignal.timeout(10_000)

await backendContract(t, 'conjur', async () => {
  const conjur = await startFakeConjur()
  return {
    type: conjurBackend,
    config: { endpoint_url: conjur.url, account: ACCOUNT, login: LOGIN, api_key: API_KEY },
    secrets: [API_KEY],
    put: async (resource, value) =>
      conjur.put(resource, typeof value === 'string' ? value : JSON.stringify(value)),
    remove: async resource => conjur.remove(resource),
    resource: name => `apps/${name}`,
    fault: kind => conjur.fault(kind),
    connections: () => conjur.connections,
    close: () => conjur.close()
  }
})

async function open(t: Test, more: Readonly<Record<string, unknown>> = {}) {
  const conjur = await startFakeConjur()
  const backend = await conjurBackend.open(
    { endpoint_url: `${conjur.url}/`, account: ACCOUNT, login: LOGIN, api_key: API_KEY, ...more },
    environment
  )
  t.teardown(async () => {
    await backend.close!()
    await conjur.close()
  })
  return {
    conjur,
    backend,
    fetch: (resource: string, version?: string) => backend.fetch(resource, version, signal()),
    probe: (resource: string, version?: string) => backend.probe!(resource, version, signal())
  }
}

await t.test('a policy is one resource, its variables the members', async t => {
  const { conjur, fetch, probe } = await open(t)
  conjur.put('shop/user', 'anna')
  conjur.put('shop/password', 'first')
  conjur.put('shop/db/host', 'db.internal')
  conjur.put('shopping/list', 'other')
  conjur.declare('shop/unset')
  const before = conjur.requests.length
  const first = (await fetch('shop'))!
  t.same(first.value, { user: 'anna', password: 'first', 'db/host': 'db.internal' })
  t.equal(
    conjur.requests.slice(before).filter(({ url }) => url.startsWith('/secrets?')).length,
    1,
    'values are read with one request'
  )
  t.equal(await probe('shop'), first.version)
  conjur.put('shop/password', 'second')
  const second = (await fetch('shop'))!
  t.match(second.value, { user: 'anna', password: 'second' })
  t.not(second.version, first.version)
  await t.rejects(fetch('shop', '1'), { code: 'POSTERN_VAULT_MALFORMED' })
  t.equal(await fetch('no-such-policy'), undefined)
  t.equal(await probe('no-such-policy'), undefined)
})

await t.test('a policy larger than a request is read whole or not at all', async t => {
  const { conjur, fetch } = await open(t)
  for (let i = 0; i < 620; i++) conjur.put(`large/v${i}`, `value ${i}`)
  const { value } = (await fetch('large'))!
  t.equal(Object.keys(value).length, 620)
  t.equal((value as Record<string, string>).v619, 'value 619')
})

await t.test('a server that lists fewer at a time is asked for fewer', async t => {
  const { conjur, fetch, probe } = await open(t)
  conjur.listLimit = 20
  for (let i = 0; i < 50; i++) conjur.put(`shop/v${i}`, `value ${i}`)
  const { value, version } = (await fetch('shop'))!
  t.equal(Object.keys(value).length, 50)
  t.equal(await probe('shop'), version)
})

await t.test('a page of something else is not taken for an absence', async t => {
  await using page = await startUpstream((request, response) => {
    if (request.url.endsWith('/authenticate')) response.end('e30=')
    else response.writeHead(404, { 'content-type': 'text/html' }).end('<h1>canary</h1>')
  })
  const backend = await conjurBackend.open(
    { endpoint_url: page.url, account: ACCOUNT, login: LOGIN, api_key: API_KEY },
    environment
  )
  await t.rejects(async () => backend.fetch('apps/a', undefined, signal()), {
    code: 'POSTERN_VAULT_UNREACHABLE',
    message: /404, and not as Conjur does: check endpoint_url/
  })
  await backend.close!()
})

await t.test(
  'a variable that may be seen and not read is denied, alone and in its policy',
  async t => {
    const { conjur, fetch } = await open(t)
    conjur.put('shop/user', 'anna')
    conjur.put('shop/password', 'canary')
    conjur.forbidden = 'shop/password'
    for (const resource of ['shop/password', 'shop']) {
      await t.rejects(fetch(resource), { code: 'POSTERN_VAULT_DENIED', message: /403/ })
    }
    t.match(await fetch('shop/user'), { value: 'anna' })
  }
)

await t.test('versions, and variables without a value', async t => {
  const { conjur, fetch, probe } = await open(t)
  conjur.declare('apps/new')
  t.equal(await fetch('apps/new'), undefined)
  t.equal(await probe('apps/new'), undefined)
  conjur.put('apps/new', 'one')
  conjur.put('apps/new', 'two')
  t.same(await fetch('apps/new'), { value: 'two', version: '2' })
  t.same(await fetch('apps/new', '1'), { value: 'one', version: '1' })
  t.equal(await probe('apps/new', '1'), '1')
  t.equal(await fetch('apps/new', '9'), undefined)
  conjur.put('apps/binary', Buffer.from([0xff, 0xfe, 0x00]))
  await t.rejects(fetch('apps/binary'), { code: 'POSTERN_VAULT_MALFORMED' })
  await t.rejects(fetch('apps/binary', '1'), { code: 'POSTERN_VAULT_MALFORMED' })
})

await t.test('one login for all who wait, another when the token is refused', async t => {
  const { conjur, backend, fetch } = await open(t)
  conjur.put('apps/a', 'value')
  t.same(backend.health!(), {})
  await Promise.all(Array.from({ length: 5 }, () => fetch('apps/a')))
  t.equal(conjur.logins, 1)
  t.ok(backend.health!().tokenExpiresAt! > Date.now())
  conjur.revokeTokens()
  t.match(await fetch('apps/a'), { value: 'value' })
  t.equal(conjur.logins, 2)
})

await t.test('a token lives as long as the server says, whatever its clock', async t => {
  for (const life of [480, 7200]) {
    const { conjur, backend, fetch } = await open(t)
    conjur.life = life
    conjur.put('apps/a', 'value')
    await fetch('apps/a')
    const left = backend.health!().tokenExpiresAt! - Date.now()
    t.ok(left > (life - 60) * 1000 && left <= life * 1000, `${left} of ${life} s`)
  }
  const { conjur, fetch } = await open(t)
  conjur.life = 1
  conjur.put('apps/a', 'value')
  await fetch('apps/a')
  await until(
    async () => (await fetch('apps/a')) && conjur.logins > 1,
    'another login before its end'
  )
})

await t.test('a login with a token, from the settings or a file', async t => {
  const directory = await mkdtemp(join(tmpdir(), 'postern-conjur-'))
  t.teardown(() => rm(directory, { recursive: true, force: true }))
  const file = join(directory, 'token')
  await writeFile(file, `${JWT}\n`)
  for (const settings of [{ jwt: JWT }, { jwt_file: file }, { jwt: JWT, login: undefined }]) {
    const { conjur, fetch } = await open(t, {
      auth_method: 'jwt',
      service_id: 'gate',
      api_key: undefined,
      ...settings
    })
    conjur.put('apps/a', 'value')
    t.match(await fetch('apps/a'), { value: 'value' }, JSON.stringify(Object.keys(settings)))
  }
  const { fetch } = await open(t, {
    auth_method: 'jwt',
    service_id: 'gate',
    jwt_file: join(directory, 'none')
  })
  await t.rejects(fetch('apps/a'), { code: 'POSTERN_VAULT_UNREACHABLE', message: /ENOENT/ })
})

await t.test('a refused login is a denial that does not repeat the key', async t => {
  const { fetch } = await open(t, { api_key: 'canary-wrong-key' })
  await t.rejects(fetch('apps/a'), { code: 'POSTERN_VAULT_DENIED', message: /login was refused/ })
  await fetch('apps/a').catch(error => t.notMatch(error.message, 'canary'))
})

await t.test('an authority that is none is told by its setting', async t => {
  for (const [ca_cert, message] of [
    ['/nowhere/ca.pem', /ca_cert is .*\(ENOENT \/nowhere\/ca\.pem\)/],
    ['-----BEGIN canary', /ca_cert holds no certificate/]
  ] as const) {
    const { fetch } = await open(t, { ca_cert })
    await t.rejects(fetch('apps/a'), { code: 'POSTERN_VAULT_SETTINGS', message })
  }
})

await t.test('settings no login could be made with are refused at once', async t => {
  const common = { endpoint_url: 'http://conjur', account: 'a' }
  for (const settings of [
    {},
    { login: 'x' },
    { api_key: 'x' },
    { auth_method: 'jwt' },
    { auth_method: 'jwt', service_id: 'x' }
  ]) {
    t.throws(() => conjurBackend.open({ ...common, ...settings }, environment), {
      code: 'POSTERN_VAULT_SETTINGS'
    })
  }
})
