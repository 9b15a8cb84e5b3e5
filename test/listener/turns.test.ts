import { once } from 'node:events'
import http2 from 'node:http2'
import net from 'node:net'
import { text } from 'node:stream/consumers'
import t from 'tap'
import { startGateway, startUpstream, until } from '../harness.ts'
import { raw, statuses } from '../raw.ts'

const get = (path: string, more = ''): string => `GET ${path} HTTP/1.1\r\nHost: a\r\n${more}\r\n`

await t.test('requests of one connection, one after the other', async t => {
  let running = 0
  let most = 0
  await using upstream = await startUpstream(async (received, response) => {
    running++
    most = Math.max(most, running)
    await new Promise(resolve => setTimeout(resolve, 20))
    running--
    response.end(received.url)
  })
  await using gateway = await startGateway(
    { services: [{ name: 'up', url: upstream.url, routes: [{ name: 'all', paths: ['/'] }] }] },
    {
      env: {
        POSTERN_PROXY_LISTEN: '127.0.0.1:0, 127.0.0.1:0 http2',
        POSTERN_CLIENT_KEEPALIVE_REQUESTS: '20',
        POSTERN_MAX_BODY_SIZE: '1000'
      }
    }
  )
  const { port } = gateway

  const three = await raw(port, get('/1') + get('/2') + get('/3', 'Connection: close\r\n'))
  t.same(statuses(three), [200, 200, 200])
  t.same(
    [...three.matchAll(/^\/(\d)/gm)].map(([, digit]) => digit),
    ['1', '2', '3']
  )
  t.equal(most, 1, 'no request overtook another on its way upstream')

  upstream.requests.length = 0
  const refused = await raw(port, `GET /bad HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n${get('/after')}`)
  t.same(statuses(refused), [400], 'what follows a refused request is not served')
  const malformed = await raw(port, `${get('/before')}GET /x HTTP/1.1\r\nHost : a\r\n\r\n`)
  t.same(statuses(malformed), [200, 400], 'an error is answered in its turn')
  const within = await raw(
    port,
    'POST /chunks HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n'
  )
  t.same(statuses(within), [400], 'a broken chunk')
  t.same(
    upstream.requests.map(({ url }) => url),
    ['/before'],
    'a request that never was whole is none'
  )

  t.same(statuses(await raw(port, get('/').repeat(25))), Array(20).fill(200), 'requests at most')
  t.equal(
    statuses(await raw(port, get('/').repeat(500))).length < 100,
    true,
    'a flood of pipelined requests is cut off'
  )

  const early = await raw(
    port,
    `POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2000\r\n\r\n`
  )
  t.same(statuses(early), [413], 'refused before its body was asked for')
  const asked = await raw(
    port,
    `POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi`
  )
  t.same(statuses(asked), [100, 200])
  t.same(statuses(await raw(port, get('/', 'Expect: wonders\r\n'))), [417])

  const second = gateway.gateway.listeners[1]!.port
  t.match(await raw(second, get('/', 'Connection: close\r\n')), /^HTTP\/1\.1 200/)
  const session = http2.connect(`http://127.0.0.1:${second}`)
  t.teardown(() => session.destroy())
  t.equal(await text(session.request({ ':path': '/over-h2c' })), '/over-h2c', 'prior knowledge')
})

await t.test('a closed client does not leave its waiting requests behind', async () => {
  let began = 0
  await using upstream = await startUpstream(() => {
    began++
  })
  await using gateway = await startGateway({
    services: [{ name: 'up', url: upstream.url, routes: [{ name: 'all', paths: ['/'] }] }]
  })
  const socket = net.connect(gateway.port, '127.0.0.1')
  await once(socket, 'connect')
  socket.write(get('/1') + get('/2'))
  await until(() => began === 1, 'the first to arrive')
  socket.destroy()
  await until(
    async () => (await gateway.status('/status')).json().inFlight === 0,
    'nothing in flight'
  )
  t.equal(began, 1)
})
