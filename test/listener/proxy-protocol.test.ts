import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import http2 from 'node:http2'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import tls from 'node:tls'
import t from 'tap'
import { isHttp2Preface, parseProxyHeader } from '../../src/listener/proxy-protocol.ts'
import { startGateway, startUpstream } from '../harness.ts'
import { raw } from '../raw.ts'

const SIGNATURE = Buffer.from('0d0a0d0a000d0a515549540a', 'hex')

/** A version 2 header. */
function v2(command: number, family: number, body: Buffer): Buffer {
  const head = Buffer.from([0x20 | command, family, body.length >> 8, body.length & 255])
  return Buffer.concat([SIGNATURE, head, body])
}
const V4 = Buffer.from([1, 2, 3, 4, 10, 0, 0, 1, 0x1f, 0x90, 0, 80])
const V6 = Buffer.concat([
  Buffer.from('20010db8000000000000000000000001', 'hex'),
  Buffer.alloc(16),
  Buffer.from([0x1f, 0x90, 0, 80])
])

await t.test('version 1', async t => {
  const read = (text: string) => parseProxyHeader(Buffer.from(text, 'latin1'))
  const line = 'PROXY TCP4 1.2.3.4 10.0.0.1 8080 80\r\n'
  t.same(read(`${line}GET / HTTP/1.1\r\n`), { length: line.length, address: '1.2.3.4' })
  t.match(read('PROXY TCP6 2001:db8::1 ::1 1 65535\r\n'), { address: '2001:db8::1' })
  for (const [written, address] of [
    ['2001:DB8:0:0:0:0:0:1', '2001:db8::1'],
    ['::ffff:1.2.3.4', '1.2.3.4'],
    ['::FFFF:102:304', '1.2.3.4']
  ]) {
    t.match(read(`PROXY TCP6 ${written} ::1 1 2\r\n`), { address }, 'one address, one spelling')
  }
  t.match(read('PROXY UNKNOWN\r\n'), { length: 15, address: undefined })
  t.match(read('PROXY UNKNOWN whatever it says\r\n'), { address: undefined })
  for (const part of ['', 'P', 'PROXY', 'PROXY TCP4 1.2.3.4', line.slice(0, -1)]) {
    t.equal(read(part), undefined, `${JSON.stringify(part)} may become one`)
  }
  for (const wrong of [
    'GET / HTTP/1.1\r\n',
    'PROXX',
    'PROXY TCP4 1.2.3.4 10.0.0.1 8080 80 more\r\n',
    'PROXY TCP4  1.2.3.4 10.0.0.1 8080 80\r\n',
    'PROXY TCP4 1.2.3.4 10.0.0.1 8080\r\n',
    'PROXY TCP4 1.2.3.4 10.0.0.1 08080 80\r\n',
    'PROXY TCP4 1.2.3.4 10.0.0.1 8080 65536\r\n',
    'PROXY TCP4 ::1 ::1 8080 80\r\n',
    'PROXY TCP6 1.2.3.4 1.2.3.4 8080 80\r\n',
    'PROXY TCP4 1.2.3 10.0.0.1 8080 80\r\n',
    'PROXY UDP4 1.2.3.4 10.0.0.1 8080 80\r\n',
    'PROXY TCP4 1.2.3.4 10.0.0.1 8080 80\n\r\n',
    `PROXY TCP4 ${'1'.repeat(200)}`
  ]) {
    t.throws(() => read(wrong), JSON.stringify(wrong))
  }
})

await t.test('version 2', async t => {
  t.same(parseProxyHeader(Buffer.concat([v2(1, 0x11, V4), Buffer.from('GET')])), {
    length: 28,
    address: '1.2.3.4'
  })
  t.match(parseProxyHeader(v2(1, 0x21, V6)), { address: '2001:db8::1' })
  const mapped = Buffer.concat([
    Buffer.from('00000000000000000000ffff01020304', 'hex'),
    V6.subarray(16)
  ])
  t.match(parseProxyHeader(v2(1, 0x21, mapped)), { address: '1.2.3.4' }, 'IPv4 written as IPv6')
  const tlv = Buffer.concat([V4, Buffer.from([4, 0, 2, 0, 0])])
  t.same(parseProxyHeader(v2(1, 0x11, tlv)), { length: 33, address: '1.2.3.4' }, 'with a TLV')
  t.same(parseProxyHeader(v2(0, 0, Buffer.alloc(0))), { length: 16, address: undefined }, 'LOCAL')
  t.match(parseProxyHeader(v2(1, 0x31, Buffer.alloc(216))), { address: undefined }, 'a Unix peer')
  const whole = v2(1, 0x11, V4)
  for (let length = 1; length < whole.length; length++) {
    t.equal(parseProxyHeader(whole.subarray(0, length)), undefined, `${length} bytes are not all`)
  }
  t.throws(() => parseProxyHeader(v2(2, 0x11, V4)), 'another command')
  t.throws(() => parseProxyHeader(v2(1, 0x11, V4.subarray(0, 11))), 'too short for IPv4')
  t.throws(() => parseProxyHeader(v2(1, 0x21, V4)), 'too short for IPv6')
  t.throws(() => parseProxyHeader(v2(1, 0x11, Buffer.alloc(5000))), 'longer than anybody needs')
  const first = Buffer.from(whole)
  first[12] = 0x11
  t.throws(() => parseProxyHeader(first), 'another version')
})

await t.test('the preface of HTTP/2', async t => {
  const preface = 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'
  t.equal(isHttp2Preface(Buffer.from(`${preface}\0`)), true)
  t.equal(isHttp2Preface(Buffer.from(preface.slice(0, 10))), undefined)
  t.equal(isHttp2Preface(Buffer.from('PUT ')), false)
})

await t.test('on a listener', async t => {
  const directory = await mkdtemp(join(tmpdir(), 'postern-pp-'))
  t.teardown(() => rm(directory, { recursive: true, force: true }))
  const path = join(directory, 'gate.sock')
  await using upstream = await startUpstream()
  await using gateway = await startGateway(
    { services: [{ name: 'up', url: upstream.url, routes: [{ name: 'all', paths: ['/'] }] }] },
    {
      env: {
        POSTERN_PROXY_LISTEN: `127.0.0.1:0, 127.0.0.1:0 proxy_protocol, 127.0.0.1:0 ssl http2 proxy_protocol, 127.0.0.1:0 http2 proxy_protocol, unix:${path}, unix:${path}.pp proxy_protocol`,
        POSTERN_TRUSTED_IPS: '127.0.0.1, unix:',
        POSTERN_REAL_IP_HEADER: 'proxy_protocol',
        POSTERN_REQUEST_HEADER_TIMEOUT: '1'
      }
    }
  )
  const [plain, proxied, secure, both] = gateway.gateway.listeners.map(({ port }) => port)
  const GET = 'GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n'
  const V1 = 'PROXY TCP4 1.2.3.4 10.0.0.1 8080 80\r\n'
  const seen = (answer: string): string | undefined => /"x-real-ip":"([^"]*)"/.exec(answer)?.[1]

  t.equal(seen(await raw(proxied!, V1 + GET)), '1.2.3.4', 'version 1')
  t.equal(
    seen(await raw(proxied!, Buffer.concat([v2(1, 0x21, V6), Buffer.from(GET)]))),
    '2001:db8::1',
    'version 2'
  )
  t.equal(
    seen(await raw(proxied!, Buffer.concat([v2(0, 0, Buffer.alloc(0)), Buffer.from(GET)]))),
    '127.0.0.1',
    'the proxy for itself'
  )
  t.equal(await raw(proxied!, GET), '', 'nothing is served without the header')
  t.match(await raw(plain!, V1 + GET), /^HTTP\/1\.1 400/, 'other listeners do not take it')
  t.equal(seen(await raw(plain!, GET)), '127.0.0.1')
  t.equal(seen(await raw({ path }, GET)), 'unix:')
  t.notMatch(await raw({ path }, GET), /x-forwarded-port/, 'a Unix socket has no port')
  t.match(await raw(plain!, GET), `"x-forwarded-port":"${plain}"`)
  t.equal(seen(await raw({ path: `${path}.pp` }, V1 + GET)), '1.2.3.4')
  t.equal(await raw(proxied!, 'PROXY TCP4 '), '', 'a header that does not end is not waited for')

  const socket = net.connect(proxied!, '127.0.0.1')
  for (const byte of V1 + GET) {
    socket.write(byte)
    if (byte === ' ') await new Promise(resolve => setImmediate(resolve))
  }
  let answer = ''
  for await (const chunk of socket) answer += chunk
  t.equal(seen(answer), '1.2.3.4', 'in many pieces')

  const outer = net.connect(secure!, '127.0.0.1')
  outer.write(V1)
  const inner = tls.connect({ socket: outer, rejectUnauthorized: false })
  await once(inner, 'secureConnect')
  inner.write(GET)
  let secret = ''
  for await (const chunk of inner) secret += chunk
  t.equal(seen(secret), '1.2.3.4', 'before TLS')

  t.equal(seen(await raw(both!, V1 + GET)), '1.2.3.4', 'HTTP/1.1 where HTTP/2 may come too')
  for (const port of [both!, secure!]) {
    const carrier = net.connect(port, '127.0.0.1')
    carrier.write(V1)
    const session = http2.connect(`http${port === secure ? 's' : ''}://a`, {
      createConnection: () =>
        port === secure
          ? tls.connect({ socket: carrier, rejectUnauthorized: false, ALPNProtocols: ['h2'] })
          : carrier
    })
    t.teardown(() => session.destroy())
    const stream = session.request({ ':path': '/' })
    let text = ''
    for await (const chunk of stream.setEncoding('utf8')) text += chunk
    t.equal(seen(text), '1.2.3.4', 'before HTTP/2')
  }
})

await t.test(
  'an untrusted proxy is not believed; a live Unix socket is not taken over',
  async t => {
    const directory = await mkdtemp(join(tmpdir(), 'postern-pp-'))
    t.teardown(() => rm(directory, { recursive: true, force: true }))
    const path = join(directory, 'gate.sock')
    await using upstream = await startUpstream()
    const config = {
      services: [{ name: 'up', url: upstream.url, routes: [{ name: 'all', paths: ['/'] }] }]
    }
    const env = {
      POSTERN_PROXY_LISTEN: `127.0.0.1:0 proxy_protocol, unix:${path}`,
      POSTERN_REAL_IP_HEADER: 'proxy_protocol'
    }
    await using gateway = await startGateway(config, { env })
    const answer = await raw(
      gateway.port,
      'PROXY TCP4 1.2.3.4 10.0.0.1 8080 80\r\nGET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n'
    )
    t.match(answer, /"x-real-ip":"127\.0\.0\.1"/)
    await t.rejects(startGateway(config, { env }), { code: 'EADDRINUSE' })
  }
)
