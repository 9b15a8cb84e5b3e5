import fc from 'fast-check'
import t from 'tap'
import { MASK, Redactor } from '../src/redaction.ts'

function holding(...values: readonly string[]): Redactor {
  const redactor = new Redactor()
  for (const [index, value] of values.entries()) redactor.hold(String(index), [value])
  return redactor
}

t.test('a value is masked wherever it stands, as often as it does', async t => {
  const redactor = holding('hunter2-hunter2')
  t.equal(redactor.text('hunter2-hunter2'), MASK)
  t.equal(redactor.text('a hunter2-hunter2, hunter2-hunter2!'), `a ${MASK}, ${MASK}!`)
  t.equal(redactor.text('hunter2-hunter'), 'hunter2-hunter')
  t.equal(redactor.text(''), '')
  t.equal(new Redactor().text('nothing is held'), 'nothing is held')
})

t.test('short values are not looked for in text', async t => {
  t.equal(holding('1234567').text('1234567'), '1234567')
  t.equal(holding('12345678').text('12345678'), MASK)
})

t.test('a value, the one before and one to come are masked, and those that went', async t => {
  const redactor = new Redactor()
  redactor.hold('a', ['first-value', 'zeroth-value'])
  redactor.hold('candidate a', ['second-value'])
  redactor.hold('a', ['second-value', 'first-value'])
  const text = 'zeroth-value first-value second-value'
  t.equal(redactor.text(text), `${MASK} ${MASK} ${MASK}`)
  redactor.retain(() => false)
  t.equal(redactor.text(text), `${MASK} ${MASK} ${MASK}`)
})

t.test('what went is masked up to a bound, and what is held always', async t => {
  const redactor = new Redactor()
  redactor.hold('stays', ['value-that-stays'])
  redactor.hold('also', ['value-that-stays'])
  const value = (i: number): string => `rotating-${String(i * 7_919).padStart(9, '0')}-value`
  for (let i = 0; i <= 10_102; i++) redactor.hold('rotates', [value(i)])
  redactor.hold('also', [])
  t.equal(redactor.text(value(0)), value(0))
  t.equal(redactor.text(`${value(10_102)} ${value(105)}`), `${MASK} ${MASK}`)
  t.equal(redactor.text('value-that-stays'), MASK)
})

t.test('values that overlap are masked as one', async t => {
  const redactor = holding('secret-value', 'secret-value-longer')
  t.equal(redactor.text('secret-value-longer secret-value'), `${MASK} ${MASK}`)
  t.equal(holding('overlapping', 'lapping-over').text('overlapping-over!'), `${MASK}!`)
})

t.test('in JSON, in a URL, and line by line', async t => {
  const pem = `-----BEGIN PRIVATE KEY-----\n${'QUJD'.repeat(16)}\nQUJDRA==\n-----END PRIVATE KEY-----\n`
  const redactor = holding('quote"back\\slash', 'pass word/100%', pem)
  t.equal(redactor.text(JSON.stringify({ a: 'quote"back\\slash' })), `{"a":"${MASK}"}`)
  t.equal(redactor.text('redis://:pass%20word%2F100%25@redis'), `redis://:${MASK}@redis`)
  t.equal(redactor.text(`error near ${'QUJD'.repeat(16)}`), `error near ${MASK}`)
  t.equal(redactor.text('-----BEGIN PRIVATE KEY-----'), '-----BEGIN PRIVATE KEY-----')
})

t.test('a line of JSON stays JSON', async t => {
  const redactor = holding('12345678', '","level"', 'key-as-secret')
  const line = `${JSON.stringify({
    n: 123456789,
    m: 1,
    list: ['x 12345678', null, true],
    'key-as-secret': { text: 'a","level"b' },
    level: 'info'
  })}\n`
  t.same(JSON.parse(redactor.json(line)), {
    n: `${MASK}9`,
    m: 1,
    list: [`x ${MASK}`, null, true],
    [MASK]: { text: `a${MASK}b` },
    level: 'info'
  })
  t.ok(redactor.json(line).endsWith('\n'))
  t.equal(redactor.json('no json 12345678'), `no json ${MASK}`)
  t.equal(redactor.json('{"a":1}\n'), '{"a":1}\n')
})

t.test('no text around values hides them, whatever they are', async t => {
  const value = fc.string({ unit: 'binary', minLength: 8, maxLength: 40 })
  const property = fc.property(
    fc.uniqueArray(value, { minLength: 1, maxLength: 20 }),
    fc.string(),
    (values, gap) => {
      const redactor = holding(...values)
      const masked = redactor.text(values.map(each => gap + each).join(''))
      const parsed = JSON.parse(redactor.json(JSON.stringify({ values })))
      // A mask between two texts may complete what looks like another value.
      return values.every(
        each =>
          (gap + MASK + gap).includes(each) ||
          each.includes(MASK) ||
          (!masked.includes(each) && !parsed.values.includes(each))
      )
    }
  )
  t.doesNotThrow(() => fc.assert(property))
})
