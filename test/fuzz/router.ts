import fc from 'fast-check'
import { compileRoutes } from '../../src/proxy/route-table.ts'
import { type MatchInput, Router } from '../../src/proxy/router.ts'
import type { Route } from '../../src/schema/entities.ts'
import { type Budget, explore } from './budget.ts'

let ids = 0

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
  .map(
    fields =>
      ({
        ...fields,
        id: `00000000-0000-0000-0000-${String(++ids).padStart(12, '0')}`,
        protocols: ['http', 'https'],
        strip_path: true,
        path_handling: 'v0'
      }) as Route
  )
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

/** The indexes find what looking at every route in order of rank finds. */
export function fuzzRouter(budget: Budget): Promise<number> {
  const property = fc.asyncProperty(
    fc.array(anyRoute, { maxLength: 12 }),
    fc.array(anyRequest, { minLength: 1, maxLength: 8 }),
    async (routes, requests) => {
      const table = await compileRoutes(routes, new Map())
      const router = new Router(table, place => routes[place]!, new Map())
      for (const request of requests) {
        const found = router.match(request)?.route
        if (found !== plainMatch(routes, request)) throw new Error(JSON.stringify(request))
      }
    }
  )
  return explore(property, budget)
}
