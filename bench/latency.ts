import {
  answering,
  closeLab,
  load,
  median,
  need,
  openLoop,
  PROXY_CORE,
  start,
  startUpstream,
  UPSTREAM_PORT
} from './lab.ts'
import { peers } from './peers/index.ts'
import { conclude, outcome } from './targets.ts'

// Latency while there is room to spare: requests at a constant rate, half of the most that was
// measured just before (bench/open-loop.ts). What the gateway's slowest one in a hundred is held
// against is the median of stock @fastify/http-proxy: at the same rate, at half of its own peak, and
// at its peak as wrk sees it. Beside it stand nginx as a proxy, and the upstream asked without any:
// what they have of a p99 is of the machine, the upstream and the load.

const ROUNDS = Number(process.env.BENCH_ROUNDS ?? 5)
const SECONDS = Number(process.env.BENCH_SECONDS ?? 4)
const WARM_UP = Number(process.env.BENCH_WARM_UP ?? 4)
const CONNECTIONS = 64

need('wrk', 'nginx', 'taskset')
console.log(`about ${Math.round(2 * WARM_UP + ROUNDS * (2 * SECONDS + 5 * (SECONDS + 2)))} seconds`)
try {
  await startUpstream()
  const contenders = ['postern', '@fastify/http-proxy', 'nginx'].map(
    name => peers().find(peer => peer.name === name)!
  )
  const urls: string[] = []
  for (const peer of contenders) {
    start(PROXY_CORE, peer.command, peer.env)
    const url = `http://127.0.0.1:${peer.port}/`
    await answering(url)
    await load({ url, connections: CONNECTIONS, seconds: WARM_UP })
    urls.push(url)
  }
  const [own, stock, nginx] = contenders.map(({ port }) => port)

  const peak = { own: [] as number[], stock: [] as number[], stockP50: [] as number[] }
  for (let round = 0; round < ROUNDS; round++) {
    const one = await load({ url: urls[0]!, connections: CONNECTIONS, seconds: SECONDS })
    const other = await load({ url: urls[1]!, connections: CONNECTIONS, seconds: SECONDS })
    peak.own.push(one.requestsPerSecond)
    peak.stock.push(other.requestsPerSecond)
    peak.stockP50.push(other.p50)
  }
  const half = { own: median(peak.own) / 2, stock: median(peak.stock) / 2 }
  console.log(`peaks: ${Math.round(2 * half.own)} /s and ${Math.round(2 * half.stock)} /s (stock)`)

  const p99: number[] = []
  const sameRate: number[] = []
  const ownHalf: number[] = []
  const yardsticks = { nginx: [] as number[], upstream: [] as number[] }
  let failed = 0
  for (let round = 0; round < ROUNDS; round++) {
    const gateway = await openLoop(own!, half.own, SECONDS)
    const same = await openLoop(stock!, half.own, SECONDS)
    const halfLoaded = await openLoop(stock!, half.stock, SECONDS)
    const beside = await openLoop(nginx!, half.own, SECONDS)
    const without = await openLoop(UPSTREAM_PORT, half.own, SECONDS)
    p99.push(gateway.p99)
    yardsticks.nginx.push(beside.p99)
    yardsticks.upstream.push(without.p99)
    sameRate.push(same.p50)
    ownHalf.push(halfLoaded.p50)
    failed += gateway.failed
    console.log(
      `round ${round + 1}: p50 ${gateway.p50.toFixed(2)} p99 ${gateway.p99.toFixed(2)} ms (load late by ${gateway.late99.toFixed(2)} at most in 99 %); ` +
        `stock at that rate p50 ${same.p50.toFixed(2)} p99 ${same.p99.toFixed(2)}, at its own half p50 ${halfLoaded.p50.toFixed(2)} p99 ${halfLoaded.p99.toFixed(2)}; ` +
        `nginx p99 ${beside.p99.toFixed(2)}; no proxy p99 ${without.p99.toFixed(2)}`
    )
  }
  console.log(
    `p99 at ${Math.round(half.own)} /s, medians: ${median(p99).toFixed(2)} ms, of nginx ${median(yardsticks.nginx).toFixed(2)}, of the upstream without a proxy ${median(yardsticks.upstream).toFixed(2)}`
  )
  if (failed > 0) throw new Error(`${failed} requests failed`)
  const against = (what: string, bound: number) =>
    outcome(`p99 at half of peak load, against stock's p50 ${what}`, {
      measured: median(p99),
      atMost: bound,
      unit: ' ms'
    })
  conclude('latency', [
    against(`at the same rate (${Math.round(half.own)}/s)`, median(sameRate)),
    against(`at half of its own peak (${Math.round(half.stock)}/s)`, median(ownHalf)),
    against('at its own peak', median(peak.stockP50))
  ])
} finally {
  await closeLab()
}
