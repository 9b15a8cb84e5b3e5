import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { accessSync, constants } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { delimiter, join } from 'node:path'
import { createClient } from '@redis/client'
import { certificateFor } from './certificates.ts'
import { until } from './harness.ts'
import { freePort } from './ports.ts'

const external = process.env.POSTERN_TEST_REDIS_URL
const executable = findExecutable('redis-server', 'valkey-server')
const mustRun = process.env.CI === 'true'

/**
 * Why tests that need Redis are skipped here, for `t.test(name, { skip: withoutRedis }, …)`; false
 * where there is one, and under CI=true, where its absence is a failure.
 */
export const withoutRedis: string | false =
  external !== undefined || executable !== undefined || mustRun
    ? false
    : 'needs Redis: set POSTERN_TEST_REDIS_URL or install redis-server'

/** The same for tests that need a server of their own: with options, or one that they stop. */
export const withoutRedisServer: string | false =
  executable !== undefined || mustRun ? false : 'needs redis-server or valkey-server on PATH'

/** Servers that run; none outlives this process. */
const running = new Set<ChildProcess>()
process.once('exit', () => {
  for (const server of running) server.kill('SIGKILL')
})

const missing = withoutRedis || withoutRedisServer
if (missing !== false) process.stderr.write(`Skipped: tests that need Redis (${missing})\n`)

export interface RedisOptions {
  /** Always a server of the test's own, also where POSTERN_TEST_REDIS_URL names one. */
  readonly own?: boolean
  /** Password of the default user. */
  readonly password?: string
  /** Further users that may do everything, with their passwords. */
  readonly users?: Readonly<Record<string, string>>
  /** Serve TLS only, with a certificate for `localhost` and `redis.test`. */
  readonly tls?: boolean
}

export interface TestRedis {
  readonly host: string
  readonly port: number
  /** With the password of the default user. */
  readonly url: string
  /** The certificate to trust, PEM; undefined without TLS. */
  readonly ca: string | undefined
  /** Runs one command as the default user: `command('ACL', 'SETUSER', …)`. */
  command(...words: string[]): Promise<unknown>
  /** Ends the server; nothing is kept. Only for servers of the test's own, like what follows. */
  stop(): Promise<void>
  /** Starts it again, empty, on the same port with the same options. */
  start(): Promise<void>
  /** Leaves connections open and answers nothing until {@link thaw}. */
  freeze(): void
  thaw(): void
  close(): Promise<void>
  [Symbol.asyncDispose](): Promise<void>
}

/**
 * The Redis of POSTERN_TEST_REDIS_URL when no option asks for more, else a server of the test's own
 * on a free port that keeps nothing on disk. Rejects when there is neither.
 */
export async function startRedis(options: RedisOptions = {}): Promise<TestRedis> {
  if (external !== undefined && Object.keys(options).length === 0) return connectTo(external)
  if (executable === undefined) throw new Error('Tests need redis-server or valkey-server on PATH')

  const directory = await mkdtemp(join(tmpdir(), 'postern-redis-'))
  const certificate = options.tls ? await certificateFor('localhost', 'redis.test') : undefined
  let port = await freePort()
  const words = await configurationOf(options, directory, certificate)
  let server: ChildProcess | undefined

  const scheme = options.tls ? 'rediss' : 'redis'
  const credentials = options.password === undefined ? '' : `:${options.password}@`
  const urlOf = (): string => `${scheme}://${credentials}127.0.0.1:${port}`
  const command = (...sent: string[]): Promise<unknown> => commandOn(urlOf(), sent)

  const launch = async (): Promise<boolean> => {
    const listen = options.tls
      ? ['--port', '0', '--tls-port', String(port)]
      : ['--port', String(port)]
    const child = spawn(executable, [...words, ...listen], { stdio: 'ignore' })
    running.add(child)
    child.once('close', () => running.delete(child))
    server = child
    return until(async () => {
      if (child.exitCode !== null) return 'ended'
      return (await command('PING').catch(() => undefined)) === 'PONG' ? 'ready' : undefined
    }, 'the Redis server to answer').then(state => state === 'ready')
  }
  const stop = async (): Promise<void> => {
    if (server === undefined || server.exitCode !== null || server.signalCode !== null) return
    const closed = once(server, 'close')
    server.kill('SIGKILL')
    await closed
  }
  const close = async (): Promise<void> => {
    await stop()
    await rm(directory, { recursive: true, force: true })
  }
  // Another process may take the free port before the server does.
  for (let attempt = 1; !(await launch()); attempt++) {
    if (attempt === 5) {
      await close()
      throw new Error(`${executable} does not start`)
    }
    port = await freePort()
  }
  return {
    host: '127.0.0.1',
    port,
    url: urlOf(),
    ca: certificate?.cert,
    command,
    stop,
    async start() {
      if (!(await launch())) throw new Error(`${executable} does not start again on ${port}`)
    },
    freeze: () => void server?.kill('SIGSTOP'),
    thaw: () => void server?.kill('SIGCONT'),
    close,
    [Symbol.asyncDispose]: close
  }
}

/** The `redis` block of a plugin that reaches this server as its default user. */
export function redisBlock({ host, port, url }: TestRedis): Record<string, unknown> {
  const { username, password } = new URL(url)
  return {
    host,
    port,
    ...(username === '' ? {} : { username: decodeURIComponent(username) }),
    ...(password === '' ? {} : { password: decodeURIComponent(password) })
  }
}

async function configurationOf(
  options: RedisOptions,
  directory: string,
  certificate: { readonly cert: string; readonly key: string } | undefined
): Promise<readonly string[]> {
  const words = ['--bind', '127.0.0.1', '--save', '', '--appendonly', 'no', '--dir', directory]
  if (options.password !== undefined) words.push('--requirepass', options.password)
  for (const [name, password] of Object.entries(options.users ?? {})) {
    words.push('--user', name, 'on', `>${password}`, '~*', '&*', '+@all')
  }
  if (certificate !== undefined) {
    const file = join(directory, 'server.pem')
    await writeFile(file, `${certificate.cert}\n${certificate.key}\n`, { mode: 0o600 })
    words.push('--tls-cert-file', file, '--tls-key-file', file)
    words.push('--tls-ca-cert-file', file, '--tls-auth-clients', 'no')
  }
  return words
}

/** The server of POSTERN_TEST_REDIS_URL, which a test shares with others and must not stop. */
function connectTo(url: string): TestRedis {
  const { hostname, port } = new URL(url)
  const refuse = (): never => {
    throw new Error('This test needs a Redis of its own: startRedis({ own: true })')
  }
  return {
    host: hostname,
    port: port === '' ? 6379 : Number(port),
    url,
    ca: undefined,
    command: (...words) => commandOn(url, words),
    stop: async () => refuse(),
    start: async () => refuse(),
    freeze: refuse,
    thaw: refuse,
    close: async () => {},
    [Symbol.asyncDispose]: async () => {}
  }
}

async function commandOn(url: string, words: readonly string[]): Promise<unknown> {
  const socket = { reconnectStrategy: false as const, connectTimeout: 5000 }
  const client = createClient({
    url,
    socket: url.startsWith('rediss:') ? { ...socket, tls: true, rejectUnauthorized: false } : socket
  })
  client.on('error', () => {})
  await client.connect()
  try {
    return await client.sendCommand(words)
  } finally {
    client.destroy()
  }
}

function findExecutable(...names: readonly string[]): string | undefined {
  for (const name of names) {
    for (const directory of (process.env.PATH ?? '').split(delimiter)) {
      const file = join(directory, name)
      try {
        accessSync(file, constants.X_OK)
        return file
      } catch {}
    }
  }
  return undefined
}
