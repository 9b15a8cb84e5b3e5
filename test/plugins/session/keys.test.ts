import { randomBytes } from 'node:crypto'
import fc from 'fast-check'
import t from 'tap'
import { ID_BYTES, Keys, nodeSecret, SHARED_BYTES } from '../../../src/plugins/session/keys.ts'

const id = fc.uint8Array({ minLength: ID_BYTES, maxLength: ID_BYTES }).map(Buffer.from)
const text = fc.string({ unit: 'binary', maxLength: 300 })

t.test('what is sealed opens with the same secret, id and context, and only so', async t => {
  fc.assert(
    fc.property(id, id, text, text, (one, other, context, content) => {
      const keys = new Keys('a secret')
      const sealed = keys.seal(one, context, content)
      const opened = keys.open(one, context, sealed)
      return (
        opened?.text === content.toWellFormed() &&
        !opened.outdated &&
        (one.equals(other) || keys.open(other, context, sealed) === undefined) &&
        keys.open(one, `${context} `, sealed) === undefined &&
        new Keys('another secret').open(one, context, sealed) === undefined
      )
    })
  )
  t.pass('held for every case')
})

t.test('a sealed text that was changed anywhere does not open', async t => {
  const keys = new Keys('a secret')
  fc.assert(
    fc.property(id, text, fc.nat(), fc.integer({ min: 1, max: 255 }), (one, content, at, bits) => {
      const sealed = keys.seal(one, '', content)
      const changed = Buffer.from(sealed)
      changed[at % changed.length]! ^= bits
      return keys.open(one, '', changed) === undefined
    })
  )
  fc.assert(
    fc.property(id, fc.uint8Array({ maxLength: 100 }), (one, bytes) => {
      return keys.open(one, '', Buffer.from(bytes)) === undefined
    })
  )
  const sealed = keys.seal(randomBytes(ID_BYTES), '', 'content')
  for (let length = 0; length < sealed.length; length++) {
    t.equal(keys.open(randomBytes(ID_BYTES), '', sealed.subarray(0, length)), undefined)
  }
})

t.test('equal texts look different each time', async t => {
  const keys = new Keys('a secret')
  const one = randomBytes(ID_BYTES)
  const seen = new Set(Array.from({ length: 50 }, () => keys.seal(one, '', 'same').toString('hex')))
  t.equal(seen.size, 50)
})

t.test('the previous secret opens, and does not seal', async t => {
  const one = randomBytes(ID_BYTES)
  const before = new Keys('old')
  const during = new Keys('new', 'old')
  const after = new Keys('new')
  const sealed = before.seal(one, '', 'content')
  t.same(during.open(one, '', sealed), { text: 'content', outdated: true })
  t.equal(after.open(one, '', sealed), undefined)
  const again = during.seal(one, '', 'content')
  t.same(after.open(one, '', again), { text: 'content', outdated: false })
  t.equal(before.open(one, '', again), undefined)
})

t.test('all that share memory agree on one random secret', async t => {
  const shared = new SharedArrayBuffer(SHARED_BYTES)
  const secret = nodeSecret(shared)
  t.equal(secret.length, SHARED_BYTES)
  t.notSame(secret, Buffer.alloc(SHARED_BYTES))
  t.same(nodeSecret(shared), secret)
  t.notSame(nodeSecret(new SharedArrayBuffer(SHARED_BYTES)), secret)
})
