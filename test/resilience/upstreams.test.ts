import { once } from 'node:events'
import http, { type ServerResponse } from 'node:http'
import net, { type AddressInfo, type Socket } from 'node:net'
import t from 'tap'
import { startGateway, startUpstream, until } from '../harness.ts'
import { startTraffic } from '../traffic.ts'

t.setTimeout(120_000)

await t.test('an upstream that is killed and comes back, beside one that stays', async t => {
  await using stays = await startUpstream((_received, response) => void response.end('ok'))
  const open = (port: number): Promise<http.Server> => {
    const server = http.createServer((_request, response) => void response.end('ok'))
    return new Promise(resolve => server.listen(port, '127.0.0.1', () => resolve(server)))
  }
  let dying = await open(0)
  t.teardown(() => void dying.close())
  const { port } = dying.address() as AddressInfo
  await using gateway = await startGateway({
    upstreams: [
      {
        name: 'pair',
        targets: [{ target: `127.0.0.1:${port}` }, { target: `127.0.0.1:${stays.port}` }]
      }
    ],
    services: [{ name: 'up', host: 'pair', routes: [{ name: 'all', paths: ['/'] }] }]
  })
  const traffic = startTraffic(gateway.url)
  for (let round = 0; round < 3; round++) {
    const before = traffic.report.served
    await until(() => traffic.report.served > before + 20, 'traffic with both')
    dying.closeAllConnections()
    dying.close()
    await once(dying, 'close')
    const alone = traffic.report.served
    await until(() => traffic.report.served > alone + 20, 'traffic with one')
    dying = await open(port)
  }
  const { served, failures } = await traffic.stop()
  dying.closeAllConnections()
  t.same(failures, [], `${served} requests lost nothing`)
})

await t.test('a service that is slow, silent or floods disturbs no other', async t => {
  await using good = await startUpstream((_received, response) => void response.end('ok'))
  const held: ServerResponse[] = []
  await using slow = await startUpstream((_received, response) => void held.push(response))
  const halfOpen = new Set<Socket>()
  const sockets = new Set<Socket>()
  // Takes connections and never says anything on them, not even their end.
  const silent = net.createServer({ allowHalfOpen: true }, socket => {
    halfOpen.add(socket)
    socket.on('error', () => {})
    // Its end is heard, and never answered with one.
    socket.on('end', () => halfOpen.delete(socket))
    sockets.add(socket)
    socket.resume()
  })
  silent.listen(0, '127.0.0.1')
  // Answers with a head that never ends.
  const flooding = net.createServer(socket => {
    socket.on('error', () => {})
    const flood = setInterval(() => socket.write(`X-More: ${'y'.repeat(10_000)}\r\n`), 1)
    socket.on('close', () => clearInterval(flood))
    socket.write('HTTP/1.1 200 OK\r\n')
    socket.resume()
  })
  flooding.listen(0, '127.0.0.1')
  await Promise.all([once(silent, 'listening'), once(flooding, 'listening')])
  t.teardown(() => {
    for (const socket of sockets) socket.destroy()
    silent.close()
    flooding.close()
  })
  const urlOf = (server: net.Server): string =>
    `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  await using gateway = await startGateway(
    {
      services: [
        { name: 'good', url: good.url, routes: [{ name: 'good', paths: ['/good'] }] },
        ...Object.entries({ slow: slow.url, silent: urlOf(silent), flooding: urlOf(flooding) }).map(
          ([name, url]) => ({
            name,
            url,
            retries: 0,
            read_timeout: 2500,
            routes: [{ name, paths: [`/${name}`] }]
          })
        )
      ]
    },
    { env: { POSTERN_UPSTREAM_KEEPALIVE_POOL_SIZE: '50' } }
  )
  const traffic = startTraffic(`${gateway.url}/good`)
  await until(() => traffic.report.served > 10, 'traffic')
  const statusesOf = (path: string, count: number): Promise<number[]> =>
    Promise.all(Array.from({ length: count }, async () => (await gateway.fetch(path)).status))
  // More than the pools take at once.
  const answers = await Promise.all([
    statusesOf('/slow', 40),
    statusesOf('/silent', 40),
    statusesOf('/flooding', 20)
  ])
  t.same(
    answers.map(each => [...new Set(each)]),
    [[504], [504], [502]]
  )
  t.equal(held.length, 40)
  await until(() => halfOpen.size === 0, 'the half-open connections to be let go')
  const { served, failures } = await traffic.stop()
  t.same(failures, [], `${served} good requests lost nothing`)
})
