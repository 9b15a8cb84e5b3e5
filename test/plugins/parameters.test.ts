import fc from 'fast-check'
import t from 'tap'
import { findParameter, removeParameter } from '../../src/plugins/parameters.ts'

t.test('findParameter gives every value of a name', async t => {
  t.same(findParameter('a=1&b=2&a=3', 'a'), ['1', '3'])
  t.same(findParameter('a&b', 'a'), [true])
  t.same(findParameter('a=', 'a'), [''])
  t.same(findParameter('a=b=c', 'a'), ['b=c'])
  t.same(findParameter('%61=x%20y+z', 'a'), ['x y z'])
  t.same(findParameter('a=%zz', 'a'), ['%zz'])
  t.same(findParameter('aa=1&A=2&=3&&', 'a'), [])
  t.same(findParameter('', 'a'), [])
  t.same(findParameter(undefined, 'a'), [])
})

t.test('removeParameter leaves the rest byte for byte', async t => {
  t.equal(removeParameter('a=1&b=%20x&a=2&&c', 'a'), 'b=%20x&&c')
  t.equal(removeParameter('%61=1&b', 'a'), 'b')
  t.equal(removeParameter('a=1', 'a'), undefined)
  t.equal(removeParameter('b=1', 'a'), 'b=1')
})

t.test('agrees with URLSearchParams, and finds nothing of what was removed', async () => {
  const pair = fc.tuple(
    fc.constantFrom('a', 'b', 'a b', 'ü', '&='),
    fc.string({ unit: 'grapheme' })
  )
  fc.assert(
    fc.property(fc.array(pair), pairs => {
      const params = new URLSearchParams(pairs)
      const text = params.toString()
      for (const [name] of pairs) {
        if (JSON.stringify(findParameter(text, name)) !== JSON.stringify(params.getAll(name))) {
          return false
        }
        if (findParameter(removeParameter(text, name), name).length > 0) return false
      }
      return true
    })
  )
  fc.assert(
    fc.property(fc.string(), text => findParameter(removeParameter(text, 'a'), 'a').length === 0)
  )
})
