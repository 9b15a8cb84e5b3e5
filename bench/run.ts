import type { ChildProcess } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { cpus, totalmem } from 'node:os'
import { join } from 'node:path'
import {
  answering,
  closeLab,
  cpuSeconds,
  file,
  type Load,
  load,
  type Measured,
  median,
  need,
  OTHER_CORE,
  PROXY_CORE,
  resident,
  root,
  start,
  startUpstream,
  stop
} from './lab.ts'
import { COLLECTOR_PORT, type Peer, peers, withTls } from './peers/index.ts'
import { picture } from './picture.ts'

// Compares the gateway with its peers, side by side in one run: each proxy in turn on the same core,
// the same upstream (nginx) and load (wrk) on another, rounds alternating, medians of the rounds.
// Ratios count; absolute figures belong to the machine. `npm run bench -- small-64 tls-64` measures
// only those scenarios.

const ROUNDS = Number(process.env.BENCH_ROUNDS ?? 5)
const SECONDS = Number(process.env.BENCH_SECONDS ?? 3)
/** Seconds of load before the first round; all proxies of a scenario run then until its last. */
const WARM_UP = Number(process.env.BENCH_WARM_UP ?? 5)
const BASE = '@fastify/http-proxy'

interface Scenario {
  readonly name: string
  readonly what: string
  readonly path: string
  readonly connections: number
  readonly tls?: true
  readonly headers?: readonly string[]
  readonly script?: string
}

const upload = file(
  'upload.lua',
  `wrk.method = "POST"; wrk.body = string.rep("x", 102400); wrk.path = "/upload"`
)
const close = ['Connection: close']
const scenarios: readonly Scenario[] = [
  { name: 'small-1', what: '100 bytes, 1 connection', path: '/', connections: 1 },
  { name: 'small-64', what: '100 bytes, 64 connections', path: '/', connections: 64 },
  { name: 'small-512', what: '100 bytes, 512 connections', path: '/', connections: 512 },
  {
    name: 'new-64',
    what: '100 bytes, a new connection each, 64 at a time',
    path: '/',
    connections: 64,
    headers: close
  },
  { name: '10k-64', what: '10 kB, 64 connections', path: '/10k', connections: 64 },
  { name: '1m-64', what: '1 MB, 64 connections', path: '/1m', connections: 64 },
  {
    name: 'upload-64',
    what: '100 kB upload, 64 connections',
    path: '/upload',
    connections: 64,
    script: upload
  },
  { name: 'tls-64', what: 'TLS, 100 bytes, 64 connections', path: '/', connections: 64, tls: true },
  {
    name: 'tls-new-64',
    what: 'TLS, a new connection each, 64 at a time',
    path: '/',
    connections: 64,
    tls: true,
    headers: close
  }
]

/** Medians of the rounds of one proxy in one scenario. */
export interface Row {
  readonly proxy: string
  readonly requestsPerSecond: number
  readonly megabytesPerSecond: number
  /** To stock @fastify/http-proxy in the same scenario. */
  readonly ratio: number
  readonly p50: number
  readonly p99: number
  /** Microseconds of processor time for each request. */
  readonly cpu: number
  /** MiB resident after the load. */
  readonly memory: number
  readonly failed: number
}

interface Round extends Measured {
  readonly cpu: number
  readonly memory: number
}

need('wrk', 'nginx', 'taskset')

async function sessionOf(url: string, tls: boolean): Promise<readonly string[]> {
  if (tls) return []
  const { headers } = await fetch(url, { headers: { apikey: 'bench-key-0' } })
  const cookie = headers.getSetCookie()[0]?.split(';')[0]
  return cookie === undefined ? [] : [`Cookie: ${cookie}`]
}

/** A proxy that runs and is warm: what it is asked, and its process. */
interface Warm {
  readonly child: ChildProcess
  readonly run: Omit<Load, 'seconds'>
}

/** Starts a proxy and loads it until its code is compiled and its memory has found its size. */
async function warmUp(peer: Peer, scenario: Scenario): Promise<Warm> {
  const { tls, path, connections, script, headers = [] } = scenario
  const child = start(PROXY_CORE, (tls ? await withTls(peer) : peer).command, peer.env)
  const origin = tls ? `https://127.0.0.1:${peer.tlsPort}` : `http://127.0.0.1:${peer.port}`
  try {
    await answering(`${origin}/`)
    // A client keeps its session: what the first answer set is sent with every request.
    const cookie = await sessionOf(`http://127.0.0.1:${peer.port}/`, tls === true)
    const run = {
      url: origin + path,
      connections,
      headers: ['apikey: bench-key-0', ...cookie, ...headers],
      ...(script === undefined ? {} : { script })
    }
    await load({ ...run, seconds: WARM_UP })
    return { child, run }
  } catch (error) {
    await stop(child)
    throw error
  }
}

async function measure({ child, run }: Warm): Promise<Round> {
  const before = cpuSeconds(child)
  const measured = await load({ ...run, seconds: SECONDS })
  const cpu = ((cpuSeconds(child) - before) / measured.requests) * 1e6
  return { ...measured, cpu, memory: resident(child) }
}

function rows(rounds: ReadonlyMap<string, readonly Round[]>): readonly Row[] {
  const middle = (name: string, of: (round: Round) => number): number =>
    median(rounds.get(name)!.map(of))
  const base = middle(BASE, round => round.requestsPerSecond)
  return [...rounds.keys()].map(proxy => ({
    proxy,
    requestsPerSecond: Math.round(middle(proxy, round => round.requestsPerSecond)),
    megabytesPerSecond: Math.round(middle(proxy, round => round.bytesPerSecond) / 1e6),
    ratio: Number((middle(proxy, round => round.requestsPerSecond) / base).toFixed(2)),
    p50: middle(proxy, round => round.p50),
    p99: middle(proxy, round => round.p99),
    cpu: Math.round(middle(proxy, round => round.cpu)),
    memory: Math.round(middle(proxy, round => round.memory)),
    failed: rounds.get(proxy)!.reduce((sum, round) => sum + round.failed, 0)
  }))
}

function table(scenario: Scenario, measured: readonly Row[]): string {
  const lines = measured.map(
    row =>
      `| ${row.proxy} | ${row.requestsPerSecond} | ${row.ratio.toFixed(2)} | ${row.megabytesPerSecond} | ${row.p50.toFixed(2)} | ${row.p99.toFixed(2)} | ${row.cpu} | ${row.memory} | ${row.failed} |`
  )
  return [
    `\n### ${scenario.what}\n`,
    `| proxy | requests/s | ratio to ${BASE} | MB/s | p50 ms | p99 ms | CPU µs/request | MiB | failed |`,
    '| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |',
    ...lines
  ].join('\n')
}

try {
  await startUpstream()
  start(OTHER_CORE, [
    process.execPath,
    join(import.meta.dirname, 'peers/collector.ts'),
    String(COLLECTOR_PORT)
  ])
  await answering(`http://127.0.0.1:${COLLECTOR_PORT}/`)
  const all = await peers()
  for (const { name, missing } of all) {
    if (missing !== undefined) console.log(`left out: ${name} (${missing})`)
  }
  const chosen = process.argv.slice(2)
  const results: Record<string, { readonly what: string; readonly rows: readonly Row[] }> = {}
  for (const scenario of scenarios) {
    if (chosen.length > 0 && !chosen.includes(scenario.name)) continue
    const warm = new Map<string, Warm>()
    for (const peer of all) {
      if (peer.missing !== undefined || (scenario.tls && peer.tlsPort === undefined)) continue
      try {
        warm.set(peer.name, await warmUp(peer, scenario))
      } catch (error) {
        console.log(`left out of ${scenario.name}: ${peer.name} (${(error as Error).message})`)
      }
    }
    const rounds = new Map<string, Round[]>([...warm.keys()].map(name => [name, []]))
    for (let round = 0; round < ROUNDS; round++) {
      for (const [name, each] of warm) rounds.get(name)!.push(await measure(each))
    }
    await Promise.all([...warm.values()].map(({ child }) => stop(child)))
    results[scenario.name] = { what: scenario.what, rows: rows(rounds) }
    console.log(table(scenario, results[scenario.name]!.rows))
  }
  const report = {
    date: new Date().toISOString().slice(0, 10),
    machine: `${cpus().length} × ${cpus()[0]!.model}, ${Math.round(totalmem() / 2 ** 30)} GiB, Linux`,
    node: process.version,
    rounds: ROUNDS,
    seconds: SECONDS,
    warm_up: WARM_UP,
    scenarios: results
  }
  if (chosen.length === 0 || process.env.BENCH_WRITE) {
    writeFileSync(join(root, 'docs/bench.json'), `${JSON.stringify(report, null, 2)}\n`)
    writeFileSync(join(root, 'docs/bench.svg'), picture(report))
  }
} finally {
  await closeLab()
}
