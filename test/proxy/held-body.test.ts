import t from 'tap'
import { HeldBody, HoldBounds } from '../../src/proxy/held-body.ts'
import { bodyOf } from '../bodies.ts'

/** Pieces as node:http reads them: each in memory of its own. */
function* piecesOf(bytes: Buffer, sizes: readonly number[]): Generator<Buffer> {
  for (let at = 0, i = 0; at < bytes.length; i++) {
    const size = sizes[i % sizes.length]!
    const piece = Buffer.allocUnsafeSlow(Math.min(size, bytes.length - at))
    bytes.copy(piece, 0, at)
    at += piece.length
    yield piece
  }
}

const given = (pieces: readonly Buffer[]): boolean => pieces.every(({ length }) => length === 0)

t.test('pieces of any size, in order and in as little memory as twice their sum', async t => {
  for (const sizes of [[7], [1000], [1460, 5000], [60_000, 3], [3, 65_536], [20_000], [300_000]]) {
    for (const owned of [false, true]) {
      const bytes = bodyOf(sizes[0]!, 300_000)
      const body = new HeldBody(owned)
      for (const piece of piecesOf(bytes, sizes)) body.append(piece)
      t.equal(body.length, bytes.length)
      const pieces = body.read()
      t.ok(Buffer.concat(pieces).equals(bytes), `pieces of ${sizes} bytes`)
      const memory = pieces.reduce((sum, { buffer }) => sum + buffer.byteLength, 0)
      t.ok(memory <= Math.max(4096, 2 * bytes.length), `${memory} bytes in ${pieces.length} pieces`)
      t.ok(pieces.length <= 40, 'small ones stand together')
      t.equal(body.text(), bytes.toString('latin1'))
    }
  }
})

t.test('memory is given back when no attempt will read it and none does', async t => {
  const fill = (owned: boolean): HeldBody => {
    const body = new HeldBody(owned)
    for (const piece of piecesOf(bodyOf(1, 100_000), [65_000, 5000])) body.append(piece)
    return body
  }
  const whole = bodyOf(1, 100_000)

  const twice = fill(true)
  const first = twice.read()
  twice.done()
  t.ok(Buffer.concat(first).equals(whole), 'another attempt may read it')
  const second = twice.read()
  twice.release()
  t.ok(Buffer.concat(second).equals(whole), 'it is being read')
  twice.done()
  t.ok(given(second))

  const unread = fill(true)
  const pieces = unread.read()
  unread.done()
  unread.release()
  t.ok(given(pieces))

  const failed = fill(true)
  const left = failed.read()
  failed.read()
  failed.release()
  failed.done()
  t.ok(Buffer.concat(left).equals(whole), 'a reader that never was sure')

  const lent = fill(true)
  const kept = [...lent.lend()]
  lent.release()
  t.ok(Buffer.concat(kept).equals(whole), 'a reader that does not tell')

  const shared = fill(false)
  const others = [...shared.read()]
  shared.done()
  shared.release()
  t.ok(Buffer.concat(others).equals(whole), 'memory that others see')
})

t.test('a piece that is a part of more is left alone', async t => {
  const block = bodyOf(2, 60_000)
  const body = new HeldBody(true)
  body.append(block.subarray(0, 30_000))
  const pieces = [...body.read()]
  body.done()
  body.release()
  t.equal(pieces[0]!.length, 30_000)
  t.ok(block.equals(bodyOf(2, 60_000)))
})

t.test('what is held counts until it is released, once', async t => {
  const bounds = new HoldBounds(100)
  const body = new HeldBody(true, bounds)
  t.ok(bounds.take(3000))
  body.append(Buffer.alloc(3000))
  t.notOk(bounds.take(200), 'no more than 32 times one')
  bounds.give(200)
  body.release()
  body.release()
  t.ok(bounds.take(3199))
  t.notOk(bounds.take(1))
})

t.test('a body that was made whole', async t => {
  const bytes = bodyOf(3, 200_001)
  const body = HeldBody.of(bytes)
  t.ok(body.whole)
  t.ok(Buffer.concat(body.read()).equals(bytes))
  t.ok(body.read().every(({ length }) => length <= 65_536))
  body.release()
  t.ok(bytes.equals(bodyOf(3, 200_001)), 'stays whoever made it')
  t.equal(HeldBody.of(Buffer.alloc(0)).length, 0)
  t.strictSame(HeldBody.of(Buffer.alloc(0)).read(), [])
})
