import { join } from 'node:path'
import {
  answering,
  closeLab,
  directory,
  file,
  load,
  median,
  metric,
  need,
  OTHER_CORE,
  PROXY_CORE,
  portOf,
  replace,
  resident,
  start,
  startUpstream,
  stop,
  UPSTREAM_PORT
} from './lab.ts'
import { COLLECTOR_PORT, postern } from './peers/index.ts'
import { conclude, outcome } from './targets.ts'

// Mixed load with a reload and a rotation every second: memory stays flat and nothing fails.

const MINUTES = Number(process.env.BENCH_SOAK_MINUTES ?? 10)
/** Of one such minute, for trying. */
const SECONDS = Number(process.env.BENCH_SOAK_SECONDS ?? 60)

need('wrk', 'nginx', 'taskset')

const token = join(directory, 'token')
const config = (version: number): string => `_format_version: "3.0"
services:
  - name: bench
    url: "http://127.0.0.1:${UPSTREAM_PORT}"
    tags: [v${version}]
    routes: [{ name: all, paths: [/] }]
consumers: [{ username: bench, keyauth_credentials: [{ key: bench-key-0 }] }]
plugins:
  - { name: key-auth }
  - { name: rate-limiting, config: { policy: local, minute: 1000000000 } }
  - name: http-log
    config: { http_endpoint: "http://127.0.0.1:${COLLECTOR_PORT}/", headers: { X-Token: "{vault://fs/token}" }, queue: { max_batch_size: 100 } }
`
const mixed = file(
  'mixed.lua',
  `local n = 0
request = function()
  n = n + 1
  if n % 50 == 0 then return wrk.format("GET", "/1m") end
  if n % 10 == 0 then return wrk.format("POST", "/upload", nil, string.rep("x", 20000)) end
  if n % 3 == 0 then return wrk.format("GET", "/10k") end
  return wrk.format("GET", "/")
end`
)

try {
  await startUpstream()
  start(OTHER_CORE, [
    process.execPath,
    join(import.meta.dirname, 'peers/collector.ts'),
    String(COLLECTOR_PORT)
  ])
  replace(token, 'token-0')
  const peer = postern('soak', portOf(301), config(0), { POSTERN_VAULT_FS_PREFIX: directory })
  const child = start(PROXY_CORE, peer.command, peer.env)
  const url = `http://127.0.0.1:${peer.port}/`
  await answering(url)
  let change = 0
  const changing = setInterval(() => {
    change++
    replace(token, `token-${change}`)
    replace(peer.command.at(-1)!, config(change))
  }, 1000)
  const memory: number[] = []
  const delays: number[] = []
  let failed = 0
  let requests = 0
  for (let minute = 0; minute < MINUTES; minute++) {
    const samples: number[] = []
    const sampling = setInterval(() => samples.push(resident(child)), 1000)
    const measured = await load({
      url,
      connections: 32,
      seconds: SECONDS,
      script: mixed,
      headers: ['apikey: bench-key-0']
    })
    clearInterval(sampling)
    const delay = await metric(peer, 'postern_event_loop_delay_seconds{thread="1",quantile="0.99"}')
    memory.push(median(samples))
    delays.push(delay * 1000)
    failed += measured.failed
    requests += measured.requests
    console.log(
      `minute ${minute + 1}: ${Math.round(measured.requestsPerSecond)} /s, ${median(samples).toFixed(0)} MiB, p99 ${measured.p99.toFixed(1)} ms, event loop ${(delay * 1000).toFixed(1)} ms late, ${measured.failed} failed`
    )
  }
  clearInterval(changing)
  const reloads = await metric(peer, 'postern_config_reloads_total{result="ok"}')
  const refused = await metric(peer, 'postern_config_reloads_total{result="refused"}')
  const rotations = await metric(peer, 'postern_vault_changes_total')
  console.log(
    `${requests} requests, ${change} changes: ${reloads} reloads, ${refused} refused, ${rotations} rotations`
  )
  conclude('soak', [
    outcome(`memory in minute ${MINUTES}, of that in minute 2`, {
      measured: memory.at(-1)! / memory[Math.min(1, MINUTES - 1)]!,
      atMost: 1.05,
      digits: 3
    }),
    outcome(`requests that failed, of ${requests}`, { measured: failed, atMost: 0, digits: 0 }),
    outcome('reloads and rotations, of one each second', {
      measured: Math.min(reloads, rotations) / change,
      atLeast: 0.9
    }),
    outcome('event loop delay, p99 of the worst minute', {
      measured: Math.max(...delays),
      atMost: 20,
      unit: ' ms',
      digits: 1
    })
  ])
  await stop(child)
} finally {
  await closeLab()
}
