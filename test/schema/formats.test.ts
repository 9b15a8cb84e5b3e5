import fc from 'fast-check'
import t from 'tap'
import { formats, normalisePath } from '../../src/schema/formats.ts'

const good: Readonly<Record<string, readonly string[]>> = {
  uuid: ['0dc6f45b-8f8d-40d2-a504-473544ee190b'],
  uri: ['http://h', 'redis://u:p@h:1/2'],
  'postern-name': ['a-b_c~d.e', 'é'],
  'postern-tag': ['a b', 'ö'],
  'postern-host': ['h', 'a.b.c.', '_srv.h', '10.0.0.1', '::1', '[::1]'],
  'postern-host-port': ['h', 'h:80', '[::1]:80', '::1'],
  'postern-path': ['/', '/a%20b', '/a;b=c'],
  'postern-route-path': ['/', '/a/', '/é', '~/a(?P<x>b)', '~/a\\-b', '/a%2Fb'],
  'postern-route-host': ['h', 'h:80', '*.h', '*.h:80', 'h.*'],
  'postern-sni': ['*', '*.a.b', 'a.*', 'a'],
  'postern-header-name': ['X-A_b'],
  'postern-target': ['h:1', '10.0.0.1'],
  'postern-upstream-name': ['pool.internal']
}

const bad: Readonly<Record<string, readonly string[]>> = {
  uuid: ['0DC6F45B-8f8d-40d2-a504-473544ee190b', ''],
  uri: ['h', 'http://', 'http://h:99999'],
  'postern-name': ['a b', 'a/b'],
  'postern-tag': ['a/b', 'a,b', '\n'],
  'postern-host': ['-a', 'a..b', '[::1]:80', 'a'.repeat(254)],
  'postern-host-port': ['h:99999', 'a:b:c', 'a b:1'],
  'postern-path': ['a', '/%', '/ü', '//'],
  'postern-route-path': ['/a//b', '/%41', '/./a', '/{id}', '~', '/%2f'],
  'postern-route-host': ['*', 'a*.b', '*.*', '*a', '*.a b'],
  'postern-sni': ['::1', 'a*', '*.*.a', 'a:1'],
  'postern-header-name': ['a:', ''],
  'postern-target': [':1', 'h:x'],
  'postern-upstream-name': ['10.0.0.1', '::1', 'a:1'],
  'postern-certificate': ['x'],
  'postern-ca-certificate': ['x'],
  'postern-private-key': ['x']
}

t.test('what is well formed passes, what is not is told with a fix', async t => {
  for (const [name, texts] of Object.entries(good)) {
    for (const text of texts) t.equal(formats[name]!.check(text), undefined, `${name}: ${text}`)
  }
  for (const [name, texts] of Object.entries(bad)) {
    for (const text of texts) t.ok(formats[name]!.check(text)?.fix, `${name}: ${text}`)
  }
  t.same(new Set([...Object.keys(good), ...Object.keys(bad)]), new Set(Object.keys(formats)))
})

t.test('paths are normalised as requests are', async t => {
  const rows: [string, string][] = [
    ['/a/./b/../c', '/a/c'],
    ['/a/..', '/'],
    ['/a/.', '/a/'],
    ['/../../a', '/a'],
    ['//a///b', '/a/b'],
    ['/%41%2f%2e', '/A%2F.'],
    ['/%c3%a9', '/é'],
    ['/%ff%41', '/%FFA']
  ]
  for (const [path, want] of rows) t.equal(normalisePath(path), want, path)
})

t.test('no text makes a format throw, and normalising is stable', async () => {
  const part = fc.constantFrom(
    '/',
    '.',
    '..',
    '%',
    '%2e',
    '%2F',
    '%C3',
    '%A9',
    'a',
    '*',
    ':',
    '[',
    '~',
    ' '
  )
  const text = fc.oneof(
    fc.string(),
    fc.array(part, { maxLength: 8 }).map(parts => parts.join(''))
  )
  fc.assert(
    fc.property(text, value => {
      for (const { check } of Object.values(formats)) check(value)
      const path = normalisePath(`/${value}`)
      return path.startsWith('/') && !path.includes('//') && !path.split('/').includes('..')
    })
  )
})
