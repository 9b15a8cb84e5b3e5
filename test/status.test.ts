import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import http from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { ConfigError } from '../src/errors.ts'
import { redactor } from '../src/redaction.ts'
import { openStatus, type StatusOptions, type StatusSource } from '../src/status.ts'
import { startGateway, startUpstream } from './harness.ts'
import { postern } from './process.ts'
import { raw } from './raw.ts'

// Threads start slowly on a busy machine.
t.setTimeout(120_000)

const SOURCE: StatusSource = {
  status: async () => ({ version: '1.2.3' }),
  unready: () => [],
  metrics: async () => 'postern_up 1\n',
  vaults: () => ({ references: [] }),
  upstreams: () => ({ upstreams: [] }),
  setHealth: (upstream, target, healthy) =>
    upstream === 'pool' ? (target === undefined ? 2 : 1) + (healthy ? 0 : 10) : undefined,
  config: () => ({ file: 'f', text: '_format_version: "3.0"\n' }),
  reload: async () => ({ reloaded: true }),
  refresh: async prefix => (prefix === 'none' ? undefined : { changed: prefix === 'fs' ? 1 : 2 })
}

async function open(
  test: Test,
  source: Partial<StatusSource> = {},
  options: Partial<StatusOptions> = {}
): Promise<string> {
  const server = await openStatus(
    { ...SOURCE, ...source },
    { host: '127.0.0.1', port: 0, ...options }
  )
  test.teardown(() => server.close())
  return `http://127.0.0.1:${server.port}`
}

const post = (url: string, headers: Record<string, string> = {}): Promise<Response> =>
  fetch(url, { method: 'POST', headers })

t.test('each path gives what it is for', async t => {
  const url = await open(t)
  t.same(await (await fetch(`${url}/status`)).json(), { version: '1.2.3' })
  t.same(await (await fetch(`${url}/status/ready`)).json(), { ready: true })
  t.same(await (await fetch(`${url}/vaults`)).json(), { references: [] })
  const config = await fetch(`${url}/config`)
  t.equal(config.headers.get('content-type'), 'application/yaml; charset=utf-8')
  t.equal(config.headers.get('cache-control'), 'no-store')
  t.equal(await config.text(), '_format_version: "3.0"\n')
  t.equal(await (await fetch(`${url}/metrics`)).text(), 'postern_up 1\n')
  t.same(await (await post(`${url}/reload`)).json(), { reloaded: true })
  t.same(await (await post(`${url}/vaults/refresh?prefix=fs`)).json(), { changed: 1 })
  t.same(await (await post(`${url}/vaults/refresh`)).json(), { changed: 2 })
  const none = await post(`${url}/vaults/refresh?prefix=none`)
  t.equal(none.status, 404)
  t.match(await none.json(), { message: 'No reference goes to a vault none' })
})

t.test('HEAD is GET without the body', async t => {
  const url = await open(t)
  const response = await fetch(`${url}/status`, { method: 'HEAD' })
  t.equal(response.status, 200)
  t.ok(Number(response.headers.get('content-length')) > 2)
  t.equal(await response.text(), '')
})

t.test('unready is 503 with the reasons', async t => {
  const url = await open(t, { unready: () => ['no configuration serves yet'] })
  const response = await fetch(`${url}/status/ready`)
  t.equal(response.status, 503)
  t.same(await response.json(), { ready: false, reasons: ['no configuration serves yet'] })
})

t.test('other paths, methods and targets', async t => {
  const url = await open(t)
  const unknown = await fetch(`${url}/nothing`)
  t.equal(unknown.status, 404)
  t.match(await unknown.json(), { paths: /GET \/status/ })
  const wrong = await post(`${url}/status`)
  t.equal(wrong.status, 405)
  t.match(await wrong.json(), { message: 'Use GET' })
  t.equal((await fetch(`${url}/reload`)).status, 405)
  const { port } = new URL(url)
  const status = await new Promise(resolve =>
    http.get({ host: '127.0.0.1', port, path: 'http://[' }, response => {
      response.resume()
      resolve(response.statusCode)
    })
  )
  t.equal(status, 400)
})

t.test('a page in a browser can pull no trigger', async t => {
  let pulled = 0
  const trigger = async () => ({ pulled: ++pulled })
  const url = await open(t, { reload: trigger, refresh: trigger })
  for (const path of ['/reload', '/vaults/refresh']) {
    t.equal((await post(url + path, { origin: 'https://evil.example' })).status, 403)
  }
  t.equal(pulled, 0)
})

/** Status and body of a request made to a host by this name, or with this target. */
function called(url: string, host: string | undefined, path = '/status') {
  const { port } = new URL(url)
  const headers = host === undefined ? {} : { host }
  return new Promise<{ status: number; body: string }>((resolve, reject) => {
    const sent = http.get({ host: '127.0.0.1', port, path, headers }, response => {
      let body = ''
      response.setEncoding('utf8').on('data', chunk => {
        body += chunk
      })
      response.on('end', () => resolve({ status: response.statusCode!, body }))
    })
    sent.once('error', reject)
  })
}

t.test('a name that is none of its own is refused, whatever it resolves to', async t => {
  let pulled = 0
  const reload = async () => ({ pulled: ++pulled })
  const url = await open(t, { reload })
  for (const host of [
    'evil.example',
    'evil.example:8007',
    'localhost.evil.example',
    '127.0.0.1.x'
  ]) {
    const { status, body } = await called(url, host)
    t.equal(status, 421, host)
    t.match(JSON.parse(body), { code: 'POSTERN_STATUS_HOST', message: /POSTERN_STATUS_HOSTS/ })
    t.notMatch(body, 'version')
  }
  t.equal((await called(url, 'a b')).status, 421, 'what cannot be read is foreign')
  t.equal((await called(url, '127.0.0.1', 'http://evil.example/status')).status, 421, 'the target')
  t.equal((await called(url, 'evil.example', 'http://127.0.0.1/status')).status, 200)
  for (const host of ['127.0.0.1', '10.2.3.4:8007', '[::1]:8007', 'localhost', 'LOCALHOST.:8007'])
    t.equal((await called(url, host)).status, 200, host)
  const post = await new Promise(resolve => {
    const { port } = new URL(url)
    const headers = { host: 'evil.example' }
    const sent = http.request({ port, host: '127.0.0.1', path: '/reload', method: 'POST', headers })
    sent.once('response', response => {
      response.resume()
      resolve(response.statusCode)
    })
    sent.end()
  })
  t.equal(post, 421)
  t.equal(pulled, 0)
})

t.test('names it may be called by', async t => {
  const url = await open(t, {}, { names: ['postern', '*.svc.cluster.local'] })
  for (const [host, status] of [
    ['postern:8007', 200],
    ['Postern', 200],
    ['postern.gateway.svc.cluster.local', 200],
    ['svc.cluster.local', 421],
    ['evilsvc.cluster.local', 421],
    ['postern.example', 421]
  ] as const) {
    t.equal((await called(url, host)).status, status, host)
  }
  const any = await open(t, {}, { names: ['*'] })
  t.equal((await called(any, 'whatever.example')).status, 200)
  const own = await open(t, {}, { host: 'localhost' })
  t.equal((await fetch(`http://localhost:${new URL(own).port}/status`)).status, 200)
})

t.test('HTTP/1.0 may leave the name out', async t => {
  const { port } = new URL(await open(t))
  const answer = await raw(Number(port), 'GET /status HTTP/1.0\r\n\r\n')
  t.match(answer, /^HTTP\/1\.1 200/)
})

t.test('a trigger that fails tells what is wrong', async t => {
  const place = { file: 'f', line: 1, column: 2, path: 'services' }
  const problem = { code: 'POSTERN_CONFIG_REQUIRED', message: 'missing', fix: 'Add it', place }
  const url = await open(t, {
    reload: async () => {
      throw new ConfigError([problem])
    },
    refresh: async () => {
      throw new Error('no such vault')
    }
  })
  const reload = await post(`${url}/reload`)
  t.equal(reload.status, 422)
  t.match(await reload.json(), { code: 'POSTERN_CONFIG_INVALID', problems: [problem] })
  t.same(await (await post(`${url}/vaults/refresh`)).json(), { message: 'no such vault' })
})

t.test('what breaks inside is told without its message', async t => {
  const url = await open(t, {
    status: async () => {
      throw new Error('internal detail')
    }
  })
  const response = await fetch(`${url}/status`)
  t.equal(response.status, 500)
  t.notMatch(await response.text(), /internal detail/)
})

t.test('the health of targets is shown and set', async t => {
  const url = await open(t)
  t.same(await (await fetch(`${url}/upstreams`)).json(), { upstreams: [] })
  for (const [query, status, body] of [
    ['upstream=pool&state=healthy', 200, { changed: 2 }],
    ['upstream=pool&state=unhealthy&target=a:80', 200, { changed: 11 }],
    ['upstream=none&state=healthy', 404, { message: 'There is no upstream none' }],
    ['upstream=pool&state=well', 400, undefined],
    ['state=healthy', 400, undefined]
  ] as const) {
    const answer = await post(`${url}/upstreams/health?${query}`)
    t.equal(answer.status, status, query)
    if (body !== undefined) t.same(await answer.json(), body, query)
  }
})

t.test('no answer shows a resolved secret, whatever is in it', async t => {
  redactor.hold('status test', ['resolved-secret'])
  const url = await open(t, {
    status: async () => ({ odd: 'resolved-secret' }),
    metrics: async () => 'x{odd="resolved-secret"} 1\n',
    reload: async () => {
      throw new Error('refused resolved-secret')
    }
  })
  for (const answer of [
    await fetch(`${url}/status`),
    await fetch(`${url}/metrics`),
    await post(`${url}/reload`)
  ]) {
    const text = await answer.text()
    t.match(text, '[secret]')
    t.notMatch(text, 'resolved-secret')
  }
})

t.test('an address that is taken rejects', async t => {
  const server = http.createServer().listen(0, '127.0.0.1')
  await new Promise(resolve => server.once('listening', resolve))
  t.teardown(() => server.close())
  const { port } = server.address() as AddressInfo
  await t.rejects(openStatus(SOURCE, { host: '127.0.0.1', port }), { code: 'EADDRINUSE' })
})

t.test('of a running gateway', async t => {
  await using upstream = await startUpstream()
  await using gateway = await startGateway(
    {
      services: [{ name: 'echo', url: upstream.url, routes: [{ name: 'echo', paths: ['/'] }] }],
      plugins: [{ name: 'key-auth' }],
      consumers: [
        { username: 'anna', keyauth_credentials: [{ key: '{vault://env/status-test-key}' }] },
        { username: 'bert', keyauth_credentials: [{ key: '{vault://env/status-test-gone}' }] }
      ]
    },
    { env: { STATUS_TEST_KEY: 'a-key-of-the-status', POSTERN_VAULT_START: 'degraded' } }
  )
  t.match((await gateway.status('/status')).json(), {
    version: /^\d/,
    workers: { configured: 1, serving: 1, unresponsive: [] },
    inFlight: 0,
    event_loop_delay: [{ thread: 1, p50: Number, p99: Number, max: Number }],
    configuration: { loads: 1, services: 1, routes: 1, plugins: 1 }
  })
  const ready = await gateway.status('/status/ready')
  t.equal(ready.status, 503)
  t.match(ready.json(), { reasons: [/\{vault:\/\/env\/status-test-gone\} has no value \(absent/] })
  const vaults = await gateway.status('/vaults')
  t.match(vaults.json(), {
    references: [
      {
        reference: '{vault://env/status-test-key}',
        vault: 'env',
        state: 'ok',
        used: [/:\d+:\d+ consumers\[0\]\.keyauth_credentials\[0\]\.key$/]
      },
      { state: 'absent', last_error: /STATUS_TEST_GONE \(no such variable is set\)/ }
    ]
  })
  const refresh = (query: string) => gateway.status(`/vaults/refresh${query}`, { method: 'POST' })
  for (const query of ['?prefix=env', ''])
    t.same((await refresh(query)).json(), { changed: 0, failing: 1 })
  t.equal((await refresh('?prefix=evn')).status, 404)
  const config = await gateway.status('/config')
  t.match(config.body, '{vault://env/status-test-key}')
  t.notMatch(vaults.body + config.body, /a-key-of-the-status/)
})

t.test('fingerprints in /vaults are those of check --resolve, and no values', async t => {
  const root = await mkdtemp(join(tmpdir(), 'postern-status-'))
  t.teardown(() => rm(root, { recursive: true }))
  const path = (name: string): string => join(root, name)
  const put = (name: string, value: string): Promise<void> => writeFile(path(name), value)
  await using upstream = await startUpstream()
  await put('fingerprint-key', 'a-key-of-fingerprints')
  await put('one', 'value-of-secret-one')
  const config = {
    services: [{ name: 'up', url: upstream.url, routes: [{ name: 'all', paths: ['/'] }] }],
    consumers: [
      { username: 'anna', keyauth_credentials: [{ key: '{vault://fs/one}' }] },
      { username: 'bert', keyauth_credentials: [{ key: '{vault://fs/none}' }] }
    ]
  }
  await put('postern.json', JSON.stringify({ _format_version: '3.0', ...config }))
  const env = { POSTERN_VAULT_FS_PREFIX: root, POSTERN_VAULT_START: 'degraded' }
  const keyed = { ...env, POSTERN_FINGERPRINT_KEY: '{vault://fs/fingerprint-key}' }
  const rowOf = (rows: { reference: string; fingerprint?: string }[], reference: string) =>
    rows.find(row => row.reference === reference)
  {
    await using gateway = await startGateway(config, { env })
    t.notMatch((await gateway.status('/vaults')).body, 'fingerprint')
  }
  await using gateway = await startGateway(config, { env: keyed })
  const { body, json } = await gateway.status('/vaults')
  t.notMatch(body, /value-of-secret-one|a-key-of-fingerprints/)
  const { references } = json()
  const { stdout } = await postern(['check', '--resolve', '--json', path('postern.json')], keyed)
  const row = rowOf(JSON.parse(stdout).references, '{vault://fs/one}')!
  t.match(row.fingerprint, /^[0-9a-f]{8}$/)
  t.equal(rowOf(references, '{vault://fs/one}')!.fingerprint, row.fingerprint)
  t.equal(rowOf(references, '{vault://fs/none}')!.fingerprint, undefined)
  await put('one', 'another-value-of-one')
  await gateway.gateway.refresh()
  const after = (await gateway.status('/vaults')).json().references
  t.not(rowOf(after, '{vault://fs/one}')!.fingerprint, row.fingerprint)
  await put('fingerprint-key', 'another-key-of-fingerprints')
  await gateway.gateway.refresh()
  const rekeyed = (await gateway.status('/vaults')).json().references
  t.not(
    rowOf(rekeyed, '{vault://fs/one}')!.fingerprint,
    rowOf(after, '{vault://fs/one}')!.fingerprint
  )
})
