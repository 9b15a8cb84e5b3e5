import { inSlices } from '../pace.ts'
import type { Route, Service } from '../schema/entities.ts'
import { type FlatTable, FlatTableWriter } from './flat-table.ts'
import { normalizePath } from './path.ts'
import { hasConditions, keyHeader, present } from './route-conditions.ts'

// Routes as an index that threads share. A radix tree over path characters, one for each host and one
// for routes of any, whose candidates stand where their literal part ends: a look-up costs by the
// length of host and path, not by the number of routes. As trees of objects, what a request met of
// 10,000 routes was spread over the heap (a ninth of a small request went into fetching it), and every
// thread built them anew while it served.

/**
 * Words of a node: the best rank of its candidates and those below, its list of candidates, its list
 * of headers, how many children it has and how long its label is. Then for each child, in their order,
 * the character that leads to it and where it stands; then the label: what must follow that character.
 */
export const NODE = { best: 0, candidates: 1, headers: 2, childCount: 3, labelLength: 4, size: 5 }

/**
 * Words of a candidate: a route at its place in the index, where host and literal path hold already.
 * Lists of them begin with how many there are, and are in order of rank, the best first.
 */
export const CANDIDATE = {
  rank: 0,
  /** The route's place in the configuration. */
  route: 1,
  /** Port that the route's host demands; -1 for any. */
  port: 2,
  /** Length of the prefix that holds; -1 for another kind of path. */
  prefixLength: 3,
  /** Place of the pattern that must hold among the route's paths; -1 for none. */
  pattern: 4,
  /** 1 when the route demands more than host, port and path. */
  conditions: 5,
  /** Place of its traits among those of the table. */
  traits: 6,
  size: 7
}

/**
 * What every request needs of its route. Routes that agree in it share one: of each of thousands as an
 * object of its own, requests waited for memory.
 */
export interface RouteTraits {
  readonly serviceId: string | undefined
  readonly stripPath: boolean
  readonly preserveHost: boolean
  readonly requestBuffering: boolean
  readonly responseBuffering: boolean
  /** Whether it is served over TLS alone. */
  readonly tlsOnly: boolean
  readonly grpc: boolean
}

function traitsOf(route: Route): RouteTraits {
  const { protocols } = route
  return {
    serviceId: route.service?.id,
    stripPath: route.strip_path,
    preserveHost: route.preserve_host,
    requestBuffering: route.request_buffering,
    responseBuffering: route.response_buffering,
    tlsOnly: protocols.includes('https') && !protocols.includes('http'),
    grpc: protocols.includes('grpc') || protocols.includes('grpcs')
  }
}

/** Routes compiled into indexes. Plain data; threads share what is large. */
export interface RouteTable extends FlatTable {
  /** How many routes there are, those left out included. */
  readonly count: number
  /** Tree of the routes of any host; 0 when there are none. */
  readonly anyHost: number
  /** Trees by host; by `.example.com` for `*.example.com`; by `example.` for `example.*`. */
  readonly hosts: number
  readonly suffixes: number
  readonly prefixes: number
  /** Candidates by node, header and value: see {@link headerKey}. */
  readonly headers: number
  /** Names of the headers that lists of them tell by their places here. */
  readonly headerNames: readonly string[]
  readonly traits: readonly RouteTraits[]
}

/** What stands for a value of a header, by the place of its name, at a node. */
export function headerKey(node: number, name: number, value: string): string {
  return `${node} ${name} ${value}`
}

/** Protocols whose routes are served over HTTP. */
const HTTP_PROTOCOLS = new Set(['http', 'https', 'grpc', 'grpcs', 'ws', 'wss'])

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

/** A path of a route: what its text begins with, and where the rest of it is looked up. */
interface Literal {
  readonly text: string
  readonly prefixLength: number
  readonly pattern: number
}

const ANY_PATH: readonly Literal[] = [{ text: '', prefixLength: -1, pattern: -1 }]

/** One priority class of a route: all its patterns, or its prefixes of one length. */
interface Draft {
  readonly route: Route
  readonly place: number
  readonly priority: number
  readonly literals: readonly Literal[]
  readonly conditions: boolean
  readonly traits: number
  /** Its place among all when they are in order. */
  rank: number
}

/** The priority of a route with a path of this kind; higher is matched first. */
function priority(route: Route, regex: boolean, prefixLength: number): number {
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
  const byKind = ((groups * 2 + Number(plainHost)) << 8) + Math.min(headerCount, 255)
  // A pattern beats any prefix, whose length has 19 bits; a `regex_priority` has 32.
  const byPath = regex ? 2 ** 32 + (route.regex_priority >>> 0) : Math.min(prefixLength, 0x7ffff)
  return byKind * 2 ** 33 + byPath
}

function draftsOf(route: Route, place: number, traits: number): readonly Draft[] {
  const paths = route.paths ?? []
  const conditions = hasConditions(route)
  const draft = (regex: boolean, length: number, literals: readonly Literal[]): Draft => ({
    route,
    place,
    priority: priority(route, regex, length),
    literals,
    conditions,
    traits,
    rank: 0
  })
  if (paths.length === 0) return [draft(false, 0, ANY_PATH)]
  const patterns: Literal[] = []
  const byLength = new Map<number, Literal[]>()
  for (const [pattern, path] of paths.entries()) {
    if (path.startsWith('~')) {
      patterns.push({ text: literalPrefix(path.slice(1)), prefixLength: -1, pattern })
      continue
    }
    const text = normalizePath(Buffer.from(path, 'utf8').toString('latin1'))
    listOf(byLength, text.length).push({ text, prefixLength: text.length, pattern: -1 })
  }
  const drafts = [...byLength].map(([length, literals]) => draft(false, length, literals))
  if (patterns.length > 0) drafts.push(draft(true, 0, patterns))
  return drafts
}

function listOf<K, V>(map: Map<K, V[]>, key: K): V[] {
  let list = map.get(key)
  if (list === undefined) {
    list = []
    map.set(key, list)
  }
  return list
}

/** What becomes a candidate, or one for each value of its key header. */
interface Leaf {
  readonly text: string
  readonly draft: Draft
  readonly literal: Literal
  readonly port: number
}

/** Leaves of one tree, in order of rank. */
type Tree = Leaf[]

/** A part of a tree that is still to be written: leaves that begin alike, from one to before another. */
interface Branch {
  readonly from: number
  readonly to: number
  readonly depth: number
  /** The word that tells where it will stand. */
  readonly told: number
}

class TableBuilder {
  readonly #writer = new FlatTableWriter()
  readonly #headerNames = new Map<string, number>()
  readonly #byHeader = new Map<string, number>()

  /** Writes trees, in slices; gives where each stands, by the same names. */
  async trees(trees: ReadonlyMap<string, Tree>): Promise<ReadonlyMap<string, number>> {
    const places = new Map<string, number>()
    await inSlices(trees, ([name, tree]) => {
      places.set(name, this.#writer.key(name))
      this.#tree(tree.length === 1 ? tree : tree.sort(byText))
    })
    return places
  }

  #tree(leaves: readonly Leaf[]): void {
    const next: Branch[] = [{ from: 0, to: leaves.length, depth: 0, told: 0 }]
    for (let branch = next.pop(); branch !== undefined; branch = next.pop())
      this.#node(leaves, branch, next)
  }

  /** Writes a node, and notes the branches that go on from it. */
  #node(leaves: readonly Leaf[], { from, to, depth, told }: Branch, next: Branch[]): void {
    const writer = this.#writer
    const first = leaves[from]!.text
    const last = leaves[to - 1]!.text
    // In order, the first and the last differ as early as any two.
    let end = depth
    while (end < first.length && first.charCodeAt(end) === last.charCodeAt(end)) end++
    let here = from
    while (here < to && leaves[here]!.text.length === end) here++
    const branches = branchesOf(leaves, here, to, end)
    const node = writer.reserve(NODE.size + branches.length * 2)
    if (told !== 0) writer.set(told, node)
    writer.set(node + NODE.best, bestRank(leaves, from, to))
    writer.set(node + NODE.childCount, branches.length)
    writer.set(node + NODE.labelLength, end - depth)
    writer.write(first.slice(depth, end))
    if (here > from) this.#candidates(node, leaves.slice(from, here))
    let start = here
    for (const [index, stop] of branches.entries()) {
      const at = node + NODE.size + index * 2
      writer.set(at, leaves[start]!.text.charCodeAt(end))
      next.push({ from: start, to: stop, depth: end + 1, told: at + 1 })
      start = stop
    }
  }

  #candidates(node: number, leaves: readonly Leaf[]): void {
    const writer = this.#writer
    const keyed = leaves.some(({ draft }) => draft.conditions)
    const plain = keyed
      ? leaves.filter(({ draft }) => keyHeader(draft.route) === undefined)
      : leaves
    if (plain.length > 0) writer.set(node + NODE.candidates, this.#list(plain))
    if (plain.length < leaves.length) this.#keyed(node, leaves)
  }

  #keyed(node: number, leaves: readonly Leaf[]): void {
    const byName = new Map<number, Map<string, Leaf[]>>()
    for (const leaf of leaves) {
      const key = keyHeader(leaf.draft.route)
      if (key === undefined) continue
      const name = this.#headerName(key.name)
      let byValue = byName.get(name)
      if (byValue === undefined) {
        byValue = new Map()
        byName.set(name, byValue)
      }
      for (const value of key.values) listOf(byValue, value).push(leaf)
    }
    const writer = this.#writer
    const list = writer.reserve(1 + byName.size)
    writer.set(node + NODE.headers, list)
    writer.set(list, byName.size)
    for (const [index, name] of [...byName.keys()].entries()) writer.set(list + 1 + index, name)
    for (const [name, byValue] of byName) {
      for (const [value, candidates] of byValue) {
        const key = headerKey(node, name, value)
        writer.key(key)
        this.#byHeader.set(key, this.#list(candidates))
      }
    }
  }

  #headerName(name: string): number {
    let place = this.#headerNames.get(name)
    if (place === undefined) {
      place = this.#headerNames.size
      this.#headerNames.set(name, place)
    }
    return place
  }

  #list(leaves: readonly Leaf[]): number {
    const writer = this.#writer
    const list = writer.reserve(1 + leaves.length * CANDIDATE.size)
    writer.set(list, leaves.length)
    let at = list + 1
    for (const { draft, literal, port } of leaves) {
      writer.set(at + CANDIDATE.rank, draft.rank)
      writer.set(at + CANDIDATE.route, draft.place)
      writer.set(at + CANDIDATE.port, port)
      writer.set(at + CANDIDATE.prefixLength, literal.prefixLength)
      writer.set(at + CANDIDATE.pattern, literal.pattern)
      writer.set(at + CANDIDATE.conditions, Number(draft.conditions))
      writer.set(at + CANDIDATE.traits, draft.traits)
      at += CANDIDATE.size
    }
    return list
  }

  index(places: ReadonlyMap<string, number>): number {
    return this.#writer.index(places)
  }

  finish(rest: Omit<RouteTable, 'headers' | 'headerNames' | keyof FlatTable>): RouteTable {
    const headers = this.#writer.index(this.#byHeader)
    const headerNames = [...this.#headerNames.keys()]
    return { ...rest, headers, headerNames, ...this.#writer.finish() }
  }
}

/** By code units; leaves of the same text stay in their order. */
function byText(a: Leaf, b: Leaf): number {
  return a.text < b.text ? -1 : a.text > b.text ? 1 : 0
}

function bestRank(leaves: readonly Leaf[], from: number, to: number): number {
  let best = leaves[from]!.draft.rank
  for (let i = from + 1; i < to; i++) best = Math.min(best, leaves[i]!.draft.rank)
  return best
}

/** Where leaves with another character at `depth` begin, and where the last end. */
function branchesOf(leaves: readonly Leaf[], from: number, to: number, depth: number): number[] {
  const ends: number[] = []
  for (let i = from + 1; i < to; i++) {
    if (leaves[i]!.text.charCodeAt(depth) !== leaves[i - 1]!.text.charCodeAt(depth)) ends.push(i)
  }
  if (from < to) ends.push(to)
  return ends
}

/** A host of a route, apart from the port that it may demand. */
function splitPort(text: string): readonly [host: string, port: number] {
  const colon = text.lastIndexOf(':')
  if (colon === -1 || !/^\d+$/.test(text.slice(colon + 1))) return [text, -1]
  return [text.slice(0, colon), Number(text.slice(colon + 1))]
}

/**
 * Compiles routes into indexes. Routes of disabled services are left out, and so are those of
 * protocols below HTTP. Ties are broken by route id. Works in slices, since thousands of routes take
 * longer than others may wait.
 */
export async function compileRoutes(
  routes: readonly Route[],
  services: ReadonlyMap<string, Service>
): Promise<RouteTable> {
  const drafts: Draft[] = []
  const traits: RouteTraits[] = []
  const traitsByKey = new Map<string, number>()
  const traitsPlace = (route: Route): number => {
    const found = traitsOf(route)
    const key = Object.values(found).join(' ')
    let place = traitsByKey.get(key)
    if (place === undefined) {
      place = traits.push(found) - 1
      traitsByKey.set(key, place)
    }
    return place
  }
  await inSlices(routes.keys(), place => {
    const route = routes[place]!
    const { service, protocols } = route
    if (service !== undefined && services.get(service.id)?.enabled === false) return
    if (!protocols.some(protocol => HTTP_PROTOCOLS.has(protocol))) return
    drafts.push(...draftsOf(route, place, traitsPlace(route)))
  })
  drafts.sort((a, b) => b.priority - a.priority || (a.route.id < b.route.id ? -1 : 1))
  const any: Tree = []
  const byHost = new Map<string, Tree>()
  /** `*.example.com` by `.example.com`. */
  const bySuffix = new Map<string, Tree>()
  /** `example.*` by `example.`. */
  const byPrefix = new Map<string, Tree>()
  const treeOf = (host: string): Tree =>
    host.startsWith('*')
      ? listOf(bySuffix, host.slice(1))
      : host.endsWith('*')
        ? listOf(byPrefix, host.slice(0, -1))
        : listOf(byHost, host)
  await inSlices(drafts.keys(), rank => {
    const draft = drafts[rank]!
    const { route, literals } = draft
    draft.rank = rank
    const add = (tree: Tree, port: number): void => {
      for (const literal of literals) tree.push({ text: literal.text, draft, literal, port })
    }
    if (!present(route.hosts)) add(any, -1)
    else {
      for (const text of route.hosts!) {
        const [host, port] = splitPort(text)
        add(treeOf(host), port)
      }
    }
  })
  const builder = new TableBuilder()
  const all = await builder.trees(new Map(any.length === 0 ? [] : [['', any]]))
  const hosts = builder.index(await builder.trees(byHost))
  const suffixes = builder.index(await builder.trees(bySuffix))
  const prefixes = builder.index(await builder.trees(byPrefix))
  const anyHost = all.get('') ?? 0
  return builder.finish({ count: routes.length, anyHost, hosts, suffixes, prefixes, traits })
}
