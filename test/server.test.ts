import { X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import http2 from 'node:http2'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import tls from 'node:tls'
import t from 'tap'
import { certificateFor } from './certificates.ts'
import { startGateway, startUpstream, until } from './harness.ts'

// Threads start slowly on a busy machine.
t.setTimeout(120_000)

const TLS_LISTEN = { POSTERN_PROXY_LISTEN: '127.0.0.1:0, 127.0.0.1:0 ssl http2' }
const portOf = (url: string | undefined): number => Number(new URL(url!).port)

/** The names on the certificate a handshake with this SNI is answered with. */
async function namesFor(port: number, servername: string | undefined): Promise<string> {
  const socket = tls.connect({
    port,
    host: '127.0.0.1',
    rejectUnauthorized: false,
    ...(servername === undefined ? {} : { servername })
  })
  await once(socket, 'secureConnect')
  const names = new X509Certificate(socket.getPeerCertificate().raw).subjectAltName ?? ''
  socket.destroy()
  return names
}

await t.test('certificates by name, from references, rotated for new handshakes only', async t => {
  const root = await mkdtemp(join(tmpdir(), 'postern-tls-'))
  t.teardown(() => rm(root, { recursive: true, force: true }))
  const [first, second, wild, other] = await Promise.all([
    certificateFor('shop.example.com'),
    certificateFor('shop.example.com', 'renewed.example.com'),
    certificateFor('*.example.org'),
    certificateFor('other.example')
  ])
  const store = (pair: { cert: string; key: string }) =>
    writeFile(join(root, 'shop.json'), JSON.stringify(pair))
  await store(first)
  await using upstream = await startUpstream()
  await using gateway = await startGateway(
    {
      services: [{ name: 'up', url: upstream.url, routes: [{ name: 'all', paths: ['/'] }] }],
      certificates: [
        {
          cert: '{vault://fs/shop.json/cert}',
          key: '{vault://fs/shop.json/key}',
          snis: [{ name: 'shop.example.com' }]
        },
        { ...wild, snis: [{ name: '*.example.org' }] },
        { ...other, snis: [{ name: '*' }] }
      ]
    },
    { env: { ...TLS_LISTEN, POSTERN_VAULT_FS_PREFIX: root } }
  )
  const port = portOf(gateway.tlsUrl)
  t.equal(await namesFor(port, 'shop.example.com'), 'DNS:shop.example.com')
  t.equal(await namesFor(port, 'a.example.org'), 'DNS:*.example.org')
  t.equal(await namesFor(port, 'elsewhere.test'), 'DNS:other.example')
  t.equal(await namesFor(port, undefined), 'DNS:other.example')

  const open = tls.connect({
    port,
    host: '127.0.0.1',
    servername: 'shop.example.com',
    rejectUnauthorized: false
  })
  await once(open, 'secureConnect')
  await store(second)
  await until(
    async () => (await namesFor(port, 'shop.example.com')).includes('renewed'),
    'the renewed certificate'
  )
  open.write('GET /still HTTP/1.1\r\nHost: shop.example.com\r\nConnection: close\r\n\r\n')
  let answer = ''
  for await (const chunk of open) answer += chunk
  t.match(answer, /^HTTP\/1\.1 200[\s\S]*\/still/, 'the connection opened before it serves on')

  await writeFile(join(root, 'shop.json'), JSON.stringify({ cert: first.cert, key: other.key }))
  t.equal(await gateway.gateway.refresh(), 0, 'a key of another certificate is refused')
  t.match(await namesFor(port, 'shop.example.com'), /renewed/, 'the good pair stays')
})

await t.test('a degraded start shows no other certificate for a name', async t => {
  const root = await mkdtemp(join(tmpdir(), 'postern-tls-'))
  t.teardown(() => rm(root, { recursive: true, force: true }))
  await using upstream = await startUpstream()
  await using gateway = await startGateway(
    {
      services: [{ name: 'up', url: upstream.url, routes: [{ name: 'all', paths: ['/'] }] }],
      certificates: [
        {
          cert: '{vault://fs/shop.json/cert}',
          key: '{vault://fs/shop.json/key}',
          snis: [{ name: 'shop.example' }]
        }
      ]
    },
    { env: { ...TLS_LISTEN, POSTERN_VAULT_FS_PREFIX: root, POSTERN_VAULT_START: 'degraded' } }
  )
  const port = portOf(gateway.tlsUrl)
  await t.rejects(namesFor(port, 'shop.example'))
  t.match(await namesFor(port, 'elsewhere.example'), 'localhost', 'other names are served')
  t.equal((await gateway.fetch('/')).status, 200)
  const { reasons } = (await gateway.status('/status/ready')).json()
  t.match(
    reasons.filter((reason: string) => reason.startsWith('TLS')),
    [
      /^TLS for shop\.example is refused: its certificate needs \{vault:\/\/fs\/shop\.json\/(cert|key)\}$/
    ]
  )
  await writeFile(join(root, 'shop.json'), JSON.stringify(await certificateFor('shop.example')))
  await gateway.gateway.refresh()
  t.equal(await namesFor(port, 'shop.example'), 'DNS:shop.example')
  t.equal((await gateway.status('/status/ready')).status, 200)
})

await t.test('HTTP/2: requests, bodies, repeated headers, errors', async t => {
  await using upstream = await startUpstream((received, response) => {
    response.setHeader('Set-Cookie', ['a=1', 'b=2'])
    response.end(JSON.stringify(received))
  })
  await using gateway = await startGateway(
    { services: [{ name: 'up', url: upstream.url, routes: [{ name: 'all', paths: ['/in'] }] }] },
    { env: TLS_LISTEN }
  )
  const session = http2.connect(gateway.tlsUrl!, { rejectUnauthorized: false })
  t.teardown(() => session.destroy())
  const call = async (headers: http2.OutgoingHttpHeaders, body?: string) => {
    const stream = session.request(headers, { endStream: body === undefined })
    if (body !== undefined) stream.end(body)
    const [answer] = (await once(stream, 'response')) as [http2.IncomingHttpHeaders]
    let text = ''
    for await (const chunk of stream) text += chunk
    return { answer, text }
  }
  const got = await call({ ':path': '/in/x?y=1', cookie: ['one=1', 'two=2'] })
  t.equal(got.answer[':status'], 200)
  t.same(got.answer['set-cookie'], ['a=1', 'b=2'])
  const seen = JSON.parse(got.text)
  t.equal(seen.url, '/x?y=1')
  t.match(seen.headers, {
    cookie: 'one=1; two=2',
    'x-forwarded-proto': 'https',
    via: /^2 postern\//
  })
  const posted = await call({ ':path': '/in', ':method': 'POST' }, 'body of the request')
  t.equal(JSON.parse(posted.text).body, 'body of the request')
  const missing = await call({ ':path': '/none' })
  t.equal(missing.answer[':status'], 404)
  t.match(missing.text, /no Route matched/)
  const doubted = await call({
    ':path': '/in',
    ':authority': 'a.example',
    host: 'another.example'
  })
  t.equal(doubted.answer[':status'], 400, 'RFC 9113 §8.3.1: one authority')
  for (const headers of [{}, { expect: '100-continue' }]) {
    const unknown = await call({ ':path': '/in', ':method': 'FOO', ...headers })
    t.equal(unknown.answer[':status'], 400, 'a method that HTTP/1.1 would not take')
    t.match(unknown.text, /^Bad request\nrequest_id: [0-9a-f]{32}\n$/)
  }
  const searched = await call({ ':path': '/in', ':method': 'PROPFIND' })
  t.equal(JSON.parse(searched.text).method, 'PROPFIND')
})

await t.test(
  'without a configured certificate one is generated, and HTTP/1.1 works over TLS',
  async t => {
    await using upstream = await startUpstream()
    await using gateway = await startGateway(
      { services: [{ name: 'up', url: upstream.url, routes: [{ name: 'all', paths: ['/'] }] }] },
      { env: { POSTERN_PROXY_LISTEN: '127.0.0.1:0 ssl' } }
    )
    const port = portOf(gateway.tlsUrl)
    t.match(await namesFor(port, 'localhost'), /DNS:localhost/)
    const socket = tls.connect({ port, host: '127.0.0.1', rejectUnauthorized: false })
    socket.write('GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n')
    let answer = ''
    for await (const chunk of socket) answer += chunk
    t.match(answer, /^HTTP\/1\.1 200/)
  }
)

await t.test('a taken address is an error, not a silent share', async t => {
  const holder = net.createServer().listen(0, '127.0.0.1')
  await once(holder, 'listening')
  t.teardown(() => holder.close())
  const { port } = holder.address() as net.AddressInfo
  await t.rejects(
    startGateway({ services: [] }, { env: { POSTERN_PROXY_LISTEN: `127.0.0.1:${port}` } }),
    { code: 'EADDRINUSE' }
  )
})

await t.test('threads share their port with each other, not with another gateway', async t => {
  await using gateway = await startGateway({ services: [] }, { env: { POSTERN_WORKERS: '2' } })
  const { port } = gateway
  t.ok(port > 0)
  await t.rejects(
    startGateway(
      { services: [] },
      { env: { POSTERN_WORKERS: '2', POSTERN_PROXY_LISTEN: `127.0.0.1:${port}` } }
    ),
    { code: 'EADDRINUSE', message: /^POSTERN_PROXY_LISTEN: 127\.0\.0\.1:\d+ is in use/ }
  )
})

await t.test('client certificates, versions, resumption, both key types', async t => {
  const { generate } = await import('selfsigned')
  const client = await certificateFor('client.example')
  const stranger = await certificateFor('stranger.example')
  const rsa = await generate([{ name: 'commonName', value: 'both.example' }], {
    keyType: 'rsa',
    keySize: 2048,
    algorithm: 'sha256'
  })
  const ecdsa = await certificateFor('both.example')
  await using upstream = await startUpstream()
  await using gateway = await startGateway(
    {
      services: [{ name: 'up', url: upstream.url, routes: [{ name: 'all', paths: ['/'] }] }],
      certificates: [
        {
          cert: rsa.cert,
          key: rsa.private,
          cert_alt: ecdsa.cert,
          key_alt: ecdsa.key,
          snis: [{ name: 'both.example' }, { name: '*' }]
        }
      ]
    },
    {
      env: {
        POSTERN_PROXY_LISTEN: '127.0.0.1:0, 127.0.0.1:0 ssl http2',
        POSTERN_SSL_VERIFY_CLIENT: 'on',
        POSTERN_SSL_CLIENT_CERTIFICATE: client.cert
      }
    }
  )
  const port = portOf(gateway.tlsUrl)
  const ask = async (options: tls.ConnectionOptions) => {
    const socket = tls.connect({ port, host: '127.0.0.1', rejectUnauthorized: false, ...options })
    let session: Buffer | undefined
    socket.on('session', ticket => {
      session = ticket
    })
    await once(socket, 'secureConnect')
    const reused = socket.isSessionReused()
    const cipher = socket.getCipher().name
    socket.write('GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n')
    let answer = ''
    for await (const chunk of socket) answer += chunk
    return { answer, reused, cipher, session }
  }
  const bare = await ask({})
  t.match(bare.answer, /^HTTP\/1\.1 400[\s\S]*No required SSL certificate was sent/)
  t.ok(bare.session)
  const resumed = await ask({ session: bare.session })
  t.ok(resumed.reused)
  t.match(
    resumed.answer,
    /^HTTP\/1\.1 400[\s\S]*No required SSL certificate/,
    'a session resumed without a certificate has none'
  )
  const strange = await ask({ cert: stranger.cert, key: stranger.key })
  t.match(strange.answer, /^HTTP\/1\.1 400[\s\S]*The SSL certificate error/)
  for (const servername of ['', 'both.example']) {
    const known = await ask({ ...client, servername })
    t.match(known.answer, /^HTTP\/1\.1 200/, `with a certificate, SNI "${servername}"`)
  }
  const old = { ...client, maxVersion: 'TLSv1.2' as const }
  const cipherOf = async (servername: string, ciphers: string): Promise<string> =>
    (await ask({ ...old, servername, ciphers })).cipher
  t.match(await cipherOf('any.example', 'ECDHE-RSA-AES128-GCM-SHA256'), /RSA/)
  t.match(await cipherOf('any.example', 'ECDHE-ECDSA-AES128-GCM-SHA256'), /ECDSA/)
  t.match(await cipherOf('both.example', 'ECDHE-RSA-AES128-GCM-SHA256'), /RSA/)
  await t.rejects(ask({ ...client, maxVersion: 'TLSv1.1', minVersion: 'TLSv1' }))
  t.equal(
    (await gateway.fetch('/')).status,
    200,
    'a listener without TLS has no certificates to ask for'
  )
})

await t.test('a session is resumed by every thread, with and without a name', async t => {
  const named = await certificateFor('named.example')
  await using upstream = await startUpstream()
  await using gateway = await startGateway(
    {
      services: [{ name: 'up', url: upstream.url, routes: [{ name: 'all', paths: ['/'] }] }],
      certificates: [{ ...named, snis: [{ name: 'named.example' }] }],
      // Its ids begin with one of the thread's own.
      plugins: [
        { name: 'correlation-id', config: { generator: 'uuid#counter', echo_downstream: true } }
      ]
    },
    { env: TLS_LISTEN, workers: 3 }
  )
  const port = portOf(gateway.tlsUrl)
  const threads = new Set<string>()
  const ask = async (options: tls.ConnectionOptions) => {
    const socket = tls.connect({ port, host: '127.0.0.1', rejectUnauthorized: false, ...options })
    let session: Buffer | undefined
    socket.on('session', ticket => {
      session = ticket
    })
    await once(socket, 'secureConnect')
    const resumed = socket.isSessionReused()
    socket.write('GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n')
    let answer = ''
    for await (const chunk of socket) answer += chunk
    threads.add(/^kong-request-id: (.*)#\d+\r$/im.exec(answer)![1]!)
    return { session: session!, resumed }
  }
  for (const version of ['TLSv1.2', 'TLSv1.3'] as const) {
    for (const servername of ['', 'named.example']) {
      const options = { servername, minVersion: version, maxVersion: version }
      const { session } = await ask(options)
      for (let i = 0; i < 6; i++) {
        t.ok((await ask({ ...options, session })).resumed, `${version}, SNI "${servername}"`)
      }
    }
  }
  await until(async () => {
    await ask({})
    return threads.size === 3
  }, 'an answer of each thread')
  const { session } = await ask({})
  const before = new Set(threads)
  threads.clear()
  await until(async () => {
    t.ok((await ask({ session })).resumed)
    return threads.size === before.size
  }, 'each thread to have resumed it')
})
