import fc from 'fast-check'
import t from 'tap'
import { compileRouter, literalPrefix, type MatchInput } from '../../src/proxy/router.ts'
import type { Route, Service } from '../../src/schema/entities.ts'

let ids = 0

function route(fields: Partial<Route>): Route {
  return {
    id: `00000000-0000-0000-0000-${String(++ids).padStart(12, '0')}`,
    protocols: ['http', 'https'],
    regex_priority: 0,
    strip_path: true,
    path_handling: 'v0',
    preserve_host: false,
    https_redirect_status_code: 426,
    request_buffering: true,
    response_buffering: true,
    ...fields
  } as Route
}

const input = (fields: Partial<MatchInput> & { headers?: object } = {}): MatchInput => ({
  method: 'GET',
  host: 'example.com',
  port: 80,
  path: '/',
  rawHeaders: Object.entries(fields.headers ?? {}).flatMap(([name, values]) =>
    [values].flat().flatMap(value => [name, value as string])
  ),
  sni: undefined,
  ...fields
})

const matches = (fields: Partial<Route>, request: Parameters<typeof input>[0]): boolean =>
  compileRouter([route(fields)], new Map()).match(input(request)) !== undefined

/** The name of the route that is matched among these, which stand in the opposite order of their rank. */
const winner = (routes: Partial<Route>[], request: Parameters<typeof input>[0]) =>
  compileRouter(
    routes.map((fields, index) => route({ name: String(index), ...fields })),
    new Map()
  ).match(input(request))?.route.name

await t.test('each attribute, by its own rule', async t => {
  const cases: readonly [Partial<Route>, Parameters<typeof input>[0], boolean][] = [
    [{ methods: ['GET', 'PUT'] }, { method: 'PUT' }, true],
    [{ methods: ['GET'] }, { method: 'get' }, false],
    [{ hosts: ['example.com'] }, {}, true],
    [{ hosts: ['example.com'] }, { port: 8443 }, true],
    [{ hosts: ['example.com'] }, { host: 'EXAMPLE.com' }, false],
    [{ hosts: ['example.com'] }, { host: 'www.example.com' }, false],
    [{ hosts: ['example.com:8443'] }, { port: 8443 }, true],
    [{ hosts: ['example.com:8443'] }, { port: 80 }, false],
    [{ hosts: ['other', 'example.com'] }, {}, true],
    [{ hosts: ['*.example.com'] }, { host: 'a.example.com' }, true],
    [{ hosts: ['*.example.com'] }, { host: 'a.b.example.com' }, true],
    [{ hosts: ['*.example.com'] }, { host: 'example.com' }, false],
    [{ hosts: ['*.example.com'] }, { host: 'badexample.com' }, false],
    [{ hosts: ['*.example.com:81'] }, { host: 'a.example.com', port: 81 }, true],
    [{ hosts: ['*.example.com:81'] }, { host: 'a.example.com', port: 80 }, false],
    [{ hosts: ['example.*'] }, { host: 'example.com' }, true],
    [{ hosts: ['example.*'] }, { host: 'example.co.uk' }, true],
    [{ hosts: ['example.*'] }, { host: 'example' }, false],
    [{ hosts: ['example.*'] }, { host: 'www.example.com' }, false],
    [{ hosts: ['[::1]'] }, { host: '[::1]' }, true],
    [{ paths: ['/foo'] }, { path: '/foo' }, true],
    [{ paths: ['/foo'] }, { path: '/foobar' }, true],
    [{ paths: ['/foo'] }, { path: '/fo' }, false],
    [{ paths: ['/foo/'] }, { path: '/foo' }, false],
    [{ paths: ['/a', '/foo'] }, { path: '/foo/x' }, true],
    [{ paths: ['/ü'] }, { path: '/%C3%BCx' }, true],
    [{ paths: ['~/\\d+/x'] }, { path: '/42/xyz' }, true],
    [{ paths: ['~/\\d+/x$'] }, { path: '/42/xyz' }, false],
    [{ paths: ['~/\\d+'] }, { path: '/a/42' }, false],
    [{ paths: ['~^/\\d+'] }, { path: '/42' }, true],
    [{ paths: ['~/a b'] }, { path: '/a%20b' }, true],
    [{ paths: ['~/ü.$'] }, { path: '/%C3%BC%C3%BC' }, true],
    [{ paths: ['~/a%2Fb'] }, { path: '/a%2Fb' }, true],
    [{ paths: ['~(?i)/FOO'] }, { path: '/foo' }, true],
    [{ paths: ['~/[[:alpha:]]+/\\p{L}$'] }, { path: '/abc/%C3%BC' }, true],
    [{ paths: ['~(?m)/a\\n^/b'] }, { path: '/a%0A/b' }, true],
    [{ paths: ['~(?m)/b'] }, { path: '/a%0A/b' }, false],
    [{ headers: { 'X-A': ['one', 'Two'] } }, { headers: { 'x-a': 'TWO' } }, true],
    [{ headers: { 'X-A': ['one'] } }, { headers: { 'x-a': ['zero', 'one'] } }, true],
    [{ headers: { 'X-A': ['one'] } }, { headers: { 'x-a': 'zero, one' } }, false],
    [{ headers: { 'X-A_b': ['one'] } }, { headers: { 'x_a-B': 'one' } }, true],
    [{ headers: { 'X-A': ['one'], 'X-B': ['two'] } }, { headers: { 'X-A': 'one' } }, false],
    [{ headers: { 'X-A': ['~*^v\\d'] } }, { headers: { 'x-a': 'V1' } }, true],
    [{ headers: { 'X-A': ['~*1$'] } }, { headers: { 'x-a': 'v1' } }, true],
    [{ headers: { 'X-A': ['~*^\\D$'] } }, { headers: { 'x-a': '7' } }, true],
    [{ headers: { 'X-A': ['~*^\\D$'] } }, { headers: { 'x-a': 'x' } }, false],
    [{ snis: ['a.test'] }, { sni: 'a.test' }, true],
    [{ snis: ['a.test.'] }, { sni: 'a.test' }, true],
    [{ snis: ['a.test'] }, { sni: 'a.test.' }, true],
    [{ snis: ['a.test'] }, { sni: '' }, false],
    [{ snis: ['a.test'] }, { sni: undefined }, true],
    [{ snis: ['*.test'] }, { sni: 'x.y.test' }, true],
    [{ snis: ['a.*'] }, { sni: 'a.test' }, true],
    [{ snis: ['a.*'] }, { sni: 'b.test' }, false],
    [{ protocols: ['https'], paths: ['/'] }, {}, true],
    [{ protocols: ['tls_passthrough'], snis: ['a.test'] }, { sni: 'a.test' }, false]
  ]
  for (const [fields, request, expected] of cases) {
    const name = `${JSON.stringify(fields)} ${JSON.stringify(request)}`
    t.equal(matches(fields, request), expected, name)
  }
  t.notOk(
    matches({ hosts: ['example.com'], paths: ['/a'], methods: ['PUT'] }, { path: '/a' }),
    'every attribute must hold'
  )
})

await t.test('what beats what', async t => {
  const at = { path: '/foo/bar', headers: { a: '1', b: '2' } }
  for (const [lower, higher] of [
    [{ hosts: ['example.com'] }, { paths: ['/'], methods: ['GET'] }],
    [{ paths: ['/foo/bar'] }, { hosts: ['example.*'], methods: ['GET'] }],
    [{ paths: ['/foo/bar'] }, { hosts: ['example.com'] }],
    [{ hosts: ['example.*'] }, { hosts: ['example.com'] }],
    [{ hosts: ['example.com', '*.x'] }, { hosts: ['example.com'] }],
    [
      { hosts: ['example.*'], headers: { a: ['1'], b: ['2'] } },
      { hosts: ['example.com'], headers: { a: ['1'] } }
    ],
    [
      { methods: ['GET'], headers: { a: ['1'] } },
      { paths: ['/'], headers: { a: ['1'], b: ['2'] } }
    ],
    [{ paths: ['/foo/bar'] }, { paths: ['~/f'] }],
    [{ paths: ['~/foo/bar'] }, { paths: ['~/f'], regex_priority: 1 }],
    [
      { paths: ['~/f'], regex_priority: 2147483648 },
      { paths: ['~/f'], regex_priority: 4294967295 }
    ],
    [{ paths: ['/foo'], regex_priority: 9 }, { paths: ['/foo/'] }],
    [{ paths: ['/foo', '/'] }, { paths: ['/foo/', '/x'] }],
    [{ paths: ['/'] }, { paths: ['/f', '/foo/bar/none'] }]
  ] as const) {
    const name = `${JSON.stringify(lower)} < ${JSON.stringify(higher)}`
    t.equal(winner([lower, higher] as never, at), '1', name)
    t.equal(winner([higher, lower] as never, at), '0', name)
  }
})

await t.test('what a match tells', async t => {
  const router = (fields: Partial<Route>) => compileRouter([route(fields)], new Map())
  t.match(router({ hosts: ['example.com'] }).match(input()), {
    prefix: undefined,
    captures: undefined
  })
  t.equal(router({ paths: ['/a', '/a/b'] }).match(input({ path: '/a/b/c' }))!.prefix, '/a/b')
  const regex = router({ paths: ['~/v(\\d)/(?<name>[^/]+)(/x)?'] })
  const match = regex.match(input({ path: '/v1/%C3%BC%20/y' }))!
  t.equal(match.prefix, '/v1/%C3%BC%20', 'as the request has it')
  t.same({ ...match.captures }, { 1: '1', 2: 'ü ', name: 'ü ' })
  t.equal(match.upstreamPath('/v1/%C3%BC%20/y', match.prefix), '/y')
  t.equal(router({ paths: ['~/v\\d'] }).match(input({ path: '/v1' }))!.captures, undefined)
})

await t.test('services: disabled ones have no routes, paths are joined with theirs', async t => {
  const service = { id: 's', enabled: true, path: '/base' } as Service
  const routes = [route({ name: 'r', paths: ['/a'], service: { id: 's' } })]
  const found = compileRouter(routes, new Map([['s', service]])).match(input({ path: '/a/b' }))!
  t.equal(found.service, service)
  t.equal(found.upstreamPath('/a/b', found.prefix), '/base/b')
  const disabled = new Map([['s', { ...service, enabled: false }]])
  t.equal(compileRouter(routes, disabled).match(input({ path: '/a/b' })), undefined)
})

await t.test('the literal characters a pattern begins with', async t => {
  for (const [pattern, literal] of [
    ['/api/v1/\\d+', '/api/v1/'],
    ['/api/v1\\.0/x', '/api/v1.0/x'],
    ['^/a', '/a'],
    ['/ab?c', '/a'],
    ['/ab*', '/a'],
    ['/ab{2}', '/a'],
    ['/ab+', '/ab'],
    ['/a|/b', ''],
    ['/x(a|b)', '/x'],
    ['/x[|]y', '/x'],
    ['/a\\|b', '/a'],
    ['(/a)', '']
  ] as const) {
    t.equal(literalPrefix(pattern), literal, pattern)
  }
})

// The rules once more, as plainly as they can be written: every route, one after another.

interface Plain {
  readonly route: Route
  readonly key: readonly number[]
  readonly prefixes: readonly string[]
  readonly patterns: readonly string[]
}

function plainEntries(each: Route): Plain[] {
  const groups = [each.methods, each.hosts, each.snis, each.paths].filter(list => list?.length)
  const headers = Object.keys(each.headers ?? {}).length
  const plainHost = each.hosts?.length && !each.hosts.some(host => host.includes('*')) ? 1 : 0
  const key = [groups.length + (headers > 0 ? 1 : 0), plainHost, headers]
  const patterns = (each.paths ?? []).filter(path => path.startsWith('~'))
  const prefixes = (each.paths ?? []).filter(path => !path.startsWith('~'))
  if (!each.paths?.length) return [{ route: each, key: [...key, 0, 0, 0], prefixes, patterns }]
  const entries: Plain[] = prefixes.map(prefix => ({
    route: each,
    key: [...key, 0, 0, prefix.length],
    prefixes: [prefix],
    patterns: []
  }))
  if (patterns.length > 0) {
    entries.push({
      route: each,
      key: [...key, 1, each.regex_priority, 0],
      prefixes: [],
      patterns: patterns.map(pattern => pattern.slice(1))
    })
  }
  return entries
}

function plainHolds({ route: each, prefixes, patterns }: Plain, request: MatchInput): boolean {
  if (each.methods?.length && !each.methods.includes(request.method)) return false
  if (each.hosts?.length) {
    const ok = each.hosts.some(text => {
      const [host, port] = text.split(':') as [string, string | undefined]
      if (port !== undefined && Number(port) !== request.port) return false
      if (host.startsWith('*')) return request.host.endsWith(host.slice(1))
      if (host.endsWith('*')) return request.host.startsWith(host.slice(0, -1))
      return host === request.host
    })
    if (!ok) return false
  }
  for (const [name, values] of Object.entries(each.headers ?? {})) {
    const given = request.rawHeaders.filter(
      (_, i) => i % 2 === 1 && request.rawHeaders[i - 1] === name
    )
    if (!given.some(value => values.includes(value))) return false
  }
  if (each.snis?.length && request.sni !== undefined && !each.snis.includes(request.sni))
    return false
  if (prefixes.length + patterns.length === 0) return true
  return (
    prefixes.some(prefix => request.path.startsWith(prefix)) ||
    patterns.some(pattern => new RegExp(`^(?:${pattern})`).test(request.path))
  )
}

function plainMatch(routes: readonly Route[], request: MatchInput): Route | undefined {
  const order = (a: Plain, b: Plain): number => {
    const at = a.key.findIndex((value, index) => value !== b.key[index])
    return at === -1 ? (a.route.id < b.route.id ? -1 : 1) : b.key[at]! - a.key[at]!
  }
  return routes
    .flatMap(plainEntries)
    .sort(order)
    .find(entry => plainHolds(entry, request))?.route
}

const some = <T>(values: readonly T[]) =>
  fc.option(fc.subarray([...values], { minLength: 1, maxLength: 2 }), { nil: undefined, freq: 1 })
const hosts = ['a.com', 'b.com', '*.com', 'a.*', 'x.a.com:81', 'a.com:80', '*.a.com']
const paths = ['/', '/a', '/ab', '/a/b', '~/a', '~/a/?b', '~/[ab]', '~/a|/b', '~/.*c$']
const anyRoute = fc
  .record({
    methods: some(['GET', 'PUT']),
    hosts: some(hosts),
    paths: some(paths),
    snis: some(['a.com', 'b.com']),
    headers: fc.option(
      fc.dictionary(fc.constantFrom('x', 'y'), fc.subarray(['1', '2', '3'], { minLength: 1 }), {
        minKeys: 1
      }),
      { nil: undefined }
    ),
    regex_priority: fc.constantFrom(0, 0, 1)
  })
  .map(fields => route(fields as Partial<Route>))
const anyRequest = fc.record({
  method: fc.constantFrom('GET', 'PUT', 'POST'),
  host: fc.constantFrom('a.com', 'b.com', 'x.a.com', 'a.org', 'c'),
  port: fc.constantFrom(80, 81),
  path: fc.constantFrom('/', '/a', '/ab', '/abc', '/a/b', '/b', '/c'),
  rawHeaders: fc
    .array(fc.tuple(fc.constantFrom('x', 'y'), fc.constantFrom('1', '2', '4')), { maxLength: 3 })
    .map(pairs => pairs.flat()),
  sni: fc.constantFrom(undefined, '', 'a.com', 'b.com')
})

await t.test('the indexes find what looking at every route finds', async t => {
  fc.assert(
    fc.property(
      fc.array(anyRoute, { maxLength: 12 }),
      fc.array(anyRequest, { minLength: 1, maxLength: 8 }),
      (routes, requests) => {
        const router = compileRouter(routes, new Map())
        for (const request of requests) {
          const found = router.match(request)?.route
          if (found !== plainMatch(routes, request)) throw new Error(JSON.stringify(request))
        }
      }
    ),
    { numRuns: 500 }
  )
  t.pass()
})

await t.test('a look-up among 10,000 routes looks at few of them', async t => {
  const routes: Route[] = []
  for (let i = 0; i < 10_000; i++) {
    const methods = ['GET']
    if (i % 100 === 0) routes.push(route({ methods, paths: [`~/re${i}/(\\d+)/x`] }))
    else if (i % 5 === 1) routes.push(route({ methods, hosts: [`h${i}.example.com`] }))
    else if (i % 5 === 2)
      routes.push(route({ methods, hosts: [`*.w${i}.example.com`], paths: ['/'] }))
    else if (i % 5 === 3) routes.push(route({ methods, headers: { 'X-Tenant': [`t${i}`] } }))
    else routes.push(route({ methods, paths: [`/api/${i}/items`] }))
  }
  const router = compileRouter(routes, new Map())
  let looks = 0
  const counting = (fields: Parameters<typeof input>[0]): MatchInput => ({
    ...input(fields),
    get method() {
      looks++
      return 'GET'
    }
  })
  for (const [request, name] of [
    [{ path: '/api/4/items/1' }, 'prefix'],
    [{ path: '/re100/42/x' }, 'regex'],
    [{ host: 'h1.example.com' }, 'host'],
    [{ host: 'a.w2.example.com' }, 'wildcard'],
    [{ headers: { 'x-tenant': 't3' } }, 'header'],
    [{ path: '/none' }, undefined]
  ] as const) {
    looks = 0
    const found = router.match(counting(request as never))
    t.equal(found !== undefined, name !== undefined, name ?? 'none')
    t.ok(looks <= 5, `${looks} routes were looked at for ${name ?? 'none'}`)
  }
})
