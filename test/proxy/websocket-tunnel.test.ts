import { once } from 'node:events'
import http, { type IncomingMessage } from 'node:http'
import http2, { type ClientHttp2Session, type ClientHttp2Stream } from 'node:http2'
import type { AddressInfo, Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import t, { type Test } from 'tap'
import type { WebSocket as Client } from 'ws'
import { startGateway, type TestGateway, until } from '../harness.ts'
import { allLetGo, openOf, serving, stalled, startServer, WebSocket } from '../websocket.ts'

t.setTimeout(120_000)

const LISTEN = { POSTERN_PROXY_LISTEN: '127.0.0.1:0 http2, 127.0.0.1:0 ssl http2' }

/** What the library needs to speak over a connection whose handshake it did not make. */
interface Speaker {
  _isServer: boolean
  _extensions: Record<string, unknown>
  setSocket(socket: Duplex, head: Buffer, options: object): void
}
const { PerMessageDeflate, extension } = WebSocket as unknown as {
  readonly PerMessageDeflate: new (
    options: object
  ) => { accept(offers: readonly object[]): unknown }
  readonly extension: { parse(value: string): Record<string, readonly object[]> }
}

/** A session of HTTP/2 that may open WebSockets. */
async function open(t: Test, gateway: TestGateway, tls = true): Promise<ClientHttp2Session> {
  const session = http2.connect(tls ? gateway.tlsUrl! : gateway.url, { rejectUnauthorized: false })
  t.teardown(() => session.destroy())
  session.on('error', () => {})
  await once(session, 'remoteSettings')
  return session
}

/** An extended CONNECT and the head of its answer. */
async function ask(session: ClientHttp2Session, path: string, fields: object = {}) {
  const stream = session.request(
    {
      ':method': 'CONNECT',
      ':protocol': 'websocket',
      ':path': path,
      'sec-websocket-version': '13',
      ...fields
    },
    { endStream: false }
  )
  stream.on('error', () => {})
  const [headers] = (await once(stream, 'response')) as [
    http2.IncomingHttpHeaders & { ':status': number }
  ]
  return { stream, headers }
}

/** A WebSocket over a stream that was answered 200. */
function speak(stream: ClientHttp2Stream, headers: http2.IncomingHttpHeaders): Client {
  const client = new WebSocket(null as never, undefined, {})
  const speaker = client as unknown as Speaker
  speaker._isServer = false
  const offered = headers['sec-websocket-extensions'] as string | undefined
  if (offered !== undefined) {
    const deflate = new PerMessageDeflate({ isServer: false, threshold: 0 })
    deflate.accept(extension.parse(offered)['permessage-deflate']!)
    speaker._extensions = { 'permessage-deflate': deflate }
  }
  client.on('error', () => {})
  speaker.setSocket(stream, Buffer.alloc(0), { maxPayload: 100_000_000 })
  return client
}

async function connect(session: ClientHttp2Session, path = '/', fields: object = {}) {
  const { stream, headers } = await ask(session, path, fields)
  if (headers[':status'] !== 200)
    throw new Error(`the handshake was answered ${headers[':status']}`)
  return { stream, headers, client: speak(stream, headers) }
}

const textOf = async (stream: ClientHttp2Stream): Promise<string> => {
  let text = ''
  for await (const chunk of stream) text += chunk
  return text
}

const upstream = await startServer(t, {
  perMessageDeflate: true,
  handleProtocols: protocols => (protocols.has('second') ? 'second' : false)
})
/** An upstream whose answers to a handshake are odd, by its path. */
const odd = http.createServer((_request, response) => response.end('plain'))
const asked: string[] = []
const waiting = new Set<Socket>()
odd.on('upgrade', (request: IncomingMessage, socket: Socket) => {
  asked.push(request.url!)
  socket.on('error', () => {})
  if (request.url === '/silent') {
    waiting.add(socket)
    socket.resume()
    socket.on('end', () => socket.end())
    socket.on('close', () => waiting.delete(socket))
    return
  }
  const answers: Record<string, string> = {
    '/members':
      'HTTP/1.1 403 Forbidden\r\nX-Reason: members only\r\nContent-Length: 5\r\n\r\nno...',
    '/plain': 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok',
    '/key':
      'HTTP/1.1 101 Switched\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n'
  }
  socket.end(answers[request.url!] ?? '')
})
odd.listen(0, '127.0.0.1')
await once(odd, 'listening')
t.teardown(() => odd.close())
const oddUrl = `http://127.0.0.1:${(odd.address() as AddressInfo).port}`

const gateway = await startGateway(
  {
    services: [
      { name: 'echo', url: `${upstream.url}/base`, routes: [{ name: 'echo', paths: ['/echo'] }] },
      {
        name: 'get',
        url: upstream.url,
        routes: [{ name: 'get', paths: ['/get'], methods: ['GET'] }],
        plugins: [
          { name: 'correlation-id', config: { header_name: 'X-Mark', echo_downstream: true } }
        ]
      },
      { name: 'odd', url: oddUrl, routes: [{ name: 'odd', paths: ['/odd'] }] },
      {
        name: 'closed',
        url: upstream.url,
        routes: [{ name: 'closed', paths: ['/closed'] }],
        plugins: [{ name: 'key-auth' }]
      },
      {
        name: 'ended',
        url: upstream.url,
        routes: [{ name: 'ended', paths: ['/ended'] }],
        plugins: [{ name: 'request-termination', config: { status_code: 200, message: 'later' } }]
      },
      {
        name: 'calls',
        url: `grpc://127.0.0.1:${upstream.port}`,
        routes: [{ name: 'calls', paths: ['/calls'] }]
      }
    ]
  },
  { env: LISTEN }
)
t.teardown(() => gateway.close())

await t.test(
  'an extended CONNECT runs through the life of a GET and opens a WebSocket',
  async t => {
    for (const tls of [true, false]) {
      const session = await open(t, gateway, tls)
      t.equal(session.remoteSettings.enableConnectProtocol, true)
      const { client, headers, stream } = await connect(session, '/echo/room?a=1', {
        cookie: 'c=1',
        'sec-websocket-key': 'not looked at'
      })
      const handshake = upstream.handshakes.at(-1)!
      t.equal(handshake.url, '/base/room?a=1')
      t.equal(handshake.method, 'GET')
      t.match(handshake.headers, {
        host: `127.0.0.1:${upstream.port}`,
        connection: /Upgrade/,
        cookie: 'c=1',
        'sec-websocket-key': /^[+/0-9A-Za-z]{22}==$/,
        'x-forwarded-prefix': '/echo',
        'x-forwarded-proto': tls ? 'https' : 'http'
      })
      t.match(headers, { via: /postern/, 'x-postern-request-id': /^[0-9a-f]{32}$/ })
      for (const name of ['connection', 'upgrade', 'sec-websocket-accept']) t.notOk(headers[name])
      t.equal(await openOf(gateway), 1)
      for (const message of [
        'hello',
        '',
        'ünïcode ☃',
        Buffer.from([0, 255]),
        Buffer.alloc(3e6, 'x')
      ]) {
        client.send(message)
        const [data, binary] = (await once(client, 'message')) as [Buffer, boolean]
        t.equal(binary, typeof message !== 'string')
        t.ok(data.equals(Buffer.from(message)))
      }
      const ended = once(stream, 'close')
      client.close(3456, 'enough')
      const [code] = await once(upstream.sockets.at(-1)!, 'close')
      t.equal(code, 3456)
      await ended
      t.equal(stream.rstCode, http2.constants.NGHTTP2_NO_ERROR)
      await allLetGo(gateway)
      session.close()
    }
  }
)

await t.test('routes and plugins see a GET', async t => {
  const session = await open(t, gateway)
  const { headers } = await connect(session, '/get')
  t.match(headers['x-mark'], /#1$/)
  t.equal((await ask(session, '/none')).headers[':status'], 404)
  const { stream, headers: refused } = await ask(session, '/closed')
  t.equal(refused[':status'], 401)
  t.match(await textOf(stream), /No API key found/)
})

await t.test('subprotocols and permessage-deflate are what the upstream chooses', async t => {
  const session = await open(t, gateway)
  const { client, headers } = await connect(session, '/echo', {
    'sec-websocket-protocol': 'first, second',
    'sec-websocket-extensions': 'permessage-deflate; client_max_window_bits'
  })
  t.equal(headers['sec-websocket-protocol'], 'second')
  t.match(headers['sec-websocket-extensions'], /^permessage-deflate/)
  t.equal(upstream.sockets.at(-1)!.extensions, 'permessage-deflate')
  const text = 'compressible '.repeat(20_000)
  client.send(text)
  const [data] = (await once(client, 'message')) as [Buffer]
  t.equal(data.toString(), text)
  const bare = await connect(session, '/echo')
  t.equal(bare.headers['sec-websocket-extensions'], undefined)
})

await t.test('streams are WebSockets side by side, and beside requests', async t => {
  const session = await open(t, gateway)
  const clients = await Promise.all(Array.from({ length: 10 }, () => connect(session, '/echo')))
  t.equal(await openOf(gateway), 10)
  const plain = session.request({ ':path': '/odd/request' })
  t.equal(await textOf(plain), 'plain')
  await Promise.all(
    clients.map(async ({ client }, i) => {
      client.send(`${i}`)
      const [data] = (await once(client, 'message')) as [Buffer]
      t.equal(data.toString(), `${i}`)
    })
  )
  // Not one of them is asked: the session goes.
  session.destroy()
  await allLetGo(gateway)
})

await t.test('what does not open one is never a 2xx', async t => {
  const session = await open(t, gateway)
  const members = await ask(session, '/odd/members')
  t.match(members.headers, { ':status': 403, 'x-reason': 'members only' })
  t.equal(await textOf(members.stream), 'no...')
  for (const [path, status] of [
    ['/odd/plain', 502],
    ['/odd/key', 502],
    ['/odd/nothing', 502],
    ['/ended', 501],
    ['/calls', 501]
  ] as const) {
    t.equal((await ask(session, path)).headers[':status'], status, path)
  }
  t.same(asked, ['/members', '/plain', '/key', ...asked.filter(path => path === '/nothing')])
  for (const [what, fields] of [
    ['another version', { 'sec-websocket-version': '12' }],
    ['a list that is none', { 'sec-websocket-protocol': 'a, , b' }],
    ['a body', { 'content-length': '4' }]
  ] as const) {
    t.equal((await ask(session, '/echo', fields)).headers[':status'], 400, what)
  }
  t.equal((await ask(session, '/echo', { ':protocol': 'connect-udp' })).headers[':status'], 501)
  const tunnel = session.request({ ':method': 'CONNECT', ':authority': 'elsewhere:443' })
  tunnel.on('error', () => {})
  const [plain] = await once(tunnel, 'response')
  t.equal(plain[':status'], 405, 'CONNECT itself')
  await allLetGo(gateway)
})

await t.test('how one side ends, the other learns', async t => {
  const session = await open(t, gateway)
  const { client } = await connect(session, '/echo')
  upstream.sockets.at(-1)!.close(4321, 'reason')
  const [code, reason] = await once(client, 'close')
  t.equal(code, 4321)
  t.equal(String(reason), 'reason')

  const cut = await ask(session, '/echo')
  cut.stream.resume()
  upstream.sockets.at(-1)!.terminate()
  await once(cut.stream, 'close')
  t.equal(cut.stream.rstCode, http2.constants.NGHTTP2_CANCEL, 'an upstream that is cut off')

  const reset = await connect(session, '/echo')
  const closed = once(upstream.sockets.at(-1)!, 'close')
  reset.stream.close(http2.constants.NGHTTP2_CANCEL)
  t.equal((await closed)[0], 1006, 'a client that resets')
  await allLetGo(gateway)
  t.notOk(session.closed, 'the session is good for more')
})

await t.test('a client that leaves during the handshake leaves nothing behind', async t => {
  const session = await open(t, gateway)
  const stream = session.request({
    ':method': 'CONNECT',
    ':protocol': 'websocket',
    ':path': '/odd/silent',
    'sec-websocket-version': '13'
  })
  stream.on('error', () => {})
  await until(() => waiting.size === 1, 'the handshake to reach the upstream')
  stream.close(http2.constants.NGHTTP2_CANCEL)
  await until(() => waiting.size === 0, 'the upstream to be let go')
  await allLetGo(gateway)
})

await t.test('neither side is read faster than the other takes', async t => {
  const silent = await startServer(t, { perMessageDeflate: false }, false)
  await using gateway = await startGateway(serving(silent.url), { env: LISTEN })
  const session = await open(t, gateway)
  const { client, stream } = await connect(session)
  const [peer] = silent.sockets
  let got = 0
  client.on('message', (data: Buffer) => {
    got += data.length
  })
  client.pause()
  const message = Buffer.alloc(65_536)
  for (let i = 0; i < 400; i++) peer!.send(message)
  await stalled(() => 400 * message.length - peer!.bufferedAmount)
  t.ok(peer!.bufferedAmount > 10_000_000, 'most of it waits at the upstream')
  client.resume()
  await until(() => got === 400 * message.length, 'all of it')

  let taken = 0
  peer!.on('message', (data: Buffer) => {
    taken += data.length
  })
  peer!.pause()
  for (let i = 0; i < 400; i++) client.send(message)
  await stalled(() => stream.writableLength)
  t.ok(client.bufferedAmount > 10_000_000, 'most of it waits at the client')
  peer!.resume()
  await until(() => taken === 400 * message.length, 'all of it')
})

await t.test('limits and the end of the gateway are those of other WebSockets', async t => {
  const quiet = await startServer(t)
  const gateway = await startGateway(serving(quiet.url), {
    env: {
      ...LISTEN,
      POSTERN_MAX_WEBSOCKET_MESSAGE: '1k',
      POSTERN_CLIENT_KEEPALIVE_TIMEOUT: '1',
      POSTERN_SHUTDOWN_TIMEOUT: '30'
    }
  })
  t.teardown(() => gateway.close())
  const session = await open(t, gateway)
  const idle = await connect(session)
  const large = await connect(session)
  large.client.send('x'.repeat(2000))
  const [code] = await once(large.client, 'close')
  t.equal(code, 1009)
  const other = await open(t, gateway)
  await once(other, 'close')
  t.pass('a session without any ends as it is idle')
  idle.client.send('still')
  const [data] = (await once(idle.client, 'message')) as [Buffer]
  t.equal(data.toString(), 'still', 'one with a silent WebSocket does not')
  const closed = once(idle.client, 'close')
  await gateway.close()
  t.equal((await closed)[0], 1001)
})
