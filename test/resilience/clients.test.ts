import { once } from 'node:events'
import http2 from 'node:http2'
import net, { type Socket } from 'node:net'
import t, { type Test } from 'tap'
import { startGateway, startUpstream, type TestGateway, until } from '../harness.ts'
import { raw, statuses } from '../raw.ts'
import { startTraffic } from '../traffic.ts'

t.setTimeout(120_000)

const upstream = await startUpstream((received, response) => {
  if (received.url.startsWith('/large')) response.end(Buffer.alloc(32 * 1024 * 1024))
  else response.end('ok')
})
const gateway = await startGateway(
  { services: [{ name: 'up', url: upstream.url, routes: [{ name: 'all', paths: ['/'] }] }] },
  {
    env: {
      POSTERN_PROXY_LISTEN: '127.0.0.1:0 http2',
      POSTERN_REQUEST_HEADER_TIMEOUT: '1',
      POSTERN_REQUEST_BODY_TIMEOUT: '1',
      POSTERN_SEND_TIMEOUT: '1',
      POSTERN_CLIENT_KEEPALIVE_TIMEOUT: '60',
      POSTERN_MAX_CONNECTIONS: '400'
    }
  }
)
t.teardown(async () => {
  await gateway.close()
  await upstream.close()
})

/** Runs `trouble` beside good traffic, which must lose nothing before, during and after. */
async function beside(t: Test, trouble: (gateway: TestGateway) => Promise<void>): Promise<void> {
  const traffic = startTraffic(`${gateway.url}/good`)
  await until(() => traffic.report.served > 10, 'traffic')
  await trouble(gateway)
  const during = traffic.report.served
  await until(() => traffic.report.served > during + 10, 'traffic afterwards')
  const { served, failures } = await traffic.stop()
  t.same(failures, [], `${served} good requests lost nothing`)
  await until(
    async () => (await gateway.status('/status')).json().inFlight === 0,
    'nothing to be left in flight'
  )
}

/** Connections of this test's own that say `bytes` and then nothing. */
function open(t: Test, count: number, bytes: string): Socket[] {
  return Array.from({ length: count }, () => {
    const socket = net.connect(gateway.port, '127.0.0.1')
    socket.on('error', () => {})
    socket.write(bytes)
    t.teardown(() => socket.destroy())
    return socket
  })
}

const closed = (sockets: readonly Socket[]): Promise<unknown> =>
  Promise.all(sockets.map(socket => (socket.closed ? undefined : once(socket.resume(), 'close'))))

await t.test('heads that come byte by byte', t =>
  beside(t, async () => {
    const sockets = open(t, 100, 'GET / HTTP/1.1\r\nHost: a\r\nX: ')
    const dripping = setInterval(() => {
      for (const socket of sockets) if (socket.writable) socket.write('x')
    }, 100)
    await closed(sockets)
    clearInterval(dripping)
  })
)

await t.test('bodies that stop', t =>
  beside(t, async () => {
    await closed([
      ...open(t, 50, 'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf'),
      ...open(t, 50, 'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 900000\r\n\r\nhalf'),
      ...open(t, 50, 'POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf')
    ])
  })
)

await t.test('clients that read nothing of what they asked for', t =>
  beside(t, async () => {
    const before = upstream.requests.length
    const sockets = open(t, 10, 'GET /large HTTP/1.1\r\nHost: a\r\n\r\n')
    for (const socket of sockets) socket.pause()
    const asked = () => upstream.requests.slice(before).filter(({ url }) => url === '/large').length
    await until(() => asked() === 10, 'all of them to be asked for')
    await until(async () => {
      // The good traffic and this very look are all that is left.
      return (await gateway.status('/status')).json().inFlight <= 3
    }, 'them to be cut off')
  })
)

await t.test('connections that say nothing, and half-open ones', t =>
  beside(t, async () => {
    const silent = open(t, 100, '')
    const halfOpen = open(t, 100, 'GET / HTTP/1.1\r\nHost: a\r\n\r\n')
    for (const socket of halfOpen) socket.end()
    await closed([...silent, ...halfOpen])
  })
)

await t.test('a flood of connections is refused at the bound, and fast', t =>
  beside(t, async () => {
    const held = open(t, 390, '')
    await until(
      async () =>
        statuses(
          await raw(gateway.port, 'GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n')
        )[0] === 503 || held.every(socket => socket.closed),
      'a refusal, or the end of those held'
    )
    await closed(held)
  })
)

await t.test('clients that go away in the middle of everything', t =>
  beside(t, async () => {
    for (let round = 0; round < 20; round++) {
      const sockets = open(
        t,
        20,
        'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 900000\r\n\r\nhalf'
      )
      await Promise.all(sockets.map(socket => once(socket, 'connect')))
      for (const socket of sockets) socket.resetAndDestroy()
    }
  })
)

await t.test('a flood of requests that are refused', t =>
  beside(t, async () => {
    const sockets = open(t, 50, '')
    for (const socket of sockets) socket.write('nonsense\r\n\r\n'.repeat(2000))
    await closed(sockets)
  })
)

await t.test('streams of HTTP/2 that are opened and reset', t =>
  beside(t, async () => {
    const session = http2.connect(gateway.url)
    session.on('error', () => {})
    const ended = new Promise<void>(resolve => session.once('close', resolve))
    for (let i = 0; i < 5000 && !session.closed && !session.destroyed; i++) {
      const stream = session.request({ ':path': '/' })
      stream.on('error', () => {})
      stream.close(http2.constants.NGHTTP2_CANCEL)
      if (i % 100 === 0) await new Promise(resolve => setImmediate(resolve))
    }
    await ended
  })
)
