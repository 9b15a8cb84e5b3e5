import { once } from 'node:events'
import http from 'node:http'
import http2, { type ClientHttp2Session } from 'node:http2'
import type { AddressInfo } from 'node:net'
import t, { type Test } from 'tap'
import { startGateway, until } from '../../harness.ts'

t.setTimeout(120_000)

const SIZE = 300_000
const PIECE = Buffer.alloc(32_768)

/** Over HTTP/1.1: bodies of SIZE, one without end, and answers before the request has come whole. */
const plain = http.createServer((request, response) => {
  response.on('error', () => {})
  if (request.url === '/early') {
    response.writeHead(413, { 'Content-Length': 3 }).end('big')
    return
  }
  request.resume()
  if (request.url !== '/endless') {
    response.end(Buffer.alloc(SIZE))
    return
  }
  const more = (): void => {
    while (!response.destroyed && response.write(PIECE));
    response.once('drain', more)
  }
  more()
})

/** Over HTTP/2: answers with the first bytes of a request, of which it then takes no more. */
const early = http2.createServer()
early.on('stream', stream => {
  stream.on('error', () => {})
  stream.once('data', () => {
    stream.pause()
    stream.respond({ 'content-type': 'application/grpc' }, { waitForTrailers: true })
    stream.on('wantTrailers', () => stream.sendTrailers({ 'grpc-status': '0' }))
    stream.end('ok')
  })
})
for (const server of [plain, early]) {
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
}
const portOf = (server: { address(): unknown }): number => (server.address() as AddressInfo).port

const gateway = await startGateway(
  {
    services: [
      {
        name: 'plain',
        url: `http://127.0.0.1:${portOf(plain)}`,
        routes: [
          { name: 'held', paths: ['/'] },
          { name: 'streamed', paths: ['/streamed'], request_buffering: false }
        ]
      },
      {
        name: 'grpc',
        url: `grpc://127.0.0.1:${portOf(early)}`,
        routes: [{ name: 'grpc', protocols: ['grpc', 'grpcs'], paths: ['/grpc'] }]
      }
    ]
  },
  {
    env: {
      POSTERN_PROXY_LISTEN: '127.0.0.1:0 http2',
      POSTERN_MAX_BODY_SIZE: '1000000',
      POSTERN_REQUEST_BODY_TIMEOUT: '1'
    }
  }
)
t.teardown(async () => {
  await gateway.close()
  plain.closeAllConnections()
  plain.close()
  early.close()
})

async function open(t: Test): Promise<ClientHttp2Session> {
  // What Node's own client counts of streams that were cut off is not what is tested.
  const session = http2.connect(gateway.url, { maxSessionMemory: 1000 })
  session.on('error', () => {})
  t.teardown(() => session.destroy())
  await once(session, 'remoteSettings')
  return session
}

/** Uploads to a service that answers with the first of it; gives the status, and that of gRPC. */
async function cutUpload(session: ClientHttp2Session): Promise<unknown> {
  const stream = session.request({
    ':method': 'POST',
    ':path': '/grpc',
    'content-type': 'application/grpc',
    te: 'trailers'
  })
  const { promise, resolve } = Promise.withResolvers<unknown>()
  const seen: unknown[] = []
  stream.on('response', headers => seen.push(headers[':status']))
  stream.on('trailers', trailers => seen.push(trailers['grpc-status']))
  stream.on('error', error => resolve(error.message))
  stream.on('end', () => resolve(seen.join(' ')))
  stream.resume()
  for (let i = 0; i < 20; i++) stream.write(PIECE)
  return promise
}

await t.test('uploads that an upstream of HTTP/2 answers early disturb no other', async t => {
  const session = await open(t)
  for (let round = 0; round < 40; round++) {
    const answers = await Promise.all(Array.from({ length: 8 }, () => cutUpload(session)))
    const wrong = answers.filter(answer => answer !== '200 0')
    if (wrong.length > 0) t.same(wrong, [])
  }
  const { workers } = (await gateway.status('/status')).json()
  t.notOk(workers.unresponsive?.length)
})

await t.test('a client that was answered is told to stop its upload', async t => {
  const session = await open(t)
  for (const [path, pieces, status] of [
    ['/streamed/early', 20, 413],
    ['/early', 1, 408],
    ['/streamed/early', 1, 413],
    ['/early', 40, 413]
  ] as const) {
    const what = `${path}, ${pieces} pieces`
    const stream = session.request({ ':method': 'POST', ':path': path })
    stream.on('error', error => t.fail(`${what}: ${error.message}`))
    const closed = once(stream, 'close')
    const answered = once(stream, 'response')
    stream.resume()
    for (let i = 0; i < pieces; i++) stream.write(PIECE)
    const [headers] = await answered
    t.equal(headers[':status'], status, what)
    await closed
    t.equal(stream.rstCode, http2.constants.NGHTTP2_NO_ERROR, what)
  }
  const inFlight = async (): Promise<number> => (await gateway.status('/status')).json().inFlight
  await until(async () => (await inFlight()) === 0, 'every request to have ended')
})

await t.test('as many downloads at once as streams are allowed, however slow', async t => {
  const session = await open(t)
  const streams = Array.from({ length: 128 }, () => session.request({ ':path': '/' }))
  const sizes = streams.map(async stream => {
    let size = 0
    stream.on('error', error => t.fail(error.message))
    stream.on('data', chunk => {
      size += chunk.length
    })
    stream.pause()
    await once(stream, 'response')
    return async () => {
      const ended = once(stream, 'end')
      stream.resume()
      await ended
      return size
    }
  })
  // None is read before each has its head, and all that comes ahead of its client.
  const read = await Promise.all(sizes)
  t.same(new Set(await Promise.all(read.map(each => each()))), new Set([SIZE]))
})

await t.test('downloads that are broken off cost the session none of the others', async t => {
  const session = await open(t)
  let left: number | undefined
  session.on('goaway', code => {
    left = code
  })
  const breakOff = async (): Promise<string | undefined> => {
    const stream = session.request({ ':path': '/endless' })
    const { promise, resolve } = Promise.withResolvers<string | undefined>()
    let size = 0
    stream.on('error', error => resolve(error.message))
    stream.on('data', chunk => {
      size += chunk.length
      if (size > PIECE.length) stream.close(http2.constants.NGHTTP2_CANCEL)
    })
    stream.on('close', () => resolve(undefined))
    return promise
  }
  let count = 0
  for (; count < 900 && left === undefined; count++) {
    const problem = await breakOff()
    if (problem !== undefined && !/REFUSED_STREAM|GOAWAY/.test(problem)) {
      t.equal(problem, undefined)
      break
    }
  }
  t.ok(count > 200, `${count} were broken off`)
  t.equal(left, http2.constants.NGHTTP2_NO_ERROR, 'then the session is closed in good order')
})

await t.test('nor do uploads that are cut cost the connection to the upstream', async t => {
  const session = await open(t)
  const wrong: unknown[] = []
  for (let i = 0; i < 600; i++) {
    const answer = await cutUpload(session)
    if (answer !== '200 0') wrong.push(answer)
  }
  t.same(wrong, [])
})
