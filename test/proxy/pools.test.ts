import { once } from 'node:events'
import http2, { type Http2ServerRequest, type Http2ServerResponse } from 'node:http2'
import type { AddressInfo } from 'node:net'
import t from 'tap'
import { certificateFor } from '../certificates.ts'
import { startGateway, startUpstream, until } from '../harness.ts'
import { raw } from '../raw.ts'

const { cert, key } = await certificateFor('api.test')
const versions: string[] = []
const secure = http2.createSecureServer(
  { cert, key, allowHTTP1: true },
  async (request: Http2ServerRequest, response: Http2ServerResponse) => {
    versions.push(request.httpVersion)
    let size = 0
    for await (const chunk of request) size += chunk.length
    if (request.httpVersion === '2.0') response.writeEarlyHints({ link: '</a>; rel=preload' })
    response.setHeader('Set-Cookie', ['a=1', 'b=2'])
    response.writeHead(request.method === 'DELETE' ? 204 : 200, { 'X-Size': size })
    response.end(request.url === '/big' ? 'x'.repeat(1_000_000) : '')
  }
)
secure.listen(0, '127.0.0.1')
await once(secure, 'listening')
const held: (() => void)[] = []
const busy = await startUpstream((_received, response) => {
  held.push(() => response.end('served'))
})
const gateway = await startGateway(
  {
    services: [
      {
        name: 'secure',
        url: `https://127.0.0.1:${(secure.address() as AddressInfo).port}`,
        tls_verify: false,
        routes: [{ name: 'secure', paths: ['/'] }]
      },
      {
        name: 'busy',
        url: busy.url,
        connect_timeout: 300,
        routes: [{ name: 'busy', paths: ['/busy'] }]
      }
    ]
  },
  { env: { POSTERN_UPSTREAM_HTTP2: 'on', POSTERN_UPSTREAM_KEEPALIVE_POOL_SIZE: '1' } }
)
t.teardown(async () => {
  await gateway.close()
  await busy.close()
  secure.close()
})

await t.test('HTTP/2 to an upstream of https that chooses it', async t => {
  const answers = await Promise.all([
    ...Array.from({ length: 10 }, () => gateway.fetch('/')),
    gateway.fetch('/big'),
    gateway.fetch('/', { method: 'POST', body: 'x'.repeat(200_000) }),
    gateway.fetch('/', { method: 'DELETE' })
  ])
  t.same([...new Set(versions)], ['2.0'])
  t.same(answers[0]!.headers['set-cookie'], ['a=1', 'b=2'])
  t.match(answers[0]!.headers.via, /^2 postern\//, 'the version of the answer')
  t.equal(answers[10]!.body.length, 1_000_000)
  t.equal(answers[11]!.headers['x-size'], '200000')
  t.equal(answers[12]!.status, 204)
  const head = await gateway.fetch('/big', { method: 'HEAD' })
  t.match(head, { status: 200, body: '' })
  const hints = await raw(
    gateway.port,
    'GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n'
  )
  t.match(hints, /^HTTP\/1\.1 103 [\s\S]*rel=preload[\s\S]*HTTP\/1\.1 200 /)
})

await t.test('a request that no connection comes free for is 503, and does no harm', async t => {
  const first = gateway.fetch('/busy')
  await until(() => held.length === 1, 'the one connection in use')
  t.equal((await gateway.fetch('/busy')).status, 503)
  held.shift()!()
  t.equal((await first).body, 'served')
  const next = gateway.fetch('/busy')
  await until(() => held.length === 1, 'the connection in use again')
  held.shift()!()
  t.equal((await next).body, 'served')
})
