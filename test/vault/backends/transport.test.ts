import { once } from 'node:events'
import { type AddressInfo, createServer, type Socket } from 'node:net'
import t, { type Test } from 'tap'
import { Transport } from '../../../src/vault/backends/transport.ts'
import { startUpstream, until } from '../../harness.ts'
import { startFaultServer } from '../fault-server.ts'

const TOO_LARGE = { name: 'TransportError', message: 'its answer is larger than 4194304 bytes' }

function transport(t: Test) {
  const transport = new Transport()
  t.teardown(() => transport.close())
  return (url: string) =>
    transport.send({ method: 'GET', url: new URL(url), signal: AbortSignal.timeout(20_000) })
}

await t.test('an answer that says it is too large is not waited for', async t => {
  // Its body never comes.
  await using server = await startUpstream((_, response) => {
    response.writeHead(200, { 'Content-Length': 10 * 1024 * 1024 }).flushHeaders()
  })
  await t.rejects(transport(t)(server.url), TOO_LARGE)
})

await t.test('one that does not is taken as far as the limit', async t => {
  const server = await startFaultServer(() => ({ body: { a: 1 } }))
  t.teardown(() => server.close())
  const get = transport(t)
  t.match(await get(server.url), { status: 200, body: '{"a":1}' })
  await server.fault('endless')
  await t.rejects(get(server.url), TOO_LARGE)
  await server.fault(undefined)
  t.match(await get(server.url), { status: 200 }, 'the next one is sound')
  t.ok(server.taken < 64 * 1024 * 1024, `${server.taken} bytes were taken`)
})

/** A forward proxy that lets tunnels hang: before it answers, or once they stand. */
async function hangingProxy(t: Test, standing: boolean) {
  const sockets = new Set<Socket>()
  const proxy = createServer(socket => {
    sockets.add(socket)
    socket.on('error', () => {}).on('close', () => sockets.delete(socket))
    socket.once('data', () => {
      if (standing) socket.write('HTTP/1.1 200 Connection established\r\n\r\n')
    })
  }).listen(0, '127.0.0.1')
  await once(proxy, 'listening')
  t.teardown(() => proxy.close())
  const { port } = proxy.address() as AddressInfo
  return { url: `http://127.0.0.1:${port}`, sockets }
}

for (const standing of [false, true]) {
  const where = standing ? 'whose far end hangs' : 'that its proxy never makes'
  await t.test(`of a tunnel ${where} nothing is left`, async t => {
    const { url, sockets } = await hangingProxy(t, standing)
    const get = (transport: Transport, signal: AbortSignal) =>
      transport.send({ method: 'GET', url: new URL('https://vault.internal/'), signal })
    const given = new AbortController()
    const transport = new Transport({}, { HTTPS_PROXY: url })
    const sent = get(transport, given.signal)
    await until(() => sockets.size === 1, 'the proxy is asked')
    given.abort()
    await t.rejects(sent)
    await until(() => sockets.size === 0, 'its connection is closed')
    const other = get(transport, new AbortController().signal)
    await until(() => sockets.size === 1, 'the proxy is asked again')
    transport.close()
    await t.rejects(other)
    await until(() => sockets.size === 0, 'closing leaves none either')
  })
}
