import fc from 'fast-check'
import t from 'tap'
import { bodyFormat } from '../../src/plugins/body-field.ts'

const json = bodyFormat('application/json; charset=utf-8')!
const form = bodyFormat('Application/X-WWW-Form-URLEncoded')!

function multipart(boundary: string) {
  return bodyFormat(`multipart/form-data; charset=utf-8; boundary=${boundary}`)!
}

t.test('only kinds of body with fields have a format', async t => {
  t.equal(bodyFormat(undefined), undefined)
  t.equal(bodyFormat('text/plain'), undefined)
  t.equal(bodyFormat('multipart/form-data'), undefined, 'without a boundary')
})

t.test('JSON: text members of an object, or lists of them', async t => {
  const find = (text: string, name = 'k') => json.find(Buffer.from(text), name)
  t.same(find('{"k":"v"}'), ['v'])
  t.same(find('{"k":["a","b"]}'), ['a', 'b'])
  for (const text of ['{"k":1}', '{"k":{"k":"v"}}', '{"a":{"k":"v"}}', '"k"', 'null', '{', '']) {
    t.same(find(text), [], text)
  }
  t.same(find('["v"]', '0'), [], 'a list has no names')
  t.same(find('{"k":"v"}', '__proto__'), [])
})

t.test('JSON: removing a member keeps the text of the others', async t => {
  const remove = (text: string) => json.remove(Buffer.from(text), 'k').toString()
  t.equal(remove('{"k":"v"}'), '{}')
  t.equal(
    remove('{ "a": 1.0, "k": "v", "b": [1, {"k": ","}] }'),
    '{ "a": 1.0, "b": [1, {"k": ","}] }'
  )
  t.equal(remove('{"a":"}\\",\\\\","\\u006b":"v"}'), '{"a":"}\\",\\\\"}')
  t.equal(remove('{"ü":"ß","k":"v"}'), '{"ü":"ß"}')
})

t.test('JSON: whatever the object, only the member is gone', async () => {
  const object = fc.dictionary(fc.string({ unit: 'grapheme' }), fc.jsonValue())
  fc.assert(
    fc.property(object, fc.integer({ min: 0, max: 3 }), (others, indent) => {
      const text = JSON.stringify({ ...others, k: 'v' }, null, indent)
      const left = JSON.parse(json.remove(Buffer.from(text), 'k').toString())
      const { k: _, ...expected } = others
      return JSON.stringify(left) === JSON.stringify(expected)
    })
  )
})

t.test('form', async t => {
  t.same(form.find(Buffer.from('a=1&k=%C3%BC'), 'k'), ['ü'])
  t.equal(form.remove(Buffer.from('a=ü&k=v&b'), 'k').toString(), 'a=ü&b')
  t.equal(form.remove(Buffer.from('k=v'), 'k').length, 0)
})

t.test('multipart', async t => {
  const part = (head: string, content: string) => `--b\r\n${head}\r\n\r\n${content}\r\n`
  const named = (name: string, content: string) =>
    part(`Content-Type: text/plain\r\ncontent-disposition: form-data; name=${name}`, content)
  const body = Buffer.from(
    `preamble\r\n${named('a', '1\r\n\r\n2')}${named('"k"', 'ü')}${part('X: y', 'z')}${named('"k"', '')}--b--\r\nepilogue`
  )
  const format = multipart('b')
  t.same(format.find(body, 'k'), ['ü', ''])
  t.same(format.find(body, 'a'), ['1\r\n\r\n2'])
  t.same(format.find(body, 'x'), [])
  t.equal(
    format.remove(body, 'k').toString(),
    `preamble\r\n${named('a', '1\r\n\r\n2')}${part('X: y', 'z')}--b--\r\nepilogue`
  )
  const escaped = Buffer.from(`${named(String.raw`"q\"k"; filename=k`, 'v')}--b--`)
  t.same(format.find(escaped, 'q"k'), ['v'])
  t.same(format.find(Buffer.from('--b\r\nno blank line\r\n--b\r\n\r\n--b--'), 'k'), [])
  for (const broken of [
    '',
    'k=v',
    named('k', 'v'),
    '--b',
    '--b\r\n',
    `--c\r\n${named('k', 'v')}`
  ]) {
    t.same(format.find(Buffer.from(broken), 'k'), [], JSON.stringify(broken))
    t.equal(format.remove(Buffer.from(broken), 'k').toString(), broken, 'left alone')
  }
})

t.test(
  'multipart: many parts without a blank line take linear time',
  { timeout: 10_000 },
  async t => {
    const body = Buffer.from(`${'--b\r\nx\r\n'.repeat(100_000)}--b--`)
    t.same(multipart('b').find(body, 'k'), [])
  }
)

t.test('a field is there with any value but null', async t => {
  const has = (format: typeof json, text: string) => format.has(Buffer.from(text), 'k')
  for (const text of ['{"k":"v"}', '{"k":true}', '{"k":0}', '{"k":[]}']) t.ok(has(json, text), text)
  for (const text of ['{"k":null}', '{}', '["k"]', '{"k":1']) t.notOk(has(json, text), text)
  for (const text of ['k', 'k=', 'a=1&k=v']) t.ok(has(form, text), text)
  for (const text of ['', 'a=k', 'kk=1']) t.notOk(has(form, text), text)
  const part = '--b\r\nContent-Disposition: form-data; name="k"\r\n\r\n\r\n--b--\r\n'
  t.ok(has(multipart('b'), part))
  t.notOk(has(multipart('b'), part.replace('"k"', '"a"')))
})
