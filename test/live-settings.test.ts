import { X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import { mkdtemp, rename, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import tls from 'node:tls'
import t, { type Test } from 'tap'
import { certificateFor } from './certificates.ts'
import { startGateway, startUpstream, until } from './harness.ts'
import { Browser } from './plugins/session/browser.ts'
import { documentOf } from './plugins/session/serve.ts'
import { postern, startProcess } from './process.ts'
import { startRedis, withoutRedisServer } from './redis.ts'
import { startTestVault } from './vault/fault-backend.ts'

// Processes and threads start slowly on a busy machine.
t.setTimeout(120_000)

const LISTEN = { POSTERN_PROXY_LISTEN: '127.0.0.1:0, 127.0.0.1:0 ssl' }
const upstream = await startUpstream()
t.teardown(() => upstream.close())
const CONFIG = {
  services: [{ name: 'up', url: upstream.url, routes: [{ name: 'all', paths: ['/'] }] }]
}

/** A folder whose files are replaced atomically. */
async function folder(t: Test) {
  const root = await mkdtemp(join(tmpdir(), 'postern-settings-'))
  t.teardown(() => rm(root, { recursive: true }))
  return {
    root,
    path: (name: string): string => join(root, name),
    async put(name: string, value: string): Promise<void> {
      await writeFile(join(root, `.${name}`), value)
      await rename(join(root, `.${name}`), join(root, name))
    }
  }
}

async function connect(url: string, options: tls.ConnectionOptions = {}): Promise<tls.TLSSocket> {
  const port = Number(new URL(url).port)
  const socket = tls.connect({ host: '127.0.0.1', port, rejectUnauthorized: false, ...options })
  await once(socket, 'secureConnect')
  return socket
}

/** The names that handshakes of ten new connections are answered with: all threads get some. */
async function served(url: string): Promise<string> {
  const names = new Set<string | undefined>()
  for (let i = 0; i < 10; i++) {
    const socket = await connect(url)
    names.add(new X509Certificate(socket.getPeerCertificate().raw).subjectAltName)
    socket.destroy()
  }
  return [...names].join()
}

const ask = async (socket: tls.TLSSocket, path = '/'): Promise<string> => {
  socket.write(`GET ${path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n`)
  let answer = ''
  for await (const chunk of socket) answer += chunk
  return answer
}

await t.test('the default certificate follows its references, on every thread', async t => {
  const { root, put } = await folder(t)
  const [first, second, third] = await Promise.all([
    certificateFor('first.example'),
    certificateFor('second.example'),
    certificateFor('third.example')
  ])
  await put('cert', first.cert)
  await put('key', first.key)
  await using gateway = await startGateway(CONFIG, {
    workers: 2,
    env: {
      ...LISTEN,
      POSTERN_VAULT_FS_PREFIX: root,
      POSTERN_SSL_CERT: '{vault://fs/cert}',
      POSTERN_SSL_CERT_KEY: '{vault://fs/key}'
    }
  })
  const url = gateway.tlsUrl!
  t.equal(await served(url), 'DNS:first.example')
  const open = await connect(url)

  await put('cert', second.cert)
  t.equal(await gateway.gateway.refresh(), 0, 'a certificate waits for its key')
  t.equal(await served(url), 'DNS:first.example', 'nothing is mixed')
  const { references } = (await gateway.status('/vaults')).json()
  t.match(references, [
    { state: 'invalid', used: ['POSTERN_SSL_CERT'], last_error: /not the key of POSTERN_SSL_CERT/ },
    { state: 'ok', used: ['POSTERN_SSL_CERT_KEY'] }
  ])
  await put('key', second.key)
  await until(async () => (await served(url)) === 'DNS:second.example', 'the second pair')
  t.match(await ask(open, '/still'), /^HTTP\/1\.1 200[\s\S]*\/still/, 'what was open serves on')
  const { body } = await gateway.status('/metrics')
  const notAfter = Date.parse(new X509Certificate(second.cert).validTo) / 1000
  t.match(body, `{certificate="default",names=""} ${notAfter}`)

  await put('key', 'no key at all')
  t.equal(await gateway.gateway.refresh(), 0)
  t.equal(await served(url), 'DNS:second.example')
  // A configuration that changes meanwhile takes what is in force.
  await gateway.reload({ ...CONFIG, consumers: [{ username: 'anna' }] })
  t.equal(await served(url), 'DNS:second.example')
  const [worker] = gateway.gateway.workers
  await worker!.terminate()
  await until(() => gateway.gateway.workers.length === 2, 'another thread')
  t.equal(await served(url), 'DNS:second.example')

  await put('cert', third.cert)
  await put('key', third.key)
  await until(async () => (await served(url)) === 'DNS:third.example', 'the third pair')
})

await t.test('it follows its files, and what cannot follow is told', async t => {
  const { path, put } = await folder(t)
  const [first, second] = await Promise.all([
    certificateFor('first.example'),
    certificateFor('second.example')
  ])
  await put('tls.crt', first.cert)
  await put('tls.key', first.key)
  await put('postern.json', JSON.stringify({ _format_version: '3.0', ...CONFIG }))
  await using gateway = await startProcess(path('postern.json'), {
    POSTERN_PROXY_LISTEN: '127.0.0.1:0 ssl',
    POSTERN_SSL_CERT: path('tls.crt'),
    // The path itself may come from a vault.
    POSTERN_SSL_CERT_KEY: '{vault://env/live-key-path}',
    POSTERN_LOG_LEVEL: '{vault://env/live-level}',
    LIVE_KEY_PATH: path('tls.key'),
    LIVE_LEVEL: 'info'
  })
  const line = (pattern: RegExp) => gateway.lines().find(({ msg }) => pattern.test(msg))
  t.same(line(/read at start only/)?.settings, ['POSTERN_LOG_LEVEL'])
  t.equal(await served(gateway.url), 'DNS:first.example')
  await put('tls.crt', second.cert)
  const refused = await until(() => line(/not taken over/), 'the refusal')
  t.match(refused, { level: 'error', file: path('tls.crt'), code: 'POSTERN_SETTING_INVALID' })
  t.equal(await served(gateway.url), 'DNS:first.example', 'nothing is mixed')
  await put('tls.key', second.key)
  await until(async () => (await served(gateway.url)) === 'DNS:second.example', 'the second pair')
  t.match(line(/is in force/), { audit: 'certificate-changed', not_after: /^\d{4}-/ })
  t.notMatch(gateway.written().stdout, 'BEGIN')
})

await t.test('authorities of client certificates', async t => {
  const { root, put } = await folder(t)
  const [former, latter] = await Promise.all([
    certificateFor('former.example'),
    certificateFor('latter.example')
  ])
  await put('authorities', former.cert)
  await using gateway = await startGateway(CONFIG, {
    workers: 2,
    env: {
      ...LISTEN,
      POSTERN_VAULT_FS_PREFIX: root,
      POSTERN_SSL_VERIFY_CLIENT: 'on',
      POSTERN_SSL_CLIENT_CERTIFICATE: '{vault://fs/authorities}'
    }
  })
  const url = gateway.tlsUrl!
  let session: Buffer | undefined
  const known = await connect(url, former)
  known.on('session', ticket => {
    session = ticket
  })
  t.match(await ask(known), /^HTTP\/1\.1 200/)
  t.match(await ask(await connect(url, latter)), /^HTTP\/1\.1 400/)
  t.ok(session)
  await put('authorities', latter.cert)
  const accepted = async (options: tls.ConnectionOptions) =>
    (await ask(await connect(url, options))).startsWith('HTTP/1.1 200')
  await until(() => accepted(latter), 'the other authority')
  for (let i = 0; i < 4; i++) {
    t.notOk(await accepted(former), 'who is no authority any more')
    t.notOk(await accepted({ ...former, ...(session && { session }) }), 'nor with its session')
    t.ok(await accepted(latter))
  }
})

await t.test('the Redis of sessions', { skip: withoutRedisServer }, async t => {
  await using redis = await startRedis({ password: 'admin-word', users: { app: 'first-word' } })
  await using vault = await startTestVault()
  vault.put('redis', { password: 'first-word' })
  await using gateway = await startGateway(
    documentOf(upstream.url, { '/in': { storage: 'kong' } }),
    {
      workers: 2,
      env: {
        POSTERN_VAULT_BACKENDS: join(import.meta.dirname, 'vault/fault-backend.ts'),
        // Without a ttl nothing is read again by time.
        POSTERN_VAULT_HTTP_URL: vault.url,
        POSTERN_SESSION_REDIS_URL: `redis://app:{vault://http/redis/password}@${redis.host}:${redis.port}`
      }
    }
  )
  const browser = new Browser(gateway)
  await browser.logIn('annas-key', '/in')
  t.equal((await browser.fetch('/in')).status, 200)

  await t.test('a refusal has the vault asked again, and no session is lost', async t => {
    await redis.command('ACL', 'SETUSER', 'app', 'resetpass', '>second-word')
    vault.put('redis', { password: 'second-word' })
    const reads = vault.reads('redis')
    await redis.command('CLIENT', 'KILL', 'USER', 'app')
    await until(async () => (await browser.fetch('/in')).status === 200, 'the new password')
    t.equal(vault.reads('redis'), reads + 1)
  })

  await t.test('a rotation loses none either, whichever side is first', async t => {
    const failures: number[] = []
    let stop = false
    const load = async (): Promise<void> => {
      while (!stop) {
        const { status } = await browser.fetch('/in', { headers: { connection: 'close' } })
        if (status !== 200) failures.push(status)
      }
    }
    const clients = [load(), load()]
    vault.put('redis', { password: 'third-word' })
    t.equal(await gateway.gateway.refresh('http'), 1)
    t.equal((await browser.fetch('/in')).status, 200, 'Redis does not know it yet')
    await redis.command('ACL', 'SETUSER', 'app', '>third-word')
    await redis.command('ACL', 'SETUSER', 'app', '>fourth-word')
    vault.put('redis', { password: 'fourth-word' })
    t.equal(await gateway.gateway.refresh('http'), 1)
    t.equal((await browser.fetch('/in')).status, 200)
    stop = true
    await Promise.all(clients)
    t.same(failures, [])
  })

  await t.test('what is no address any more changes nothing', async t => {
    vault.put('redis', { password: '%zz' })
    t.equal(await gateway.gateway.refresh('http'), 0)
    t.equal((await browser.fetch('/in')).status, 200)
  })
})

await t.test('fingerprints in /vaults are those of check --resolve, and no values', async t => {
  const { root, path, put } = await folder(t)
  await put('fingerprint-key', 'a-key-of-fingerprints')
  await put('one', 'value-of-secret-one')
  const config = {
    ...CONFIG,
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
