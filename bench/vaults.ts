import { once } from 'node:events'
import { renameSync, writeFileSync } from 'node:fs'
import http from 'node:http'
import { join } from 'node:path'
import {
  answering,
  closeLab,
  cpuSeconds,
  directory,
  load,
  type Measured,
  median,
  need,
  OTHER_CORE,
  PROXY_CORE,
  portOf,
  resident,
  start,
  startUpstream,
  stop,
  UPSTREAM_PORT
} from './lab.ts'
import { COLLECTOR_PORT, type Peer, postern } from './peers/index.ts'

// What references cost: while they rotate, on the request path, at start and in memory. Measures what
// `npm run build` has built: npm run build && node bench/vaults.ts

const ROUNDS = Number(process.env.BENCH_ROUNDS ?? 5)
const SECONDS = Number(process.env.BENCH_SECONDS ?? 4)
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

function replaceKeys(version: number): void {
  const keys = Object.fromEntries(
    Array.from({ length: 1000 }, (_, i) => [`k${i}`, `key-${i}-${version}`])
  )
  writeFileSync(join(directory, '.keys.json'), JSON.stringify(keys))
  renameSync(join(directory, '.keys.json'), join(directory, 'keys.json'))
}

/** The same load on each peer in turn, rounds alternating. */
async function compare(
  contenders: readonly Peer[],
  connections: number
): Promise<readonly { readonly rate: number; readonly p99: number; readonly cpu: number }[]> {
  const rounds = contenders.map((): (Measured & { readonly cpu: number })[] => [])
  for (let round = 0; round < ROUNDS; round++) {
    for (const [index, peer] of contenders.entries()) {
      const child = start(PROXY_CORE, peer.command, peer.env)
      const url = `http://127.0.0.1:${peer.port}/`
      await answering(url)
      await load({ url, connections, seconds: 1, headers: [KEY] })
      const before = cpuSeconds(child)
      const measured = await load({ url, connections, seconds: SECONDS, headers: [KEY] })
      if (measured.failed > 0) throw new Error(`${measured.failed} requests failed`)
      const cpu = ((cpuSeconds(child) - before) / measured.requests) * 1e6
      rounds[index]!.push({ ...measured, cpu })
      await stop(child)
    }
  }
  return rounds.map(each => ({
    rate: median(each.map(({ requestsPerSecond }) => requestsPerSecond)),
    p99: median(each.map(({ p99 }) => p99)),
    cpu: median(each.map(({ cpu }) => cpu))
  }))
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

  replaceKeys(0)
  const still = postern(
    'still',
    portOf(301),
    credentials(1000, i => `literal-${i}`)
  )
  const rotating = postern(
    'rotating',
    portOf(302),
    credentials(1000, i => `{vault://fs/keys.json/k${i}}`),
    { POSTERN_VAULT_FS_PREFIX: directory }
  )
  let version = 0
  const rotation = setInterval(() => replaceKeys(++version), 1000)
  const [none, all] = await compare([still, rotating], 32)
  clearInterval(rotation)
  console.log(
    `1,000 references rotating every second: ${(all!.rate / none!.rate).toFixed(2)} × the throughput and ${(all!.p99 / none!.p99).toFixed(2)} × the p99 of 1,000 literals`
  )

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
      { POSTERN_VAULT_FS_PREFIX: directory }
    )
  const [literal, referring] = await compare(
    [
      logged('literals', portOf(303), i => `value-${i}`),
      logged('references', portOf(304), i => `{vault://fs/keys.json/k${i}}`)
    ],
    32
  )
  console.log(
    `100 references in the plugin chain: ${(referring!.rate / literal!.rate).toFixed(2)} × the throughput, ${(referring!.cpu / literal!.cpu).toFixed(2)} × the CPU time per request of 100 literals`
  )

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
  console.log(
    `10,000 references in 100 resources, 20 ms each: serving ${Math.round(median(times))} ms after the first byte asked for, ${median(reads)} reads; ` +
      `${(median(memory.all) - median(memory.none)).toFixed(0)} MiB above 10,000 literals`
  )
} finally {
  await closeLab()
}
