import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import type net from 'node:net'
import { join } from 'node:path'
import {
  answering,
  closeLab,
  connectFrom,
  median,
  need,
  PROXY_CORE,
  portOf,
  resident,
  start,
  startUpstream,
  stop,
  UPSTREAM_PORT
} from './lab.ts'
import { postern } from './peers/index.ts'
import { conclude, outcome } from './targets.ts'

// What an idle keep-alive connection costs, over what it costs plain node:http.

const CONNECTIONS = Number(process.env.BENCH_IDLE_CONNECTIONS ?? 10_000)
const ROUNDS = Number(process.env.BENCH_ROUNDS ?? 3)

need('nginx', 'taskset')

/** Opens a connection from its own loopback address and has one request answered on it. */
async function open(port: number, index: number): Promise<net.Socket> {
  const socket = await connectFrom(port, index)
  socket.write('GET / HTTP/1.1\r\nHost: bench\r\n\r\n')
  await once(socket, 'data')
  return socket
}

/** KiB for each idle connection. */
async function cost(child: ChildProcess, port: number): Promise<number> {
  await answering(`http://127.0.0.1:${port}/`)
  const sockets: net.Socket[] = []
  // Warm first, so that code and pools are not counted as connections.
  for (let i = 0; i < 200; i++) sockets.push(await open(port, i))
  await new Promise(resolve => setTimeout(resolve, 3000))
  const before = resident(child)
  for (let i = 0; i < CONNECTIONS; i += 50) {
    sockets.push(...(await Promise.all(Array.from({ length: 50 }, (_, j) => open(port, i + j)))))
  }
  await new Promise(resolve => setTimeout(resolve, 5000))
  const after = resident(child)
  for (const socket of sockets) socket.destroy()
  await stop(child)
  return ((after - before) * 1024) / CONNECTIONS
}

try {
  await startUpstream()
  const peer = postern(
    'connections',
    portOf(301),
    `_format_version: "3.0"
services: [{ name: a, url: "http://127.0.0.1:${UPSTREAM_PORT}", routes: [{ name: all, paths: [/] }] }]
`,
    { POSTERN_CLIENT_KEEPALIVE_TIMEOUT: '600' }
  )
  const own: number[] = []
  const plain: number[] = []
  for (let round = 0; round < ROUNDS; round++) {
    own.push(await cost(start(PROXY_CORE, peer.command, peer.env), peer.port))
    const node = [
      process.execPath,
      join(import.meta.dirname, 'peers/node-http.ts'),
      `${portOf(302)}`
    ]
    plain.push(await cost(start(PROXY_CORE, node), portOf(302)))
  }
  const over = median(own) - median(plain)
  console.log(`${median(own).toFixed(1)} kB each, ${median(plain).toFixed(1)} with plain node:http`)
  conclude('connections', [
    outcome(`${CONNECTIONS} idle keep-alive connections, each over plain node:http`, {
      measured: over,
      atMost: 15,
      unit: ' kB',
      digits: 1
    })
  ])
} finally {
  await closeLab()
}
