import { once } from 'node:events'
import http, { type IncomingMessage, type ServerResponse } from 'node:http'
import http2 from 'node:http2'
import https from 'node:https'
import net, { type AddressInfo } from 'node:net'
import t, { type Test } from 'tap'
import { bodyOf } from '../bodies.ts'
import { startGateway, until } from '../harness.ts'
import { statuses } from '../raw.ts'

t.setTimeout(120_000)

const SIZES = [1, 1000, 4096, 4097, 16_385, 65_536, 100_000, 300_000, 1_100_000, 3_000_001]
const RIGHT = 'right'

const rest = (milliseconds: number): Promise<void> =>
  new Promise(resolve => setTimeout(resolve, milliseconds))

/**
 * `/…/ID/BYTES` tells whether that body arrived; below `/slow` it is read bit by bit, below `/early`
 * after the head of the answer.
 */
async function verify(request: IncomingMessage, response: ServerResponse): Promise<void> {
  const [bytes, id] = request.url!.split('/').reverse().map(Number)
  const expected = bodyOf(id!, bytes!)
  const slow = request.url!.startsWith('/slow')
  if (request.url!.startsWith('/early')) {
    response.flushHeaders()
    await rest(20)
  }
  let at = 0
  let wrong: string | undefined
  let rested = 0
  for await (const chunk of request) {
    const piece = chunk as Buffer
    if (!piece.equals(expected.subarray(at, at + piece.length))) wrong ??= `wrong from ${at} on`
    at += piece.length
    if (!slow || at - rested < 200_000) continue
    rested = at
    await rest(2)
  }
  if (at !== bytes) wrong ??= `${at} bytes instead of ${bytes}`
  response.end(wrong ?? RIGHT)
}

const upstream = http.createServer((request, response) => {
  verify(request, response).catch(() => response.destroy())
})
/** Answers when the head has come, and reads on. */
const hasty = http.createServer((request, response) => {
  request.resume()
  response.end(RIGHT)
})
/** Takes a part of the body and is gone. */
let cuts = 0
const cutting = net.createServer(socket => {
  let taken = 0
  socket.on('error', () => {})
  socket.on('data', chunk => {
    taken += chunk.length
    if (taken < 50_000) return
    cuts++
    socket.destroy()
  })
})
const portOf = async (server: net.Server): Promise<number> => {
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => {
    if ('closeAllConnections' in server) (server as http.Server).closeAllConnections()
    server.close()
  })
  return (server.address() as AddressInfo).port
}
const target = `127.0.0.1:${await portOf(upstream)}`
const hastyPort = await portOf(hasty)
const route = (name: string, request_buffering = true) => ({
  name,
  paths: [`/${name}`],
  strip_path: false,
  request_buffering
})
const gateway = await startGateway(
  {
    upstreams: [
      {
        name: 'failing',
        targets: [{ target: `127.0.0.1:${await portOf(cutting)}` }, { target, failover: true }]
      }
    ],
    services: [
      { url: `http://${target}`, routes: [route('held'), route('streamed', false), route('slow')] },
      { url: `http://127.0.0.1:${hastyPort}`, routes: [route('hasty'), route('unheld', false)] },
      { host: 'failing', retries: 3, routes: [route('failing')] }
    ]
  },
  { env: { POSTERN_PROXY_LISTEN: '127.0.0.1:0 http2, 127.0.0.1:0 ssl http2' } }
)
t.teardown(() => gateway.close())

/** Uneven pieces of a body, so that reads of it begin and end anywhere. */
function* piecesOf(body: Buffer): Generator<Buffer> {
  for (let at = 0; at < body.length; ) {
    const piece = body.subarray(at, at + 1 + ((at * 31 + 977) % 70_000))
    at += piece.length
    yield piece
  }
}

type Send = (origin: string, path: string, body: Buffer) => Promise<string>

async function over1(
  origin: string,
  path: string,
  body: Buffer,
  headers: http.OutgoingHttpHeaders,
  method = 'PUT'
): Promise<string> {
  const { request } = origin.startsWith('https') ? https : http
  const options = { method, headers, rejectUnauthorized: false, agent: false }
  const sending = request(origin + path, options)
  const answered = once(sending, 'response')
  for (const piece of piecesOf(body)) {
    if (!sending.write(piece)) await Promise.race([once(sending, 'drain'), answered])
  }
  sending.end()
  const [response] = (await answered) as [IncomingMessage]
  let text = ''
  for await (const chunk of response.setEncoding('latin1')) text += chunk
  return text
}

const withLength: Send = (origin, path, body) =>
  over1(origin, path, body, { 'Content-Length': body.length })
const inChunks: Send = (origin, path, body) => over1(origin, path, body, {})
const withTrailer: Send = async (origin, path, body) => {
  const socket = net.connect(Number(new URL(origin).port), '127.0.0.1')
  let text = ''
  socket.setEncoding('latin1').on('data', chunk => {
    text += chunk
  })
  socket.write(`PUT ${path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n`)
  socket.write('Transfer-Encoding: chunked\r\n\r\n')
  for (const piece of piecesOf(body)) {
    socket.write(`${piece.length.toString(16)}\r\n`)
    socket.write(piece)
    socket.write('\r\n')
  }
  socket.write('0\r\nX-Sum: 1\r\n\r\n')
  await once(socket, 'close')
  return text.includes(RIGHT) ? RIGHT : text
}
const overHttp2: Send = async (origin, path, body) => {
  const session = http2.connect(origin, { rejectUnauthorized: false })
  const stream = session.request({ ':method': 'PUT', ':path': path })
  let text = ''
  stream.setEncoding('latin1').on('data', chunk => {
    text += chunk
  })
  for (const piece of piecesOf(body)) if (!stream.write(piece)) await once(stream, 'drain')
  stream.end()
  await once(stream, 'end')
  session.close()
  return text
}

let ids = 0

/** Sends a body of every size at once, several times. */
async function arrive(t: Test, send: Send, origin: string, path: string): Promise<void> {
  const sizes = [...SIZES, ...SIZES, 100_000, 100_000, 100_000]
  const results = await Promise.all(
    sizes.map(size => {
      const id = ++ids
      return send(origin, `${path}/${id}/${size}`, bodyOf(id, size))
    })
  )
  t.strictSame(
    results,
    sizes.map(() => RIGHT),
    `${send.name} ${origin} ${path}`
  )
}

t.test('every body arrives as it is, many at once', async t => {
  for (const path of ['/held', '/streamed', '/slow']) {
    await arrive(t, withLength, gateway.url, path)
    await arrive(t, inChunks, gateway.url, path)
    await arrive(t, withTrailer, gateway.url, path)
    await arrive(t, overHttp2, gateway.url, path)
  }
})

t.test('over TLS', async t => {
  for (const path of ['/held', '/streamed']) {
    await arrive(t, withLength, gateway.tlsUrl!, path)
    await arrive(t, inChunks, gateway.tlsUrl!, path)
    await arrive(t, overHttp2, gateway.tlsUrl!, path)
  }
})

t.test('a body is sent again by another attempt, while others go on', async t => {
  const before = cuts
  const sizes = [100_000, 300_000, 900_000]
  const others = arrive(t, withLength, gateway.url, '/held')
  const results = await Promise.all(
    sizes.flatMap(size =>
      [withLength, inChunks, withTrailer].map(send => {
        const id = ++ids
        return send(gateway.url, `/failing/${id}/${size}`, bodyOf(id, size))
      })
    )
  )
  t.strictSame(
    results,
    results.map(() => RIGHT)
  )
  t.ok(cuts > before)
  await others
})

t.test(
  'answers before the end of a body, and clients that leave, disturb no other body',
  async t => {
    const others = ['/held', '/streamed', '/slow'].map(path =>
      arrive(t, inChunks, gateway.url, path)
    )
    const early = Array.from({ length: 20 }, async (_, i) => {
      const path = i % 2 === 0 ? '/hasty' : '/unheld'
      // A client may find its connection closed while it sends on.
      return withLength(gateway.url, path, bodyOf(i, 400_000)).catch(() => RIGHT)
    })
    const leaving = Array.from({ length: 20 }, async (_, i) => {
      const socket = net.connect(gateway.port, '127.0.0.1').on('error', () => {})
      socket.write(`PUT /slow/1/9 HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n`)
      socket.write(bodyOf(i, 150_000 * (i % 10)))
      await rest(i)
      socket.destroy()
    })
    await Promise.all([...others, ...leaving])
    t.strictSame(
      await Promise.all(early),
      early.map(() => RIGHT)
    )
  }
)

t.test('a body is whole whose answer begins before the upstream has taken it', async t => {
  await using other = await startGateway(
    { services: [{ url: `http://${target}`, routes: [route('early'), route('held')] }] },
    { env: { POSTERN_REQUEST_BUFFER_SIZE: '32m' } }
  )
  // More than the system's buffers of a connection take.
  const early = Array.from({ length: 4 }, () => {
    const id = ++ids
    return withLength(other.url, `/early/${id}/20000000`, bodyOf(id, 20_000_000))
  })
  await arrive(t, withLength, other.url, '/held')
  t.strictSame(
    await Promise.all(early),
    early.map(() => RIGHT)
  )
})

t.test('a small body leaves with its head, byte by byte as it came', async t => {
  const body = Buffer.from(Array.from({ length: 256 }, (_, i) => i))
  const seen = net.createServer(socket => {
    const chunks: Buffer[] = []
    socket.on('error', () => {})
    socket.on('data', chunk => {
      chunks.push(chunk)
      const bytes = Buffer.concat(chunks)
      if (!bytes.subarray(-256).equals(body)) return
      socket.end('HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n')
    })
  })
  await using other = await startGateway({
    services: [
      { url: `http://127.0.0.1:${await portOf(seen)}`, routes: [{ name: 'all', paths: ['/'] }] }
    ]
  })
  const socket = net.connect(other.port, '127.0.0.1')
  let text = ''
  socket.setEncoding('latin1').on('data', chunk => {
    text += chunk
  })
  socket.write('POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 256\r\n\r\n')
  socket.write(body)
  await until(() => text.includes('\r\n\r\n'), 'the answer')
  t.strictSame(statuses(text), [200])
  socket.destroy()
})
