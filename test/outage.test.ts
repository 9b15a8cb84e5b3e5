import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import https from 'node:https'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { generate } from 'selfsigned'
import t, { type Test } from 'tap'
import type { Problem } from '../src/errors.ts'
import { certificateFor } from './certificates.ts'
import { startGateway, startUpstream, type TestUpstream, until } from './harness.ts'
import { posternProcess } from './process.ts'
import { startTestVault, type TestVault } from './vault/fault-backend.ts'

// Threads start slowly on a busy machine.
t.setTimeout(120_000)

const MODULE = join(import.meta.dirname, 'vault/fault-backend.ts')

const environment = (vault: TestVault, more: Record<string, string> = {}) => ({
  POSTERN_VAULT_BACKENDS: MODULE,
  POSTERN_VAULT_HTTP_URL: vault.url,
  POSTERN_VAULT_HTTP_TTL: '1',
  POSTERN_VAULT_ROTATION_INTERVAL: '1',
  ...more
})

const generated = await generate([{ name: 'commonName', value: 'authority.example' }], {
  keyType: 'ec',
  curve: 'P-256',
  algorithm: 'sha256',
  extensions: [
    { name: 'basicConstraints', cA: true },
    { name: 'subjectAltName', altNames: [{ type: 7, ip: '127.0.0.1' }] }
  ]
})
const server = { cert: generated.cert, key: generated.private }
const secure = https.createServer({ ...server }, (_, response) => response.end())
secure.listen(0, '127.0.0.1')
await once(secure, 'listening')
t.teardown(() => secure.close())
const secureUrl = `https://127.0.0.1:${(secure.address() as AddressInfo).port}`

/** One route without secrets, and one for each kind of thing that needs one. */
const configuration = (upstream: TestUpstream) => ({
  services: [
    { name: 'open', url: upstream.url, routes: [{ name: 'open', paths: ['/open'] }] },
    {
      name: 'keyed',
      url: upstream.url,
      routes: [{ name: 'keyed', paths: ['/keyed'] }],
      plugins: [{ name: 'key-auth' }]
    },
    {
      name: 'logged',
      url: upstream.url,
      routes: [{ name: 'logged', paths: ['/logged'] }],
      plugins: [
        { name: 'http-log', config: { http_endpoint: `${upstream.url}/{vault://http/path}` } }
      ]
    },
    {
      name: 'client',
      url: secureUrl,
      tls_verify: false,
      client_certificate: { id: 'd5a3d3a8-63b4-4f3f-8a55-8a1e1a5a3c01' },
      routes: [{ name: 'client', paths: ['/client'] }]
    },
    {
      name: 'trusting',
      url: secureUrl,
      tls_verify: true,
      ca_certificates: ['d5a3d3a8-63b4-4f3f-8a55-8a1e1a5a3c02'],
      routes: [{ name: 'trusting', paths: ['/trusting'] }]
    }
  ],
  certificates: [
    {
      id: 'd5a3d3a8-63b4-4f3f-8a55-8a1e1a5a3c01',
      cert: '{vault://http/pair/cert}',
      key: '{vault://http/pair/key}'
    }
  ],
  ca_certificates: [
    { id: 'd5a3d3a8-63b4-4f3f-8a55-8a1e1a5a3c02', cert: '{vault://http/authority}' }
  ],
  consumers: [{ username: 'anna', keyauth_credentials: [{ key: '{vault://http/key}' }] }]
})

async function store(vault: TestVault): Promise<void> {
  const pair = await certificateFor('client.example')
  vault.put('pair', pair)
  vault.put('authority', server.cert)
  vault.put('path', 'records')
  vault.put('key', 'annas-key')
}

async function rejection(start: Promise<unknown>): Promise<{ code?: string; problems: Problem[] }> {
  try {
    await start
  } catch (error) {
    return error as { code?: string; problems: Problem[] }
  }
  throw new Error('it started')
}

/** What each key of a file of last known good values has of its own. */
function saltOf(text: string): string {
  return JSON.parse(text.split('\n')[0]!).salt
}

async function temporaryFile(t: Test): Promise<string> {
  return join(await temporaryFolder(t), 'known-good')
}

async function temporaryFolder(t: Test): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'postern-outage-'))
  t.teardown(() => rm(folder, { recursive: true }))
  return folder
}

await t.test('a strict start tells every reference, its place and why', async t => {
  await using upstream = await startUpstream()
  await using vault = await startTestVault()
  await store(vault)
  vault.secrets.delete('key')
  vault.secrets.delete('path')
  const config = configuration(upstream)
  const absent = await rejection(startGateway(config, { env: environment(vault) }))
  t.match(
    absent.problems.map(({ code, reference, place }) => [code, reference, place.path]).sort(),
    [
      ['POSTERN_VAULT_ABSENT', '{vault://http/key}', 'consumers[0].keyauth_credentials[0].key'],
      ['POSTERN_VAULT_ABSENT', '{vault://http/path}', 'services[2].plugins[0].config.http_endpoint']
    ]
  )
  await vault.fault('refused')
  const { problems } = await rejection(startGateway(config, { env: environment(vault) }))
  t.equal(problems.length, 5)
  t.ok(problems.every(({ code, place }) => code === 'POSTERN_VAULT_UNREACHABLE' && place.line > 0))
})

await t.test('a process that cannot start ends with 1 and the whole list', async t => {
  await using vault = await startTestVault()
  await store(vault)
  await vault.fault('unavailable')
  vault.secrets.clear()
  const file = join(await temporaryFolder(t), 'postern.json')
  const config = { _format_version: '3.0', ...configuration({ url: vault.url } as TestUpstream) }
  await writeFile(file, JSON.stringify(config, null, 1))
  const { code, stderr, stdout } = await posternProcess(['start', file], {
    ...environment(vault),
    POSTERN_PROXY_LISTEN: '127.0.0.1:0',
    POSTERN_STATUS_LISTEN: 'off'
  })
  t.equal(code, 1)
  const lines = `${stdout}${stderr}`.split('\n')
  const authored = (await readFile(file, 'utf8')).split('\n')
  for (const reference of ['path', 'pair/cert', 'pair/key', 'authority', 'key']) {
    const text = `{vault://http/${reference}}`
    const told = lines.find(line => line.includes(file) && line.includes(text)) ?? ''
    const [, line] = /postern\.json:(\d+):\d+/.exec(told) ?? []
    t.match(authored[Number(line) - 1], text, `${text} is told with its place: ${told}`)
  }
})

await t.test('a reload during an outage keeps the configuration that runs', async t => {
  await using upstream = await startUpstream()
  await using vault = await startTestVault()
  await store(vault)
  const config = configuration(upstream)
  await using gateway = await startGateway(config, { env: environment(vault) })
  const status = async (path: string, apikey = '') =>
    (await gateway.fetch(path, { headers: { apikey } })).status
  const more = (...keys: string[]) => ({
    ...config,
    services: [
      ...config.services,
      { name: 'added', url: upstream.url, routes: [{ name: 'added', paths: ['/added'] }] }
    ],
    consumers: [
      ...config.consumers,
      { username: 'bert', keyauth_credentials: keys.map(key => ({ key })) }
    ]
  })
  vault.put('another', 'berts-key')
  await vault.fault('refused')
  const { problems } = await rejection(gateway.reload(more('{vault://http/another}')))
  t.match(problems, [
    { code: 'POSTERN_VAULT_UNREACHABLE', reference: '{vault://http/another}', place: {} }
  ])
  t.equal(await status('/added'), 404)
  t.equal(await status('/keyed', 'annas-key'), 200)
  t.equal(await status('/client'), 200)
  const { configuration: told } = (await gateway.status('/status')).json()
  t.match(told.last_reload, { ok: false, error: /another/ })
  t.equal((await gateway.status('/status/ready')).status, 200)
  const many = Array.from({ length: 200 }, (_, n) => `{vault://http/key-${n}}`)
  t.equal((await rejection(gateway.reload(more(...many)))).problems.length, 200)
  const { error } = (await gateway.status('/status')).json().configuration.last_reload
  t.match(error, /200 problems in the configuration, the first 10 .*key-9}/s)
  t.ok(error.length < 5000, 'an outage makes no line that collectors cut')
  await gateway.reload(more())
  t.equal(await status('/added'), 200, 'what needs nothing new from the vault is reloaded')
  await vault.fault(undefined)
  await gateway.reload(more('{vault://http/another}'))
  t.equal(await status('/keyed', 'berts-key'), 200)
})

await t.test('a degraded start fails closed where a secret lacks, and heals', async t => {
  await using upstream = await startUpstream()
  await using vault = await startTestVault()
  await vault.fault('unavailable')
  await using gateway = await startGateway(configuration(upstream), {
    env: environment(vault, { POSTERN_VAULT_START: 'degraded' })
  })
  const status = async (path: string, headers = {}) =>
    (await gateway.fetch(path, { headers })).status
  t.equal(await status('/open'), 200, 'what needs no secret is served')
  for (const path of ['/logged', '/client', '/trusting']) {
    const lacking = await gateway.fetch(path)
    t.equal(lacking.status, 503, path)
    t.match(lacking.body, 'POSTERN_SECRET_UNAVAILABLE', path)
  }
  t.equal(await status('/keyed'), 401)
  for (const apikey of ['', 'undefined', '[secret]', '{vault://http/key}'])
    t.equal(await status('/keyed', { apikey }), 401, `"${apikey}" is no key`)
  const ready = await gateway.status('/status/ready')
  t.equal(ready.status, 503)
  t.match(ready.json().reasons[0], /has no value \(unreachable/)
  t.equal(upstream.requests.length, 1, 'nothing else went upstream')
  await store(vault)
  await vault.fault(undefined)
  await until(async () => (await gateway.status('/status/ready')).status === 200, 'readiness')
  for (const path of ['/open', '/logged', '/client', '/trusting'])
    t.equal(await status(path), 200, path)
  t.equal(await status('/keyed', { apikey: 'annas-key' }), 200)
  t.equal(await status('/keyed', { apikey: '' }), 401)
})

await t.test('a value that does not fit is none in a degraded start', async t => {
  await using upstream = await startUpstream()
  await using vault = await startTestVault()
  await store(vault)
  vault.put('pair', { cert: 'no certificate', key: 'no key' })
  const config = configuration(upstream)
  const { problems } = await rejection(startGateway(config, { env: environment(vault) }))
  t.match(problems, [{ code: 'POSTERN_CONFIG_RESOLVED' }])
  await using gateway = await startGateway(config, {
    env: environment(vault, { POSTERN_VAULT_START: 'degraded' })
  })
  t.equal((await gateway.fetch('/client')).status, 503)
  t.equal((await gateway.fetch('/logged')).status, 200)
  await store(vault)
  await until(async () => (await gateway.fetch('/client')).status === 200, 'the pair in force')
})

/** The environment of a gateway that keeps the last known good values in `file`. */
const keeping = (vault: TestVault, file: string) =>
  environment(vault, {
    POSTERN_VAULT_CACHE_FILE: file,
    POSTERN_VAULT_CACHE_KEY: randomBytes(32).toString('base64')
  })

await t.test('a restart during an outage serves the last known good values', async t => {
  await using upstream = await startUpstream()
  await using vault = await startTestVault()
  await store(vault)
  const file = await temporaryFile(t)
  const env = keeping(vault, file)
  const config = configuration(upstream)
  await (await startGateway(config, { env })).close()
  t.notMatch(await readFile(file, 'utf8'), /annas-key|BEGIN/)
  await vault.fault('refused')
  const gateway = await startGateway(config, { env })
  const keyed = async (apikey: string) =>
    (await gateway.fetch('/keyed', { headers: { apikey } })).status
  t.equal(await keyed('annas-key'), 200)
  t.equal((await gateway.status('/status/ready')).status, 200)
  const references = (await gateway.status('/vaults')).json().references
  t.ok(
    references.every((each: object) => (each as { source?: string }).source === 'last-known-good')
  )
  vault.put('key', 'another-key')
  await vault.fault(undefined)
  await until(async () => (await keyed('another-key')) === 200, 'the vault to be believed again')
  await vault.fault('denied')
  await until(async () => {
    const { references } = (await gateway.status('/vaults')).json()
    return references.every((each: { last_error?: string }) => /403/.test(each.last_error ?? ''))
  }, 'the denials to be noticed')
  await gateway.close()
  await vault.fault('refused')
  const { problems } = await rejection(startGateway(config, { env }))
  t.equal(problems.length, 5, 'what was denied does not come back')
})

await t.test(
  'an older copy of the file does not bring back a secret that was taken away',
  async t => {
    await using upstream = await startUpstream()
    await using vault = await startTestVault()
    await store(vault)
    const file = await temporaryFile(t)
    const env = keeping(vault, file)
    const config = configuration(upstream)
    await (await startGateway(config, { env })).close()
    await cp(file, `${file}.old`)
    vault.put('key', 'annas-new-key')
    await (await startGateway(config, { env })).close()
    await vault.fault('refused')
    await (await startGateway(config, { env })).close()
    await cp(`${file}.old`, file)
    const { problems } = await rejection(startGateway(config, { env }))
    t.match(problems.at(-1), { code: 'POSTERN_VAULT_CACHE_REFUSED', message: /older copy/ })
    await vault.fault(undefined)
    await (await startGateway(config, { env })).close()
    await vault.fault('refused')
    await using gateway = await startGateway(config, { env })
    const keyed = async (apikey: string) =>
      (await gateway.fetch('/keyed', { headers: { apikey } })).status
    t.equal(await keyed('annas-new-key'), 200)
    t.equal(await keyed('annas-key'), 401)
  }
)

await t.test('the key of the file rotates live, in a vault or in its own file', async t => {
  await using upstream = await startUpstream()
  await using vault = await startTestVault()
  await store(vault)
  const folder = await temporaryFolder(t)
  const config = configuration(upstream)
  const keyFile = join(folder, 'key')
  for (const setting of [keyFile, '{vault://fs/key}']) {
    await vault.fault(undefined)
    const keys = [randomBytes(32).toString('base64'), randomBytes(32).toString('hex')]
    const file = join(folder, `known-${setting === keyFile}`)
    await writeFile(keyFile, keys[0]!)
    const env = environment(vault, {
      POSTERN_VAULT_FS_PREFIX: folder,
      POSTERN_VAULT_CACHE_FILE: file,
      POSTERN_VAULT_CACHE_KEY: setting
    })
    const gateway = await startGateway(config, { env })
    const text = async () => readFile(file, 'utf8').catch(() => '')
    const before = await until(text, 'the file')
    await writeFile(keyFile, 'no key at all')
    await writeFile(keyFile, keys[1]!)
    await until(async () => saltOf(await text()) !== saltOf(before), 'the new key')
    await gateway.close()
    await vault.fault('refused')
    await (await startGateway(config, { env })).close()
    const old = await rejection(
      startGateway(config, { env: { ...env, POSTERN_VAULT_CACHE_KEY: keys[0]! } })
    )
    t.match(old.problems.at(-1)?.message, /another POSTERN_VAULT_CACHE_KEY/)
  }
})

await t.test('a setting that a start was denied does not come back at the next one', async t => {
  await using upstream = await startUpstream()
  await using vault = await startTestVault()
  vault.put('fingerprint', 'a-key-for-fingerprints')
  const env = environment(vault, {
    POSTERN_VAULT_CACHE_FILE: await temporaryFile(t),
    POSTERN_VAULT_CACHE_KEY: randomBytes(32).toString('base64'),
    POSTERN_FINGERPRINT_KEY: '{vault://http/fingerprint}'
  })
  const config = {
    services: [{ name: 'open', url: upstream.url, routes: [{ name: 'open', paths: ['/open'] }] }]
  }
  await (await startGateway(config, { env })).close()
  await vault.fault('refused')
  await (await startGateway(config, { env })).close()
  await vault.fault('denied')
  // A process of its own has only until its end to write that down.
  const file = join(await temporaryFolder(t), 'postern.json')
  await writeFile(file, JSON.stringify({ _format_version: '3.0', ...config }))
  const ended = await posternProcess(['start', file], {
    ...env,
    POSTERN_PROXY_LISTEN: '127.0.0.1:0',
    POSTERN_STATUS_LISTEN: 'off'
  })
  t.match([ended.code, ended.stderr], [1, /POSTERN_VAULT_DENIED/])
  await vault.fault('refused')
  t.match((await rejection(startGateway(config, { env }))).problems, [
    { code: 'POSTERN_VAULT_UNREACHABLE' }
  ])
})

await t.test('a file of another key, or a damaged one, is told and not used', async t => {
  await using upstream = await startUpstream()
  await using vault = await startTestVault()
  await store(vault)
  const file = await temporaryFile(t)
  const key = randomBytes(32).toString('hex')
  const env = environment(vault, { POSTERN_VAULT_CACHE_FILE: file, POSTERN_VAULT_CACHE_KEY: key })
  const config = configuration(upstream)
  await (await startGateway(config, { env })).close()
  await vault.fault('refused')
  const other = { ...env, POSTERN_VAULT_CACHE_KEY: randomBytes(32).toString('hex') }
  const foreign = await rejection(startGateway(config, { env: other }))
  t.match(foreign.problems.at(-1), {
    code: 'POSTERN_VAULT_CACHE_REFUSED',
    message: /another POSTERN_VAULT_CACHE_KEY/
  })
  await writeFile(file, (await readFile(file, 'utf8')).slice(0, -20))
  const damaged = await rejection(startGateway(config, { env }))
  t.match(damaged.problems.at(-1), { code: 'POSTERN_VAULT_CACHE_REFUSED', message: /damaged/ })
  await vault.fault(undefined)
  const gateway = await startGateway(config, { env: other })
  await gateway.close()
  await vault.fault('refused')
  await (await startGateway(config, { env: other })).close()
  t.pass('it was written anew with the other key')
})
