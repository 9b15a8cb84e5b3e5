import { once } from 'node:events'
import http2 from 'node:http2'
import https from 'node:https'
import net, { type AddressInfo } from 'node:net'
import t from 'tap'
import { probe } from '../../src/proxy/probe.ts'
import { certificateFor } from '../certificates.ts'
import { startGateway, startUpstream, until } from '../harness.ts'

const { cert, key } = await certificateFor('api.test')
const common = {
  ip: '127.0.0.1',
  host: 'api.test',
  path: '/health',
  headers: { 'x-probe': ['1'] },
  timeout: 10_000,
  servername: undefined,
  verify: false,
  cert: undefined,
  key: undefined
}

async function listen(server: net.Server): Promise<number> {
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => server.close())
  return (server.address() as AddressInfo).port
}

await t.test('http probes: status, headers, refusal and silence', async t => {
  await using upstream = await startUpstream((received, response) => {
    if (received.url === '/health') response.writeHead(204).end()
  })
  const { port } = upstream
  t.same(await probe({ ...common, type: 'http', port }), { status: 204 })
  t.match(upstream.requests[0], {
    method: 'GET',
    headers: { host: 'api.test', 'x-probe': '1', connection: 'close' }
  })
  t.match(await probe({ ...common, type: 'http', port, path: '/none', timeout: 50 }), {
    failure: 'timeout'
  })
  await upstream.close()
  t.match(await probe({ ...common, type: 'http', port }), {
    failure: 'tcp',
    cause: 'ECONNREFUSED'
  })
})

await t.test('tcp probes', async t => {
  const port = await listen(net.createServer(socket => socket.on('error', () => {})))
  t.same(await probe({ ...common, type: 'tcp', port }), { success: 'connected' })
  t.match(await probe({ ...common, type: 'tcp', port: 1 }), { failure: 'tcp' })
})

await t.test(
  'https probes: verification is a matter of the connection, SNI of the name',
  async t => {
    const names: unknown[] = []
    const port = await listen(
      https.createServer({ cert, key }, (request, response) => {
        names.push((request.socket as unknown as { servername: unknown }).servername)
        response.end()
      })
    )
    t.same(await probe({ ...common, type: 'https', port }), { status: 200 })
    t.same(await probe({ ...common, type: 'https', port, servername: 'other.test' }), {
      status: 200
    })
    t.same(names, ['api.test', 'other.test'])
    t.match(await probe({ ...common, type: 'https', port, verify: true }), { failure: 'tcp' })
  }
)

/** A server of the gRPC health service; `answer` is the message, framed, or a grpc-status. */
async function healthServer(answer: Buffer | string): Promise<number> {
  const server = http2.createServer()
  server.on('stream', stream => {
    stream.on('error', () => {})
    stream.resume()
    if (typeof answer === 'string') {
      stream.respond(
        { 'content-type': 'application/grpc', 'grpc-status': answer },
        { endStream: true }
      )
      return
    }
    stream.respond({ 'content-type': 'application/grpc' }, { waitForTrailers: true })
    stream.on('wantTrailers', () => stream.sendTrailers({ 'grpc-status': '0' }))
    stream.end(answer)
  })
  return listen(server)
}

await t.test('grpc probes ask the standard health service', async t => {
  const framed = (status: number) => Buffer.from([0, 0, 0, 0, 2, 8, status])
  const ask = async (answer: Buffer | string) =>
    probe({ ...common, type: 'grpc', port: await healthServer(answer) })
  t.same(await ask(framed(1)), { success: 'serving' })
  t.match(await ask(framed(2)), { failure: 'http', cause: 'not serving' })
  t.match(await ask('12'), { success: /without a health service/ })
  t.match(await ask('14'), { failure: 'http', cause: 'grpc-status 14' })
  t.match(await probe({ ...common, type: 'grpc', port: 1 }), { failure: 'tcp' })
})

await t.test('probes take a target out and bring it back, once for the node', async t => {
  let healthy = true
  let probes = 0
  await using upstream = await startUpstream((received, response) => {
    if (received.url !== '/health') {
      response.end('ok')
      return
    }
    probes++
    response.writeHead(healthy ? 200 : 503).end()
  })
  await using gateway = await startGateway(
    {
      upstreams: [
        {
          name: 'pool',
          targets: [{ target: `127.0.0.1:${upstream.port}` }],
          healthchecks: {
            active: {
              http_path: '/health',
              timeout: 10,
              healthy: { interval: 0.05, successes: 2 },
              unhealthy: { interval: 0.05, http_failures: 2 }
            }
          }
        }
      ],
      services: [{ name: 'up', host: 'pool', routes: [{ paths: ['/'] }] }]
    },
    { workers: 2 }
  )
  const status = async () => (await gateway.fetch('/')).status
  t.equal(await status(), 200)
  await until(() => probes > 2, 'probes')
  healthy = false
  // Good requests all the while, which are no reason to overlook what the probes see.
  const answered = new Set<number>()
  await until(async () => {
    const all = await Promise.all(Array.from({ length: 4 }, status))
    for (const each of all) answered.add(each)
    return all.every(each => each === 503)
  }, 'the target to be out')
  t.same([...answered].sort(), [200, 503])
  const [entry] = (await gateway.status('/upstreams')).json().upstreams
  t.match(entry, { health: 'UNHEALTHY' })
  t.match(entry.targets[0].addresses[0].last_check, { result: 'status 503' })
  healthy = true
  await until(async () => (await status()) === 200, 'the target to be back')
})
