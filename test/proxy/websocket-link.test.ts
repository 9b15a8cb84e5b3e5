import { once } from 'node:events'
import t from 'tap'
import type { WebSocket as Client } from 'ws'
import { startGateway, until } from '../harness.ts'
import { allLetGo, connect, openOf, serving, stalled, startServer } from '../websocket.ts'

t.setTimeout(120_000)

const upstream = await startServer(t)
const listener = await startServer(t, { autoPong: false }, false)
const shared = await startGateway({
  services: [
    { name: 'echo', url: upstream.url, routes: [{ name: 'echo', paths: ['/echo'] }] },
    { name: 'listen', url: listener.url, routes: [{ name: 'listen', paths: ['/listen'] }] }
  ]
})
t.teardown(() => shared.close())

await t.test('pings go to the other end and come back once', async t => {
  const client = await connect(t, shared, '/echo')
  const server = upstream.sockets.at(-1)!
  const seen: string[] = []
  server.on('ping', data => seen.push(`server ping ${data}`))
  server.on('pong', data => seen.push(`server pong ${data}`))
  client.on('ping', data => seen.push(`client ping ${data}`))
  client.on('pong', data => seen.push(`client pong ${data}`))
  client.ping('a')
  await once(client, 'pong')
  server.ping('b')
  await once(server, 'pong')
  // A message after them: whatever else was under way has arrived before it.
  client.send('end')
  await once(client, 'message')
  t.same(seen, ['server ping a', 'client pong a', 'client ping b', 'server pong b'])
})

await t.test('each side learns how the other ended', async t => {
  const endings: readonly (readonly [string, (socket: Client) => void, number, string])[] = [
    ['normally', socket => socket.close(1000, 'done'), 1000, 'done'],
    ['with a code of its own', socket => socket.close(4321, 'a reason'), 4321, 'a reason'],
    ['going away', socket => socket.close(1001), 1001, ''],
    ['without a code', socket => socket.close(), 1005, ''],
    ['cut off', socket => socket.terminate(), 1006, '']
  ]
  for (const [name, end, code, reason] of endings) {
    for (const from of ['client', 'server']) {
      const client = await connect(t, shared, '/echo')
      const server = upstream.sockets.at(-1)!
      const [ended, other] = from === 'client' ? [client, server] : [server, client]
      end(ended)
      const [gotCode, gotReason] = (await once(other, 'close')) as [number, Buffer]
      t.same([gotCode, gotReason.toString()], [code, reason], `${from} ends ${name}`)
    }
  }
  await allLetGo(shared)
})

await t.test('messages sent right before the end arrive', async t => {
  const client = await connect(t, shared, '/listen')
  const server = listener.sockets.at(-1)!
  let bytes = 0
  server.on('message', data => {
    bytes += (data as Buffer).length
  })
  for (let i = 0; i < 40; i++) client.send(Buffer.alloc(100_000))
  client.close(1000)
  const [code] = await once(server, 'close')
  t.equal(code, 1000)
  t.equal(bytes, 4_000_000)
})

await t.test('a receiver that stalls stops the sender, and loses nothing', async t => {
  // More than the system's buffers of two connections take at their largest (tcp_rmem, tcp_wmem).
  const COUNT = 512
  const message = Buffer.alloc(262_144, 'm')
  for (const from of ['client', 'server']) {
    const client = await connect(t, shared, '/listen', [], { perMessageDeflate: false })
    const server = listener.sockets.at(-1)!
    const [sender, receiver] = from === 'client' ? [client, server] : [server, client]
    let received = 0
    receiver.on('message', () => received++)
    receiver.pause()
    let sent = 0
    let running = true
    const more = (): void => {
      if (!running || sent === COUNT) return
      sent++
      sender.send(message, more)
    }
    more()
    await stalled(() => sent)
    t.ok(sent < COUNT, `the ${from} was stopped after ${sent} messages`)
    running = false
    receiver.resume()
    await until(() => received === sent, 'every message to arrive')
    client.terminate()
  }
  await allLetGo(shared)
})

await t.test('a flood of pings at a receiver that stalls is held back too', async t => {
  const client = await connect(t, shared, '/listen')
  const server = listener.sockets.at(-1)!
  server.pause()
  let pings = 0
  server.on('ping', () => pings++)
  const COUNT = 400_000
  const data = Buffer.alloc(125)
  let sent = 0
  const more = (): void => {
    // In batches: the sender itself has only so much under way.
    for (let i = 0; i < 999 && sent < COUNT; i++, sent++) client.ping(data)
    if (sent < COUNT) client.ping(data, undefined, () => more())
    sent++
  }
  more()
  await stalled(() => sent)
  t.ok(sent < COUNT, `the client was stopped after ${sent} pings`)
  const total = sent
  sent = COUNT
  server.resume()
  await until(() => pings === total, 'every ping to arrive')
})

await t.test('a thousand quiet connections outlive every timeout', async t => {
  const upstream = await startServer(t)
  await using gateway = await startGateway(
    serving(upstream.url, { read_timeout: 4000, write_timeout: 4000, connect_timeout: 10_000 }),
    {
      env: {
        POSTERN_CLIENT_KEEPALIVE_TIMEOUT: '1',
        // A handshake is held to this one, and takes its time on a busy machine.
        POSTERN_REQUEST_HEADER_TIMEOUT: '4',
        POSTERN_REQUEST_BODY_TIMEOUT: '1',
        POSTERN_SEND_TIMEOUT: '1',
        POSTERN_UPSTREAM_KEEPALIVE_IDLE_TIMEOUT: '1'
      }
    }
  )
  const clients: Client[] = []
  while (clients.length < 1000) {
    clients.push(...(await Promise.all(Array.from({ length: 20 }, () => connect(t, gateway)))))
  }
  t.equal(await openOf(gateway), 1000)
  // Longer than the longest of them, and the second in which they are looked for.
  await new Promise(resolve => setTimeout(resolve, 5500))
  t.equal(await openOf(gateway), 1000)
  await Promise.all(
    clients.map(async (client, i) => {
      client.send(`${i}`)
      const [data] = (await once(client, 'message')) as [Buffer]
      if (data.toString() !== `${i}`) t.fail('a message of another connection')
    })
  )
  clients.forEach((client, i) => {
    if (i % 2 === 0) client.close()
    else client.terminate()
  })
  await allLetGo(gateway)
  await until(() => upstream.server.clients.size === 0, 'the upstream to be let go')
})
