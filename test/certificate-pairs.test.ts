import { once } from 'node:events'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import http2 from 'node:http2'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Duplex } from 'node:stream'
import tls from 'node:tls'
import t from 'tap'
import { certificateFor, rsaCertificateFor } from './certificates.ts'
import { startGateway, startUpstream, until } from './harness.ts'

// Threads start slowly on a busy machine.
t.setTimeout(120_000)

interface Pair {
  readonly cert: string
  readonly key: string
  readonly cert_alt: string
  readonly key_alt: string
}

/** An RSA and an ECDSA certificate of one subject each: `rsa.NAME` and `ecdsa.NAME`. */
async function pairFor(name: string): Promise<Pair> {
  const [rsa, ecdsa] = await Promise.all([
    rsaCertificateFor(`rsa.${name}`),
    certificateFor(`ecdsa.${name}`)
  ])
  return { ...rsa, cert_alt: ecdsa.cert, key_alt: ecdsa.key }
}

/** What a client is shown that can verify nothing of the name it asks for. */
const NONE = 'no certificate'

/** The subject of the certificate a client is shown. */
async function shown(port: number, options: tls.ConnectionOptions): Promise<string> {
  const socket = tls.connect({ port, host: '127.0.0.1', rejectUnauthorized: false, ...options })
  try {
    await once(socket, 'secureConnect')
    return String(socket.getPeerCertificate().subject.CN)
  } catch (error) {
    return /HANDSHAKE_FAILURE/.test((error as NodeJS.ErrnoException).code!) ? NONE : String(error)
  } finally {
    socket.destroy()
  }
}

const old = { maxVersion: 'TLSv1.2' } as const
const RSA = 'ECDHE-RSA-AES128-GCM-SHA256'
const ECDSA = 'ECDHE-ECDSA-AES128-GCM-SHA256'

/** What clients can verify, by what they offer. */
const CLIENTS: readonly (readonly [can: 'rsa' | 'ecdsa' | 'both', tls.ConnectionOptions])[] = [
  ['ecdsa', { sigalgs: 'ECDSA+SHA256' }],
  ['rsa', { sigalgs: 'RSA-PSS+SHA256' }],
  ['ecdsa', { ...old, ciphers: ECDSA }],
  ['rsa', { ...old, ciphers: RSA }],
  ['ecdsa', { ...old, sigalgs: 'ECDSA+SHA256' }],
  ['rsa', { ...old, sigalgs: 'RSA+SHA256' }],
  ['rsa', { ...old, ciphers: RSA, sigalgs: 'ECDSA+SHA256:RSA+SHA256' }],
  ['both', {}],
  ['both', { sigalgs: 'RSA-PSS+SHA256:ECDSA+SHA256' }],
  ['both', { ...old }],
  ['both', { ...old, ciphers: `${RSA}:${ECDSA}` }],
  ['both', { ...old, ciphers: `${ECDSA}:${RSA}` }]
]

const ROUTES = (url: string) => [{ name: 'up', url, routes: [{ name: 'all', paths: ['/'] }] }]
const LISTEN = { POSTERN_PROXY_LISTEN: '127.0.0.1:0, 127.0.0.1:0 ssl http2' }
const portOf = (url: string | undefined): number => Number(new URL(url!).port)

await t.test(
  'each client is shown what it can verify, and only of the name it asks for',
  async t => {
    const [any, shop, wild] = await Promise.all(['any', 'shop', 'wild'].map(pairFor))
    const [rsa, ecdsa] = await Promise.all([
      rsaCertificateFor('rsa.one'),
      certificateFor('ecdsa.one')
    ])
    await using upstream = await startUpstream()
    await using gateway = await startGateway(
      {
        services: ROUTES(upstream.url),
        certificates: [
          { ...any, snis: [{ name: '*' }] },
          { ...shop, snis: [{ name: 'shop.example' }] },
          { ...wild, snis: [{ name: '*.wild.example' }, { name: 'wild.*' }] },
          { ...rsa, snis: [{ name: 'rsa.example' }] },
          { ...ecdsa, snis: [{ name: 'ecdsa.example' }] }
        ]
      },
      { env: LISTEN }
    )
    const port = portOf(gateway.tlsUrl)
    for (const [can, options] of CLIENTS) {
      const offer = JSON.stringify(options)
      const byDefault = await shown(port, { ...options, servername: '' })
      t.match(byDefault, can === 'both' ? /^(rsa|ecdsa)\.any$/ : `${can}.any`, `none, ${offer}`)
      for (const [servername, name] of [
        ['elsewhere.example', 'any'],
        ['shop.example', 'shop'],
        ['SHOP.example', 'shop'],
        ['a.wild.example', 'wild'],
        ['wild.test', 'wild']
      ] as const) {
        const same = byDefault.replace('any', name)
        t.equal(await shown(port, { ...options, servername }), same, `${servername}, ${offer}`)
      }
      for (const type of ['rsa', 'ecdsa']) {
        const expected = can === 'both' || can === type ? `${type}.one` : NONE
        const servername = `${type}.example`
        t.equal(await shown(port, { ...options, servername }), expected, `${servername}, ${offer}`)
      }
    }
  }
)

await t.test('an RSA certificate without a pair beside a default of ECDSA', async t => {
  const rsa = await rsaCertificateFor('rsa.one')
  await using upstream = await startUpstream()
  await using gateway = await startGateway(
    {
      services: ROUTES(upstream.url),
      certificates: [{ ...rsa, snis: [{ name: 'rsa.example' }] }]
    },
    { env: LISTEN }
  )
  const port = portOf(gateway.tlsUrl)
  for (const [can, options] of CLIENTS) {
    const expected = can === 'ecdsa' ? NONE : 'rsa.one'
    t.equal(
      await shown(port, { ...options, servername: 'rsa.example' }),
      expected,
      JSON.stringify(options)
    )
  }
})

await t.test('what a connection to a pair is good for', async t => {
  const root = await mkdtemp(join(tmpdir(), 'postern-pairs-'))
  t.teardown(() => rm(root, { recursive: true, force: true }))
  const [first, second, client] = await Promise.all([
    pairFor('first'),
    pairFor('second'),
    certificateFor('client.example')
  ])
  const store = (pair: Pair) => writeFile(join(root, 'shop.json'), JSON.stringify(pair))
  await store(first!)
  await using upstream = await startUpstream()
  await using gateway = await startGateway(
    {
      services: ROUTES(upstream.url),
      certificates: [
        {
          cert: '{vault://fs/shop.json/cert}',
          key: '{vault://fs/shop.json/key}',
          cert_alt: '{vault://fs/shop.json/cert_alt}',
          key_alt: '{vault://fs/shop.json/key_alt}',
          snis: [{ name: 'shop.example' }]
        }
      ]
    },
    {
      env: {
        POSTERN_PROXY_LISTEN:
          '127.0.0.1:0, 127.0.0.1:0 ssl http2, 127.0.0.1:0 ssl http2 proxy_protocol',
        POSTERN_SSL_VERIFY_CLIENT: 'on',
        POSTERN_SSL_CLIENT_CERTIFICATE: client.cert,
        POSTERN_VAULT_FS_PREFIX: root,
        POSTERN_TRUSTED_IPS: '127.0.0.1',
        POSTERN_REAL_IP_HEADER: 'proxy_protocol',
        POSTERN_REQUEST_HEADER_TIMEOUT: '2'
      },
      workers: 2
    }
  )
  const port = portOf(gateway.tlsUrl)
  const behindProxy = gateway.gateway.listeners[2]!.port
  const GET = 'GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n'
  const known = { ...client, servername: 'shop.example', rejectUnauthorized: false }
  const ask = async (options: tls.ConnectionOptions) => {
    const socket = tls.connect({ port, host: '127.0.0.1', ...options })
    let session: Buffer | undefined
    socket.on('session', ticket => {
      session = ticket
    })
    await once(socket, 'secureConnect')
    const resumed = socket.isSessionReused()
    socket.write(GET)
    let answer = ''
    for await (const chunk of socket) answer += chunk
    return { answer, resumed, session: session! }
  }

  await t.test('client certificates are verified', async t => {
    t.match((await ask(known)).answer, /^HTTP\/1\.1 200/)
    const { cert: _cert, key: _key, ...bare } = known
    t.match((await ask(bare)).answer, /^HTTP\/1\.1 400[\s\S]*No required SSL certificate was sent/)
    const stranger = { ...bare, ...(await certificateFor('stranger.example')) }
    t.match((await ask(stranger)).answer, /^HTTP\/1\.1 400[\s\S]*The SSL certificate error/)
  })

  await t.test('sessions are resumed, whatever thread comes next', async t => {
    for (const version of ['TLSv1.2', 'TLSv1.3'] as const) {
      const options = { ...known, minVersion: version, maxVersion: version }
      const { session } = await ask(options)
      for (let i = 0; i < 6; i++) t.ok((await ask({ ...options, session })).resumed, version)
    }
  })

  await t.test('HTTP/2 is spoken', async t => {
    const session = http2.connect(`https://127.0.0.1:${port}`, known)
    t.teardown(() => session.close())
    const stream = session.request({ ':path': '/' })
    const [headers] = (await once(stream, 'response')) as [http2.IncomingHttpHeaders]
    t.equal(headers[':status'], 200)
    t.equal(session.alpnProtocol, 'h2')
    stream.resume()
  })

  await t.test('a hello in pieces, behind a proxy that tells the client', async t => {
    const carrier = net.connect(behindProxy, '127.0.0.1')
    carrier.setNoDelay(true)
    const slow = new Duplex({
      read() {},
      write(chunk: Buffer, _encoding, done) {
        void (async () => {
          for (let at = 0; at < chunk.length; at += 50) {
            carrier.write(chunk.subarray(at, at + 50))
            await new Promise(resolve => setImmediate(resolve))
          }
          done()
        })()
      },
      final(done) {
        carrier.end()
        done()
      }
    })
    carrier.on('data', chunk => slow.push(chunk))
    carrier.on('end', () => slow.push(null))
    carrier.write('PROXY TCP4 1.2.3.4 10.0.0.1 8080 80\r\n')
    const { answer } = await ask({ ...known, sigalgs: 'ECDSA+SHA256', socket: slow })
    t.match(answer, /^HTTP\/1\.1 200[\s\S]*"x-real-ip":"1\.2\.3\.4"/)
  })

  await t.test('who does not finish a handshake is cut off', async t => {
    const capture = net.createServer().listen(0, '127.0.0.1')
    await once(capture, 'listening')
    const accepted = once(capture, 'connection')
    const { port: captured } = capture.address() as net.AddressInfo
    const client = tls.connect({ port: captured, host: '127.0.0.1', servername: 'shop.example' })
    client.on('error', () => {})
    const [socket] = (await accepted) as [net.Socket]
    const [hello] = (await once(socket, 'data')) as [Buffer]
    client.destroy()
    capture.close()
    const first = [Buffer.alloc(0), hello.subarray(0, 100), hello]
    await Promise.all(
      first.map(async bytes => {
        const idle = net.connect(port, '127.0.0.1')
        idle.on('error', () => {})
        idle.resume()
        idle.write(bytes)
        await once(idle, 'close')
        t.pass(`after ${bytes.length} bytes`)
      })
    )
    const wrong = net.connect(port, '127.0.0.1')
    wrong.write(GET)
    wrong.resume()
    await once(wrong, 'close')
    t.pass('nor does what is no TLS stay')
  })

  await t.test('a renewed pair is shown to new connections', async t => {
    const open = tls.connect({ port, host: '127.0.0.1', ...known })
    await once(open, 'secureConnect')
    await store(second!)
    for (const [type, sigalgs] of [
      ['ecdsa', 'ECDSA+SHA256'],
      ['rsa', 'RSA-PSS+SHA256']
    ] as const) {
      await until(
        async () => (await shown(port, { ...known, sigalgs })) === `${type}.second`,
        'the renewed pair'
      )
    }
    open.write(GET)
    let answer = ''
    for await (const chunk of open) answer += chunk
    t.match(answer, /^HTTP\/1\.1 200/, 'those from before serve on')
  })
})
