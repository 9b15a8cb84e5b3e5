import type { ChildProcess } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { cpus, totalmem } from 'node:os'
import { join } from 'node:path'
import {
  answering,
  ask,
  closeLab,
  cpuSeconds,
  file,
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
import { conclude, type Outcome, outcome, writeReport } from './targets.ts'

// Compares the gateway with its peers, side by side in one run: each proxy in turn on the same core,
// the same upstream (nginx) and load (wrk) on another, rounds alternating, medians of the rounds.
// Ratios count; absolute figures belong to the machine. `npm run bench -- small-64 tls-64` measures
// only those scenarios. A proxy that cannot be measured in one is named and left out of it.

const ROUNDS = Number(process.env.BENCH_ROUNDS ?? 5)
const SECONDS = Number(process.env.BENCH_SECONDS ?? 2)
/** Seconds of load before the first round; all proxies of a scenario run then until its last. */
const WARM_UP = Number(process.env.BENCH_WARM_UP ?? 4)
/** The same of a proxy that is compiled already. */
const NATIVE_WARM_UP = Math.min(1, WARM_UP)
const BASE = '@fastify/http-proxy'
const BARE = 'postern'
const PLUGINS = 'postern, 4 plugins'

interface Scenario {
  readonly name: string
  readonly what: string
  readonly path: string
  readonly connections: number
  readonly tls?: true
  readonly headers?: readonly string[]
  readonly script?: string
  /** Only these proxies. */
  readonly only?: readonly string[]
  /** Whether clients throw cookies away, so that every request begins a session. */
  readonly forgetful?: true
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
  },
  {
    name: 'sessions-64',
    what: '100 bytes, 64 connections, a new session each request',
    path: '/',
    connections: 64,
    only: [PLUGINS, BASE],
    forgetful: true
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

/** A proxy that runs and is warm: its process, and how it is asked for so many seconds. */
interface Warm {
  readonly child: ChildProcess
  readonly ask: (seconds: number) => Promise<Measured>
}

/** Starts a proxy and loads it until its code is compiled and its memory has found its size. */
async function warmUp(peer: Peer, scenario: Scenario): Promise<Warm> {
  const { tls, path, connections, script, headers = [], forgetful } = scenario
  const child = start(PROXY_CORE, (tls ? withTls(peer) : peer).command, peer.env)
  const origin = tls ? `https://127.0.0.1:${peer.tlsPort}` : `http://127.0.0.1:${peer.port}`
  try {
    await answering(`${origin}/`)
    const askFor = async (seconds: number): Promise<Measured> => {
      // A client keeps its session: what an answer before the load set is sent with every request.
      const { cookies } = await ask(`${origin}/`)
      const cookie = cookies.map(each => each.split(';')[0]).join('; ')
      const kept = forgetful || cookie === '' ? [] : [`Cookie: ${cookie}`]
      return load({
        url: origin + path,
        connections,
        seconds,
        headers: ['apikey: bench-key-0', ...kept, ...headers],
        ...(script === undefined ? {} : { script })
      })
    }
    await askFor(warmUpOf(peer))
    return { child, ask: askFor }
  } catch (error) {
    await stop(child)
    throw error
  }
}

/** Seconds of load before the first round. */
function warmUpOf(peer: Peer): number {
  return peer.command[0] === process.execPath ? WARM_UP : NATIVE_WARM_UP
}

async function measure({ child, ask }: Warm): Promise<Round> {
  const before = cpuSeconds(child)
  const measured = await ask(SECONDS)
  if (child.exitCode !== null || child.signalCode !== null) throw new Error('it ended under load')
  if (measured.requests === 0) throw new Error('no request was answered')
  const cpu = ((cpuSeconds(child) - before) / measured.requests) * 1e6
  return { ...measured, cpu, memory: resident(child) }
}

/** Whether a proxy takes part in a scenario. */
function takesPart({ name, missing, tlsPort }: Peer, { only, tls }: Scenario): boolean {
  if (missing !== undefined || (tls && tlsPort === undefined)) return false
  return only === undefined || only.includes(name)
}

/** Measures one scenario: all proxies started and warmed up, then round by round each in turn. */
async function compare(scenario: Scenario, all: readonly Peer[]): Promise<readonly Row[]> {
  const warm = new Map<string, Warm>()
  const rounds = new Map<string, Round[]>()
  const leaveOut = async (name: string, { message }: Error): Promise<void> => {
    console.log(`left out of ${scenario.name}: ${name} (${message.split('\n')[0]})`)
    const child = warm.get(name)?.child
    warm.delete(name)
    rounds.delete(name)
    if (child !== undefined) await stop(child)
  }
  for (const peer of all) {
    if (!takesPart(peer, scenario)) continue
    try {
      warm.set(peer.name, await warmUp(peer, scenario))
      rounds.set(peer.name, [])
    } catch (error) {
      await leaveOut(peer.name, error as Error)
    }
  }
  for (let round = 0; round < ROUNDS; round++) {
    for (const [name, each] of [...warm]) {
      try {
        rounds.get(name)!.push(await measure(each))
      } catch (error) {
        await leaveOut(name, error as Error)
      }
    }
  }
  await Promise.all([...warm.values()].map(({ child }) => stop(child)))
  return rows(rounds)
}

function rows(rounds: ReadonlyMap<string, readonly Round[]>): readonly Row[] {
  const middle = (name: string, of: (round: Round) => number): number =>
    median(rounds.get(name)!.map(of))
  const base = rounds.has(BASE) ? middle(BASE, round => round.requestsPerSecond) : Number.NaN
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

/** The ratios to reach that were measured. */
function verdicts(results: Report['scenarios']): readonly Outcome[] {
  const found: Outcome[] = []
  const hold = (
    scenario: string,
    own: string,
    peer: string,
    atLeast: number,
    of: 'requestsPerSecond' | 'megabytesPerSecond' = 'requestsPerSecond'
  ): void => {
    const rowOf = (name: string) =>
      results[scenario]?.rows.find(({ proxy }) => proxy === name)?.[of]
    const [mine, other] = [rowOf(own), rowOf(peer)]
    if (mine === undefined || other === undefined) return
    const what = `${results[scenario]!.what}: ${own}, of ${peer}`
    found.push(outcome(what, { measured: mine / other, atLeast, unit: ' ×' }))
  }
  hold('small-64', BARE, BASE, 2)
  hold('small-64', BARE, 'Caddy', 1.3)
  hold('small-64', BARE, 'nginx', 0.45)
  hold('small-64', PLUGINS, BASE, 1.5)
  hold('1m-64', BARE, 'HAProxy', 0.8, 'megabytesPerSecond')
  return found
}

interface Report {
  readonly scenarios: Readonly<
    Record<string, { readonly what: string; readonly rows: readonly Row[] }>
  >
}

try {
  const all = peers()
  for (const { name, missing } of all) {
    if (missing !== undefined) console.log(`left out: ${name} (${missing})`)
  }
  const names = process.argv.slice(2)
  const unknown = names.filter(name => !scenarios.some(scenario => scenario.name === name))
  if (unknown.length > 0) throw new Error(`There is no scenario ${unknown.join(', ')}.`)
  const chosen = scenarios.filter(({ name }) => names.length === 0 || names.includes(name))
  const seconds = chosen
    .flatMap(scenario => all.filter(peer => takesPart(peer, scenario)))
    .reduce((sum, peer) => sum + warmUpOf(peer) + 1 + ROUNDS * (SECONDS + 0.2), 0)
  console.log(`${chosen.length} scenarios, about ${Math.ceil(seconds / 60)} minutes`)

  await startUpstream()
  start(OTHER_CORE, [
    process.execPath,
    join(import.meta.dirname, 'peers/collector.ts'),
    String(COLLECTOR_PORT)
  ])
  await answering(`http://127.0.0.1:${COLLECTOR_PORT}/`)
  const write = names.length === 0 || Boolean(process.env.BENCH_WRITE)
  const results: Record<string, { readonly what: string; readonly rows: readonly Row[] }> = {}
  for (const scenario of chosen) {
    results[scenario.name] = { what: scenario.what, rows: await compare(scenario, all) }
    console.log(table(scenario, results[scenario.name]!.rows))
    const report = {
      date: new Date().toISOString().slice(0, 10),
      machine: `${cpus().length} × ${cpus()[0]!.model}, ${Math.round(totalmem() / 2 ** 30)} GiB, Linux`,
      node: process.version,
      rounds: ROUNDS,
      seconds: SECONDS,
      warm_up: WARM_UP,
      scenarios: results
    }
    // Each time, so that a run that is stopped loses nothing.
    if (write) {
      writeReport(report)
      writeFileSync(join(root, 'docs/bench.svg'), picture(report))
    }
  }
  conclude('run', verdicts(results), write)
} finally {
  await closeLab()
}
