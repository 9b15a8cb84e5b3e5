import fc from 'fast-check'
import t from 'tap'
import {
  compileUpstreamPath,
  decodePath,
  encodePath,
  normalizePath,
  splitTarget
} from '../../src/proxy/path.ts'

await t.test('normal form of a path', async t => {
  for (const [raw, normal] of [
    ['/', '/'],
    ['', '/'],
    ['/a/b', '/a/b'],
    ['/a/b/', '/a/b/'],
    ['//a///b', '/a/b'],
    ['/a/./b', '/a/b'],
    ['/a/../b', '/b'],
    ['/a/..', '/'],
    ['/a/.', '/a/'],
    ['/../../etc/passwd', '/etc/passwd'],
    ['/a/%2e%2E/b', '/b'],
    ['/a/%2e./b', '/b'],
    ['/a/.%2e/b', '/b'],
    ['/a/%2e/b', '/a/b'],
    ['/%61%7Eb', '/a~b'],
    ['/a%2fb', '/a%2Fb'],
    ['/a%2Fb', '/a%2Fb'],
    ['/%3a%40%5b', '/%3A%40%5B'],
    ['/a%20b', '/a%20b'],
    ['/a b', '/a%20b'],
    ['/a"b<c>', '/a%22b%3Cc%3E'],
    ['/%c3%bc', '/%C3%BC'],
    ['/\xc3\xbc', '/%C3%BC'],
    ['/%00', '/%00'],
    ['/a%5c..%5cb', '/a%5C..%5Cb'],
    ['/50%', '/50%25'],
    ['/50%zz', '/50%25zz'],
    ['/%2', '/%252'],
    ['/...', '/...'],
    ['/.../x', '/.../x'],
    ['/.hidden', '/.hidden'],
    ['/a/.b/..c', '/a/.b/..c'],
    ['/a..b', '/a..b']
  ] as const) {
    t.equal(normalizePath(raw), normal, raw)
  }
})

const rawPaths = fc
  .array(
    fc.constantFrom('/', '.', '..', 'a', '%2e', '%2E', '%2f', '%41', '%', '%zz', '\xff', ' ', '?'),
    { maxLength: 12 }
  )
  .map(parts => `/${parts.join('')}`)

await t.test('a normal path is normal, absolute, and below its root', async t => {
  fc.assert(
    fc.property(rawPaths, raw => {
      const path = normalizePath(raw)
      t.equal(normalizePath(path), path)
      t.match(path, /^\/(?!\/)/)
      t.notMatch(path, /\/\/|\/\.\.?(?:\/|$)/)
      t.match(path, /^[!-~]+$/)
      t.notMatch(path, /%(?![0-9A-F]{2})/)
    })
  )
})

await t.test('patterns see bytes that need no escape as text, and it can be undone', async t => {
  for (const [path, text] of [
    ['/a', '/a'],
    ['/a%20b', '/a b'],
    ['/%C3%BC/%2F', '/ü/%2F'],
    ['/%FF', '/%FF'],
    ['/%25%20', '/%25 ']
  ] as const) {
    t.equal(decodePath(path), text)
    t.equal(encodePath(text), path)
  }
  fc.assert(
    fc.property(rawPaths, raw => {
      const path = normalizePath(raw)
      t.equal(encodePath(decodePath(path)), path)
    })
  )
})

await t.test('request targets', async t => {
  t.same(splitTarget('/a?b=1?2'), { path: '/a', query: 'b=1?2' })
  t.same(splitTarget('/a?'), { path: '/a', query: '' })
  t.same(splitTarget('/a'), { path: '/a', query: undefined })
  t.same(splitTarget('//evil/a'), { path: '//evil/a', query: undefined })
  t.same(splitTarget('HTTP://h:1/a?b'), { path: '/a', query: 'b', authority: 'h:1' })
  t.same(splitTarget('http://h?b'), { path: '/', query: 'b', authority: 'h' })
  t.same(splitTarget('http://h'), { path: '/', query: undefined, authority: 'h' })
  t.equal(splitTarget('h:443'), undefined)
  t.equal(splitTarget('*'), undefined)
})

/** service path, route path (none: matched by host), strip_path, request → v0, v1. */
type Row = readonly [string, string | undefined, boolean | 'any', string, string, string]

const TABLE: readonly Row[] = [
  ['/', '/', 'any', '/', '/', '/'],
  ['/', '/', 'any', '/route', '/route', '/route'],
  ['/', '/', 'any', '/route/', '/route/', '/route/'],
  ['/', '/', 'any', '/route/req', '/route/req', '/route/req'],
  ['/', '/route', false, '/route', '/route', '/route'],
  ['/', '/route', false, '/route/', '/route/', '/route/'],
  ['/', '/route', false, '/routereq', '/routereq', '/routereq'],
  ['/', '/route', true, '/route', '/', '/'],
  ['/', '/route', true, '/route/', '/', '/'],
  ['/', '/route', true, '/routereq', '/req', '/req'],
  ['/', '/route/', true, '/route/req', '/req', '/req'],
  ['/srv', '/rou', false, '/roureq', '/srv/roureq', '/srvroureq'],
  ['/srv', '/rou', true, '/roureq', '/srv/req', '/srvreq'],
  ['/srv/', '/rou', false, '/rou', '/srv/rou', '/srv/rou'],
  ['/srv/', '/rou', true, '/rou', '/srv', '/srv/'],
  ['/service', '/', 'any', '/', '/service', '/service'],
  ['/service', '/', 'any', '/route', '/service/route', '/serviceroute'],
  ['/service', '/', 'any', '/route/', '/service/route/', '/serviceroute/'],
  ['/service', '/route', false, '/route', '/service/route', '/serviceroute'],
  ['/service', '/route', false, '/route/', '/service/route/', '/serviceroute/'],
  ['/service', '/route', true, '/route', '/service', '/service'],
  ['/service', '/route', true, '/route/', '/service/', '/service/'],
  ['/service', '/route', true, '/routereq', '/service/req', '/servicereq'],
  ['/service', '/route/', false, '/route/req', '/service/route/req', '/serviceroute/req'],
  ['/service', '/route/', true, '/route/', '/service/', '/service'],
  ['/service', '/route/', true, '/route/req', '/service/req', '/servicereq'],
  ['/service/', '/', 'any', '/', '/service/', '/service/'],
  ['/service/', '/', 'any', '/route', '/service/route', '/service/route'],
  ['/service/', '/route', false, '/route', '/service/route', '/service/route'],
  ['/service/', '/route', true, '/route', '/service', '/service/'],
  ['/service/', '/route', true, '/route/', '/service/', '/service/'],
  ['/service/', '/route', true, '/routereq', '/service/req', '/service/req'],
  ['/service/', '/route/', true, '/route/req', '/service/req', '/service/req'],
  ['/service', undefined, 'any', '/', '/service', '/service'],
  ['/service', undefined, 'any', '/route', '/service/route', '/serviceroute'],
  ['/service/', undefined, 'any', '/', '/service/', '/service/'],
  ['/service/', undefined, 'any', '/route', '/service/route', '/service/route'],
  ['/service', '/route', true, '/route./req', '/service/req', '/servicereq'],
  ['/service', '/route', true, '/route%2E/req', '/service/req', '/servicereq'],
  ['/service', '/route', true, '/route../req', '/service/req', '/servicereq'],
  ['/service', '/route', true, '/route%2e%2E/req', '/service/req', '/servicereq'],
  ['/service', '/route', false, '/route%2E/req', '/service/route./req', '/serviceroute./req'],
  ['/service', '/route', false, '/route%2E%2E/req', '/service/route../req', '/serviceroute../req']
]

await t.test('the path sent upstream', async t => {
  for (const [service, prefix, strip, request, v0, v1] of TABLE) {
    for (const stripPath of strip === 'any' ? [true, false] : [strip]) {
      const path = normalizePath(request)
      const where = `${service} ${prefix} ${stripPath} ${request}`
      t.equal(compileUpstreamPath(service, stripPath, 'v0')(path, prefix), v0, `v0 ${where}`)
      t.equal(compileUpstreamPath(service, stripPath, 'v1')(path, prefix), v1, `v1 ${where}`)
    }
  }
  t.equal(compileUpstreamPath(undefined, true, 'v0')('/a', '/a'), '/')
})

await t.test('no request path leads out of the service path', async t => {
  const servicePaths = fc.constantFrom('/service', '/service/', '/deep/er')
  fc.assert(
    fc.property(rawPaths, servicePaths, fc.nat(12), fc.boolean(), (raw, base, cut, strip) => {
      const path = normalizePath(raw)
      const sent = compileUpstreamPath(base, strip, 'v0')(path, path.slice(0, cut))
      const bare = base.replace(/\/$/, '')
      t.ok(sent.startsWith(bare), `${sent} below ${base}`)
      t.notMatch(sent.slice(bare.length), /\/\.\.?(?:\/|$)/)
    })
  )
})
