import { once } from 'node:events'
import http2 from 'node:http2'
import net from 'node:net'
import t from 'tap'
import { startGateway, startUpstream, until } from '../harness.ts'
import { raw, statuses } from '../raw.ts'

const DATE = /^date: [^\r\n]+ GMT\r$/im

await t.test('limits and time-outs of clients, beside good traffic', async t => {
  await using upstream = await startUpstream()
  await using gateway = await startGateway(
    { services: [{ name: 'up', url: upstream.url, routes: [{ name: 'all', paths: ['/'] }] }] },
    {
      env: {
        POSTERN_REQUEST_HEADER_TIMEOUT: '0.5',
        POSTERN_REQUEST_BODY_TIMEOUT: '0.5',
        POSTERN_MAX_HEADERS: '20',
        POSTERN_MAX_URI_SIZE: '1000'
      }
    }
  )
  const { port } = gateway
  let good = 0
  let stop = false
  const traffic = (async () => {
    while (!stop) {
      const { status } = await gateway.fetch('/good')
      if (status !== 200) throw new Error(`good traffic was answered ${status}`)
      good++
    }
  })()

  const slow = await Promise.all([
    raw(port, 'GET / HTTP/1.1\r\nHost: a\r\nX-Never'),
    raw(port, ''),
    raw(port, 'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf'),
    raw(port, 'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nhalf'),
    raw(port, 'POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n')
  ])
  for (const answer of slow) {
    t.same(statuses(answer), [408])
    t.match(answer, /Request timeout/)
    t.match(answer, DATE)
    t.match(answer, /connection: close/i)
  }
  const asked = async (bytes: string, status: number, message: string) => {
    const answer = await raw(port, bytes)
    t.same(statuses(answer), [status])
    t.match(answer, message)
    t.match(answer, /connection: close/i)
    t.match(answer, DATE)
  }
  await asked(`GET /${'a'.repeat(1000)} HTTP/1.1\r\nHost: a\r\n\r\n`, 414, 'URI too long')
  await asked(`GET /${'a'.repeat(100_000)} HTTP/1.1\r\nHost: a\r\n\r\n`, 414, 'URI too long')
  const tooLarge = 'Request header or cookie too large'
  await asked(`GET / HTTP/1.1\r\nHost: a\r\n${'X: y\r\n'.repeat(20)}\r\n`, 400, tooLarge)
  await asked(`GET / HTTP/1.1\r\nHost: a\r\n${'X: y\r\n'.repeat(3000)}\r\n`, 400, tooLarge)
  await asked(`GET / HTTP/1.1\r\nHost: a\r\nX: ${'y'.repeat(50_000)}\r\n\r\n`, 400, tooLarge)
  await asked('CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n', 405, 'Method not allowed')
  await asked('GET / HTTP/2.0\r\nHost: a\r\n\r\n', 505, 'HTTP version not supported')
  await asked('nonsense\r\n\r\n', 400, 'Bad request')

  stop = true
  await traffic
  t.ok(good > 0)
  t.ok(
    upstream.requests.every(({ url }) => url === '/good'),
    'nothing of the others reached the upstream'
  )
})

await t.test('what follows the last request of a connection costs it no answer', async t => {
  let answer = (): void => {}
  await using upstream = await startUpstream(async (_received, response) => {
    await new Promise<void>(resolve => {
      answer = resolve
    })
    response.end('the answer')
  })
  await using gateway = await startGateway({
    services: [{ name: 'up', url: upstream.url, routes: [{ name: 'all', paths: ['/'] }] }]
  })
  for (const [name, last] of Object.entries({
    'a line break': 'GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n\r\n',
    'another request':
      'GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n',
    'more than was announced': 'POST / HTTP/1.0\r\nHost: a\r\nContent-Length: 2\r\n\r\nabcd'
  })) {
    const before = upstream.requests.length
    const read = raw(gateway.port, last)
    await until(() => upstream.requests.length === before + 1, 'the request to arrive')
    answer()
    t.match(await read, /^HTTP\/1\.1 200 [\s\S]*the answer$/, name)
    t.equal(upstream.requests.length, before + 1)
  }
  const malformed = await raw(
    gateway.port,
    'POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n'
  )
  t.same(statuses(malformed), [400], 'a body that goes wrong is refused all the same')
})

await t.test('connections that say nothing count too, whatever a listener speaks', async t => {
  await using gateway = await startGateway('{ "_format_version": "3.0" }', {
    env: {
      POSTERN_PROXY_LISTEN: '127.0.0.1:0, 127.0.0.1:0 http2, 127.0.0.1:0 proxy_protocol http2',
      POSTERN_MAX_CONNECTIONS: '2'
    }
  })
  const [plain, http2, proxied] = gateway.gateway.listeners.map(({ port }) => port)
  for (const port of [plain, http2, proxied]) {
    for (const _ of [1, 2]) {
      const socket = net.connect(port!, '127.0.0.1')
      socket.on('error', () => {})
      t.teardown(() => socket.destroy())
      await once(socket, 'connect')
    }
    const third = await raw(port!, '')
    t.same(statuses(third), port === proxied ? [] : [503], 'the third is answered or closed')
  }
})

await t.test('more connections than may be open are refused at once', async t => {
  await using upstream = await startUpstream()
  await using gateway = await startGateway(
    { services: [{ name: 'up', url: upstream.url, routes: [{ name: 'all', paths: ['/'] }] }] },
    { env: { POSTERN_MAX_CONNECTIONS: '2' } }
  )
  const held = [net.connect(gateway.port, '127.0.0.1'), net.connect(gateway.port, '127.0.0.1')]
  t.teardown(() => {
    for (const socket of held) socket.destroy()
  })
  const GET = 'GET / HTTP/1.1\r\nHost: a\r\n\r\n'
  for (const socket of held) {
    socket.write(GET)
    await once(socket, 'data')
  }
  const answer = await raw(gateway.port, GET)
  t.same(statuses(answer), [503])
  t.match(answer, /connection: close/i)
  t.match(answer, 'Too many connections')
  t.match(answer, DATE)
  held[0]!.write(GET)
  await once(held[0]!, 'data')
  t.pass('those that are open go on')
  held[1]!.destroy()
  await until(
    async () => statuses(await raw(gateway.port, GET, 'request'))[0] === 200,
    'a place to become free'
  )
})

await t.test('what HTTP/2 clients see of the limits of a head', async t => {
  await using upstream = await startUpstream()
  await using gateway = await startGateway(
    { services: [{ name: 'up', url: upstream.url, routes: [{ name: 'all', paths: ['/'] }] }] },
    {
      env: {
        POSTERN_PROXY_LISTEN: '127.0.0.1:0 http2',
        POSTERN_MAX_HEADERS: '20',
        POSTERN_MAX_HEADER_SIZE: '8k',
        POSTERN_MAX_URI_SIZE: '1000'
      }
    }
  )
  const connect = (): http2.ClientHttp2Session => {
    const session = http2.connect(gateway.url, { maxSendHeaderBlockLength: 10_000_000 })
    t.teardown(() => session.destroy())
    session.on('error', () => {})
    return session
  }
  const ask = (session: http2.ClientHttp2Session, headers: http2.OutgoingHttpHeaders) =>
    new Promise<unknown>(resolve => {
      const stream = session.request({ ':path': '/', ...headers })
      stream.on('response', fields => resolve(fields[':status']))
      stream.on('error', () => {})
      stream.on('close', () => resolve(`reset ${stream.rstCode}`))
      stream.resume()
    })
  const fields = (count: number): http2.OutgoingHttpHeaders =>
    Object.fromEntries(Array.from({ length: count }, (_, index) => [`x-${index}`, 'y']))
  const session = connect()
  const calm = `reset ${http2.constants.NGHTTP2_ENHANCE_YOUR_CALM}`
  t.equal(await ask(session, fields(20)), 200)
  t.equal(await ask(session, fields(21)), 400)
  t.equal(await ask(session, fields(40)), 400)
  t.equal(await ask(session, fields(41)), calm)
  t.equal(await ask(session, { 'x-big': 'y'.repeat(7000) }), 200)
  t.equal(await ask(session, { 'x-big': 'y'.repeat(8192) }), calm)
  t.equal(await ask(session, { ':path': `/${'p'.repeat(1000)}` }), 414)
  const crumbs = Array.from({ length: 21 }, (_, index) => `c${index}=1`)
  t.equal(await ask(session, { cookie: crumbs }), 400, 'each part of a cookie counts')
  t.equal(await ask(session, { cookie: crumbs.join('; ') }), 200)
  t.equal(await ask(session, {}), 200, 'the connection lasts')
  const other = connect()
  const gone = new Promise(resolve => other.on('close', resolve))
  // A value that compresses badly.
  const far = ask(other, { 'x-big': '~'.repeat(200_000) })
  await gone
  t.equal(await far, `reset ${http2.constants.NGHTTP2_COMPRESSION_ERROR}`)
  t.equal(await ask(session, {}), 200, 'only its own connection ends')
})
