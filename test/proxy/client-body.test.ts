import { once } from 'node:events'
import http, { type IncomingMessage, type ServerResponse } from 'node:http'
import https from 'node:https'
import net, { type AddressInfo } from 'node:net'
import t, { type Test } from 'tap'
import { bodyOf } from '../bodies.ts'
import { startGateway, until } from '../harness.ts'

t.setTimeout(120_000)

/**
 * `/ID/BYTES` is answered with that body; with a query its length is not told, and with `?mixed` chunks
 * of a few bytes stand between others.
 */
function answer(request: IncomingMessage, response: ServerResponse): void {
  const { pathname, search } = new URL(request.url!, 'http://a')
  const [, id, bytes] = pathname.split('/')
  const body = bodyOf(Number(id), Number(bytes))
  if (search === '') response.setHeader('Content-Length', body.length)
  response.flushHeaders()
  let at = 0
  // In pieces of uneven size, so that reads begin and end anywhere.
  const write = (): void => {
    while (at < body.length) {
      const size = search === '?mixed' && at % 2 === 0 ? 1 + (at % 30) : 10_007 + (at % 50_000)
      const piece = body.subarray(at, at + size)
      at += piece.length
      if (!response.write(piece)) {
        response.once('drain', write)
        return
      }
    }
    response.end()
  }
  write()
}

const upstream = http.createServer(answer)
upstream.listen(0, '127.0.0.1')
await once(upstream, 'listening')
t.teardown(() => {
  upstream.closeAllConnections()
  upstream.close()
})
const url = `http://127.0.0.1:${(upstream.address() as AddressInfo).port}`
const gateway = await startGateway(
  {
    services: [
      {
        url,
        routes: [
          { name: 'all', paths: ['/'], strip_path: false },
          { name: 'unbuffered', paths: ['/7'], strip_path: false, response_buffering: false }
        ]
      }
    ]
  },
  { env: { POSTERN_PROXY_LISTEN: '127.0.0.1:0, 127.0.0.1:0 ssl' } }
)
t.teardown(() => gateway.close())

/** Reads a response, resting after every `rest` bytes until the next turn of the event loop. */
async function download(target: string, rest = Number.POSITIVE_INFINITY): Promise<Buffer> {
  const { get } = target.startsWith('https') ? https : http
  const request = get(target, { rejectUnauthorized: false, agent: false })
  const [response] = (await once(request, 'response')) as [IncomingMessage]
  const chunks: Buffer[] = []
  let since = 0
  for await (const chunk of response) {
    chunks.push(chunk)
    since += chunk.length
    if (since < rest) continue
    since = 0
    await new Promise(resolve => setTimeout(resolve, 1))
  }
  return Buffer.concat(chunks)
}

async function arrives(t: Test, base: string, query: string, rest?: number): Promise<void> {
  const sizes = [1, 4096, 4097, 10_000, 65_536, 65_537, 300_000, 2_000_003]
  const results = await Promise.all(
    sizes.map(async (size, i) => {
      const id = i + (rest === undefined ? 0 : 7)
      const got = await download(`${base}/${id}/${size}${query}`, rest)
      return got.equals(bodyOf(id, size))
    })
  )
  t.strictSame(
    results,
    sizes.map(() => true)
  )
}

t.test('bodies of every size arrive whole, many at once', async t => {
  for (let round = 0; round < 3; round++) await arrives(t, gateway.url, '')
})

t.test('clients that read slowly get their own bytes', t => arrives(t, gateway.url, '', 50_000))

t.test('over TLS', async t => {
  await arrives(t, gateway.tlsUrl!, '')
  await arrives(t, gateway.tlsUrl!, '', 50_000)
})

t.test('bodies of unknown length', async t => {
  await arrives(t, gateway.url, '?chunked')
  await arrives(t, gateway.url, '?chunked', 50_000)
  await arrives(t, gateway.url, '?mixed')
  await arrives(t, gateway.url, '?mixed', 50_000)
  await arrives(t, gateway.tlsUrl!, '?mixed')
})

t.test('clients that read nothing disturb nobody', async t => {
  const stalled = await Promise.all(
    Array.from({ length: 8 }, async (_, i) => {
      const socket = net.connect(gateway.port, '127.0.0.1')
      socket.pause()
      socket.write(`GET /${20 + i}/30000000 HTTP/1.1\r\nHost: a\r\n\r\n`)
      await once(socket, 'connect')
      return socket
    })
  )
  await arrives(t, gateway.url, '')
  // One of them reads on after all, and the others go away in the middle of a write.
  const [first, ...others] = stalled
  for (const socket of others) socket.destroy()
  const chunks: Buffer[] = []
  let length = 0
  first!.on('data', chunk => {
    chunks.push(chunk)
    length += chunk.length
  })
  first!.resume()
  await until(() => length > 30_000_000, 'the whole body', 60_000)
  first!.destroy()
  const response = Buffer.concat(chunks)
  const body = response.subarray(response.indexOf('\r\n\r\n') + 4)
  t.ok(body.equals(bodyOf(20, 30_000_000)))
  await arrives(t, gateway.url, '', 50_000)
})

t.test('responses to requests that came at once follow each other', async t => {
  const socket = net.connect(gateway.port, '127.0.0.1')
  const request = (id: number, bytes: number) => `GET /${id}/${bytes} HTTP/1.1\r\nHost: a\r\n\r\n`
  socket.write(request(31, 500_000) + request(32, 100) + request(33, 400_000))
  const chunks: Buffer[] = []
  let length = 0
  socket.on('data', chunk => {
    chunks.push(chunk)
    length += chunk.length
  })
  await until(() => length > 900_100, 'three responses')
  socket.destroy()
  let rest = Buffer.concat(chunks)
  for (const [id, bytes] of [
    [31, 500_000],
    [32, 100],
    [33, 400_000]
  ] as const) {
    const start = rest.indexOf('\r\n\r\n') + 4
    t.match(rest.subarray(0, start).toString(), /^HTTP\/1\.1 200 OK\r\n/)
    t.ok(rest.subarray(start, start + bytes).equals(bodyOf(id, bytes)))
    rest = rest.subarray(start + bytes)
  }
  t.equal(rest.length, 0)
})

t.test('a client of HTTP/1.0', async t => {
  for (const query of ['', '?chunked']) {
    const socket = net.connect(gateway.port, '127.0.0.1')
    socket.write(`GET /40/300000${query} HTTP/1.0\r\nHost: a\r\n\r\n`)
    const chunks: Buffer[] = []
    for await (const chunk of socket) chunks.push(chunk)
    const response = Buffer.concat(chunks)
    t.ok(response.subarray(response.indexOf('\r\n\r\n') + 4).equals(bodyOf(40, 300_000)))
  }
})
