import { once } from 'node:events'
import net, { type AddressInfo } from 'node:net'
import t from 'tap'
import { opener } from '../../hcv/scenarios.ts'
import { type FakeVault, startFakeVault } from '../../hcv-server.ts'

const DATA = 'secret/data/app'

async function withSecret(): Promise<FakeVault> {
  const vault = await startFakeVault()
  await vault.call('POST', DATA, { data: { a: 'canary' } })
  return vault
}

const settingsOf = ({ port }: { port: number }) => ({ port, token: 'root', kv: 'v2' })

await t.test('a standby redirects to the active node, where that is listed', async t => {
  await using active = await withSecret()
  await using standby = await startFakeVault()
  standby.standbyOf = active.url
  const { open } = opener(t)
  for (const redirect_hosts of ['127.0.0.1', `elsewhere, 127.0.0.1:${active.port}`]) {
    const vault = await open({ ...settingsOf(standby), redirect_hosts })
    t.strictSame((await vault.fetch('app'))?.value, { a: 'canary' })
  }
  t.ok(active.seen.every(({ headers }) => headers['x-vault-token'] === 'root'))
  active.seen.length = 0
  for (const redirect_hosts of [undefined, 'elsewhere', '127.0.0.1:1']) {
    const vault = await open({ ...settingsOf(standby), ...(redirect_hosts && { redirect_hosts }) })
    await t.rejects(vault.fetch('app'), {
      code: 'POSTERN_VAULT_UNREACHABLE',
      message: new RegExp(`redirects to 127.0.0.1:${active.port}; list that in redirect_hosts`)
    })
  }
  t.strictSame(active.seen, [], 'a host that is not listed never sees the token')
})

await t.test('redirects end, and never leave TLS', async t => {
  await using vault = await withSecret()
  const { open } = opener(t)
  vault.standbyOf = vault.url
  const circle = await open(settingsOf(vault))
  await t.rejects(circle.fetch('app'), { message: /redirected more than 3 times/ })
  vault.standbyOf = `ftp://127.0.0.1:${vault.port}`
  await t.rejects(circle.fetch('app'), { message: /redirects from http: to ftp:/ })
})

await t.test('what each status comes to', async t => {
  await using vault = await withSecret()
  const { fetch } = await opener(t).open(settingsOf(vault))
  await fetch('app')
  const outcomes: readonly (readonly [number, string, RegExp])[] = [
    [400, 'DENIED', /answered 400/],
    [401, 'DENIED', /answered 401/],
    [405, 'MALFORMED', /answered 405/],
    [412, 'UNREACHABLE', /answered 412/],
    [429, 'THROTTLED', /answered 429/],
    [472, 'UNREACHABLE', /answered 472/],
    [473, 'UNREACHABLE', /answered 473/],
    [500, 'UNREACHABLE', /answered 500/],
    [502, 'UNREACHABLE', /answered 502/]
  ]
  for (const [status, code, message] of outcomes) {
    vault.override = { status }
    await t.rejects(fetch('app'), { code: `POSTERN_VAULT_${code}`, message }, String(status))
  }
  for (const status of [400, 401, 403, 404, 405]) {
    vault.override = { status, body: '<html>canary</html>' }
    await t.rejects(fetch('app'), {
      code: 'POSTERN_VAULT_UNREACHABLE',
      message: new RegExp(`it answered ${status}, and not as a vault does`)
    })
  }
  vault.override = { status: 200, body: '<html>welcome</html>' }
  await t.rejects(fetch('app'), { code: 'POSTERN_VAULT_UNREACHABLE', message: /not JSON/ })
  vault.override = { status: 200, body: 'null' }
  t.equal(await fetch('app'), undefined)
  vault.override = { status: 200, body: { data: { data: ['no', 'object'] } } }
  await t.rejects(fetch('app'), { code: 'POSTERN_VAULT_MALFORMED' })
  vault.override = undefined
  t.ok(await fetch('app'))
  vault.override = {
    status: 400,
    body: { errors: ['Upgrading from non-versioned to versioned data. This backend will be …'] }
  }
  await t.rejects(fetch('app'), { code: 'POSTERN_VAULT_UNREACHABLE', message: /being upgraded/ })
})

await t.test('a node that lags behind is asked once more', async t => {
  await using vault = await withSecret()
  const { fetch } = await opener(t).open(settingsOf(vault))
  await fetch('app')
  vault.override = { status: 412, times: 1 }
  t.ok(await fetch('app'))
  vault.seen.length = 0
  vault.override = { status: 412 }
  await t.rejects(fetch('app'), { code: 'POSTERN_VAULT_UNREACHABLE' })
  t.equal(vault.seen.length, 2)
})

await t.test('the pause a quota asks for, in seconds or as a date', async t => {
  await using vault = await withSecret()
  const { fetch } = await opener(t).open(settingsOf(vault))
  await fetch('app')
  vault.override = { status: 429, headers: { 'retry-after': '12' } }
  await t.rejects(fetch('app'), { code: 'POSTERN_VAULT_THROTTLED', retryAfter: 12 })
  const headers = {
    'retry-after': 'Thu, 01 Jan 2037 00:01:00 GMT',
    date: 'Thu, 01 Jan 2037 00:00:00 GMT'
  }
  vault.override = { status: 429, headers }
  await t.rejects(fetch('app'), { code: 'POSTERN_VAULT_THROTTLED', retryAfter: 60 })
  vault.override = { status: 429, headers: { 'retry-after': 'soon' } }
  await t.rejects(fetch('app'), { code: 'POSTERN_VAULT_THROTTLED', retryAfter: undefined })
})

await t.test('the texts of the vault are understood and not passed on', async t => {
  await using vault = await withSecret()
  const { fetch } = await opener(t).open(settingsOf(vault))
  await fetch('app')
  const texts: readonly (readonly [number, string, RegExp])[] = [
    [500, 'failed to connect to postgresql://root:canary@db', /it answered 500/],
    [503, 'Vault is sealed', /it is sealed/],
    [503, 'OpenBao is sealed canary', /it is sealed/],
    [500, 'local node not active but active cluster node not found; standby canary', /standby/],
    [403, '2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n', /token is not valid/],
    [400, 'Client sent an HTTP request to an HTTPS server.', /set protocol to https/]
  ]
  for (const [status, text, message] of texts) {
    vault.override = { status, body: { errors: [text] } }
    const error = await fetch('app').catch((error: Error) => error)
    t.match((error as Error).message, message)
    t.notMatch(String((error as Error).stack), /canary|root:/)
  }
})

await t.test('a token that no header can hold is told as such', async t => {
  await using vault = await withSecret()
  const { fetch } = await opener(t).open({ port: vault.port, token: 'canary\n' })
  const error = await fetch('app').catch((error: Error) => error)
  t.match(error, { message: /token or namespace hold a character that no header can have/ })
  t.notMatch((error as Error).message, /canary/)
})

await t.test('nothing is taken from variables of the process', async t => {
  await using vault = await withSecret()
  const variables = ['VAULT_ADDR', 'VAULT_TOKEN', 'VAULT_NAMESPACE', 'VAULT_PREFIX'] as const
  for (const name of variables) process.env[name] = 'http://stray'
  t.teardown(() => {
    for (const name of variables) delete process.env[name]
  })
  const { fetch } = await opener(t).open({ ...settingsOf(vault), token: 'root' })
  t.ok(await fetch('app'))
  t.notMatch(JSON.stringify(vault.seen), /stray/)
  t.ok(vault.seen.every(({ headers }) => headers['x-vault-request'] === 'true'))
})

await t.test('a connection that was closed while idle is no failure', async t => {
  let connections = 0
  const server = net.createServer(socket => {
    const first = ++connections === 1
    let requests = 0
    socket.on('error', () => {})
    socket.on('data', () => {
      // The second request of the first connection meets its end, as at a server's idle time-out.
      if (first && ++requests === 3) {
        socket.resetAndDestroy()
        return
      }
      const body = '{"data":{"data":{"a":"1"},"metadata":{"version":1}}}'
      socket.write(`HTTP/1.1 200 OK\r\ncontent-length: ${body.length}\r\n\r\n${body}`)
    })
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => server.close())
  const { port } = server.address() as AddressInfo
  const vault = await opener(t).open(settingsOf({ port }))
  for (let i = 0; i < 4; i++) t.ok(await vault.fetch('app'))
  t.equal(connections, 2)
  await vault.close()
})
