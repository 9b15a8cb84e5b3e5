import t from 'tap'
import { ByteBlock } from '../../src/proxy/byte-block.ts'

await t.test('nothing, and one piece, which is not copied', async t => {
  const block = new ByteBlock(100)
  t.equal(block.length, 0)
  t.equal(block.bytes().length, 0)
  const piece = Buffer.from('whole')
  block.append(piece)
  t.equal(block.length, 5)
  t.equal(block.bytes().buffer, piece.buffer)
  t.equal(block.bytes().toString(), 'whole')
})

await t.test('pieces of any size, in as little memory as twice their sum', async t => {
  for (const expected of [10, 100_000, Number.POSITIVE_INFINITY]) {
    const block = new ByteBlock(expected)
    let text = ''
    for (let i = 0; i < 20_000; i++) {
      const piece = Buffer.from(String(i).repeat(i % 1000 === 0 ? 500 : 1))
      block.append(piece)
      text += piece
    }
    const bytes = block.bytes()
    t.ok(bytes.equals(Buffer.from(text)), `${expected} were expected`)
    t.equal(block.length, bytes.length)
    t.ok(bytes.buffer.byteLength <= Math.max(4096, 2 * bytes.length), `${bytes.buffer.byteLength}`)
  }
})

await t.test('what a sender announces costs nothing before it comes', async t => {
  const block = new ByteBlock(2 ** 30)
  block.append(Buffer.from('a'))
  block.append(Buffer.from('b'))
  t.equal(block.bytes().toString(), 'ab')
  t.ok(block.bytes().buffer.byteLength <= 4096)
})
