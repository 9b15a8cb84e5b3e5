import {
  answering,
  closeLab,
  file,
  load,
  median,
  metric,
  need,
  openLoop,
  PROXY_CORE,
  portOf,
  replace,
  start,
  startUpstream,
  stop,
  UPSTREAM_PORT
} from './lab.ts'
import { type Peer, postern } from './peers/index.ts'
import { conclude, outcome } from './targets.ts'

// What the number of routes costs: throughput with 10,000 against one, the time to load them, and
// what a reload of them does to requests under way.

const ROUNDS = Number(process.env.BENCH_ROUNDS ?? 5)
const SECONDS = Number(process.env.BENCH_SECONDS ?? 3)
const WARM_UP = Number(process.env.BENCH_WARM_UP ?? 4)
const ROUTES = Number(process.env.BENCH_ROUTES ?? 10_000)
const CONNECTIONS = 64

need('wrk', 'nginx', 'taskset')

/**
 * Half prefixes, half hosts with a prefix, one in a hundred a pattern; or one route for everything. The
 * upstream gets the same requests: a prefix that is stripped would be one more field of them.
 */
function config(count: number, salt = ''): string {
  const routes = Array.from({ length: count }, (_, i) => {
    const common = { name: `r${i}`, strip_path: false }
    if (count === 1) return { ...common, paths: ['/'] }
    if (i % 100 === 99) return { ...common, paths: [`~/p${i}/(?<id>\\d+)$`] }
    return i % 2 === 0
      ? { ...common, paths: [`/r${i}/`] }
      : { ...common, hosts: [`h${i}.example`], paths: [`/r${i}/`] }
  })
  const services = [{ name: `bench${salt}`, url: `http://127.0.0.1:${UPSTREAM_PORT}`, routes }]
  return JSON.stringify({ _format_version: '3.0', services })
}

/** Asks for any of the routes, half of them by host. Whatever it meets gets the same requests. */
const script = file(
  'routes.lua',
  `request = function()
  local i = math.random(0, ${ROUTES - 1})
  if i % 100 == 99 then return wrk.format("GET", "/p" .. i .. "/42") end
  return wrk.format("GET", "/r" .. i .. "/", { Host = "h" .. i .. ".example" })
end`
)

const urlOf = (peer: Peer): string => `http://127.0.0.1:${peer.port}/r0/`

/** Starts a gateway on the measured core; gives it and the milliseconds to its first answer. */
async function serve(peer: Peer) {
  const began = performance.now()
  const child = start(PROXY_CORE, peer.command, peer.env)
  return { child, ready: await answering(urlOf(peer), began) }
}

/** Throughput of each, rounds alternating, both running and warm. */
async function throughput(peers: readonly Peer[]): Promise<readonly number[]> {
  const rates = peers.map((): number[] => [])
  for (const peer of peers) {
    await load({ url: urlOf(peer), connections: CONNECTIONS, seconds: WARM_UP, script })
  }
  for (let round = 0; round < ROUNDS; round++) {
    for (const [index, peer] of peers.entries()) {
      const url = urlOf(peer)
      const measured = await load({ url, connections: CONNECTIONS, seconds: SECONDS, script })
      if (measured.failed > 0) throw new Error(`${measured.failed} requests failed`)
      rates[index]!.push(measured.requestsPerSecond)
    }
  }
  return rates.map(median)
}

/** Writes all routes anew, each time under another service, as long as `load` runs; gives how often. */
async function rewriting(peer: Peer, load: Promise<unknown>): Promise<number> {
  const path = peer.command.at(-1)!
  const reloads = (): Promise<number> => metric(peer, 'postern_config_reloads_total{result="ok"}')
  let count = 0
  let over = false
  void load.finally(() => {
    over = true
  })
  while (!over) {
    const before = await reloads()
    replace(path, config(ROUTES, `-${count}`))
    while ((await reloads()) === before) await new Promise(resolve => setTimeout(resolve, 100))
    count++
  }
  return count
}

try {
  await startUpstream()
  const one = postern('one-route', portOf(301), config(1))
  const many = postern('many-routes', portOf(302), config(ROUTES))
  const single = await serve(one)
  const { child, ready } = await serve(many)
  const [alone, among] = await throughput([one, many])
  await stop(single.child)

  const seconds = ROUNDS * SECONDS
  // A quarter of the most: one core has to carry the reload as well.
  const rate = among! / 4
  const before = await openLoop(many.port, rate, seconds, '/r0/')
  const during = openLoop(many.port, rate, seconds, '/r0/')
  const [busy, reloads] = await Promise.all([during, rewriting(many, during)])
  console.log(
    `${alone!.toFixed(0)} /s with one route, ${among!.toFixed(0)} with ${ROUTES}; first answer after ${single.ready.toFixed(0)} and ${ready.toFixed(0)} ms; ` +
      `${reloads} reloads during ${rate.toFixed(0)} requests a second; p99 ${before.p99.toFixed(1)} ms before, ${busy.p99.toFixed(1)} meanwhile`
  )
  conclude('routes', [
    outcome(`throughput with ${ROUTES} routes, of that with one`, {
      measured: among! / alone!,
      atLeast: 0.95
    }),
    outcome(`loading ${ROUTES} routes: how much later than with one the first answer comes`, {
      measured: (ready - single.ready) / 1000,
      atMost: 2,
      unit: ' s'
    }),
    outcome(`requests that failed while they were reloaded ${reloads} times`, {
      measured: before.failed + busy.failed,
      atMost: 0,
      digits: 0
    }),
    outcome('p99 during the reloads, against twice that before', {
      measured: busy.p99,
      atMost: 2 * before.p99,
      unit: ' ms',
      digits: 1
    })
  ])
  await stop(child)
} finally {
  await closeLab()
}
