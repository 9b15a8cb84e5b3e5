import { inSlices } from '../pace.ts'
import type { Route, Service } from '../schema/entities.ts'
import { compilePattern } from '../schema/patterns.ts'
import type { UpstreamPath } from './path.ts'
import { compileUpstreamPath, decodePath, encodePath, normalizePath } from './path.ts'

/** The facts of a request that routing looks at. */
export interface MatchInput {
  readonly method: string
  readonly host: string
  readonly port: number
  /** Normalised path. */
  readonly path: string
  /** Fields as received, flat: name, value, name, value, … */
  readonly rawHeaders: readonly string[]
  /** Server name of the TLS handshake; undefined when the connection is plain. */
  readonly sni: string | undefined
}

export interface Match {
  readonly route: Route
  readonly service: Service | undefined
  /** The part of the path that matched; undefined when the route matched without a path. */
  readonly prefix: string | undefined
  /** Numbered and named groups; undefined when the pattern has none. */
  readonly captures: Readonly<Record<string, string>> | undefined
  /** How the route joins its service's path with the request's. */
  readonly upstreamPath: UpstreamPath
}

export interface Router {
  /** The highest-priority route whose every attribute holds; undefined when there is none. */
  match(input: MatchInput): Match | undefined
}

interface HeaderTest {
  /** Lower case, `-` for `_`: the two count as equal. */
  readonly name: string
  readonly values: ReadonlySet<string>
  readonly patterns: readonly RegExp[]
}

interface PatternTest {
  readonly regex: RegExp
  readonly hasGroups: boolean
}

/** One priority class of a route: its regex paths one each, its prefix paths by equal length. */
interface Entry {
  readonly rank: number
  readonly route: Route
  readonly service: Service | undefined
  readonly methods: ReadonlySet<string> | undefined
  readonly headers: readonly HeaderTest[]
  readonly snis: readonly ((sni: string) => boolean)[] | undefined
  readonly upstreamPath: UpstreamPath
}

/** An entry at its place in an index, where host and literal path hold already. */
interface Candidate {
  readonly entry: Entry
  /** Port the route's host demands. */
  readonly port: number | undefined
  readonly prefix: string | undefined
  readonly pattern: PatternTest | undefined
}

/** A radix tree over path characters; candidates stand, best first, where their literal part ends. */
interface Node {
  readonly children: Map<number, Edge>
  readonly candidates: Candidate[]
  /** Those that demand one of some values of a header, by its name and value. */
  keyed: Map<string, Map<string, Candidate[]>> | undefined
}

interface Edge {
  label: string
  node: Node
}

/** Whether a pattern has alternatives outside of groups and classes. */
function hasAlternatives(pattern: string): boolean {
  let depth = 0
  for (let i = 0; i < pattern.length; i++) {
    const char = pattern[i]!
    if (char === '\\') i++
    else if (char === '(' || char === '[') depth++
    else if (char === ')' || char === ']') depth--
    else if (char === '|' && depth === 0) return true
  }
  return false
}

/** The characters every match of a pattern begins with; `''` when that cannot be told simply. */
export function literalPrefix(pattern: string): string {
  if (hasAlternatives(pattern)) return ''
  let literal = ''
  for (let i = pattern.startsWith('^') ? 1 : 0; i < pattern.length; i++) {
    let char = pattern[i]!
    if (char === '\\' && /[-_./~]/.test(pattern[i + 1] ?? '')) char = pattern[++i]!
    else if (!/[\w/~%!@&=:;,-]/.test(char)) {
      // A quantifier may make the character before it optional.
      if (char === '?' || char === '*' || char === '{') return literal.slice(0, -1)
      return literal
    }
    literal += char
  }
  return literal
}

function headerTest(name: string, values: readonly string[]): HeaderTest {
  const plain = values.filter(value => !value.startsWith('~*'))
  return {
    name: name.toLowerCase().replaceAll('_', '-'),
    values: new Set(plain.map(value => value.toLowerCase())),
    // Values are compared in lower case, and so is the pattern: `\D` reads as `\d`, as in the format.
    patterns: values
      .filter(value => value.startsWith('~*'))
      .map(value => compilePattern(value.slice(2).toLowerCase(), false))
  }
}

function sniTest(sni: string): (name: string) => boolean {
  const name = sni.endsWith('.') ? sni.slice(0, -1) : sni
  if (name.startsWith('*')) return candidate => candidate.endsWith(name.slice(1))
  if (name.endsWith('*')) return candidate => candidate.startsWith(name.slice(0, -1))
  return candidate => candidate === name
}

const present = (list: readonly unknown[] | undefined): list is readonly unknown[] =>
  list !== undefined && list.length > 0

/** The 64-bit priority of a route with a path of this kind; higher is matched first. */
function priority(route: Route, regex: boolean, prefixLength: number): bigint {
  const headerCount = Object.keys(route.headers ?? {}).length
  const groups =
    Number(present(route.methods)) +
    Number(present(route.hosts)) +
    Number(headerCount > 0) +
    Number(present(route.snis)) +
    Number(present(route.paths)) +
    Number(present(route.sources)) +
    Number(present(route.destinations))
  const plainHost = present(route.hosts) && route.hosts!.every(host => !host.includes('*'))
  return (
    (BigInt(groups) << 61n) |
    (BigInt(plainHost) << 60n) |
    (BigInt(Math.min(headerCount, 255)) << 52n) |
    (BigInt(regex) << 51n) |
    (BigInt(regex ? route.regex_priority >>> 0 : 0) << 19n) |
    BigInt(regex ? 0 : Math.min(prefixLength, 0x7ffff))
  )
}

interface Draft {
  readonly route: Route
  readonly priority: bigint
  readonly prefixes: readonly string[]
  readonly patterns: readonly string[]
}

function draftsOf(route: Route): Draft[] {
  const paths = route.paths ?? []
  const patterns = paths.filter(path => path.startsWith('~')).map(path => path.slice(1))
  const prefixes = paths
    .filter(path => !path.startsWith('~'))
    .map(path => normalizePath(Buffer.from(path, 'utf8').toString('latin1')))
  if (paths.length === 0)
    return [{ route, priority: priority(route, false, 0), prefixes: [], patterns: [] }]
  const drafts: Draft[] = []
  if (patterns.length > 0)
    drafts.push({ route, priority: priority(route, true, 0), prefixes: [], patterns })
  for (const [length, group] of Map.groupBy(prefixes, prefix => prefix.length)) {
    drafts.push({ route, priority: priority(route, false, length), prefixes: group, patterns: [] })
  }
  return drafts
}

const newNode = (): Node => ({ children: new Map(), candidates: [], keyed: undefined })

function insert(root: Node, literal: string, candidate: Candidate): void {
  let node = root
  let rest = literal
  while (rest !== '') {
    const edge = node.children.get(rest.charCodeAt(0))
    if (edge === undefined) {
      const leaf = newNode()
      node.children.set(rest.charCodeAt(0), { label: rest, node: leaf })
      node = leaf
      break
    }
    let common = 0
    while (
      common < rest.length &&
      common < edge.label.length &&
      rest[common] === edge.label[common]
    )
      common++
    if (common < edge.label.length) {
      const middle = newNode()
      middle.children.set(edge.label.charCodeAt(common), {
        label: edge.label.slice(common),
        node: edge.node
      })
      edge.label = edge.label.slice(0, common)
      edge.node = middle
    }
    node = edge.node
    rest = rest.slice(common)
  }
  // Routes are inserted best first, so candidates are in order already.
  const key = candidate.entry.headers.find(({ patterns }) => patterns.length === 0)
  if (key === undefined) {
    node.candidates.push(candidate)
    return
  }
  node.keyed ??= new Map()
  const byValue = indexed(node.keyed, key.name, () => new Map<string, Candidate[]>())
  for (const value of key.values) indexed(byValue, value, (): Candidate[] => []).push(candidate)
}

function indexed<K, V>(map: Map<K, V>, key: K, create: () => V): V {
  let value = map.get(key)
  if (value === undefined) {
    value = create()
    map.set(key, value)
  }
  return value
}

/** Whether a field has this name, given in lower case with `-` for `_`. */
function isNamed(field: string, name: string): boolean {
  return field.length === name.length && field.toLowerCase().replaceAll('_', '-') === name
}

/** Whether any value of each header is one of those wanted; values of repeated fields count singly. */
function headersHold(tests: readonly HeaderTest[], rawHeaders: readonly string[]): boolean {
  for (const { name, values, patterns } of tests) {
    let found = false
    for (let i = 0; i < rawHeaders.length && !found; i += 2) {
      if (!isNamed(rawHeaders[i]!, name)) continue
      const value = rawHeaders[i + 1]!.toLowerCase()
      found = values.has(value) || patterns.some(pattern => pattern.test(value))
    }
    if (!found) return false
  }
  return true
}

function holds({ entry, port }: Candidate, input: MatchInput): boolean {
  if (port !== undefined && port !== input.port) return false
  if (entry.methods !== undefined && !entry.methods.has(input.method)) return false
  if (entry.headers.length > 0 && !headersHold(entry.headers, input.rawHeaders)) return false
  if (entry.snis === undefined || input.sni === undefined) return true
  const sni = input.sni.endsWith('.') ? input.sni.slice(0, -1) : input.sni
  return entry.snis.some(test => test(sni))
}

/** One look-up: the best match so far while the indexes are walked. */
class Search {
  readonly #input: MatchInput
  candidate: Candidate | undefined = undefined
  found: RegExpExecArray | null = null
  /** What patterns see; made when the first is asked. */
  #subject: string | undefined = undefined

  constructor(input: MatchInput) {
    this.#input = input
  }

  walk(root: Node): void {
    const { path } = this.#input
    let node: Node | undefined = root
    let depth = 0
    while (node !== undefined) {
      this.#scan(node.candidates)
      if (node.keyed !== undefined) this.#scanKeyed(node.keyed)
      const edge: Edge | undefined = node.children.get(path.charCodeAt(depth))
      if (edge === undefined || !path.startsWith(edge.label, depth)) return
      depth += edge.label.length
      node = edge.node
    }
  }

  #scanKeyed(keyed: ReadonlyMap<string, ReadonlyMap<string, readonly Candidate[]>>): void {
    const { rawHeaders } = this.#input
    for (const [name, byValue] of keyed) {
      for (let i = 0; i < rawHeaders.length; i += 2) {
        if (!isNamed(rawHeaders[i]!, name)) continue
        const candidates = byValue.get(rawHeaders[i + 1]!.toLowerCase())
        if (candidates !== undefined) this.#scan(candidates)
      }
    }
  }

  /** Takes the first that holds, unless a better one is known; they are in order of rank. */
  #scan(candidates: readonly Candidate[]): void {
    for (const candidate of candidates) {
      if (this.candidate !== undefined && candidate.entry.rank >= this.candidate.entry.rank) return
      if (!holds(candidate, this.#input)) continue
      let found: RegExpExecArray | null = null
      if (candidate.pattern !== undefined) {
        this.#subject ??= decodePath(this.#input.path)
        found = candidate.pattern.regex.exec(this.#subject)
        // With the flag `m` a pattern also finds the start of a line.
        if (found === null || found.index !== 0) continue
      }
      this.candidate = candidate
      this.found = found
      return
    }
  }
}

/** Protocols whose routes are served over HTTP. */
const HTTP_PROTOCOLS = new Set(['http', 'https', 'grpc', 'grpcs', 'ws', 'wss'])

/**
 * Compiles routes into indexes by host and path, so that a look-up costs by the length of the host
 * and path, not by the number of routes. Routes of disabled services are left out, and so are those
 * of protocols below HTTP. Ties are broken by route id. Works in slices, since thousands of routes
 * take longer than requests may wait.
 */
export async function compileRouter(
  routes: readonly Route[],
  services: ReadonlyMap<string, Service>
): Promise<Router> {
  const byPriority = new Map<bigint, Draft[]>()
  await inSlices(routes, route => {
    const { service, protocols } = route
    if (service !== undefined && services.get(service.id)?.enabled === false) return
    if (!protocols.some(protocol => HTTP_PROTOCOLS.has(protocol))) return
    for (const draft of draftsOf(route)) {
      indexed(byPriority, draft.priority, (): Draft[] => []).push(draft)
    }
  })
  const anyHost = newNode()
  const byHost = new Map<string, Node>()
  /** `*.example.com` by `.example.com`. */
  const bySuffix = new Map<string, Node>()
  /** `example.*` by `example.`. */
  const byPrefix = new Map<string, Node>()

  const upstreamPaths = new Map<Route, UpstreamPath>()
  let rank = 0
  const add = ({ route, prefixes, patterns }: Draft): void => {
    const service = route.service === undefined ? undefined : services.get(route.service.id)
    const entry: Entry = {
      rank: rank++,
      route,
      service,
      methods: present(route.methods) ? new Set(route.methods) : undefined,
      headers: Object.entries(route.headers ?? {}).map(([name, values]) =>
        headerTest(name, values)
      ),
      snis: present(route.snis) ? route.snis!.map(sniTest) : undefined,
      // Always v0: the format honours `path_handling: v1` only in a flavour this router is not.
      upstreamPath: indexed(upstreamPaths, route, () =>
        compileUpstreamPath(service?.path, route.strip_path, 'v0')
      )
    }
    const places: { readonly node: Node; readonly port: number | undefined }[] = []
    for (const text of route.hosts ?? []) {
      const split = /^(.*?)(?::(\d+))?$/.exec(text)!
      const host = split[1]!
      const port = split[2] === undefined ? undefined : Number(split[2])
      const node = host.startsWith('*')
        ? indexed(bySuffix, host.slice(1), newNode)
        : host.endsWith('*')
          ? indexed(byPrefix, host.slice(0, -1), newNode)
          : indexed(byHost, host, newNode)
      places.push({ node, port })
    }
    if (places.length === 0) places.push({ node: anyHost, port: undefined })
    for (const { node, port } of places) {
      for (const prefix of prefixes)
        insert(node, prefix, { entry, port, prefix, pattern: undefined })
      for (const source of patterns) {
        const regex = compilePattern(source, true)
        const hasGroups = new RegExp(`${regex.source}|`, regex.flags).exec('')!.length > 1
        insert(node, literalPrefix(source), {
          entry,
          port,
          prefix: undefined,
          pattern: { regex, hasGroups }
        })
      }
      if (prefixes.length === 0 && patterns.length === 0) {
        insert(node, '', { entry, port, prefix: undefined, pattern: undefined })
      }
    }
  }
  for (const [, drafts] of [...byPriority].sort(([a], [b]) => (a > b ? -1 : 1))) {
    drafts.sort((a, b) => (a.route.id < b.route.id ? -1 : 1))
    await inSlices(drafts, add)
  }

  return {
    match(input) {
      const search = new Search(input)
      search.walk(anyHost)
      const { host } = input
      const exact = byHost.get(host)
      if (exact !== undefined) search.walk(exact)
      if (bySuffix.size > 0) {
        for (let dot = host.indexOf('.'); dot !== -1; dot = host.indexOf('.', dot + 1)) {
          const node = bySuffix.get(host.slice(dot))
          if (node !== undefined) search.walk(node)
        }
      }
      if (byPrefix.size > 0) {
        for (let dot = host.indexOf('.'); dot !== -1; dot = host.indexOf('.', dot + 1)) {
          const node = byPrefix.get(host.slice(0, dot + 1))
          if (node !== undefined) search.walk(node)
        }
      }
      const { candidate, found } = search
      if (candidate === undefined) return undefined
      const { route, service, upstreamPath } = candidate.entry
      return {
        route,
        service,
        upstreamPath,
        prefix: found === null ? candidate.prefix : encodePath(found[0]),
        captures: found === null || !candidate.pattern!.hasGroups ? undefined : capturesOf(found)
      }
    }
  }
}

function capturesOf(found: RegExpExecArray): Record<string, string> {
  const captures: Record<string, string> = Object.create(null)
  for (let i = 1; i < found.length; i++) {
    if (found[i] !== undefined) captures[i] = found[i]!
  }
  for (const [name, value] of Object.entries(found.groups ?? {})) {
    if (value !== undefined) captures[name] = value
  }
  return captures
}
