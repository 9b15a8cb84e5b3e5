import { createHash } from 'node:crypto'
import { once } from 'node:events'
import http, { type IncomingMessage } from 'node:http'
import https from 'node:https'
import type net from 'node:net'
import type { AddressInfo } from 'node:net'
import type { TLSSocket } from 'node:tls'
import t, { type Test } from 'tap'
import { type WebSocket as Client, WebSocketServer } from 'ws'
import { issue } from '../certificates.ts'
import { startGateway, until } from '../harness.ts'
import { raw } from '../raw.ts'
import {
  allLetGo,
  connect,
  dial,
  openOf,
  refusal,
  serving,
  startServer,
  WebSocket
} from '../websocket.ts'

/** An upstream whose answers to a handshake are odd, by its path. */
async function startOdd(t: Test) {
  const refusalBody = 'no entry '.repeat(50_000)
  const answers: Record<string, string> = {
    '/plain': 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok',
    '/members': `HTTP/1.1 403 Forbidden\r\nX-Reason: members only\r\nContent-Length: ${refusalBody.length}\r\n\r\n${refusalBody}`,
    '/key': 'SWITCH\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n',
    '/protocol': 'SWITCH\r\nACCEPT\r\nSec-WebSocket-Protocol: other\r\n\r\n',
    '/extension': 'SWITCH\r\nACCEPT\r\nSec-WebSocket-Extensions: x-unknown\r\n\r\n',
    '/gibberish': 'SWITCH\r\nno field\r\n\r\n'
  }
  const sockets = new Set<net.Socket>()
  const server = http.createServer((request, response) => {
    response.end(`upgrade: ${request.headers.upgrade}`)
  })
  server.on('upgrade', (request, socket: net.Socket) => {
    sockets.add(socket)
    socket.on('close', () => sockets.delete(socket))
    socket.on('error', () => {})
    const key = `${request.headers['sec-websocket-key']}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`
    const accept = createHash('sha1').update(key).digest('base64')
    const answer = answers[request.url!]
      ?.replace('SWITCH', 'HTTP/1.1 101 Switched\r\nUpgrade: websocket\r\nConnection: Upgrade')
      .replace('ACCEPT', `Sec-WebSocket-Accept: ${accept}`)
    if (answer !== undefined) socket.write(answer)
    socket.resume()
    socket.on('end', () => socket.end())
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => {
    server.closeAllConnections()
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, sockets }
}

t.setTimeout(120_000)

/** What most tests need: an echo that speaks `second` and compresses, and one that does not compress. */
const upstream = await startServer(t, {
  perMessageDeflate: true,
  handleProtocols: protocols => (protocols.has('second') ? 'second' : false)
})
const uncompressed = await startServer(t, { perMessageDeflate: false })
const odd = await startOdd(t)
const shared = await startGateway({
  services: [
    {
      name: 'odd',
      url: odd.url,
      read_timeout: 2000,
      retries: 0,
      routes: [{ name: 'odd', paths: ['/odd'] }]
    },
    { name: 'echo', url: `${upstream.url}/base`, routes: [{ name: 'echo', paths: ['/echo'] }] },
    { name: 'large', url: uncompressed.url, routes: [{ name: 'large', paths: ['/large'] }] },
    {
      name: 'marked',
      url: upstream.url,
      routes: [{ name: 'marked', paths: ['/marked'] }],
      plugins: [
        { name: 'correlation-id', config: { header_name: 'X-Mark', echo_downstream: true } }
      ]
    },
    {
      name: 'closed',
      url: 'http://127.0.0.1:1',
      routes: [{ name: 'closed', paths: ['/closed'] }],
      plugins: [{ name: 'key-auth' }]
    },
    {
      name: 'nobody',
      url: 'http://127.0.0.1:1',
      routes: [{ name: 'nobody', paths: ['/nobody'] }]
    },
    { name: 'pair', host: 'pair', routes: [{ name: 'pair', paths: ['/pair'] }] }
  ],
  routes: [{ name: 'nowhere', paths: ['/nowhere'] }],
  upstreams: [
    {
      name: 'pair',
      targets: [
        { target: '127.0.0.1:1', weight: 100 },
        { target: `127.0.0.1:${upstream.port}`, weight: 100 }
      ]
    }
  ]
})
t.teardown(() => shared.close())

await t.test('a handshake runs through the same life as other requests', async t => {
  const client = await connect(t, shared, '/echo/room?a=1', [], {
    headers: { cookie: 'c=1', 'x-forwarded-for': '1.2.3.4' }
  })
  t.equal(upstream.handshakes[0]!.url, '/base/room?a=1')
  t.match(upstream.handshakes[0]!.headers, {
    host: `127.0.0.1:${upstream.port}`,
    cookie: 'c=1',
    'x-forwarded-for': '1.2.3.4, 127.0.0.1',
    'x-forwarded-prefix': '/echo'
  })
  t.equal(await openOf(shared), 1)
  client.close(1000)
  await allLetGo(shared)
  for (const [path, status] of [
    ['/none', 404],
    ['/closed', 401],
    ['/nowhere', 503]
  ] as const) {
    t.equal((await refusal(t, shared, path)).status, status, path)
  }
  await allLetGo(shared)
})

await t.test('fields of the answer go to the client, and those of plugins', async t => {
  const add = (headers: string[]): void => {
    headers.push('Set-Cookie: a=1', 'Connection: X-Hop', 'X-Hop: 1')
  }
  upstream.server.on('headers', add)
  t.teardown(() => upstream.server.off('headers', add))
  const client = dial(t, shared, '/marked')
  const [{ headers }] = (await once(client, 'upgrade')) as [IncomingMessage]
  t.match(headers, { 'set-cookie': ['a=1'], 'x-mark': /#1$/, via: /postern/ })
  t.match(headers, { 'x-postern-request-id': /^[0-9a-f]{32}$/ })
  t.notOk(headers['x-hop'])
})

await t.test('text, binary, empty and large messages', async t => {
  const client = await connect(t, shared, '/echo')
  const large = Buffer.alloc(3_000_000, 'x')
  for (const message of ['hello', '', 'ünïcode ☃', Buffer.from([0, 1, 255]), large]) {
    client.send(message)
    const [data, binary] = (await once(client, 'message')) as [Buffer, boolean]
    t.equal(binary, typeof message !== 'string')
    t.ok(data.equals(Buffer.from(message)))
  }
})

await t.test('what one side says before the other can listen arrives', async t => {
  const greet = (socket: Client): void => {
    socket.send('welcome')
    socket.send('again')
  }
  upstream.server.on('connection', greet)
  t.teardown(() => upstream.server.off('connection', greet))
  const client = dial(t, shared, '/echo')
  const got: string[] = []
  client.on('message', data => got.push(data.toString()))
  client.on('open', () => client.send('first'))
  await until(() => got.length === 3, 'three messages')
  t.same(got.sort(), ['again', 'first', 'welcome'])
})

await t.test('the upstream chooses among the subprotocols', async t => {
  const client = await connect(t, shared, '/echo', ['first', 'second', 'third'])
  t.equal(client.protocol, 'second')
  t.equal(upstream.handshakes.at(-1)!.headers['sec-websocket-protocol'], 'first,second,third')
  t.equal(upstream.sockets.at(-1)!.protocol, 'second')
  client.send('works')
  await once(client, 'message')
  const none = dial(t, shared, '/echo', ['first'])
  const [answer] = (await once(none, 'upgrade')) as [IncomingMessage]
  t.equal(answer.headers['sec-websocket-protocol'], undefined)
})

await t.test('permessage-deflate is spoken where both sides speak it', async t => {
  for (const [server, path, client, both] of [
    [upstream, '/echo', true, true],
    [upstream, '/echo', false, false],
    [uncompressed, '/large', true, false]
  ] as const) {
    const socket = await connect(t, shared, path, [], { perMessageDeflate: client })
    const expected = both ? 'permessage-deflate' : ''
    t.equal(socket.extensions, expected)
    t.equal(server.sockets.at(-1)!.extensions, expected)
    const text = 'compressible '.repeat(20_000)
    for (let i = 0; i < 3; i++) {
      socket.send(text)
      const [data] = (await once(socket, 'message')) as [Buffer]
      t.equal(data.toString(), text)
    }
  }
})

await t.test('only extensions that are spoken here are offered', async t => {
  for (const [offer, passed] of [
    ['x-unknown', undefined],
    ['x-unknown, permessage-deflate', 'permessage-deflate; client_max_window_bits']
  ] as const) {
    const answer = await raw(
      shared.port,
      'GET /echo HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n' +
        'Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n' +
        `Sec-WebSocket-Extensions: ${offer}\r\n\r\n`,
      '\r\n\r\n'
    )
    t.match(answer, /^HTTP\/1\.1 101 /)
    // RFC 6455 §1.3 has this key and its answer.
    t.match(answer, 'Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=')
    t.equal(upstream.handshakes.at(-1)!.headers['sec-websocket-extensions'], passed)
  }
})

await t.test('an upstream that refuses the handshake answers the client itself', async t => {
  const refused = await refusal(t, shared, '/odd/members')
  t.equal(refused.status, 403)
  t.equal(refused.headers['x-reason'], 'members only')
  t.equal(refused.body, 'no entry '.repeat(50_000))
  const plain = await refusal(t, shared, '/odd/plain')
  t.equal(plain.status, 200)
  t.equal(plain.body, 'ok')
  await allLetGo(shared)
})

await t.test('an upstream that gives no good answer is a 502 or 504, never a 101', async t => {
  for (const [path, status] of [
    ['/odd/silent', 504],
    ['/odd/key', 502],
    ['/odd/protocol', 502],
    ['/odd/extension', 502],
    ['/odd/gibberish', 502],
    ['/nobody', 502]
  ] as const) {
    t.equal((await refusal(t, shared, path, ['mine'])).status, status, path)
  }
  await until(() => odd.sockets.size === 0, 'the upstream connections to be closed')
  await allLetGo(shared)
})

await t.test('a target that cannot be reached is passed over for another', async t => {
  for (let i = 0; i < 6; i++) {
    const client = await connect(t, shared, '/pair')
    client.send(`${i}`)
    const [data] = (await once(client, 'message')) as [Buffer]
    t.equal(data.toString(), `${i}`)
    client.terminate()
  }
  await allLetGo(shared)
})

await t.test('a client that leaves during the handshake leaves nothing behind', async t => {
  const client = dial(t, shared, '/odd/silent')
  await until(() => odd.sockets.size === 1, 'the handshake to reach the upstream')
  client.terminate()
  await until(() => odd.sockets.size === 0, 'the upstream to be let go')
  await allLetGo(shared)
})

await t.test('a malformed handshake is no upgrade', async t => {
  const good = {
    Host: 'a',
    Connection: 'Upgrade, close',
    Upgrade: 'websocket',
    'Sec-WebSocket-Version': '13',
    'Sec-WebSocket-Key': 'dGhlIHNhbXBsZSBub25jZQ=='
  }
  for (const bad of [
    { 'Sec-WebSocket-Version': '12' },
    { 'Sec-WebSocket-Key': 'short' },
    { 'Sec-WebSocket-Protocol': 'a, , b' },
    { Upgrade: 'h2c' },
    { 'Content-Length': '4' }
  ]) {
    const lines = Object.entries({ ...good, ...bad }).map(([name, value]) => `${name}: ${value}`)
    const answer = await raw(
      shared.port,
      `GET /odd/request HTTP/1.1\r\n${lines.join('\r\n')}\r\n\r\nbody`,
      'undefined'
    )
    t.match(answer, /^HTTP\/1\.1 200 [\s\S]*upgrade: undefined/, JSON.stringify(bad))
  }
})

await t.test('a message that is too large ends the connection with 1009', async t => {
  const upstream = await startServer(t, { perMessageDeflate: true })
  await using gateway = await startGateway(serving(upstream.url), {
    env: { POSTERN_MAX_WEBSOCKET_MESSAGE: '1k' }
  })
  const client = await connect(t, gateway)
  // Small as it is sent, large inflated.
  client.send('x'.repeat(100_000))
  const [code] = await once(client, 'close')
  t.equal(code, 1009)
  await allLetGo(gateway)
})

await t.test(
  'WebSockets over TLS on both sides, with the certificates a service names',
  async t => {
    const root = issue('Test root', undefined, true)
    const own = issue('upstream', root, false, [{ type: 7, ip: '127.0.0.1' }])
    const shown: unknown[] = []
    const upstream = https.createServer({
      ...own,
      ca: [root.cert],
      requestCert: true,
      rejectUnauthorized: true
    })
    const server = new WebSocketServer({ server: upstream })
    server.on('connection', (socket, request) => {
      shown.push((request.socket as TLSSocket).authorized)
      socket.on('message', data => socket.send(data))
    })
    upstream.listen(0, '127.0.0.1')
    await once(upstream, 'listening')
    t.teardown(() => {
      for (const client of server.clients) client.terminate()
      upstream.close()
    })
    const { port } = upstream.address() as AddressInfo
    const certificate = '5a0f6b0e-0d3c-4c6e-9d0e-0d3c4c6e9d0e'
    const authority = '6a0f6b0e-0d3c-4c6e-9d0e-0d3c4c6e9d0e'
    await using gateway = await startGateway(
      {
        certificates: [{ id: certificate, ...own }],
        ca_certificates: [{ id: authority, cert: root.cert }],
        ...serving(`https://127.0.0.1:${port}`, {
          client_certificate: { id: certificate },
          ca_certificates: [authority]
        })
      },
      { env: { POSTERN_PROXY_LISTEN: '127.0.0.1:0 ssl http2' } }
    )
    const client = new WebSocket(gateway.tlsUrl!.replace('https', 'wss'), {
      rejectUnauthorized: false
    })
    t.teardown(() => client.terminate())
    await once(client, 'open')
    client.send('secret')
    const [data] = (await once(client, 'message')) as [Buffer]
    t.equal(data.toString(), 'secret')
    t.same(shown, [true])
  }
)

await t.test('at the end of the gateway clients are told that it goes away', async t => {
  const upstream = await startServer(t)
  const gateway = await startGateway(serving(upstream.url), {
    env: { POSTERN_SHUTDOWN_TIMEOUT: '30' }
  })
  const client = await connect(t, gateway)
  const closed = once(client, 'close')
  const served = once(upstream.sockets[0]!, 'close')
  const began = Date.now()
  await gateway.close()
  t.equal((await closed)[0], 1001)
  t.equal((await served)[0], 1001)
  t.ok(Date.now() - began < 20_000, 'without waiting for the whole time allowed')
})
