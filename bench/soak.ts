import { renameSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import {
  answering,
  closeLab,
  directory,
  file,
  load,
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
import { COLLECTOR_PORT, postern } from './peers/index.ts'

// Mixed load with a reload and a rotation every second: memory stays flat and nothing fails.

const MINUTES = Number(process.env.BENCH_SOAK_MINUTES ?? 10)

need('wrk', 'nginx', 'taskset')

const replace = (name: string, text: string): void => {
  writeFileSync(join(directory, `.${name}`), text)
  renameSync(join(directory, `.${name}`), join(directory, name))
}
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
  replace('token', 'token-0')
  const peer = postern('soak', portOf(301), config(0), { POSTERN_VAULT_FS_PREFIX: directory })
  const child = start(PROXY_CORE, peer.command, peer.env)
  const url = `http://127.0.0.1:${peer.port}/`
  await answering(url)
  let change = 0
  const changing = setInterval(() => {
    change++
    replace('token', `token-${change}`)
    writeFileSync(peer.command.at(-1)!, config(change))
  }, 1000)
  const minutes: number[] = []
  let failed = 0
  let requests = 0
  for (let minute = 0; minute < MINUTES; minute++) {
    const samples: number[] = []
    const sampling = setInterval(() => samples.push(resident(child)), 1000)
    const measured = await load({
      url,
      connections: 32,
      seconds: 60,
      script: mixed,
      headers: ['apikey: bench-key-0']
    })
    clearInterval(sampling)
    minutes.push(median(samples))
    failed += measured.failed
    requests += measured.requests
    console.log(
      `minute ${minute + 1}: ${Math.round(measured.requestsPerSecond)} /s, ${median(samples).toFixed(0)} MiB, p99 ${measured.p99.toFixed(1)} ms, ${measured.failed} failed`
    )
  }
  clearInterval(changing)
  const status = (await (
    await fetch(`http://127.0.0.1:${peer.port + 500}/status`)
  ).json()) as Record<string, unknown>
  console.log(
    `${requests} requests, ${failed} failed, ${change} reloads and rotations; memory of the last minute ${(minutes.at(-1)! / minutes[1]!).toFixed(3)} × that of the second`
  )
  console.log(`event loop delay: ${JSON.stringify(status.event_loop_delay ?? 'not told')}`)
  await stop(child)
} finally {
  await closeLab()
}
