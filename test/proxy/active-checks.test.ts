import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { rename, writeFile } from 'node:fs/promises'
import http2 from 'node:http2'
import https from 'node:https'
import net, { type AddressInfo } from 'node:net'
import { join } from 'node:path'
import type { TLSSocket } from 'node:tls'
import { promisify } from 'node:util'
import t from 'tap'
import { probe } from '../../src/proxy/probe.ts'
import { certificateFor, issue } from '../certificates.ts'
import { startGateway, startUpstream, until } from '../harness.ts'

// Threads start slowly on a busy machine.
t.setTimeout(120_000)

const { cert, key } = await certificateFor('api.test')
const common = {
  ip: '127.0.0.1',
  host: 'api.test',
  path: '/health',
  headers: { 'x-probe': ['1'] },
  timeout: 10_000,
  servername: undefined,
  verify: false,
  context: undefined
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

await t.test('a process without descriptors left does not blame the target', async t => {
  const source = `
    import { openSync } from 'node:fs'
    import { probe } from '${new URL('../../src/proxy/probe.ts', import.meta.url)}'
    const common = ${JSON.stringify({ ...common, port: 1 })}
    await probe({ ...common, type: 'grpc' })
    try { for (;;) openSync('/dev/null') } catch {}
    const findings = []
    for (const type of ['tcp', 'http', 'grpc']) findings.push(await probe({ ...common, type }))
    process.stdout.write(JSON.stringify(findings))`
  const { stdout } = await promisify(execFile)('sh', [
    '-c',
    'ulimit -n 100; exec "$0" --input-type=module -e "$1"',
    process.execPath,
    source
  ])
  t.same(JSON.parse(stdout), [{ unable: 'EMFILE' }, { unable: 'EMFILE' }, { unable: 'EMFILE' }])
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
  t.same(await probe({ ...common, type: 'grpc', port: 1 }), {
    failure: 'tcp',
    cause: 'ECONNREFUSED'
  })
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

await t.test('every field of an active check', async t => {
  const certificateId = '5f0f9d1c-6f6e-4d0f-9b0e-2f1f0c7d9a11'
  const probed: object[] = []
  const secure = await listen(
    https.createServer(
      { cert, key, requestCert: true, rejectUnauthorized: false },
      (request, response) => {
        const { socket, url, headers } = request as typeof request & { socket: TLSSocket }
        const shown = socket.getPeerX509Certificate()?.subject
        probed.push({
          sni: socket.servername,
          url,
          host: headers.host,
          probe: headers['x-probe'],
          shown
        })
        response.end()
      }
    )
  )
  await using teapot = await startUpstream((_received, response) => {
    response.writeHead(418).end()
  })
  const connecting = await listen(net.createServer(socket => socket.on('error', () => {})))
  const silentPort = await listen(net.createServer(socket => socket.on('error', () => {})))
  const upstream = (name: string, ports: readonly number[], active: object, more: object = {}) => ({
    name,
    targets: ports.map(port => ({ target: `127.0.0.1:${port}` })),
    healthchecks: { active },
    ...more
  })
  const often = { interval: 0.05 }
  const failures = { tcp_failures: 0, timeouts: 0, http_failures: 0 }
  const https1 = {
    type: 'https',
    http_path: '/up',
    https_sni: 'sni.test',
    headers: { 'X-Probe': ['one', 'two'] },
    healthy: often,
    unhealthy: { ...failures, tcp_failures: 1 }
  }
  const shows = { host_header: 'host.test', client_certificate: { id: certificateId } }
  const upstreams = [
    upstream('trusting', [secure], { ...https1, https_verify_certificate: false }, shows),
    upstream('doubting', [secure], https1),
    upstream('listed', [teapot.port], {
      healthy: often,
      unhealthy: { ...failures, http_statuses: [418], http_failures: 1 }
    }),
    upstream('unlisted', [teapot.port], {
      healthy: often,
      unhealthy: { ...failures, http_failures: 1 }
    }),
    upstream('connecting', [connecting], {
      type: 'tcp',
      healthy: often,
      unhealthy: { ...failures, tcp_failures: 1 }
    }),
    upstream('refusing', [1], {
      type: 'tcp',
      healthy: often,
      unhealthy: { ...failures, tcp_failures: 1 }
    }),
    upstream('silent', [silentPort], {
      timeout: 0.1,
      healthy: often,
      unhealthy: { ...failures, timeouts: 2 }
    }),
    upstream('serving', [await healthServer(Buffer.from([0, 0, 0, 0, 2, 8, 1]))], {
      type: 'grpc',
      healthy: often,
      unhealthy: { ...failures, http_failures: 1 }
    }),
    upstream('not-serving', [await healthServer(Buffer.from([0, 0, 0, 0, 2, 8, 2]))], {
      type: 'grpc',
      healthy: often,
      unhealthy: { ...failures, http_failures: 1 }
    }),
    upstream('coming-back', [connecting], {
      type: 'tcp',
      healthy: { successes: 3 },
      unhealthy: often
    }),
    upstream('staying-out', [connecting], {
      type: 'tcp',
      healthy: { interval: 60, successes: 1 },
      unhealthy: failures
    })
  ]
  await using gateway = await startGateway({
    certificates: [{ id: certificateId, cert, key }],
    upstreams
  })
  const turn = (name: string) =>
    gateway.status(`/upstreams/health?upstream=${name}&state=unhealthy`, { method: 'POST' })
  type Shown = { health: string; targets: { addresses: { last_check?: { result: string } }[] }[] }
  const stateOf = async (name: string): Promise<string> => {
    const listed = (await gateway.status('/upstreams')).json().upstreams as (Shown & {
      name: string
    })[]
    const found = listed.find(each => each.name === name)!
    return `${found.health}, ${found.targets[0]!.addresses[0]!.last_check?.result ?? 'no check'}`
  }
  t.equal(await stateOf('coming-back'), 'HEALTHY, no check', 'healthy.interval is 0')
  // No probe of its is under way any more, which would bring it back.
  await until(async () => (await stateOf('staying-out')) === 'HEALTHY, connected', 'its one probe')
  await turn('staying-out')
  await turn('coming-back')
  for (const [name, expected] of [
    ['trusting', 'HEALTHY, status 200'],
    ['doubting', 'UNHEALTHY, tcp: DEPTH_ZERO_SELF_SIGNED_CERT'],
    ['listed', 'UNHEALTHY, status 418'],
    ['unlisted', 'HEALTHY, status 418'],
    ['connecting', 'HEALTHY, connected'],
    ['refusing', 'UNHEALTHY, tcp: ECONNREFUSED'],
    ['silent', 'UNHEALTHY, timeout: no answer in 100 ms'],
    ['serving', 'HEALTHY, serving'],
    ['not-serving', 'UNHEALTHY, http: not serving'],
    ['coming-back', 'HEALTHY, connected']
  ] as const) {
    let seen = ''
    await until(async () => {
      seen = await stateOf(name)
      return seen === expected
    }, `${name} to be ${expected}`).catch(error => t.fail(`${error.message}: it is ${seen}`))
  }
  t.match(await stateOf('staying-out'), /^UNHEALTHY/, 'unhealthy.interval is 0')
  t.match(probed[0], {
    sni: 'sni.test',
    url: '/up',
    host: 'host.test',
    probe: 'one, two',
    shown: /CN=api\.test/
  })
})

await t.test('probes over TLS trust what the services of their upstream trust', async t => {
  const root = issue('Test root', undefined, true)
  const leaf = issue('api.test', root, false, [{ type: 2, value: 'api.test' }])
  const stranger = issue('Other root', undefined, true)
  const secure = await listen(https.createServer(leaf, (_request, response) => response.end()))
  const secureGrpc = http2.createSecureServer(leaf)
  secureGrpc.on('stream', stream => {
    stream.on('error', () => {})
    stream.respond({ 'content-type': 'application/grpc' }, { waitForTrailers: true })
    stream.on('wantTrailers', () => stream.sendTrailers({ 'grpc-status': '0' }))
    stream.end(Buffer.from([0, 0, 0, 0, 2, 8, 1]))
  })
  const ports = { https: secure, grpcs: await listen(secureGrpc) }
  const ROOT = '10000000-0000-0000-0000-000000000001'
  const OTHER = '10000000-0000-0000-0000-000000000002'
  const ROTATED = '10000000-0000-0000-0000-000000000003'
  const directory = t.testdir({ ca: root.cert })
  const upstream = (name: string, type: 'https' | 'grpcs') => ({
    name,
    host_header: 'api.test',
    targets: [{ target: `127.0.0.1:${ports[type]}` }],
    healthchecks: {
      active: {
        type,
        healthy: { interval: 0.05, successes: 1 },
        unhealthy: { interval: 0.05, tcp_failures: 1 }
      }
    }
  })
  const service = (name: string, host: string, fields: object) => ({
    name,
    host,
    protocol: 'https',
    port: 443,
    ...fields
  })
  await using gateway = await startGateway({
    vaults: [{ name: 'fs', prefix: 'files', config: { prefix: directory, ttl: 1 } }],
    ca_certificates: [
      { id: ROOT, cert: root.cert },
      { id: OTHER, cert: stranger.cert },
      { id: ROTATED, cert: '{vault://files/ca}' }
    ],
    upstreams: [
      upstream('own', 'https'),
      upstream('own-grpc', 'grpcs'),
      upstream('one-of-two', 'https'),
      upstream('foreign', 'https'),
      upstream('default', 'https'),
      upstream('rotated', 'https')
    ],
    services: [
      service('own', 'own', { ca_certificates: [ROOT] }),
      service('own-grpc', 'own-grpc', { ca_certificates: [ROOT] }),
      service('with', 'one-of-two', { ca_certificates: [ROOT] }),
      service('without', 'one-of-two', {}),
      service('foreign', 'foreign', { ca_certificates: [OTHER] }),
      service('default', 'default', {}),
      service('rotated', 'rotated', { ca_certificates: [ROTATED] })
    ]
  })
  type Shown = {
    name: string
    health: string
    targets: { addresses: { last_check?: { result: string } }[] }[]
  }
  const becomes = async (name: string, expected: string): Promise<void> => {
    let seen = ''
    await until(async () => {
      const { upstreams } = (await gateway.status('/upstreams')).json() as { upstreams: Shown[] }
      const { health, targets } = upstreams.find(each => each.name === name)!
      seen = `${health}, ${targets[0]!.addresses[0]!.last_check?.result ?? 'no check'}`
      return seen === expected
    }, `${name} to be ${expected}`).catch(error => t.fail(`${error.message}: it is ${seen}`))
  }
  await becomes('own', 'HEALTHY, status 200')
  await becomes('own-grpc', 'HEALTHY, serving')
  await becomes('one-of-two', 'HEALTHY, status 200')
  for (const name of ['foreign', 'default']) {
    await becomes(name, 'UNHEALTHY, tcp: UNABLE_TO_VERIFY_LEAF_SIGNATURE')
  }
  await becomes('rotated', 'HEALTHY, status 200')
  await writeFile(join(directory, 'next'), stranger.cert)
  await rename(join(directory, 'next'), join(directory, 'ca'))
  await gateway.status('/vaults/refresh', { method: 'POST' })
  await becomes('rotated', 'UNHEALTHY, tcp: UNABLE_TO_VERIFY_LEAF_SIGNATURE')
})

await t.test('concurrency bounds the probes of an upstream at a time', async t => {
  let open = 0
  let most = 0
  let probes = 0
  const slow = async () => {
    const upstream = await startUpstream(async (_received, response) => {
      most = Math.max(most, ++open)
      probes++
      await new Promise(resolve => setTimeout(resolve, 20))
      open--
      response.end()
    })
    t.teardown(() => upstream.close())
    return { target: `127.0.0.1:${upstream.port}` }
  }
  const targets = [await slow(), await slow(), await slow(), await slow()]
  const config = (concurrency: number) => ({
    upstreams: [
      {
        name: 'slow',
        targets,
        healthchecks: { active: { concurrency, healthy: { interval: 0.05 } } }
      }
    ]
  })
  for (const concurrency of [1, 3]) {
    most = 0
    probes = 0
    const gateway = await startGateway(config(concurrency))
    await until(() => most >= concurrency && probes > 12, `${concurrency} at a time`)
    t.equal(most, concurrency)
    await gateway.close()
  }
})
