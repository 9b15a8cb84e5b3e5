import { once } from 'node:events'
import { rename, writeFile } from 'node:fs/promises'
import https from 'node:https'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import type { TLSSocket } from 'node:tls'
import t from 'tap'
import { issue } from '../certificates.ts'
import { startGateway, until } from '../harness.ts'

const root = issue('Test root', undefined, true)
const middle = issue('Test intermediate', root, true)
const leaf = issue('api.test', middle, false, [
  { type: 2, value: 'api.test' },
  { type: 6, value: 'spiffe://test/api' }
])
const client = issue('gateway', root)
const renewed = issue('gateway renewed', root)
const stranger = issue('Other root', undefined, true)

const seen: (string | undefined)[] = []
const server = https.createServer(
  {
    cert: leaf.cert + middle.cert,
    key: leaf.key,
    ca: [root.cert],
    requestCert: true,
    rejectUnauthorized: false
  },
  (request, response) => {
    const socket = request.socket as TLSSocket
    seen.push(`${socket.servername}`)
    const peer = socket.getPeerCertificate()
    response.end(socket.authorized ? `client ${peer.subject.CN}` : 'no client')
  }
)
server.listen(0, '127.0.0.1')
await once(server, 'listening')
const { port } = server.address() as AddressInfo

const ROOT = '10000000-0000-0000-0000-000000000001'
const OTHER = '10000000-0000-0000-0000-000000000002'
const PAIR = '10000000-0000-0000-0000-000000000003'
const ROTATING = '10000000-0000-0000-0000-000000000004'
const directory = t.testdir({
  'client.key': client.key,
  'pair.json': JSON.stringify(client)
})

const services = {
  trusted: { ca_certificates: [ROOT] },
  deep: { ca_certificates: [ROOT], tls_verify_depth: 1 },
  shallow: { ca_certificates: [ROOT], tls_verify_depth: 0 },
  untrusted: { ca_certificates: [OTHER] },
  unchecked: { tls_verify: false },
  default: {},
  uri: { ca_certificates: [ROOT], tls_sans: { uris: ['spiffe://test/api'] } },
  dns: { ca_certificates: [ROOT], tls_sans: { dnsnames: ['API.test'] } },
  foreign: { ca_certificates: [ROOT], tls_sans: { dnsnames: ['else.test'], uris: ['spiffe://x'] } },
  mutual: { ca_certificates: [ROOT], client_certificate: { id: PAIR } },
  rotating: { ca_certificates: [ROOT], client_certificate: { id: ROTATING } },
  misnamed: { ca_certificates: [ROOT], host: 'wrong' }
}

const gateway = await startGateway(
  {
    ca_certificates: [
      { id: ROOT, cert: root.cert },
      { id: OTHER, cert: stranger.cert }
    ],
    certificates: [
      { id: PAIR, cert: client.cert, key: '{vault://files/client.key}' },
      {
        id: ROTATING,
        cert: '{vault://files/pair.json/cert}',
        key: '{vault://files/pair.json/key}'
      }
    ],
    vaults: [{ name: 'fs', prefix: 'files', config: { prefix: directory } }],
    upstreams: [
      { name: 'pool', host_header: 'api.test', targets: [{ target: `127.0.0.1:${port}` }] },
      { name: 'wrong', host_header: 'wrong.test', targets: [{ target: `127.0.0.1:${port}` }] }
    ],
    services: Object.entries(services).map(([name, fields]) => ({
      name,
      protocol: 'https',
      host: 'pool',
      retries: 0,
      ...fields,
      routes: [{ name, paths: [`/${name}`] }]
    }))
  },
  {}
)
t.teardown(async () => {
  await gateway.close()
  server.closeAllConnections()
  server.close()
})

await t.test('what is trusted, by the service', async t => {
  for (const [name, expected] of [
    ['trusted', 200],
    ['deep', 200],
    ['shallow', 502],
    ['untrusted', 502],
    ['unchecked', 200],
    ['default', 502],
    ['uri', 200],
    ['dns', 200],
    ['foreign', 502],
    ['misnamed', 502]
  ] as const) {
    t.equal((await gateway.fetch(`/${name}`)).status, expected, name)
  }
  t.equal(seen[0], 'api.test', 'SNI is the name in Host')
})

await t.test('the client certificate, whose key comes from a vault', async t => {
  t.equal((await gateway.fetch('/trusted')).body, 'no client')
  t.equal((await gateway.fetch('/mutual')).body, 'client gateway')
})

await t.test('the client certificate is rotated while requests go on', async t => {
  const answers = new Set<string>()
  let last = ''
  let running = true
  const clients = Array.from({ length: 3 }, async () => {
    while (running) {
      const { status, body } = await gateway.fetch('/rotating')
      last = `${status} ${body}`
      answers.add(last)
    }
  })
  await until(() => answers.has('200 client gateway'), 'the first certificate')
  await writeFile(join(directory, 'pair.json.next'), JSON.stringify(renewed))
  await rename(join(directory, 'pair.json.next'), join(directory, 'pair.json'))
  await gateway.gateway.refresh()
  await until(() => last === '200 client gateway renewed', 'the renewed certificate')
  running = false
  await Promise.all(clients)
  t.same([...answers].sort(), ['200 client gateway', '200 client gateway renewed'])
  t.equal((await gateway.fetch('/mutual')).body, 'client gateway', 'the other one is as before')
})
