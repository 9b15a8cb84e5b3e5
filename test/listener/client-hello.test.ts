import { once } from 'node:events'
import net, { type AddressInfo } from 'node:net'
import tls from 'node:tls'
import fc from 'fast-check'
import t from 'tap'
import { askedName } from '../../src/listener/client-hello.ts'

/** What a client sends first. */
async function helloOf(options: tls.ConnectionOptions): Promise<Buffer> {
  const server = net.createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const accepted = once(server, 'connection')
  const client = tls.connect({
    ...options,
    port: (server.address() as AddressInfo).port,
    host: '127.0.0.1'
  })
  client.on('error', () => {})
  const [socket] = (await accepted) as [net.Socket]
  let bytes = Buffer.alloc(0)
  while (bytes.length < 5 || bytes.length < 5 + bytes.readUInt16BE(3)) {
    const [chunk] = (await once(socket, 'data')) as [Buffer]
    bytes = Buffer.concat([bytes, chunk])
  }
  client.destroy()
  socket.destroy()
  server.close()
  return bytes
}

/** The message of one record in records that end at these places. */
function inRecords(hello: Buffer, ends: readonly number[]): Buffer {
  const message = hello.subarray(5)
  const places = [...new Set(ends.map(end => end % message.length))].filter(end => end > 0)
  const records: Buffer[] = []
  let from = 0
  for (const end of [...places.sort((a, b) => a - b), message.length]) {
    const header = Buffer.from([22, 3, 1, (end - from) >> 8, (end - from) & 255])
    records.push(header, message.subarray(from, end))
    from = end
  }
  return Buffer.concat(records)
}

const NAME = 'shop.example.com'
const modern = await helloOf({ servername: NAME, ALPNProtocols: ['h2', 'http/1.1'] })
const hellos: readonly (readonly [what: string, hello: Buffer])[] = [
  ['TLS 1.3', modern],
  ['TLS 1.2', await helloOf({ servername: NAME, maxVersion: 'TLSv1.2' })],
  [
    'a large one',
    await helloOf({ servername: NAME, ALPNProtocols: Array(80).fill('x'.repeat(99)) })
  ]
]

await t.test('the name of what clients send, whole and in records', async t => {
  for (const [what, hello] of hellos) {
    t.equal(askedName(hello), NAME, what)
    t.equal(askedName(Buffer.concat([hello, Buffer.from('more')])), NAME, 'with what follows')
    fc.assert(
      fc.property(fc.array(fc.nat(), { maxLength: 30 }), ends => {
        const records = inRecords(hello, ends)
        for (const length of [records.length - 1, ...ends.map(end => end % records.length)]) {
          if (askedName(records.subarray(0, length)) !== undefined) return false
        }
        return askedName(records) === NAME
      })
    )
  }
  t.equal(askedName(await helloOf({})), '', 'none is asked for')
})

await t.test('what no name can be read from', async t => {
  for (const bytes of ['GET / HTTP/1.1\r\n', '\x80\x2e\x01\x03\x01', '\x15\x03\x01', '\x17']) {
    t.equal(askedName(Buffer.from(bytes, 'latin1')), '', JSON.stringify(bytes))
  }
  t.equal(askedName(Buffer.alloc(0)), undefined)
  const changed = (change: (hello: Buffer) => void): Buffer => {
    const hello = Buffer.from(modern)
    change(hello)
    return hello
  }
  const extension = modern.indexOf(NAME) - 9
  t.equal(modern.readUInt16BE(extension), 0)
  for (const [what, hello] of [
    ['a record without content', changed(hello => hello.writeUInt16BE(0, 3))],
    ['a record that is too long', changed(hello => hello.writeUInt16BE(16_385, 3))],
    ['another message', changed(hello => hello.writeUInt8(2, 5))],
    ['a message that is too long', changed(hello => hello.writeUInt8(1, 6))],
    ['a session id that leads out', changed(hello => hello.writeUInt8(255, 43))],
    ['ciphers that lead out', changed(hello => hello.writeUInt16BE(65_535, 76))],
    ['an empty list', changed(hello => hello.writeUInt16BE(0, extension + 2))],
    ['a list shorter than told', changed(hello => hello.writeUInt16BE(99, extension + 4))],
    ['another kind of name', changed(hello => hello.writeUInt8(1, extension + 6))],
    ['a name longer than the list', changed(hello => hello.writeUInt16BE(99, extension + 7))],
    ['a name and something else', changed(hello => hello.writeUInt16BE(3, extension + 7))],
    [
      'more records than clients make',
      inRecords(
        modern,
        Array.from({ length: 40 }, (_, i) => i)
      )
    ],
    ['more bytes than clients send', inRecords(Buffer.concat([modern, Buffer.alloc(17_000)]), [])]
  ] as const) {
    t.equal(askedName(hello), '', what)
  }
})

await t.test('no bytes make it throw, and 16 KiB are enough to tell', async t => {
  const bounded = (bytes: Uint8Array): boolean => {
    const name = askedName(Buffer.from(bytes))
    return typeof name === 'string' || (name === undefined && bytes.length < 16_384)
  }
  fc.assert(fc.property(fc.uint8Array({ maxLength: 400 }), bounded))
  const damages = fc.array(fc.tuple(fc.nat(modern.length - 1), fc.nat(255)), { maxLength: 8 })
  fc.assert(
    fc.property(damages, fc.nat(modern.length), (changes, length) => {
      const hello = Buffer.from(modern)
      for (const [at, value] of changes) hello[at] = value
      return bounded(hello.subarray(0, length)) && bounded(hello)
    })
  )
  const long = Buffer.concat([
    Buffer.alloc(5),
    Buffer.from([1, 0, 0x3f, 0xf0]),
    Buffer.alloc(16_380)
  ])
  fc.assert(
    fc.property(fc.array(fc.nat(), { maxLength: 40 }), fc.nat(18_000), (ends, length) =>
      bounded(inRecords(long, ends).subarray(0, length))
    )
  )
  t.pass('nothing was found')
})
