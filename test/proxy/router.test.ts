import t from 'tap'
import { compileRoutes, literalPrefix } from '../../src/proxy/route-table.ts'
import { type MatchInput, Router } from '../../src/proxy/router.ts'
import type { Route, Service } from '../../src/schema/entities.ts'

/** Routes compiled and looked up in one thread. */
const compileRouter = async (
  routes: readonly Route[],
  services: ReadonlyMap<string, Service>
): Promise<Router> =>
  new Router(await compileRoutes(routes, services), place => routes[place]!, services)

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

const matches = async (
  fields: Partial<Route>,
  request: Parameters<typeof input>[0]
): Promise<boolean> =>
  (await compileRouter([route(fields)], new Map())).match(input(request)) !== undefined

/** The name of the route that is matched among these, which stand in the opposite order of their rank. */
const winner = async (routes: Partial<Route>[], request: Parameters<typeof input>[0]) => {
  const all = routes.map((fields, index) => route({ name: String(index), ...fields }))
  return (await compileRouter(all, new Map())).match(input(request))?.route.name
}

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
    t.equal(await matches(fields, request), expected, name)
  }
  t.notOk(
    await matches({ hosts: ['example.com'], paths: ['/a'], methods: ['PUT'] }, { path: '/a' }),
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
    t.equal(await winner([lower, higher] as never, at), '1', name)
    t.equal(await winner([higher, lower] as never, at), '0', name)
  }
})

await t.test('what a match tells', async t => {
  const router = (fields: Partial<Route>) => compileRouter([route(fields)], new Map())
  t.match((await router({ hosts: ['example.com'] })).match(input()), {
    prefix: undefined,
    captures: undefined
  })
  t.equal(
    (await router({ paths: ['/a', '/a/b'] })).match(input({ path: '/a/b/c' }))!.prefix,
    '/a/b'
  )
  const regex = await router({ paths: ['~/v(\\d)/(?<name>[^/]+)(/x)?'] })
  const match = regex.match(input({ path: '/v1/%C3%BC%20/y' }))!
  t.equal(match.prefix, '/v1/%C3%BC%20', 'as the request has it')
  t.same({ ...match.captures }, { 1: '1', 2: 'ü ', name: 'ü ' })
  t.equal(match.traits.upstreamPath('/v1/%C3%BC%20/y', match.prefix), '/y')
  t.equal((await router({ paths: ['~/v\\d'] })).match(input({ path: '/v1' }))!.captures, undefined)
})

await t.test('services: disabled ones have no routes, paths are joined with theirs', async t => {
  const service = { id: 's', enabled: true, path: '/base' } as Service
  const routes = [route({ name: 'r', paths: ['/a'], service: { id: 's' } })]
  const found = (await compileRouter(routes, new Map([['s', service]]))).match(
    input({ path: '/a/b' })
  )!
  t.equal(found.traits.service, service)
  t.equal(found.traits.upstreamPath('/a/b', found.prefix), '/base/b')
  const disabled = new Map([['s', { ...service, enabled: false }]])
  t.equal((await compileRouter(routes, disabled)).match(input({ path: '/a/b' })), undefined)
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
  const router = await compileRouter(routes, new Map())
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

await t.test('prefixes that begin alike, in any order', async t => {
  const words = ['', 'a', 'b', 'ab', 'abc', 'abd', 'b/', 'ü', 'üa', 'a/b/c/d/e', 'a/b']
  const prefixes = words.flatMap(word => words.map(end => `/${word}${end}`))
  const distinct = [...new Set(prefixes)]
  for (const order of [distinct, distinct.toReversed()]) {
    const router = await compileRouter(
      order.map(path => route({ name: path, paths: [path], strip_path: false })),
      new Map()
    )
    for (const path of distinct) {
      for (const end of ['', 'z', '/', 'ab']) {
        const normal = (text: string) => encodeURI(text)
        const expected = distinct
          .filter(prefix => normal(path + end).startsWith(normal(prefix)))
          .sort((a, b) => normal(b).length - normal(a).length)[0]
        const found = router.match(input({ path: normal(path + end) }))
        t.equal(found?.route.name, expected, path + end)
        t.equal(found?.prefix, normal(expected!))
      }
    }
  }
})

await t.test('thousands of hosts, exact and with either wildcard', async t => {
  const routes = Array.from({ length: 3000 }, (_, i) =>
    route({
      name: String(i),
      hosts: [i % 3 === 0 ? `h${i}.example` : i % 3 === 1 ? `*.s${i}.example` : `p${i}.*`]
    })
  )
  const router = await compileRouter(routes, new Map())
  for (let i = 0; i < 3000; i++) {
    const host = i % 3 === 0 ? `h${i}.example` : i % 3 === 1 ? `a.s${i}.example` : `p${i}.test`
    t.equal(router.match(input({ host }))?.route.name, String(i), host)
    t.equal(router.match(input({ host: `x${host}x` })), undefined)
  }
})
