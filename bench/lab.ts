import { type ChildProcess, execFile, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import http from 'node:http'
import https from 'node:https'
import { connect, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { selfSigned } from '../src/proxy/self-signed.ts'
import type { OpenLoop } from './open-loop.ts'

/** The core each proxy is measured on, one after the other. */
export const PROXY_CORE = '0'
/** The core of the load and the upstream. */
export const OTHER_CORE = '1'

const PORTS = Number(process.env.BENCH_PORTS ?? 19_000)
/** A port of this run. BENCH_PORTS moves all of them. */
export const portOf = (offset: number): number => PORTS + offset
export const UPSTREAM_PORT = portOf(100)

/** Files of one run; removed by {@link closeLab}. */
export const directory = mkdtempSync(join(tmpdir(), 'postern-bench-'))
export const root = join(import.meta.dirname, '..')

const run = promisify(execFile)
const running = new Set<ChildProcess>()

export const has = (command: string): boolean => spawnSync('which', [command]).status === 0

/** Ends the process when a tool that nothing can be measured without is missing. */
export function need(...tools: readonly string[]): void {
  const missing = tools.filter(tool => !has(tool))
  if (missing.length === 0) return
  console.error(
    `The benchmark needs ${missing.join(', ')}. On Debian: apt-get install wrk nginx-light util-linux`
  )
  process.exit(1)
}

/** Writes a file of this run; gives its path. */
export function file(name: string, text: string): string {
  const path = join(directory, name)
  writeFileSync(path, text)
  return path
}

/** Replaces a file of this run at once, as tools that write configurations and secrets do. */
export function replace(path: string, text: string): void {
  writeFileSync(`${path}.new`, text)
  renameSync(`${path}.new`, path)
}

/** A sample of a gateway's metrics, by its name and labels as they stand there; the sum of several. */
export async function metric(gateway: { readonly port: number }, name: string): Promise<number> {
  const text = await (await fetch(`http://127.0.0.1:${gateway.port + 500}/metrics`)).text()
  const samples = text.split('\n').filter(line => line.startsWith(name))
  if (samples.length === 0) throw new Error(`The gateway tells nothing of ${name}.`)
  return samples.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(' '))), 0)
}

/** Starts a process on one core. Its errors are shown, its output is not. */
export function start(
  core: string,
  command: readonly string[],
  env: Readonly<Record<string, string>> = {}
): ChildProcess {
  const child = spawn('taskset', ['-c', core, ...command], {
    cwd: root,
    stdio: ['ignore', 'ignore', process.env.BENCH_DEBUG ? 'inherit' : 'ignore'],
    env: { ...process.env, ...env }
  })
  running.add(child)
  child.once('exit', () => running.delete(child))
  return child
}

export async function stop(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  const exited = once(child, 'exit')
  child.kill('SIGTERM')
  const forced = setTimeout(() => child.kill('SIGKILL'), 10_000)
  await exited
  clearTimeout(forced)
}

export async function closeLab(): Promise<void> {
  await Promise.all([...running].map(stop))
  rmSync(directory, { recursive: true, force: true })
}

/** Connects to a local port from one of fifty loopback addresses, so that ports suffice for thousands. */
export async function connectFrom(port: number, index: number): Promise<Socket> {
  const localAddress = `127.0.0.${2 + (index % 50)}`
  const socket = connect({ host: '127.0.0.1', port, localAddress })
  await once(socket, 'connect')
  return socket
}

/** Whether something listens on a local port. */
function connects(port: number): Promise<boolean> {
  return new Promise(resolve => {
    const socket = connect({ host: '127.0.0.1', port })
    socket.on('connect', () => resolve(true)).on('error', () => resolve(false))
    socket.on('connect', () => socket.destroy())
  })
}

const anyCertificate = new https.Agent({ rejectUnauthorized: false })

/** One GET with the key of the benchmarks; the status is 0 when there is no answer. */
export function ask(url: string): Promise<{ readonly status: number; readonly cookies: string[] }> {
  const headers = { apikey: 'bench-key-0' }
  return new Promise(resolve => {
    const answered = (response: http.IncomingMessage): void => {
      response.resume()
      resolve({ status: response.statusCode!, cookies: response.headers['set-cookie'] ?? [] })
    }
    const request = url.startsWith('https:')
      ? https.get(url, { agent: anyCertificate, headers }, answered)
      : http.get(url, { headers }, answered)
    request.on('error', () => resolve({ status: 0, cookies: [] }))
  })
}

/** Waits until `url` answers 200; gives how many milliseconds after `since` that was. */
export async function answering(url: string, since = performance.now()): Promise<number> {
  for (;;) {
    const { status } = await ask(url)
    if (status === 200) return performance.now() - since
    if (performance.now() - since > 20_000) throw new Error(`nothing answers at ${url}`)
    await new Promise(resolve => setTimeout(resolve, 5))
  }
}

/** A process and everything it started. */
function tree(pid: number): readonly number[] {
  const children: number[] = []
  for (const thread of readdirSync(`/proc/${pid}/task`)) {
    const text = readFileSync(`/proc/${pid}/task/${thread}/children`, 'utf8').trim()
    if (text !== '') children.push(...text.split(' ').map(Number))
  }
  return [pid, ...children.flatMap(tree)]
}

/** Resident memory of a process and its children, in MiB. */
export function resident(child: ChildProcess): number {
  return tree(child.pid!).reduce((sum, pid) => {
    const status = readFileSync(`/proc/${pid}/status`, 'utf8')
    return sum + Number(/VmRSS:\s+(\d+)/.exec(status)?.[1] ?? 0) / 1024
  }, 0)
}

/** Processor time of a process and its children, in seconds. */
export function cpuSeconds(child: ChildProcess): number {
  return tree(child.pid!).reduce((sum, pid) => {
    const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]!.split(' ')
    return sum + (Number(fields[11]) + Number(fields[12])) / 100
  }, 0)
}

/** One run of the load. */
export interface Load {
  readonly url: string
  readonly connections: number
  readonly seconds: number
  /** A Lua script of wrk. */
  readonly script?: string
  readonly headers?: readonly string[]
}

/** What the load saw. Latencies in milliseconds. */
export interface Measured {
  readonly requests: number
  readonly requestsPerSecond: number
  readonly bytesPerSecond: number
  readonly p50: number
  readonly p99: number
  readonly failed: number
}

const milliseconds = (text: string): number => {
  const value = Number.parseFloat(text)
  return text.endsWith('us') ? value / 1000 : text.endsWith('ms') ? value : value * 1000
}

const UNITS: Readonly<Record<string, number>> = { B: 1, KB: 1e3, MB: 1e6, GB: 1e9 }

/** Runs wrk on the other core. */
export async function load({
  url,
  connections,
  seconds,
  script,
  headers = []
}: Load): Promise<Measured> {
  const { stdout } = await run('taskset', [
    '-c',
    OTHER_CORE,
    'wrk',
    '-t1',
    `-c${connections}`,
    `-d${seconds}s`,
    '--timeout=10s',
    '--latency',
    ...(script === undefined ? [] : ['-s', script]),
    ...headers.flatMap(header => ['-H', header]),
    url
  ])
  const [, amount, unit] = /Transfer\/sec:\s+([\d.]+)(\wB|B)/.exec(stdout)!
  const socketErrors = /Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)/.exec(
    stdout
  )
  const errors = (socketErrors?.slice(1) ?? []).reduce((sum, text) => sum + Number(text), 0)
  return {
    requests: Number(/(\d+) requests in/.exec(stdout)![1]),
    requestsPerSecond: Number(/Requests\/sec:\s+([\d.]+)/.exec(stdout)![1]),
    bytesPerSecond: Number(amount) * UNITS[unit!]!,
    p50: milliseconds(/^ +50% +(\S+)/m.exec(stdout)![1]!),
    p99: milliseconds(/^ +99% +(\S+)/m.exec(stdout)![1]!),
    failed: Number(/Non-2xx[^:]*: (\d+)/.exec(stdout)?.[1] ?? 0) + errors
  }
}

/** Runs bench/open-loop.ts on the other core: `rate` requests a second, whatever the proxy does. */
export async function openLoop(
  port: number,
  rate: number,
  seconds: number,
  path = '/'
): Promise<OpenLoop> {
  const program = join(import.meta.dirname, 'open-loop.ts')
  const { stdout } = await run('taskset', [
    '-c',
    OTHER_CORE,
    process.execPath,
    program,
    `${port}`,
    `${rate}`,
    `${seconds}`,
    path
  ])
  return JSON.parse(stdout) as OpenLoop
}

export const median = (values: readonly number[]): number =>
  [...values].sort((a, b) => a - b)[values.length >> 1]!

/** An nginx configuration with everything it writes inside this run's folder. */
export function nginxConfig(name: string, http: string): readonly string[] {
  const path = file(
    `${name}.conf`,
    `daemon off; user root; worker_processes 1; pid ${directory}/${name}.pid; error_log ${directory}/${name}.log;
worker_rlimit_nofile 65536;
events { worker_connections 20000; }
http { access_log off; keepalive_requests 100000000; client_max_body_size 0;
client_body_temp_path ${directory}/${name}-b; proxy_temp_path ${directory}/${name}-p; fastcgi_temp_path ${directory}/${name}-f;
uwsgi_temp_path ${directory}/${name}-u; scgi_temp_path ${directory}/${name}-s; ${http} }`
  )
  return ['nginx', '-c', path, '-p', directory]
}

/**
 * Starts the upstream every proxy gets: `/` answers 100 bytes, `/10k` and `/1m` as many as they say,
 * `/upload` takes a body.
 */
export async function startUpstream(): Promise<ChildProcess> {
  if (await connects(UPSTREAM_PORT)) {
    throw new Error(
      `Something listens on port ${UPSTREAM_PORT} already: set BENCH_PORTS to another thousand.`
    )
  }
  file('10k', 'x'.repeat(10_240))
  file('1m', 'x'.repeat(1_048_576))
  const small = 'x'.repeat(100)
  const child = start(
    OTHER_CORE,
    nginxConfig(
      'upstream',
      `sendfile on; server { listen 127.0.0.1:${UPSTREAM_PORT}; root ${directory};
location = / { return 200 "${small}"; } location = /upload { return 200 "${small}"; } location = /10k {} location = /1m {}
location / { return 200 "${small}"; } }`
    )
  )
  await answering(`http://127.0.0.1:${UPSTREAM_PORT}/`)
  return child
}

let pair: { readonly cert: string; readonly key: string; readonly both: string } | undefined

/** A certificate and key of this run, as the paths of PEM files; `both` is one after the other. */
export function keyPair(): NonNullable<typeof pair> {
  if (pair === undefined) {
    const { cert, key } = selfSigned()
    pair = {
      cert: file('cert.pem', cert),
      key: file('key.pem', key),
      both: file('both.pem', cert + key)
    }
  }
  return pair
}
