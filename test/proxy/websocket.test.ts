import { once } from 'node:events'
import { createRequire } from 'node:module'
import type { AddressInfo } from 'node:net'
import t from 'tap'
import { type WebSocket as Client, WebSocketServer } from 'ws'
import { startGateway, until } from '../harness.ts'

const { WebSocket } = createRequire(import.meta.url)('ws') as { WebSocket: typeof Client }

await t.test('WebSockets run through the same life as other requests', async t => {
  const server = new WebSocketServer({ port: 0, host: '127.0.0.1', handleProtocols: () => 'chat' })
  await once(server, 'listening')
  t.teardown(() => {
    for (const client of server.clients) client.terminate()
    server.close()
  })
  const seen: { url: string | undefined; headers: Record<string, unknown> }[] = []
  server.on('connection', (socket, request) => {
    seen.push({ url: request.url, headers: request.headers })
    socket.on('message', (data, isBinary) => socket.send(data, { binary: isBinary }))
  })
  const { port } = server.address() as AddressInfo
  await using gateway = await startGateway({
    services: [
      {
        name: 'ws',
        url: `http://127.0.0.1:${port}/base`,
        routes: [{ name: 'ws', paths: ['/chat'] }]
      },
      {
        name: 'closed',
        url: 'http://127.0.0.1:1',
        routes: [{ name: 'closed', paths: ['/closed'] }],
        plugins: [{ name: 'key-auth' }]
      }
    ],
    routes: [{ name: 'nowhere', paths: ['/nowhere'] }]
  })
  const client = new WebSocket(`${gateway.url.replace('http', 'ws')}/chat/room?a=1`, ['chat'], {
    headers: { cookie: 'c=1', 'x-forwarded-for': '1.2.3.4' }
  })
  await once(client, 'open')
  t.equal(client.protocol, 'chat')
  client.send('hello')
  const [text] = (await once(client, 'message')) as [Buffer, boolean]
  t.equal(text.toString(), 'hello')
  client.send(Buffer.from([1, 2, 3]))
  const [bytes, isBinary] = (await once(client, 'message')) as [Buffer, boolean]
  t.ok(isBinary)
  t.same([...bytes], [1, 2, 3])
  t.equal(seen[0]!.url, '/base/room?a=1')
  t.match(seen[0]!.headers, {
    host: `127.0.0.1:${port}`,
    cookie: 'c=1',
    'x-forwarded-for': '1.2.3.4, 127.0.0.1',
    'x-forwarded-prefix': '/chat'
  })
  t.equal((await gateway.status('/status')).json().webSockets, 1)
  client.close(1000)
  await once(client, 'close')
  await until(
    async () => (await gateway.status('/status')).json().webSockets === 0,
    'the socket to be let go'
  )

  for (const [path, status] of [
    ['/none', 404],
    ['/closed', 401],
    ['/nowhere', 503]
  ] as const) {
    const refused = new WebSocket(gateway.url.replace('http', 'ws') + path)
    const [, response] = await once(refused, 'unexpected-response')
    t.equal(response.statusCode, status, path)
    refused.on('error', () => {})
    refused.terminate()
  }
})
