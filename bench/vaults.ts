import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { cpSync, mkdirSync, readdirSync, realpathSync, symlinkSync } from 'node:fs'
import http from 'node:http'
import { join } from 'node:path'
import {
  answering,
  closeLab,
  cpuSeconds,
  directory,
  load,
  median,
  metric,
  need,
  OTHER_CORE,
  PROXY_CORE,
  portOf,
  replace,
  resident,
  root,
  start,
  startUpstream,
  stop,
  UPSTREAM_PORT
} from './lab.ts'
import { COLLECTOR_PORT, type Peer, postern } from './peers/index.ts'
import { conclude, outcome } from './targets.ts'

// What references cost: while they rotate, on the request path, at start and in memory, and what SDKs
// of vaults cost a gateway that uses none of them. Measures what `npm run build` has built.

const ROUNDS = Number(process.env.BENCH_ROUNDS ?? 5)
const SECONDS = Number(process.env.BENCH_SECONDS ?? 4)
/** Seconds of load before anything is measured: V8 compiles a rotation after some dozen of them. */
const WARM_UP = Number(process.env.BENCH_WARM_UP ?? 20)
const KEY = 'apikey: bench-key-0'

need('wrk', 'nginx', 'taskset')

const service = `{ name: bench, url: "http://127.0.0.1:${UPSTREAM_PORT}", routes: [{ name: all, paths: [/] }] }`

/** Key credentials, the first of them the one the load uses. */
function credentials(count: number, key: (index: number) => string): string {
  return JSON.stringify({
    _format_version: '3.0',
    services: [
      {
        name: 'bench',
        url: `http://127.0.0.1:${UPSTREAM_PORT}`,
        routes: [{ name: 'all', paths: ['/'] }]
      }
    ],
    plugins: [{ name: 'key-auth' }],
    consumers: [
      { username: 'bench', keyauth_credentials: [{ key: 'bench-key-0' }] },
      ...Array.from({ length: count }, (_, i) => ({
        username: `c${i}`,
        keyauth_credentials: [{ key: key(i) }]
      }))
    ]
  })
}

let version = 0
/** New values for all references of the folder. */
function rotate(): void {
  version++
  const keys = Array.from({ length: 1000 }, (_, i) => [`k${i}`, `key-${i}-${version}`])
  replace(join(directory, 'keys.json'), JSON.stringify(Object.fromEntries(keys)))
}

interface Contender {
  readonly peer: Peer
  /** What happens every second while it is measured. */
  readonly everySecond?: () => void
}

/**
 * The second contender's figures over those of the first: medians of rounds that alternate. One peer
 * may be both, so that no difference between two processes is taken for one of what happens to them.
 */
async function compare(contenders: readonly [Contender, Contender], connections: number) {
  const children = new Map<Peer, ChildProcess>()
  for (const { peer } of contenders) {
    if (!children.has(peer)) children.set(peer, start(PROXY_CORE, peer.command, peer.env))
    await answering(`http://127.0.0.1:${peer.port}/`)
  }
  const under = async ({ peer, everySecond }: Contender, seconds: number) => {
    const child = children.get(peer)!
    const timer = everySecond && setInterval(everySecond, 1000)
    const before = cpuSeconds(child)
    const url = `http://127.0.0.1:${peer.port}/`
    const measured = await load({ url, connections, seconds, headers: [KEY] })
    clearInterval(timer)
    if (measured.failed > 0) throw new Error(`${measured.failed} requests failed`)
    const cpu = (cpuSeconds(child) - before) / measured.requests
    return { rate: measured.requestsPerSecond, p99: measured.p99, cpu }
  }
  for (const contender of contenders) await under(contender, WARM_UP)
  const ratios = { rate: [] as number[], p99: [] as number[], cpu: [] as number[] }
  for (let round = 0; round < ROUNDS; round++) {
    const base = await under(contenders[0], SECONDS)
    const other = await under(contenders[1], SECONDS)
    for (const figure of ['rate', 'p99', 'cpu'] as const)
      ratios[figure].push(other[figure] / base[figure])
  }
  return {
    rate: median(ratios.rate),
    p99: median(ratios.p99),
    cpu: median(ratios.cpu),
    close: () => Promise.all(children.values().map(stop))
  }
}

/** SDKs that are loaded when a vault of their kind is configured. */
const SDKS = /^(node-vault|@aws-sdk|@azure|@google-cloud|google-auth-library)$/

/** A copy of the bundle that finds these of the packages only; gives its command line tool. */
function installation(name: string, keep: (name: string) => boolean): string {
  const folder = join(directory, name)
  const packages = realpathSync(join(root, 'node_modules'))
  mkdirSync(join(folder, 'node_modules'), { recursive: true })
  cpSync(join(root, 'dist'), join(folder, 'dist'), { recursive: true })
  cpSync(join(root, 'package.json'), join(folder, 'package.json'))
  for (const each of readdirSync(packages).filter(keep))
    symlinkSync(join(packages, each), join(folder, 'node_modules', each))
  return join(folder, 'dist/cli.js')
}

/** Start and memory of a gateway with secrets from the environment, with SDKs over without them. */
async function compareInstallations() {
  const peer = postern(
    'environment',
    portOf(307),
    credentials(1, () => '{vault://env/bench-key}'),
    { BENCH_KEY: 'another-bench-key' }
  )
  const own = join(root, 'dist/cli.js')
  const tools = [
    installation('without', name => !SDKS.test(name)),
    installation('with', () => true)
  ]
  const fastest = [Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY]
  const memory: number[][] = [[], []]
  for (let round = 0; round < 4 * ROUNDS; round++) {
    // Each goes first in turn.
    for (const index of round % 2 === 0 ? [0, 1] : [1, 0]) {
      const tool = tools[index]!
      const command = peer.command.map(word => (word === own ? tool : word))
      const began = performance.now()
      const child = start('0,1', command, peer.env)
      const ready = await answering(`http://127.0.0.1:${peer.port}/`, began)
      // Whatever else the machine does only adds to it.
      fastest[index] = Math.min(fastest[index]!, ready)
      if (round < ROUNDS) {
        await new Promise(resolve => setTimeout(resolve, 5000))
        memory[index]!.push(resident(child))
      }
      await stop(child)
    }
  }
  return {
    start: fastest[1]! / fastest[0]!,
    memory: median(memory[1]!) / median(memory[0]!)
  }
}

/** A KV v2 engine that answers each read after 20 ms: 100 secrets of 100 members. */
async function startSlowVault() {
  let reads = 0
  let firstAt = 0
  const server = http.createServer((request, response) => {
    if (firstAt === 0) firstAt = performance.now()
    const name = /\/data\/(\w+)/.exec(request.url ?? '')?.[1]
    if (name !== undefined) reads++
    const data = Object.fromEntries(
      Array.from({ length: 100 }, (_, i) => [`k${i}`, `value-${name}-${i}`])
    )
    const body = JSON.stringify({
      data: { data, metadata: { version: 1, created_time: '2026-01-01T00:00:00Z' } }
    })
    setTimeout(() => {
      response.setHeader('Content-Type', 'application/json')
      response.end(body)
    }, 20)
  })
  server.listen(portOf(130), '127.0.0.1')
  await once(server, 'listening')
  return {
    get reads() {
      return reads
    },
    get firstAt() {
      return firstAt
    },
    reset() {
      reads = 0
      firstAt = 0
    },
    close: () => server.close()
  }
}

try {
  await startUpstream()
  start(OTHER_CORE, [
    process.execPath,
    join(import.meta.dirname, 'peers/collector.ts'),
    String(COLLECTOR_PORT)
  ])

  rotate()
  const vaultOfFiles = { POSTERN_VAULT_FS_PREFIX: directory }
  const thousand = postern(
    'rotating',
    portOf(302),
    credentials(1000, i => `{vault://fs/keys.json/k${i}}`),
    vaultOfFiles
  )
  const rotating = await compare([{ peer: thousand }, { peer: thousand, everySecond: rotate }], 32)
  const changes = await metric(thousand, 'postern_vault_changes_total')
  if (changes < 1000 * ROUNDS * (SECONDS - 2)) throw new Error(`only ${changes} changes came`)
  await rotating.close()

  const headers = (value: (index: number) => string): string =>
    Array.from({ length: 100 }, (_, i) => `X-H${i}: "${value(i)}"`).join(', ')
  const logged = (name: string, port: number, value: (index: number) => string): Peer =>
    postern(
      name,
      port,
      `_format_version: "3.0"
services: [${service}]
plugins:
  - name: http-log
    config: { http_endpoint: "http://127.0.0.1:${COLLECTOR_PORT}/", headers: { ${headers(value)} }, queue: { max_batch_size: 1000 } }
`,
      vaultOfFiles
    )
  const referring = await compare(
    [
      { peer: logged('literals', portOf(303), i => `value-${i}`) },
      { peer: logged('references', portOf(304), i => `{vault://fs/keys.json/k${i}}`) }
    ],
    32
  )
  await referring.close()
  const vault = await startSlowVault()
  const vaultEnv = {
    POSTERN_VAULT_HCV_HOST: '127.0.0.1',
    POSTERN_VAULT_HCV_PORT: `${portOf(130)}`,
    POSTERN_VAULT_HCV_PROTOCOL: 'http',
    POSTERN_VAULT_HCV_MOUNT: 'secret',
    POSTERN_VAULT_HCV_KV: 'v2',
    POSTERN_VAULT_HCV_TOKEN: 'bench-token'
  }
  const times: number[] = []
  const reads: number[] = []
  const memory = { none: [] as number[], all: [] as number[] }
  for (let round = 0; round < 3; round++) {
    vault.reset()
    for (const [name, peer] of [
      [
        'none',
        postern(
          'plain',
          portOf(305),
          credentials(10_000, i => `literal-key-of-${i}`)
        )
      ],
      [
        'all',
        postern(
          'referring',
          portOf(306),
          credentials(10_000, i => `{vault://hcv/s${i % 100}/k${Math.floor(i / 100)}}`),
          vaultEnv
        )
      ]
    ] as const) {
      const child = start(PROXY_CORE, peer.command, peer.env)
      await answering(`http://127.0.0.1:${peer.port}/`)
      if (name === 'all') {
        times.push(performance.now() - vault.firstAt)
        reads.push(vault.reads)
      }
      await new Promise(resolve => setTimeout(resolve, 5000))
      memory[name].push(resident(child))
      await stop(child)
    }
  }
  vault.close()
  const environment = await compareInstallations()
  const ratio = (what: string, measured: number, bound: object) =>
    outcome(what, { measured, ...bound, unit: ' ×' })
  conclude('vaults', [
    ratio(
      'requests/s while 1,000 references rotate every second, over none rotating',
      rotating.rate,
      {
        atLeast: 0.97
      }
    ),
    ratio('p99 of the same', rotating.p99, { atMost: 1.3 }),
    ratio('CPU time per request of the same', rotating.cpu, { atMost: 1 / 0.97 }),
    ratio('requests/s with 100 references in the plugin chain, over literals', referring.rate, {
      atLeast: 0.97
    }),
    outcome(
      '10,000 references in 100 resources that take 20 ms: serving after the first read began',
      {
        measured: median(times),
        atMost: 2000,
        unit: ' ms',
        digits: 0
      }
    ),
    outcome('reads for them', { measured: median(reads), atMost: 100, digits: 0 }),
    outcome('resident memory for them, above 10,000 literals', {
      measured: median(memory.all) - median(memory.none),
      atMost: 40,
      unit: ' MiB',
      digits: 0
    }),
    ratio('start with env alone, SDKs of vaults installed over not', environment.start, {
      atMost: 1.05
    }),
    ratio('resident memory of the same', environment.memory, { atMost: 1.02 })
  ])
} finally {
  await closeLab()
}
