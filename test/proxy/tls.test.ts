import { X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import tls from 'node:tls'
import t from 'tap'
import { type CertificateStore, compileCertificates } from '../../src/proxy/tls.ts'
import type { Certificate, Sni } from '../../src/schema/entities.ts'
import { Secret } from '../../src/vault/secret.ts'
import { certificateFor, rsaCertificateFor } from '../certificates.ts'

const NAMES = ['exact.shop.example', '*.shop.example', 'shop.*', 'other.example'] as const
const pairs = await Promise.all(NAMES.map(name => certificateFor(name)))
const fallback = await certificateFor('fallback.example')
const certificates = pairs.map(
  ({ cert, key }, index) =>
    ({ id: `c${index}`, cert: new Secret(cert), key: new Secret(key) }) as unknown as Certificate
)
const sni = (name: string, index: number) => ({ name, certificate: { id: `c${index}` } }) as Sni

/** The name on the certificate a client that asks for `servername` is shown; rejects when it gets none. */
async function shown(store: CertificateStore, servername: string): Promise<string | undefined> {
  const { cert, key } = store.unnamed
  const server = tls.createServer({
    cert: [...cert],
    key: [...key],
    SNICallback(name, done) {
      try {
        done(null, store.context(name))
      } catch (error) {
        done(error as Error)
      }
    }
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  const socket = tls.connect({
    port,
    host: '127.0.0.1',
    rejectUnauthorized: false,
    ...(servername === '' ? {} : { servername })
  })
  try {
    await once(socket, 'secureConnect')
    const { subjectAltName } = new X509Certificate(socket.getPeerCertificate().raw)
    return subjectAltName?.replace('DNS:', '')
  } finally {
    socket.destroy()
    server.close()
  }
}

await t.test('the best certificate for a name', async t => {
  const snis = NAMES.map((name, index) => sni(name, index))
  const store = compileCertificates(certificates, snis, fallback)
  t.equal(await shown(store, 'EXACT.shop.example'), 'exact.shop.example')
  t.equal(await shown(store, 'any.shop.example'), '*.shop.example')
  t.equal(await shown(store, 'a.b.shop.example'), 'fallback.example', 'one label, not two')
  t.equal(await shown(store, 'shop.test'), 'shop.*')
  t.equal(await shown(store, 'single'), 'fallback.example')
  t.equal(await shown(store, ''), 'fallback.example')
  const wild = compileCertificates(certificates, [sni('*.example', 1)], fallback)
  t.equal(
    await shown(wild, 'other.example'),
    'fallback.example',
    'no wildcard stands for a name of two labels'
  )
  const starred = compileCertificates(certificates, [sni('*', 3)], fallback)
  t.equal(await shown(starred, 'nowhere.test'), 'other.example')
  t.equal(await shown(starred, ''), 'other.example')
})

await t.test('a name without its certificate is shown no other', async t => {
  const unavailable = { code: 'POSTERN_CERTIFICATE_UNAVAILABLE' }
  const store = compileCertificates(
    certificates,
    [sni('lost.shop.example', 9), sni('*.shop.example', 1), sni('*.lost.example', 9)],
    fallback
  )
  t.throws(() => store.context('LOST.shop.example'), unavailable, 'nor that of a wildcard')
  t.throws(() => store.context('any.lost.example'), unavailable)
  await t.rejects(shown(store, 'lost.shop.example'))
  t.equal(await shown(store, 'found.shop.example'), '*.shop.example')
  t.equal(await shown(store, 'elsewhere.example'), 'fallback.example')
  const starred = compileCertificates(certificates, [sni('*', 9), sni('shop.*', 2)], fallback)
  await t.rejects(shown(starred, 'elsewhere.example'))
  await t.rejects(shown(starred, ''))
  t.equal(await shown(starred, 'shop.test'), 'shop.*')
})

await t.test('a pair is told by the names it is for', async t => {
  const rsa = await rsaCertificateFor('other.example')
  const pair = {
    ...certificates[3],
    cert_alt: new Secret(rsa.cert),
    key_alt: new Secret(rsa.key)
  } as unknown as Certificate
  const all = [...certificates.slice(0, 3), pair]
  const store = compileCertificates(all, [sni('other.example', 3), sni('*.b.example', 3)], fallback)
  t.ok(store.hasPairs)
  t.same(store.pair('OTHER.example')?.cert, [pairs[3]!.cert, rsa.cert])
  t.equal(store.pair('a.b.example'), store.pair('other.example'), 'one for all of its names')
  t.equal(store.pair('elsewhere.example'), undefined)
  const none = compileCertificates(
    all,
    [sni('shop.*', 2), sni('*', 3), sni('lost.example', 9)],
    fallback
  )
  t.notOk(none.hasPairs, 'nobody asks for the default by a name')
  t.equal(none.pair('shop.test'), undefined)
  t.equal(none.pair('lost.example'), undefined, 'nor is one without a value a pair')
})

await t.test('without any certificate there is a store all the same', async t => {
  t.same(compileCertificates([], [], { cert: '', key: '' }).unnamed, { cert: [], key: [] })
})

await t.test('material that does not fit together is refused', async t => {
  const mixed = {
    ...certificates[0],
    key: new Secret(pairs[1]!.key)
  } as unknown as Certificate
  t.throws(() => compileCertificates([mixed], [], fallback), /key values mismatch/i)
})
