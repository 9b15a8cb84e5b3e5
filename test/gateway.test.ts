import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import http from 'node:http'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import t, { type Test } from 'tap'
import { startGateway, startUpstream, until } from './harness.ts'
import { startProcess } from './process.ts'
import { raw, statuses } from './raw.ts'
import { startFaultServer } from './vault/fault-server.ts'

// Processes and threads start slowly on a busy machine.
t.setTimeout(300_000)

function configFile(
  test: Test,
  config: object
): { readonly path: string; write(config: object): void } {
  const directory = mkdtempSync(join(tmpdir(), 'postern-gateway-'))
  test.teardown(() => rmSync(directory, { recursive: true }))
  const path = join(directory, 'postern.json')
  const write = (next: object): void =>
    writeFileSync(path, JSON.stringify({ _format_version: '3.0', ...next }))
  write(config)
  return { path, write }
}

interface Status {
  readonly configuration: { readonly last_reload?: { readonly ok: boolean; readonly at: string } }
}

const proxied = (url: string, path = '/'): object => ({
  services: [{ name: 'echo', url, routes: [{ name: 'echo', paths: [path] }] }]
})

t.test('a changed file is served without being told', async t => {
  await using upstream = await startUpstream()
  await using gateway = await startGateway(proxied(upstream.url))
  t.equal((await gateway.fetch('/old')).status, 200)
  const next = { _format_version: '3.0', ...proxied(upstream.url, '/new') }
  writeFileSync(join(gateway.directory, 'postern.yaml'), JSON.stringify(next))
  await until(async () => (await gateway.fetch('/old')).status === 404, 'the new file')
  t.equal((await gateway.fetch('/new')).status, 200)
  t.match((await gateway.status('/status')).json(), {
    configuration: { loads: 2, last_reload: { ok: true } }
  })
})

t.test('a file that changes while the gateway starts is served in the end', async t => {
  await using upstream = await startUpstream()
  // The start waits for the vault, with the file read already.
  const { promise: answered, resolve: answer } = Promise.withResolvers<void>()
  const vault = await startFaultServer(async () => {
    await answered
    return { headers: { ETag: '1' }, body: { value: 'a-key-of-the-vault' } }
  })
  t.teardown(() => vault.close())
  const consumers = [{ username: 'anna', keyauth_credentials: [{ key: '{vault://http/key}' }] }]
  const { path, write } = configFile(t, { ...proxied(upstream.url, '/old'), consumers })
  const starting = startGateway('', {
    env: {
      POSTERN_CONFIG: path,
      POSTERN_VAULT_BACKENDS: join(import.meta.dirname, 'vault/fault-backend.ts'),
      POSTERN_VAULT_HTTP_URL: vault.url
    }
  })
  await until(() => vault.requests.length > 0, 'the vault to be asked')
  write({ ...proxied(upstream.url, '/new'), consumers })
  answer()
  await using gateway = await starting
  await until(async () => (await gateway.fetch('/new')).status === 200, 'the new file')
  t.equal((await gateway.fetch('/old')).status, 404)
})

t.test(
  'a bad file changes nothing, and says why; SIGHUP reloads, SIGUSR1 does nothing',
  async t => {
    await using upstream = await startUpstream()
    const { path, write } = configFile(t, proxied(upstream.url))
    await using gateway = await startProcess(path)
    const status = async () => (await (await fetch(`${gateway.statusUrl}/status`)).json()) as Status
    write({ ...proxied(upstream.url), servces: [] })
    await until(async () => (await status()).configuration.last_reload !== undefined, 'the reload')
    t.match((await status()).configuration, {
      loads: 1,
      last_reload: { ok: false, error: /servces.*unknown field.*Did you mean services/ }
    })
    t.equal((await fetch(gateway.url)).status, 200)
    t.equal((await fetch(`${gateway.statusUrl}/status/ready`)).status, 200)
    const line = gateway.lines().find(({ level }) => level === 'error')
    t.match(line, {
      code: 'POSTERN_CONFIG_INVALID',
      problems: [{ place: { path: 'servces' } }],
      msg: /the running one stays/
    })
    write(proxied(upstream.url))
    await until(async () => (await status()).configuration.last_reload?.ok, 'the file as it was')
    const { at } = (await status()).configuration.last_reload!
    gateway.child.kill('SIGHUP')
    await until(async () => (await status()).configuration.last_reload!.at !== at, 'a reload')
    gateway.child.kill('SIGUSR1')
    await until(() => gateway.lines().some(({ msg }) => /SIGUSR1/.test(msg)), 'the line about it')
    t.notMatch(gateway.written().stderr, /Debugger/)
    t.equal((await fetch(gateway.url)).status, 200)
  }
)

t.test('SIGTERM: unready first, then requests in flight end, then the process with 0', async t => {
  const held: http.ServerResponse[] = []
  await using upstream = await startUpstream((_received, response) => void held.push(response))
  const { path } = configFile(t, proxied(upstream.url))
  await using gateway = await startProcess(path, { POSTERN_SHUTDOWN_DELAY: '1' })
  const inFlight = fetch(gateway.url)
  await until(() => held.length === 1, 'the request at the upstream')
  const ended = gateway.end('SIGTERM')
  await until(
    async () => (await fetch(`${gateway.statusUrl}/status/ready`)).status === 503,
    'it to be unready'
  )
  t.match(await (await fetch(`${gateway.statusUrl}/status/ready`)).json(), {
    ready: false,
    reasons: ['the gateway is draining']
  })
  const { port } = new URL(gateway.url)
  await until(
    () =>
      new Promise(resolve => {
        const socket = net.connect(Number(port), '127.0.0.1')
        socket.once('connect', () => socket.destroy(void resolve(false)))
        socket.once('error', () => resolve(true))
      }),
    'the listener to close'
  )
  held[0]!.end('late but whole')
  const response = await inFlight
  t.equal(response.status, 200)
  t.equal(await response.text(), 'late but whole')
  t.match(await ended, { code: 0, stderr: '' })
})

t.test('a request that does not end holds the drain up no longer than its bound', async t => {
  const held: http.ServerResponse[] = []
  await using upstream = await startUpstream((_received, response) => void held.push(response))
  const { path } = configFile(t, proxied(upstream.url))
  await using gateway = await startProcess(path, { POSTERN_SHUTDOWN_TIMEOUT: '1' })
  const inFlight = fetch(gateway.url).catch(() => 'cut')
  await until(() => held.length === 1, 'the request at the upstream')
  t.match(await gateway.end('SIGINT'), { code: 0 })
  t.equal(await inFlight, 'cut')
})

t.test('a killed data-plane thread is replaced while the others serve', async t => {
  await using upstream = await startUpstream()
  await using gateway = await startGateway(proxied(upstream.url), { workers: 2 })
  const before = gateway.gateway.workers.map(({ threadId }) => threadId)
  t.equal(before.length, 2)
  await gateway.gateway.workers[0]!.terminate()
  t.match((await gateway.status('/status')).json(), { workers: { configured: 2, serving: 1 } })
  t.equal((await gateway.status('/status/ready')).status, 200)
  for (let i = 0; i < 20; i++) {
    t.equal(await fetch(gateway.url, { headers: { connection: 'close' } }).then(r => r.status), 200)
  }
  await until(
    async () => (await gateway.status('/status')).json().workers.serving === 2,
    'another thread to take over'
  )
  const after = gateway.gateway.workers.map(({ threadId }) => threadId)
  t.notOk(after.includes(before[0]!))
  await gateway.reload(proxied(upstream.url, '/new'))
  const answers = await Promise.all(
    Array.from({ length: 20 }, () =>
      fetch(`${gateway.url}/old`, { headers: { connection: 'close' } }).then(r => r.status)
    )
  )
  t.same(new Set(answers), new Set([404]), 'the new thread takes part in a reload')
})

t.test('a thread that cannot start is tried again', async t => {
  await using upstream = await startUpstream()
  const { path } = configFile(t, proxied(upstream.url))
  await using gateway = await startGateway('', {
    env: { POSTERN_CONFIG: path }
  })
  const taker = net.createServer()
  // Between the end of the thread and its replacement the port is free.
  const [worker] = gateway.gateway.workers
  worker!.once('exit', () => taker.listen(gateway.port, '127.0.0.1'))
  await worker!.terminate()
  if (!taker.listening) await once(taker, 'listening')
  t.match((await gateway.status('/status/ready')).json(), {
    ready: false,
    reasons: ['no configuration serves yet']
  })
  await until(() => gateway.gateway.workers.length === 1, 'an attempt')
  await new Promise(resolve => taker.close(resolve))
  await until(
    () =>
      fetch(gateway.url).then(
        ({ status }) => status === 200,
        () => false
      ),
    'a later attempt to succeed',
    30_000
  )
})

t.test('an error nobody caught is one line of the log, and exit code 1', async t => {
  await using upstream = await startUpstream()
  const { path } = configFile(t, proxied(upstream.url))
  const crash = join(mkdtempSync(join(tmpdir(), 'postern-crash-')), 'crash.mjs')
  writeFileSync(
    crash,
    "import { isMainThread } from 'node:worker_threads'\n" +
      "if (isMainThread) process.on('SIGUSR2', () => { throw new Error('nobody caught this') })"
  )
  await using gateway = await startProcess(path, {
    NODE_OPTIONS: `${process.env.NODE_OPTIONS ?? ''} --import=${crash}`
  })
  const { code, stdout, stderr } = await gateway.end('SIGUSR2')
  t.equal(code, 1)
  t.match(stdout, /"level":"fatal".*nobody caught this/)
  t.notMatch(stderr, /nobody caught this/)
})

t.test('the start tells each listener as people read it', async t => {
  await using upstream = await startUpstream()
  const { path } = configFile(t, proxied(upstream.url))
  const [plain, secure] = ['p', 's'].map(name => `unix:${join(dirname(path), name)}`)
  await using gateway = await startProcess(path, {
    POSTERN_PROXY_LISTEN: `127.0.0.1:0, 127.0.0.1:0 ssl, ${plain}, ${secure} ssl`
  })
  t.match(gateway.lines().find(({ msg }) => msg === 'serving').listen, [
    /^http:\/\/127\.0\.0\.1:\d+$/,
    /^https:\/\/127\.0\.0\.1:\d+$/,
    `${plain} (http)`,
    `${secure} (https)`
  ])
  const answer = await new Promise<http.IncomingMessage>((resolve, reject) =>
    http.get({ socketPath: plain!.slice('unix:'.length) }, resolve).on('error', reject)
  )
  t.equal(answer.resume().statusCode, 200)
})

t.test('refused connections are told, not once for each', async t => {
  await using upstream = await startUpstream()
  const { path } = configFile(t, proxied(upstream.url))
  await using gateway = await startProcess(path, { POSTERN_MAX_CONNECTIONS: '1' })
  const port = Number(new URL(gateway.url).port)
  const held = net.connect(port, '127.0.0.1')
  t.teardown(() => held.destroy())
  const GET = 'GET / HTTP/1.1\r\nHost: a\r\n\r\n'
  held.write(GET)
  await once(held, 'data')
  for (let i = 0; i < 3; i++) t.same(statuses(await raw(port, GET)), [503])
  const told = (): readonly object[] =>
    gateway.lines().filter(({ msg }) => msg.includes('POSTERN_MAX_CONNECTIONS'))
  await until(() => told().length > 0, 'the line')
  t.match(told(), [{ level: 'warn', listen: `127.0.0.1:${port}`, open: 1, refused: 1 }])
  t.equal(told().length, 1)
})
