import { writeFileSync } from 'node:fs'
import {
  answering,
  closeLab,
  file,
  load,
  median,
  need,
  PROXY_CORE,
  portOf,
  start,
  startUpstream,
  stop,
  UPSTREAM_PORT
} from './lab.ts'
import { postern } from './peers/index.ts'

// What the number of routes costs: throughput with 10,000 against one, the time to load them, and
// what a reload of them does to requests under way.

const ROUNDS = Number(process.env.BENCH_ROUNDS ?? 5)
const SECONDS = Number(process.env.BENCH_SECONDS ?? 3)
const ROUTES = 10_000

need('wrk', 'nginx', 'taskset')

/** Half prefixes, half hosts with a prefix, one in a hundred a pattern. */
function config(count: number, salt = ''): string {
  const routes = Array.from({ length: count }, (_, i) => {
    if (count === 1) return { name: 'r0', paths: ['/r0/'] }
    if (i % 100 === 99) return { name: `r${i}`, paths: [`~/p${i}/(?<id>\\d+)$`] }
    return i % 2 === 0
      ? { name: `r${i}`, paths: [`/r${i}/`] }
      : { name: `r${i}`, hosts: [`h${i}.example`], paths: [`/r${i}/`] }
  })
  const services = [{ name: `bench${salt}`, url: `http://127.0.0.1:${UPSTREAM_PORT}`, routes }]
  return JSON.stringify({ _format_version: '3.0', services })
}

/** Asks for a different route each time, half of them by host. */
const anyRoute = file(
  'routes.lua',
  `local n = 0
request = function()
  n = (n * 1103515245 + 12345) % 2147483648
  local i = n % ${ROUTES}
  if i % 100 == 99 then return wrk.format("GET", "/p" .. i .. "/42") end
  return wrk.format("GET", "/r" .. i .. "/", { Host = "h" .. i .. ".example" })
end`
)

try {
  await startUpstream()
  const one = postern('one-route', portOf(301), config(1))
  const many = postern('many-routes', portOf(302), config(ROUTES))
  const rates = { one: [] as number[], many: [] as number[] }
  for (let round = 0; round < ROUNDS; round++) {
    for (const [name, peer] of [
      ['one', one],
      ['many', many]
    ] as const) {
      const child = start(PROXY_CORE, peer.command, peer.env)
      const url = `http://127.0.0.1:${peer.port}/r0/`
      await answering(url)
      const script = name === 'many' ? { script: anyRoute } : {}
      await load({ url, connections: 64, seconds: 1, ...script })
      const { requestsPerSecond, failed } = await load({
        url,
        connections: 64,
        seconds: SECONDS,
        ...script
      })
      if (failed > 0) throw new Error(`${failed} requests failed`)
      rates[name].push(requestsPerSecond)
      await stop(child)
    }
  }
  console.log(
    `${ROUTES} routes: ${(median(rates.many) / median(rates.one)).toFixed(2)} × the throughput of one`
  )

  const file0 = many.command.at(-1)!
  const child = start(PROXY_CORE, many.command, many.env)
  const url = `http://127.0.0.1:${many.port}/r0/`
  const ready = await answering(url)
  const status = `http://127.0.0.1:${many.port + 500}`
  await load({ url, connections: 64, seconds: 2 })
  const quiet = await load({ url, connections: 16, seconds: SECONDS })
  let reloads = 0
  const times: number[] = []
  const during = load({ url, connections: 16, seconds: 3 * SECONDS })
  const end = performance.now() + 3 * SECONDS * 1000 - 500
  while (performance.now() < end) {
    writeFileSync(file0, config(ROUTES, `-${reloads}`))
    const began = performance.now()
    const answer = await fetch(`${status}/reload`, { method: 'POST' })
    if (answer.status !== 200) throw new Error(await answer.text())
    times.push(performance.now() - began)
    reloads++
    await new Promise(resolve => setTimeout(resolve, 500))
  }
  const busy = await during
  console.log(`start with ${ROUTES} routes: ${Math.round(ready)} ms to the first answer`)
  console.log(
    `${reloads} reloads of them under load: ${busy.failed} failed requests, ${Math.round(median(times))} ms each, p99 ${busy.p99.toFixed(1)} ms against ${quiet.p99.toFixed(1)} ms without`
  )
  await stop(child)
} finally {
  await closeLab()
}
