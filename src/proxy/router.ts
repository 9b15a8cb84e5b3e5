import type { IncomingHttpHeaders } from 'node:http'
import type { Route, Service } from '../schema/entities.ts'
import { normalizePath } from './path.ts'

/** The facts of a request that routing looks at. */
export interface MatchInput {
  readonly method: string
  readonly host: string
  readonly port: number
  /** Normalised path. */
  readonly path: string
  readonly headers: IncomingHttpHeaders
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
}

export interface Router {
  /** The highest-priority route whose every attribute holds; undefined when there is none. */
  match(input: MatchInput): Match | undefined
}

interface HeaderTest {
  readonly name: string
  /** The same name with `_` for `-`, which counts as equal. */
  readonly alternative: string
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
  candidates: Candidate[]
}

interface Edge {
  label: string
  node: Node
}

const LOOKAROUND = /\(\?(?:[=!]|<[=!])/
const BACKREFERENCE = /\\(?:[1-9]|k<)/

/**
 * Why a pattern cannot serve as a route path, or undefined: the format's engine matches in linear
 * time, so it has neither look-around nor back-references.
 */
export function regexProblem(pattern: string): string | undefined {
  if (LOOKAROUND.test(pattern)) return 'look-around is not supported in patterns'
  if (BACKREFERENCE.test(pattern.replaceAll('\\\\', '')))
    return 'back-references are not supported in patterns'
  try {
    compilePattern(pattern)
    return undefined
  } catch (error) {
    return `the pattern does not compile: ${(error as Error).message}`
  }
}

/** Compiles a pattern of the format, anchored at the start of the path but not at its end. */
function compilePattern(pattern: string): RegExp {
  let source = pattern.replaceAll('(?P<', '(?<')
  let flags = ''
  const inline = /^\(\?([ims]+)\)/.exec(source)
  if (inline !== null) {
    flags = inline[1]!
    source = source.slice(inline[0].length)
  }
  return new RegExp(`^(?:${source.replaceAll('\\A', '^').replaceAll('\\z', '$')})`, flags)
}

/** The characters every match of a pattern begins with; `''` when that cannot be told simply. */
function literalPrefix(pattern: string): string {
  if (pattern.includes('|')) return ''
  let literal = ''
  for (let i = 0; i < pattern.length; i++) {
    const char = pattern[i]!
    if (!/[\w/~%!@&=:;,-]/.test(char)) {
      // A quantifier may make the character before it optional.
      if (char === '?' || char === '*' || char === '{') return literal.slice(0, -1)
      return literal
    }
    literal += char
  }
  return literal
}

function headerTest(name: string, values: readonly string[]): HeaderTest {
  const lower = name.toLowerCase()
  const plain = values.filter(value => !value.startsWith('~*'))
  return {
    name: lower.replaceAll('_', '-'),
    alternative: lower.replaceAll('-', '_'),
    values: new Set(plain.map(value => value.toLowerCase())),
    // Values are compared in lower case, and so is the pattern: `\D` reads as `\d`, as in the format.
    patterns: values
      .filter(value => value.startsWith('~*'))
      .map(value => new RegExp(value.slice(2).toLowerCase()))
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

const newNode = (): Node => ({ children: new Map(), candidates: [] })

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
  node.candidates.push(candidate)
}

function headersHold(tests: readonly HeaderTest[], headers: IncomingHttpHeaders): boolean {
  for (const { name, alternative, values, patterns } of tests) {
    const value = headers[name] ?? headers[alternative]
    if (value === undefined) return false
    const text = (Array.isArray(value) ? value.join(', ') : value).toLowerCase()
    if (values.has(text) || patterns.some(pattern => pattern.test(text))) continue
    // Repeated fields arrive joined (RFC 9110 §5.2); any of their values may match.
    if (!text.includes(', ')) return false
    if (
      !text
        .split(', ')
        .some(part => values.has(part) || patterns.some(pattern => pattern.test(part)))
    ) {
      return false
    }
  }
  return true
}

function holds({ entry, port }: Candidate, input: MatchInput): boolean {
  if (port !== undefined && port !== input.port) return false
  if (entry.methods !== undefined && !entry.methods.has(input.method)) return false
  if (entry.headers.length > 0 && !headersHold(entry.headers, input.headers)) return false
  if (entry.snis === undefined || input.sni === undefined) return true
  const sni = input.sni.endsWith('.') ? input.sni.slice(0, -1) : input.sni
  return entry.snis.some(test => test(sni))
}

/** The best match so far while the indexes are walked. */
interface Best {
  candidate: Candidate | undefined
  found: RegExpExecArray | null
}

function search(root: Node, input: MatchInput, best: Best): void {
  const { path } = input
  let node: Node | undefined = root
  let depth = 0
  while (node !== undefined) {
    for (const candidate of node.candidates) {
      if (best.candidate !== undefined && candidate.entry.rank >= best.candidate.entry.rank) break
      if (!holds(candidate, input)) continue
      if (candidate.pattern === undefined) {
        best.candidate = candidate
        best.found = null
        break
      }
      const found = candidate.pattern.regex.exec(path)
      if (found !== null) {
        best.candidate = candidate
        best.found = found
        break
      }
    }
    const edge: Edge | undefined = node.children.get(path.charCodeAt(depth))
    if (edge === undefined || !path.startsWith(edge.label, depth)) return
    depth += edge.label.length
    node = edge.node
  }
}

/**
 * Compiles routes into indexes by host and path, so that a look-up costs by the length of the host
 * and path, not by the number of routes. Routes of disabled services are left out. Ties are broken
 * by route id.
 */
export function compileRouter(
  routes: readonly Route[],
  services: ReadonlyMap<string, Service>
): Router {
  const served = routes.filter(
    route => route.service === undefined || services.get(route.service.id)?.enabled !== false
  )
  const drafts = served.flatMap(draftsOf).sort((a, b) => {
    if (a.priority !== b.priority) return a.priority > b.priority ? -1 : 1
    return a.route.id < b.route.id ? -1 : 1
  })
  const anyHost = newNode()
  const byHost = new Map<string, Node>()
  /** `*.example.com` by `.example.com`. */
  const bySuffix = new Map<string, Node>()
  /** `example.*` by `example.`. */
  const byPrefix = new Map<string, Node>()
  const indexed = (map: Map<string, Node>, key: string): Node => {
    let node = map.get(key)
    if (node === undefined) {
      node = newNode()
      map.set(key, node)
    }
    return node
  }

  for (const [rank, { route, prefixes, patterns }] of drafts.entries()) {
    const entry: Entry = {
      rank,
      route,
      service: route.service === undefined ? undefined : services.get(route.service.id),
      methods: present(route.methods) ? new Set(route.methods) : undefined,
      headers: Object.entries(route.headers ?? {}).map(([name, values]) =>
        headerTest(name, values)
      ),
      snis: present(route.snis) ? route.snis!.map(sniTest) : undefined
    }
    const places: { readonly node: Node; readonly port: number | undefined }[] = []
    for (const text of route.hosts ?? []) {
      const split = /^(.*?)(?::(\d+))?$/.exec(text)!
      const host = split[1]!
      const port = split[2] === undefined ? undefined : Number(split[2])
      const node = host.startsWith('*')
        ? indexed(bySuffix, host.slice(1))
        : host.endsWith('*')
          ? indexed(byPrefix, host.slice(0, -1))
          : indexed(byHost, host)
      places.push({ node, port })
    }
    if (places.length === 0) places.push({ node: anyHost, port: undefined })
    for (const { node, port } of places) {
      for (const prefix of prefixes)
        insert(node, prefix, { entry, port, prefix, pattern: undefined })
      for (const source of patterns) {
        const regex = compilePattern(source)
        const hasGroups = new RegExp(`${regex.source}|`).exec('')!.length > 1
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

  return {
    match(input) {
      const best: Best = { candidate: undefined, found: null }
      search(anyHost, input, best)
      const { host } = input
      const exact = byHost.get(host)
      if (exact !== undefined) search(exact, input, best)
      if (bySuffix.size > 0) {
        for (let dot = host.indexOf('.'); dot !== -1; dot = host.indexOf('.', dot + 1)) {
          const node = bySuffix.get(host.slice(dot))
          if (node !== undefined) search(node, input, best)
        }
      }
      if (byPrefix.size > 0) {
        for (let dot = host.indexOf('.'); dot !== -1; dot = host.indexOf('.', dot + 1)) {
          const node = byPrefix.get(host.slice(0, dot + 1))
          if (node !== undefined) search(node, input, best)
        }
      }
      const { candidate, found } = best
      if (candidate === undefined) return undefined
      return {
        route: candidate.entry.route,
        service: candidate.entry.service,
        prefix: found === null ? candidate.prefix : found[0],
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
