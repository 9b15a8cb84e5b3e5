import t from 'tap'
import { type Framed, framingProblem } from '../../src/proxy/framing.ts'

const h1 = (rawHeaders: readonly string[], more: Partial<Framed> = {}): Framed => ({
  method: 'GET',
  httpVersion: '1.1',
  headers: {},
  rawHeaders,
  ...more
})
const h2 = (rawHeaders: readonly string[], more: Partial<Framed> = {}): Framed =>
  h1(rawHeaders, { httpVersion: '2.0', stream: {}, ...more })
const HOST = ['Host', 'a.example']
const status = (request: Framed, target = '/'): number | undefined =>
  framingProblem(request, target)?.status

await t.test('hosts', async t => {
  for (const host of ['a', 'A.b-c_d~1', 'a:80', 'a:', '127.0.0.1:65535', '[::1]', '[::1]:8080']) {
    t.equal(status(h1(['Host', host])), undefined, host)
  }
  for (const host of [
    '',
    ' ',
    'a b',
    'a/b',
    'a?b',
    'a#b',
    'u@a',
    'a,b',
    'a;b',
    'a:b',
    'a:1:2',
    'a:65536',
    'a:000080',
    ':80',
    '::1',
    '[]',
    '[::1',
    '[::1]x',
    '[a/b]',
    '[::1]:x',
    'a]',
    'caf\u00e9',
    'a%00b',
    'a\\b',
    "a'b"
  ]) {
    t.equal(status(h1(['Host', host])), 400, JSON.stringify(host))
  }
  t.equal(status(h1(['Host', 'a', 'hOST', 'a'])), 400, 'two, even if alike')
  t.equal(status(h1([])), 400, 'none')
  t.equal(status(h1([], { httpVersion: '1.0' })), undefined, 'none on 1.0')
})

await t.test('lengths and codings', async t => {
  const with_ = (...fields: string[]) => h1([...HOST, ...fields])
  t.equal(status(with_('Content-Length', '0')), undefined)
  t.equal(status(with_('content-length', '123456789012345')), undefined)
  for (const length of [
    '',
    '-1',
    '+1',
    '0x10',
    '1 1',
    '1,1',
    '1.0',
    '1234567890123456',
    '\u0661'
  ]) {
    t.equal(status(with_('Content-Length', length)), 400, JSON.stringify(length))
  }
  t.equal(status(with_('Content-Length', '1', 'Content-Length', '1')), 400)
  t.equal(status(with_('Transfer-Encoding', 'Chunked')), undefined)
  for (const coding of [
    '',
    'identity',
    'gzip, chunked',
    'chunked, chunked',
    'xchunked',
    'chunked;q=1'
  ]) {
    t.equal(status(with_('Transfer-Encoding', coding)), 400, JSON.stringify(coding))
  }
  t.equal(status(with_('Transfer-Encoding', 'chunked', 'transfer-encoding', 'chunked')), 400)
  t.equal(status(with_('Transfer-Encoding', 'chunked', 'Content-Length', '5')), 400)
  t.equal(status(with_('Content-Length', '5', 'Transfer-Encoding', 'chunked')), 400)
  t.equal(
    status(h1([...HOST, 'Transfer-Encoding', 'chunked'], { httpVersion: '1.0' })),
    400,
    'no coding on 1.0'
  )
})

await t.test('targets', async t => {
  for (const target of ['/', '/a?b=%00', '/%2e%2e/', 'http://a.example/x', 'HTTPS://a.example?q']) {
    t.equal(status(h1(HOST), target), undefined, target)
  }
  for (const target of [
    '',
    '*',
    'a.example:80',
    'a',
    '//\\',
    '/a b',
    '/a\tb',
    '/a#b',
    '/a\u0000',
    '/a\u007f',
    'http://b.example/',
    'http://u@a.example/',
    'http:///x',
    'ftp://a.example/'
  ]) {
    t.equal(status(h1(HOST), target), 400, JSON.stringify(target))
  }
  t.equal(status(h1(HOST, { method: 'OPTIONS' }), '*'), 400, 'what has no path cannot be routed')
})

await t.test('methods and versions', async t => {
  t.equal(status(h1(HOST, { method: 'TRACE' })), 405)
  t.equal(status(h1(HOST, { method: 'CONNECT' }), 'a:443'), 405)
  t.equal(status(h1(HOST, { httpVersion: '0.9' })), 505)
  t.equal(
    status(h1([...HOST, 'Host', 'b'], { httpVersion: '2.0' })),
    505,
    'a request line that claims HTTP/2 does not make it HTTP/2'
  )
})

await t.test('HTTP/2', async t => {
  const authority = [':authority', 'a.example']
  t.equal(status(h2(authority)), undefined)
  t.equal(status(h2(['host', 'a.example'])), undefined)
  t.equal(status(h2([...authority, 'host', 'a.example'])), undefined)
  t.equal(status(h2([...authority, 'host', 'b.example'])), 400)
  t.equal(status(h2(['host', 'a.example', 'host', 'b.example'])), 400)
  t.equal(status(h2([])), 400)
  t.equal(status(h2([':authority', 'u@a.example'])), 400)
  t.equal(status(h2(authority), 'http://a.example/'), 400)
  t.equal(status(h2(authority), '*'), 400)
  t.equal(status(h2(authority), '/a\\b'), 400)
  t.equal(status(h2(authority, { method: 'CONNECT' }), ''), 405)
  t.equal(status(h2(authority, { method: 'PROPFIND' })), undefined)
  t.equal(status(h2(authority, { method: 'FOO' })), 400)
  t.equal(status(h2(authority, { method: 'get' })), 400)
})

await t.test('a .. that shows once encoded slashes are decoded', async t => {
  const request = h1(HOST)
  for (const target of [
    '/a/..%2fb',
    '/a%2F..',
    '/a%2f../b',
    '/a/%2e%2E%5cb',
    '/a%5C.%2e?q',
    '/a/%2e.%2fb?q'
  ]) {
    t.equal(status(request, target), 400, target)
    const session = h2([':authority', 'a'])
    t.equal(status(session, target), 400, target)
  }
  for (const target of ['/a%2Fb', '/a/../b', '/a..%2fb', '/%2f...', '/a?x=%2f..', '/a?/..%2f']) {
    t.equal(status(request, target), undefined, target)
  }
})
