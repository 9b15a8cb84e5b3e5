import t, { type Test } from 'tap'
import { Transport } from '../../../src/vault/backends/transport.ts'
import { startUpstream } from '../../harness.ts'
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
