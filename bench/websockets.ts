import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import type net from 'node:net'
import {
  closeLab,
  connectFrom,
  file,
  need,
  OTHER_CORE,
  PROXY_CORE,
  portOf,
  resident,
  root,
  start
} from './lab.ts'
import { postern } from './peers/index.ts'

// What an idle WebSocket costs: one connection of the client and one to the upstream.

const CONNECTIONS = Number(process.env.BENCH_IDLE_CONNECTIONS ?? 10_000)
const UPSTREAM = portOf(303)

need('taskset')

const [, descriptors = '0'] =
  /Max open files\s+(\d+)/.exec(readFileSync('/proc/self/limits', 'utf8')) ?? []
if (Number(descriptors) < 2 * CONNECTIONS + 1000) {
  console.error(
    `${CONNECTIONS} WebSockets are ${2 * CONNECTIONS} connections of the gateway: raise ulimit -n from ${descriptors}, or set BENCH_IDLE_CONNECTIONS`
  )
  process.exit(1)
}

const HANDSHAKE =
  'GET / HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n' +
  'Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n'
/** A masked text frame of `ping` (RFC 6455 §5.2), with a mask of zeros. */
const FRAME = Buffer.from([0x81, 0x84, 0, 0, 0, 0, ...Buffer.from('ping')])
const ECHO = Buffer.from([0x81, 0x04, ...Buffer.from('ping')])

/** Opens a WebSocket from its own loopback address; rejects what is not answered 101. */
async function open(port: number, index: number): Promise<net.Socket> {
  const socket = await connectFrom(port, index)
  socket.write(HANDSHAKE)
  const [answer] = (await once(socket, 'data')) as [Buffer]
  if (!answer.toString('latin1').startsWith('HTTP/1.1 101 ')) throw new Error(`${answer}`)
  return socket
}

async function echoes(socket: net.Socket): Promise<boolean> {
  socket.write(FRAME)
  const [answer] = (await once(socket, 'data')) as [Buffer]
  return answer.equals(ECHO)
}

try {
  const server = file(
    'websocket-echo.mjs',
    `import { createRequire } from 'node:module'
const { WebSocketServer } = createRequire(${JSON.stringify(`${root}/package.json`)})('ws')
const server = new WebSocketServer({ host: '127.0.0.1', port: ${UPSTREAM} })
server.on('connection', socket => {
  socket.on('error', () => {})
  socket.on('message', data => socket.send(data.toString()))
})
`
  )
  start(OTHER_CORE, [process.execPath, server])
  const peer = postern(
    'websockets',
    portOf(304),
    `_format_version: "3.0"
services: [{ name: a, url: "http://127.0.0.1:${UPSTREAM}", routes: [{ name: all, paths: [/] }] }]
`,
    {}
  )
  const child = start(PROXY_CORE, peer.command, peer.env)
  const sockets: net.Socket[] = []
  const end = performance.now() + 30_000
  while (sockets.length === 0 && performance.now() < end) {
    await open(peer.port, 0).then(
      socket => sockets.push(socket),
      () => new Promise(resolve => setTimeout(resolve, 100))
    )
  }
  // Warm first, so that code and pools are not counted as connections.
  for (let i = 0; i < 200; i++) sockets.push(await open(peer.port, i))
  await new Promise(resolve => setTimeout(resolve, 3000))
  const before = resident(child)
  const began = performance.now()
  for (let i = 0; i < CONNECTIONS; i += 50) {
    sockets.push(
      ...(await Promise.all(Array.from({ length: 50 }, (_, j) => open(peer.port, i + j))))
    )
  }
  const seconds = (performance.now() - began) / 1000
  await new Promise(resolve => setTimeout(resolve, 5000))
  const each = ((resident(child) - before) * 1024) / CONNECTIONS
  let alive = 0
  for (let i = 0; i < sockets.length; i += 50) {
    const answers = await Promise.all(sockets.slice(i, i + 50).map(echoes))
    alive += answers.filter(Boolean).length
  }
  console.log(
    `${CONNECTIONS} idle WebSockets: ${each.toFixed(1)} kB each, opened in ${seconds.toFixed(1)} s, ${alive} of ${sockets.length} echo`
  )
  for (const socket of sockets) socket.destroy()
} finally {
  await closeLab()
}
