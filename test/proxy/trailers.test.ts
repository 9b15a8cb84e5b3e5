import { once } from 'node:events'
import http from 'node:http'
import http2 from 'node:http2'
import type { AddressInfo } from 'node:net'
import t from 'tap'
import { startGateway } from '../harness.ts'
import { raw, statuses } from '../raw.ts'

t.setTimeout(120_000)

const MOST = 10
const trailers = (count: number): Record<string, string> =>
  Object.fromEntries(Array.from({ length: count }, (_, index) => [`x-${index}`, `${index}`]))

let received = 0
// Answers with as many trailers as the path says.
const plain = http.createServer((request, response) => {
  request.resume()
  request.on('end', () => {
    received++
    response.writeHead(200, { Trailer: 'x-0' })
    response.write('body')
    response.addTrailers(trailers(Number(request.url?.slice(1))))
    response.end()
  })
})
const second = http2.createServer()
second.on('stream', (stream, headers) => {
  stream.respond({ ':status': 200, 'content-type': 'application/grpc' }, { waitForTrailers: true })
  stream.on('wantTrailers', () =>
    stream.sendTrailers(trailers(Number(headers[':path']?.split('/').at(-1))))
  )
  stream.on('error', () => {})
  stream.end('body')
})
const urls: string[] = []
for (const server of [plain, second]) {
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  urls.push(`127.0.0.1:${(server.address() as AddressInfo).port}`)
}

const gateway = await startGateway(
  {
    services: [
      {
        name: 'plain',
        url: `http://${urls[0]}`,
        routes: [
          { name: 'plain', paths: ['/'] },
          { name: 'streamed', paths: ['/streamed'], request_buffering: false }
        ]
      },
      {
        name: 'closed',
        url: `http://${urls[0]}`,
        routes: [{ name: 'closed', paths: ['/closed'] }],
        plugins: [{ name: 'key-auth', config: { key_in_body: true } }]
      },
      {
        name: 'second',
        protocol: 'grpc',
        url: `grpc://${urls[1]}`,
        routes: [{ name: 'second', paths: ['/second'], protocols: ['grpc', 'grpcs'] }]
      }
    ]
  },
  { env: { POSTERN_PROXY_LISTEN: '127.0.0.1:0 http2', POSTERN_MAX_HEADERS: `${MOST}` } }
)
const session = http2.connect(gateway.url)
t.teardown(async () => {
  session.destroy()
  await gateway.close()
  plain.closeAllConnections()
  plain.close()
  second.close()
})

await t.test('a request with too many is answered 400, whoever reads its body', async t => {
  const ask = (path: string, count: number): Promise<string> =>
    raw(
      gateway.port,
      `POST ${path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n` +
        `Content-Type: application/x-www-form-urlencoded\r\n\r\n3\r\na=b\r\n0\r\n${'X-A: 1\r\n'.repeat(count)}\r\n`
    )
  for (const path of ['/0', '/streamed/0']) {
    const before = received
    t.same(statuses(await ask(path, MOST)), [200], path)
    t.equal(received, before + 1)
    t.same(statuses(await ask(path, MOST + 1)), [400], path)
    t.equal(received, before + 1, 'no upstream takes it for whole')
  }
  t.same(statuses(await ask('/closed/0', MOST)), [401])
  t.same(statuses(await ask('/closed/0', MOST + 1)), [400])
})

await t.test('the same over HTTP/2', async t => {
  const ask = async (path: string, count: number): Promise<unknown> => {
    const stream = session.request({ ':method': 'POST', ':path': path }, {
      waitForTrailers: true
    } as http2.ClientSessionRequestOptions)
    stream.on('wantTrailers', () => stream.sendTrailers(trailers(count)))
    stream.end('abc')
    stream.resume()
    const [headers] = await once(stream, 'response')
    return headers[':status']
  }
  for (const path of ['/0', '/streamed/0']) {
    t.equal(await ask(path, MOST), 200, path)
    t.equal(await ask(path, MOST + 1), 400, path)
  }
})

await t.test('a response with too many is cut off where its client takes trailers', async t => {
  const ask = (count: number, te: string): Promise<string> =>
    raw(gateway.port, `GET /${count} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n${te}\r\n`)
  const end = '\r\n0\r\n'
  const whole = await ask(MOST, 'TE: trailers\r\n')
  t.match(whole, `${end}x-0: 0\r\n`)
  t.match(whole, /x-9: 9\r\n\r\n$/)
  const cut = await ask(MOST + 1, 'TE: trailers\r\n')
  t.notMatch(cut, end, 'it does not look whole')
  t.match(await ask(MOST + 1, ''), /\r\n0\r\n\r\n$/, 'who takes none misses nothing')
})

await t.test('the same from an upstream of HTTP/2', async t => {
  const ask = async (count: number): Promise<unknown> => {
    const stream = session.request({
      ':method': 'POST',
      ':path': `/second/${count}`,
      'content-type': 'application/grpc',
      te: 'trailers'
    })
    stream.end()
    stream.resume()
    return new Promise(resolve => {
      stream.on('trailers', fields => resolve(fields['x-9']))
      stream.on('error', () => {})
      stream.on('close', () => resolve(`code ${stream.rstCode}`))
    })
  }
  t.equal(await ask(MOST), '9')
  t.equal(await ask(MOST + 1), `code ${http2.constants.NGHTTP2_INTERNAL_ERROR}`)
})
