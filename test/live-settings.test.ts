import { X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import { mkdtemp, rename, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import tls from 'node:tls'
import t, { type Test } from 'tap'
import { certificateFor } from './certificates.ts'
import { startGateway, startUpstream, until } from './harness.ts'
import { startProcess } from './process.ts'
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
  await gateway.gateway.refresh()
  t.equal(await served(url), 'DNS:second.example')
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
  await gateway.gateway.refresh()
  t.equal(await served(url), 'DNS:third.example')
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
  await gateway.gateway.refresh()
  const accepted = async (options: tls.ConnectionOptions) =>
    (await ask(await connect(url, options))).startsWith('HTTP/1.1 200')
  for (let i = 0; i < 4; i++) {
    t.notOk(await accepted(former), 'who is no authority any more')
    t.notOk(await accepted({ ...former, ...(session && { session }) }), 'nor with its session')
    t.ok(await accepted(latter))
  }
})

await t.test('a degraded start goes without secrets of settings', async t => {
  await using vault = await startTestVault()
  await vault.fault('unavailable')
  const env = {
    ...LISTEN,
    POSTERN_VAULT_BACKENDS: join(import.meta.dirname, 'vault/fault-backend.ts'),
    POSTERN_VAULT_HTTP_URL: vault.url,
    POSTERN_SSL_CERT: '{vault://http/pair/cert}',
    POSTERN_SSL_CERT_KEY: '{vault://http/pair/key}',
    POSTERN_SESSION_REDIS_URL: 'redis://:{vault://http/word}@127.0.0.1:1',
    POSTERN_WEBHOOK_SECRET: '{vault://http/hook}'
  }
  const problems = (start: Promise<unknown>): Promise<number> =>
    start.then(
      () => 0,
      error => error.problems.length
    )
  t.equal(await problems(startGateway(CONFIG, { env })), 4, 'a strict start does not')
  const degraded = { ...env, POSTERN_VAULT_START: 'degraded' }
  const authority = { POSTERN_SSL_CLIENT_CERTIFICATE: '{vault://http/authority}' }
  const indispensable = startGateway(CONFIG, { env: { ...degraded, ...authority } })
  t.equal(await problems(indispensable), 5, 'nor one without authorities')

  await using gateway = await startGateway(CONFIG, { env: degraded })
  t.equal((await gateway.fetch('/')).status, 200)
  const ready = await gateway.status('/status/ready')
  t.equal(ready.status, 503)
  for (const lacking of ['pair/cert', 'pair/key', 'word', 'hook'])
    t.match(ready.body, `{vault://http/${lacking}} has no value`)
  const hook = (): Promise<Response> =>
    fetch(`${gateway.statusUrl}/vaults/webhooks/generic`, {
      method: 'POST',
      body: '{}',
      headers: { 'webhook-id': '1', 'webhook-timestamp': '1', 'webhook-signature': 'v1,x' }
    })
  t.equal((await hook()).status, 503)
  await t.rejects(connect(gateway.tlsUrl!), 'no other certificate stands in')
  vault.put('pair', { cert: 'no certificate', key: 'no key' })
  vault.put('word', 'a-word-of-redis')
  vault.put('hook', 'a-secret-of-the-webhook')
  await vault.fault(undefined)
  await until(
    async () =>
      /pair\/cert} has no value \(invalid: /.test((await gateway.status('/status/ready')).body),
    'what came is told to be unfit'
  )
  vault.put('pair', await certificateFor('late.example'))
  await until(async () => (await gateway.status('/status/ready')).status === 200, 'it heals itself')
  t.equal(await served(gateway.tlsUrl!), 'DNS:late.example')
  t.equal((await hook()).status, 401)
})
