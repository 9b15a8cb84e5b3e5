import { type ChildProcess, execFile, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'

// Compares the gateway with peers side by side: one run, the same pinned core for each proxy in
// turn, the same upstream (nginx) and load (wrk) on another core, alternating rounds. Ratios of
// medians count; absolute figures depend on the machine.

const ROUNDS = Number(process.env.BENCH_ROUNDS ?? 5)
const SECONDS = Number(process.env.BENCH_SECONDS ?? 4)
const CONNECTIONS = Number(process.env.BENCH_CONNECTIONS ?? 64)
const SOAK_SECONDS = Number(process.env.BENCH_SOAK_SECONDS ?? 60)
const PROXY_CORE = '0'
const OTHER_CORE = '1'
const UPSTREAM_PORT = 19100

const directory = mkdtempSync(join(tmpdir(), 'postern-bench-'))
const run = promisify(execFile)
const has = (command: string): boolean => spawnSync('which', [command]).status === 0

interface Peer {
  readonly name: string
  readonly port: number
  readonly command: readonly string[]
  readonly env?: Record<string, string>
}

interface Measured {
  readonly requestsPerSecond: number
  readonly p50: number
  readonly p99: number
}

for (const tool of ['wrk', 'nginx', 'taskset']) {
  if (!has(tool)) {
    console.error(
      `The benchmark needs ${tool}; install it (Debian: apt-get install wrk nginx util-linux).`
    )
    process.exit(1)
  }
}

function nginxConfig(name: string, server: string): string {
  const path = join(directory, `${name}.conf`)
  writeFileSync(
    path,
    `daemon off; worker_processes 1; pid ${directory}/${name}.pid; error_log ${directory}/${name}.log;
events { worker_connections 4096; }
http { access_log off; keepalive_requests 1000000; client_body_temp_path ${directory}/${name}-body; proxy_temp_path ${directory}/${name}-proxy;
fastcgi_temp_path ${directory}/${name}-f; uwsgi_temp_path ${directory}/${name}-u; scgi_temp_path ${directory}/${name}-s;
${server} }`
  )
  return path
}

const body = 'x'.repeat(100)
const upstreamConfig = nginxConfig(
  'upstream',
  `server { listen 127.0.0.1:${UPSTREAM_PORT}; location / { return 200 "${body}"; } }`
)
const nginxPeer = nginxConfig(
  'peer',
  `upstream u { server 127.0.0.1:${UPSTREAM_PORT}; keepalive 128; keepalive_requests 1000000; }
server { listen 127.0.0.1:19203; location / { proxy_pass http://u; proxy_http_version 1.1; proxy_set_header Connection ""; } }`
)
const posternConfig = join(directory, 'postern.yaml')
writeFileSync(
  posternConfig,
  `_format_version: "3.0"
services: [{ name: u, url: "http://127.0.0.1:${UPSTREAM_PORT}", routes: [{ name: all, paths: [/] }] }]`
)

const posternEnv = {
  POSTERN_PROXY_LISTEN: '127.0.0.1:19201',
  POSTERN_STATUS_LISTEN: '127.0.0.1:19207',
  POSTERN_WORKERS: '1',
  POSTERN_LOG_LEVEL: 'error'
}
const node = process.execPath
const peers: Peer[] = [
  {
    name: 'postern',
    port: 19201,
    command: [node, 'src/cli.ts', 'start', '-c', posternConfig],
    env: posternEnv
  },
  {
    name: '@fastify/http-proxy',
    port: 19202,
    command: [node, 'bench/http-proxy.ts', '19202', `http://127.0.0.1:${UPSTREAM_PORT}`]
  },
  { name: 'nginx', port: 19203, command: ['nginx', '-c', nginxPeer, '-p', directory] }
]

function pinned(
  core: string,
  command: readonly string[],
  env: Record<string, string> = {}
): ChildProcess {
  return spawn('taskset', ['-c', core, ...command], {
    stdio: ['ignore', 'ignore', 'inherit'],
    env: { ...process.env, ...env }
  })
}

async function answering(port: number, since = performance.now()): Promise<number> {
  for (;;) {
    const answer = await fetch(`http://127.0.0.1:${port}/`).catch(() => undefined)
    if (answer?.status === 200) return performance.now() - since
    if (performance.now() - since > 15_000) throw new Error(`nothing answers on port ${port}`)
    await new Promise(resolve => setTimeout(resolve, 5))
  }
}

async function stopped(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  child.kill('SIGTERM')
  await once(child, 'exit')
}

const milliseconds = (text: string): number => {
  const value = Number.parseFloat(text)
  return text.endsWith('us') ? value / 1000 : text.endsWith('ms') ? value : value * 1000
}

async function load(port: number, seconds: number): Promise<Measured> {
  const { stdout } = await run('taskset', [
    '-c',
    OTHER_CORE,
    'wrk',
    '-t1',
    `-c${CONNECTIONS}`,
    `-d${seconds}s`,
    '--latency',
    `http://127.0.0.1:${port}/`
  ])
  const non2xx = /Non-2xx[^:]*: (\d+)/.exec(stdout)
  if (non2xx !== null) throw new Error(`${non2xx[1]} answers were not 2xx on port ${port}`)
  return {
    requestsPerSecond: Number(/Requests\/sec:\s+([\d.]+)/.exec(stdout)![1]),
    p50: milliseconds(/50%\s+(\S+)/.exec(stdout)![1]!),
    p99: milliseconds(/99%\s+(\S+)/.exec(stdout)![1]!)
  }
}

const median = (values: readonly number[]): number =>
  [...values].sort((a, b) => a - b)[values.length >> 1]!

/** Resident memory of a process in MiB. */
function resident(pid: number): number {
  return Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))![1]) / 1024
}

const upstream = pinned(OTHER_CORE, ['nginx', '-c', upstreamConfig, '-p', directory])
try {
  await answering(UPSTREAM_PORT)
  const results = new Map<string, Measured[]>(peers.map(({ name }) => [name, []]))
  for (let round = 1; round <= ROUNDS; round++) {
    for (const peer of peers) {
      const child = pinned(PROXY_CORE, peer.command, peer.env)
      await answering(peer.port)
      await load(peer.port, 1)
      results.get(peer.name)!.push(await load(peer.port, SECONDS))
      await stopped(child)
    }
    console.error(`round ${round} of ${ROUNDS}`)
  }
  const base = median(
    results.get('@fastify/http-proxy')!.map(({ requestsPerSecond }) => requestsPerSecond)
  )
  console.log(
    `\n${CONNECTIONS} connections, 100-byte responses, medians of ${ROUNDS} alternating rounds of ${SECONDS} s\n`
  )
  console.log(
    '| proxy | requests/s | ratio to @fastify/http-proxy | p50 ms | p99 ms |\n| --- | ---: | ---: | ---: | ---: |'
  )
  for (const [name, rounds] of results) {
    const rate = median(rounds.map(({ requestsPerSecond }) => requestsPerSecond))
    console.log(
      `| ${name} | ${Math.round(rate)} | ${(rate / base).toFixed(2)} | ${median(rounds.map(({ p50 }) => p50)).toFixed(2)} | ${median(rounds.map(({ p99 }) => p99)).toFixed(2)} |`
    )
  }

  const startedAt = performance.now()
  const gateway = spawn(node, ['src/cli.ts', 'start', '-c', posternConfig], {
    stdio: ['ignore', 'ignore', 'inherit'],
    env: { ...process.env, ...posternEnv }
  })
  const ready = await answering(19201, startedAt)
  await new Promise(resolve => setTimeout(resolve, 2000))
  const idle = resident(gateway.pid!)
  await load(19201, SOAK_SECONDS)
  const after = resident(gateway.pid!)
  console.log(
    `\nfirst request served ${Math.round(ready)} ms after start; resident ${Math.round(idle)} MiB idle, ${Math.round(after)} MiB after ${SOAK_SECONDS} s of load`
  )
  await stopped(gateway)
} finally {
  await stopped(upstream)
  rmSync(directory, { recursive: true, force: true })
}
