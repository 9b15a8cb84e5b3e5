import { execFileSync } from 'node:child_process'
import {
  answering,
  closeLab,
  median,
  need,
  portOf,
  resident,
  root,
  start,
  startUpstream,
  stop,
  UPSTREAM_PORT
} from './lab.ts'
import { postern } from './peers/index.ts'
import { conclude, outcome } from './targets.ts'

// How soon a gateway with secrets from the environment answers, and what it holds while idle. Measures
// what `npm run build` has built.

const ROUNDS = Number(process.env.BENCH_ROUNDS ?? 5)

need('nginx', 'taskset')
try {
  await startUpstream()
  const peer = postern(
    'start',
    portOf(301),
    `_format_version: "3.0"
services: [{ name: a, url: "http://127.0.0.1:${UPSTREAM_PORT}", routes: [{ name: all, paths: [/] }] }]
consumers: [{ username: a, keyauth_credentials: [{ key: "{vault://env/bench-key}" }] }]
plugins: [{ name: key-auth }]
`,
    { BENCH_KEY: 'bench-key-0' }
  )
  const ready: number[] = []
  const idle: number[] = []
  for (let round = 0; round < ROUNDS; round++) {
    const began = performance.now()
    const child = start('0,1', peer.command, peer.env)
    ready.push(await answering(`http://127.0.0.1:${peer.port}/`, began))
    await new Promise(resolve => setTimeout(resolve, 5000))
    idle.push(resident(child))
    await stop(child)
  }
  const nothing: number[] = []
  for (let round = 0; round < ROUNDS; round++) {
    const began = performance.now()
    execFileSync(process.execPath, ['-e', ''], { cwd: root })
    nothing.push(performance.now() - began)
  }
  console.log(`node -e '' alone takes ${Math.round(median(nothing))} ms`)
  conclude('start', [
    outcome('first answer after the start, secrets from the environment', {
      measured: median(ready),
      atMost: 500,
      unit: ' ms',
      digits: 0
    }),
    outcome('resident while idle, one data-plane thread', {
      measured: median(idle),
      atMost: 110,
      unit: ' MiB',
      digits: 0
    })
  ])
} finally {
  await closeLab()
}
