import { createPrivateKey, X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import { connect, createServer } from 'node:tls'
import t from 'tap'
import { selfSigned } from '../../src/proxy/self-signed.ts'

await t.test('a certificate of its own key, for localhost and 127.0.0.1', async t => {
  const { cert, key } = selfSigned()
  const parsed = new X509Certificate(cert)
  t.equal(parsed.subject, 'CN=localhost')
  t.equal(parsed.subjectAltName, 'DNS:localhost, IP Address:127.0.0.1')
  t.notOk(parsed.ca)
  t.ok(parsed.verify(parsed.publicKey), 'signed with its own key')
  t.ok(parsed.checkPrivateKey(createPrivateKey(key)))
  t.equal(parsed.checkIP('127.0.0.1'), '127.0.0.1')
  t.ok(parsed.validFromDate.getTime() < Date.now())
  t.ok(parsed.validToDate.getTime() > Date.now() + 300 * 86_400_000)
  t.not(new X509Certificate(selfSigned().cert).serialNumber, parsed.serialNumber)
})

await t.test('a client that trusts it connects by name', async t => {
  const { cert, key } = selfSigned()
  const server = createServer({ cert, key }, socket => socket.end('hello')).listen(0, '127.0.0.1')
  t.teardown(() => server.close())
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  const socket = connect({ host: '127.0.0.1', port, servername: 'localhost', ca: cert })
  t.teardown(() => socket.destroy())
  const [data] = await once(socket, 'data')
  t.equal(String(data), 'hello')
  t.ok(socket.authorized)
})

await t.test('a year after 2049 takes the longer form of time', async t => {
  const { cert } = selfSigned(Date.UTC(2049, 5, 15))
  const { validFromDate, validToDate } = new X509Certificate(cert)
  t.same(validFromDate, new Date(Date.UTC(2049, 5, 14)))
  t.same(validToDate, new Date(Date.UTC(2050, 5, 15)))
})
