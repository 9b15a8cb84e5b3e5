import { once } from 'node:events'
import http2 from 'node:http2'
import net from 'node:net'
import { text } from 'node:stream/consumers'
import t from 'tap'
import { startGateway, startUpstream, until } from '../harness.ts'

const PREFACE = Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n')

/** One frame (RFC 9113 §4.1). */
function frame(type: number, flags: number, stream: number, payload: Buffer): Buffer {
  const head = Buffer.alloc(9)
  head.writeUIntBE(payload.length, 0, 3)
  head[3] = type
  head[4] = flags
  head.writeUInt32BE(stream, 5)
  return Buffer.concat([head, payload])
}
const EMPTY = Buffer.alloc(0)
const SETTINGS = frame(4, 0, 0, EMPTY)
const END_STREAM = 1
const END_HEADERS = 4
/** `:method GET`, `:scheme http`, `:path /`, `:authority a`: indexed and literal (RFC 7541 §6). */
const GET = Buffer.from([0x82, 0x86, 0x84, 0x01, 0x01, 0x61])
const request = (stream: number) => frame(1, END_STREAM | END_HEADERS, stream, GET)
const reset = (stream: number) => frame(3, 0, stream, Buffer.from([0, 0, 0, 8]))

await t.test('floods end their own session and nobody else’s', async t => {
  let opened = 0
  let cancelled = 0
  await using upstream = await startUpstream((received, response) => {
    if (received.url !== '/') {
      response.end(received.url)
      return
    }
    opened++
    response.on('close', () => cancelled++)
  })
  await using gateway = await startGateway(
    { services: [{ name: 'up', url: upstream.url, routes: [{ name: 'all', paths: ['/'] }] }] },
    { env: { POSTERN_PROXY_LISTEN: '127.0.0.1:0 http2' } }
  )
  const session = http2.connect(gateway.url)
  t.teardown(() => session.destroy())
  let good = 0
  let stop = false
  const traffic = (async () => {
    while (!stop) {
      const stream = session.request({ ':path': '/good' })
      if ((await text(stream)) !== '/good') throw new Error('good traffic was not served')
      good++
    }
  })()

  /** Sends frames until the session is ended. */
  async function attack(frames: (round: number) => Buffer): Promise<void> {
    const socket = net.connect(gateway.port, '127.0.0.1')
    let closed = false
    socket.resume()
    socket.on('error', () => {})
    socket.once('close', () => {
      closed = true
    })
    await once(socket, 'connect')
    socket.write(Buffer.concat([PREFACE, SETTINGS]))
    for (let round = 0; round < 2000 && !closed; round++) {
      if (!socket.write(frames(round))) {
        await Promise.race([once(socket, 'drain'), once(socket, 'close')]).catch(() => {})
      }
      await new Promise(resolve => setImmediate(resolve))
    }
    if (!closed) await Promise.race([once(socket, 'close'), new Promise(r => setTimeout(r, 5000))])
    t.ok(closed, 'the session was ended')
    socket.destroy()
  }

  t.comment('rapid reset')
  await attack(round => {
    const frames: Buffer[] = []
    for (let i = 0; i < 10; i++) {
      const stream = (round * 10 + i) * 2 + 1
      frames.push(request(stream), reset(stream))
    }
    return Buffer.concat(frames)
  })
  t.comment('settings')
  await attack(() => Buffer.concat(Array(50).fill(SETTINGS)))
  t.comment('pings')
  const ping = frame(6, 0, 0, Buffer.alloc(8))
  await attack(() => Buffer.concat(Array(50).fill(ping)))
  t.comment('continuations that never end')
  const field = Buffer.concat([
    Buffer.from([0x00, 0x01, 0x61, 0x7f, 0x81, 0x07]),
    Buffer.alloc(256, 0x61)
  ])
  await attack(round => (round === 0 ? frame(1, END_STREAM, 1, GET) : frame(9, 0, 1, field)))
  t.comment('empty data')
  const post = Buffer.from([0x83, 0x86, 0x84, 0x01, 0x01, 0x61])
  await attack(round =>
    round === 0
      ? frame(1, END_HEADERS, 1, post)
      : Buffer.concat(Array(50).fill(frame(0, 0, 1, EMPTY)))
  )

  const bomb = http2.connect(gateway.url)
  t.teardown(() => bomb.destroy())
  bomb.on('error', () => {})
  const many = Object.fromEntries(Array.from({ length: 1000 }, (_, i) => [`x-${i}`, 'y']))
  const stream = bomb.request({ ':path': '/bomb', ...many })
  await t.rejects(once(stream, 'response'), 'a list of fields beyond the bound is refused')

  stop = true
  await traffic
  t.ok(good > 0, 'good traffic went on')
  await until(() => opened === cancelled, 'what was reset to be cancelled upstream too')
  t.notOk(
    upstream.requests.some(({ url }) => url === '/bomb'),
    'the bomb did not reach the upstream'
  )
})

await t.test('sessions are closed when idle and after their share of requests', async t => {
  await using upstream = await startUpstream((received, response) => {
    response.end(received.url)
  })
  await using gateway = await startGateway(
    { services: [{ name: 'up', url: upstream.url, routes: [{ name: 'all', paths: ['/'] }] }] },
    {
      env: {
        POSTERN_PROXY_LISTEN: '127.0.0.1:0 http2',
        POSTERN_CLIENT_KEEPALIVE_TIMEOUT: '0.5',
        POSTERN_CLIENT_KEEPALIVE_REQUESTS: '3'
      }
    }
  )
  const idle = http2.connect(gateway.url)
  t.equal(await text(idle.request({ ':path': '/one' })), '/one')
  await once(idle, 'close')
  const busy = http2.connect(gateway.url)
  const closed = once(busy, 'close')
  for (let i = 0; i < 3; i++) t.equal(await text(busy.request({ ':path': `/${i}` })), `/${i}`)
  await closed
})
