import fc from 'fast-check'
import t from 'tap'
import {
  checkCustomFields,
  compileChunk,
  compileCustomFields,
  splitKey
} from '../../src/plugins/custom-fields.ts'
import type { Exchange } from '../../src/plugins/plugin.ts'

const exchange = {
  request: {
    remoteAddress: '10.0.0.1',
    clientIp: '192.0.2.1',
    scheme: 'https',
    host: 'example.com',
    port: 8443,
    httpVersion: '1.1',
    method: 'GET',
    path: '/a',
    target: '/a?b=1',
    query: 'b=1'
  },
  upstream: { header: (name: string) => ({ 'x-a': 'sent' })[name.toLowerCase()] },
  response: {
    status: 201,
    header: (name: string) => ({ 'x-list': ['one', 'two'], 'x-one': 'one' })[name.toLowerCase()]
  }
} as unknown as Exchange

t.test('chunks of the supported subset', async t => {
  const cases: [string, unknown][] = [
    ['return nil', undefined],
    ['return', undefined],
    [' return  nil ; ', undefined],
    ['return true', true],
    ['return false', false],
    ['return 42', 42],
    ['return -1.5e2', -150],
    ['return 0x1F', 31],
    ['return "text"', 'text'],
    ['return \'it is "so"\'', 'it is "so"'],
    ['return"x"', 'x'],
    [String.raw`return "a\n\t\\\"\65\x42\'"`, 'a\n\t\\"AB\''],
    ['return [[long "text"\nof two lines]]', 'long "text"\nof two lines'],
    ['return kong.request.get_header("X-A")', 'sent'],
    ["return kong.request.get_header 'X-A'", 'sent'],
    ['return kong.request.get_header("x-b")', undefined],
    ['return kong.response.get_header("x-list")', 'one'],
    ['return kong.response.get_header("x-one")', 'one'],
    ['return kong.response.get_status()', 201],
    ['return kong.client.get_ip()', '10.0.0.1'],
    ['return kong.client.get_forwarded_ip( )', '192.0.2.1'],
    ['return kong.request.get_scheme()', 'https'],
    ['return kong.request.get_host()', 'example.com'],
    ['return kong.request.get_port()', 8443],
    ['return kong.request.get_http_version()', 1.1],
    ['return kong.request.get_method()', 'GET'],
    ['return kong.request.get_path()', '/a'],
    ['return kong.request.get_path_with_query()', '/a?b=1'],
    ['return kong.request.get_raw_query()', 'b=1']
  ]
  for (const [chunk, expected] of cases) {
    const get = compileChunk(chunk)
    t.ok(get, chunk)
    t.equal(get?.(exchange), expected, chunk)
  }
  const bare = { ...exchange, request: { ...exchange.request, query: undefined } }
  t.equal(compileChunk('return kong.request.get_raw_query()')?.(bare as Exchange), '')
})

t.test('every other chunk is refused', async t => {
  for (const chunk of [
    '',
    'nil',
    'returnnil',
    'return x',
    'return "a" .. "b"',
    'return "a\nb"',
    'return "a',
    String.raw`return "\q"`,
    String.raw`return "\200"`,
    'return [[a]] .. [[b]]',
    'return kong.request.get_header()',
    'return kong.request.get_header(nil)',
    'return kong.request.get_header("a") .. kong.request.get_header("b")',
    'return kong.request.get_body()',
    'return kong.request.get_method("x")',
    'return constructor.constructor()',
    'local x = 1 return x',
    'return os.getenv("HOME")'
  ]) {
    t.equal(compileChunk(chunk), undefined, chunk)
  }
})

t.test('any text survives as a quoted literal', async () => {
  fc.assert(
    fc.property(fc.string({ unit: 'grapheme' }), text => {
      const quoted = text.replaceAll(/[\\"]/g, String.raw`\$&`).replaceAll('\n', String.raw`\n`)
      return compileChunk(`return "${quoted}"`)?.(exchange) === text
    })
  )
})

t.test('keys nest at dots, but not at escaped ones', async t => {
  t.same(splitKey('a'), ['a'])
  t.same(splitKey('a.b.c'), ['a', 'b', 'c'])
  t.same(splitKey(String.raw`a\.b.c`), ['a.b', 'c'])
})

t.test('the editor works on a copy', async t => {
  const record = Object.freeze({
    request: Object.freeze({ headers: Object.freeze({ cookie: 'c', accept: 'a' }) }),
    size: 1
  })
  const edit = compileCustomFields({
    'request.headers.cookie': 'return nil',
    'request.headers.x': 'return 1',
    'new.nested': 'return "n"',
    'absent.nested': 'return nil',
    size: 'return nil',
    '__proto__.polluted': 'return true'
  })!
  const edited = edit(record, exchange)
  t.same(edited.request, { headers: { accept: 'a', x: 1 } })
  t.same(edited.new, { nested: 'n' })
  t.notOk(Object.hasOwn(edited, 'absent'))
  t.notOk(Object.hasOwn(edited, 'size'))
  t.equal(({} as { polluted?: boolean }).polluted, undefined)
  t.equal(record.request.headers.cookie, 'c')
})

t.test('nothing to edit, no editor', async t => {
  t.equal(compileCustomFields(undefined), undefined)
  t.equal(compileCustomFields({}), undefined)
})

t.test('a key through something that is not an object is an error', async t => {
  const edit = compileCustomFields({ 'size.x': 'return 1' })!
  t.throws(() => edit({ size: 1 }, exchange), /size is not an object/)
})

t.test('complaints say where and what is possible', async t => {
  t.same(checkCustomFields(undefined, '/c'), [])
  t.same(checkCustomFields({ a: 'return nil' }, '/c'), [])
  const [unsupported] = checkCustomFields({ 'a/b~c': 'return f()' }, '/c')
  t.equal(unsupported?.path, '/c/a~1b~0c')
  t.match(unsupported?.message, /not supported/)
  t.match(unsupported?.fix, /kong\.request\.get_header\("name"\)/)
  t.match(checkCustomFields({ 'a..b': 'return nil' }, '/c')[0]?.message, /empty/)
})
