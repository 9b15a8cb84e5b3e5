import type { Route, Service } from '../schema/entities.ts'
import { compilePattern } from '../schema/patterns.ts'
import { lookUp, sameText } from './flat-table.ts'
import { compileUpstreamPath, decodePath, encodePath, type UpstreamPath } from './path.ts'
import {
  type Conditions,
  type ConditionsInput,
  compileConditions,
  conditionsHold,
  isNamed
} from './route-conditions.ts'
import { CANDIDATE, headerKey, NODE, type RouteTable, type RouteTraits } from './route-table.ts'

/** The facts of a request that routing looks at. */
export interface MatchInput extends ConditionsInput {
  readonly host: string
  readonly port: number
  /** Normalised path. */
  readonly path: string
}

/** The traits of a route with what they name. */
export interface Traits extends RouteTraits {
  readonly service: Service | undefined
  /** How the route joins its service's path with the request's. */
  readonly upstreamPath: UpstreamPath
}

/** The route of a request. */
export class Match {
  readonly traits: Traits
  /** The route's place in the configuration. */
  readonly place: number
  /** The part of the path that matched; undefined when the route matched without a path. */
  readonly prefix: string | undefined
  /** Numbered and named groups; undefined when the pattern has none. */
  readonly captures: Readonly<Record<string, string>> | undefined
  readonly #router: Router

  constructor(
    router: Router,
    traits: Traits,
    place: number,
    prefix: string | undefined,
    captures: Readonly<Record<string, string>> | undefined
  ) {
    this.#router = router
    this.traits = traits
    this.place = place
    this.prefix = prefix
    this.captures = captures
  }

  /** The route itself, which is read when it is first asked for. */
  get route(): Route {
    return this.#router.compiled(this.place).route
  }
}

interface PatternTest {
  readonly regex: RegExp
  readonly hasGroups: boolean
}

/** A route with what is compiled of it, for those that need more than its traits. */
class CompiledRoute {
  readonly route: Route
  #conditions: Conditions | undefined = undefined
  #patterns: PatternTest[] | undefined = undefined

  constructor(route: Route) {
    this.route = route
  }

  get conditions(): Conditions {
    this.#conditions ??= compileConditions(this.route)
    return this.#conditions
  }

  /** The pattern that stands at this place among the route's paths. */
  pattern(place: number): PatternTest {
    this.#patterns ??= []
    this.#patterns[place] ??= compileTest(this.route.paths![place]!.slice(1))
    return this.#patterns[place]
  }
}

function compileTest(source: string): PatternTest {
  const regex = compilePattern(source, true)
  return { regex, hasGroups: new RegExp(`${regex.source}|`, regex.flags).exec('')!.length > 1 }
}

/** One look-up: the best match so far while the indexes are walked. */
class Search {
  readonly #router: Router
  readonly #input: MatchInput
  /** Where the best candidate stands; 0 for none. */
  candidate = 0
  #rank = Infinity
  found: RegExpExecArray | null = null
  /** What patterns see; made when the first is asked. */
  #subject: string | undefined = undefined

  constructor(router: Router, input: MatchInput) {
    this.#router = router
    this.#input = input
  }

  /** Follows the path from the root of a tree, 0 for none. */
  walk(root: number): void {
    const { words, text } = this.#router.table
    const { path } = this.#input
    let node = root
    let depth = 0
    while (node !== 0) {
      if (words[node + NODE.best]! >= this.#rank) return
      const length = words[node + NODE.labelLength]!
      const label = node + NODE.size + words[node + NODE.childCount]! * 2
      if (!sameText(text, label, length, path, depth)) return
      depth += length
      this.#scan(words[node + NODE.candidates]!)
      const headers = words[node + NODE.headers]!
      if (headers !== 0) this.#scanByHeader(node, headers)
      if (depth === path.length) return
      node = childOf(words, node, path.charCodeAt(depth))
      depth++
    }
  }

  #scanByHeader(node: number, headers: number): void {
    const { table } = this.#router
    const { rawHeaders } = this.#input
    for (let at = headers + 1; at <= headers + table.words[headers]!; at++) {
      const name = table.words[at]!
      for (let i = 0; i < rawHeaders.length; i += 2) {
        if (!isNamed(rawHeaders[i]!, table.headerNames[name]!)) continue
        const key = headerKey(node, name, rawHeaders[i + 1]!.toLowerCase())
        this.#scan(lookUp(table, table.headers, key))
      }
    }
  }

  /** Takes the first of a list that holds, unless a better one is known; they are in order of rank. */
  #scan(list: number): void {
    if (list === 0) return
    const { words } = this.#router.table
    const end = list + 1 + words[list]! * CANDIDATE.size
    for (let at = list + 1; at < end; at += CANDIDATE.size) {
      if (words[at + CANDIDATE.rank]! >= this.#rank) return
      if (!this.#holds(words, at)) continue
      this.candidate = at
      this.#rank = words[at + CANDIDATE.rank]!
      return
    }
  }

  #holds(words: Int32Array, at: number): boolean {
    const port = words[at + CANDIDATE.port]!
    if (port !== -1 && port !== this.#input.port) return false
    const place = words[at + CANDIDATE.route]!
    if (
      words[at + CANDIDATE.conditions] === 1 &&
      !conditionsHold(this.#router.compiled(place).conditions, this.#input)
    ) {
      return false
    }
    const pattern = words[at + CANDIDATE.pattern]!
    if (pattern === -1) {
      this.found = null
      return true
    }
    this.#subject ??= decodePath(this.#input.path)
    const found = this.#router.compiled(place).pattern(pattern).regex.exec(this.#subject)
    // With the flag `m` a pattern also finds the start of a line.
    if (found === null || found.index !== 0) return false
    this.found = found
    return true
  }
}

/** The child of a node that a character leads to; 0 for none. They are in order. */
function childOf(words: Int32Array, node: number, char: number): number {
  let low = node + NODE.size
  let high = low + words[node + NODE.childCount]! * 2
  while (low < high) {
    // Two words to a child.
    const middle = low + (((high - low) >> 2) << 1)
    const first = words[middle]!
    if (first === char) return words[middle + 1]!
    if (first < char) low = middle + 2
    else high = middle
  }
  return 0
}

/** Finds the routes of requests. What it needs of a route besides the table is made on first use. */
export class Router {
  readonly table: RouteTable
  readonly #routeAt: (place: number) => Route
  readonly #services: ReadonlyMap<string, Service>
  readonly #compiled: (CompiledRoute | undefined)[]
  readonly #traits: (Traits | undefined)[]

  /** `routeAt` gives a route of those the table was compiled from, by its place among them. */
  constructor(
    table: RouteTable,
    routeAt: (place: number) => Route,
    services: ReadonlyMap<string, Service>
  ) {
    this.table = table
    this.#compiled = new Array(table.count)
    this.#traits = new Array(table.traits.length)
    this.#routeAt = routeAt
    this.#services = services
  }

  /** The highest-priority route whose every attribute holds; undefined when there is none. */
  match(input: MatchInput): Match | undefined {
    const { table } = this
    const { host, path } = input
    const search = new Search(this, input)
    // Routes of a host mostly beat those of any, among which nothing is looked for then.
    if (table.hosts !== 0) search.walk(lookUp(table, table.hosts, host))
    if (table.suffixes !== 0) {
      for (let dot = host.indexOf('.'); dot !== -1; dot = host.indexOf('.', dot + 1))
        search.walk(lookUp(table, table.suffixes, host, dot))
    }
    if (table.prefixes !== 0) {
      for (let dot = host.indexOf('.'); dot !== -1; dot = host.indexOf('.', dot + 1))
        search.walk(lookUp(table, table.prefixes, host, 0, dot + 1))
    }
    search.walk(table.anyHost)
    const { candidate, found } = search
    if (candidate === 0) return undefined
    const { words } = table
    const place = words[candidate + CANDIDATE.route]!
    let prefix: string | undefined
    let captures: Readonly<Record<string, string>> | undefined
    if (found !== null) {
      prefix = encodePath(found[0])
      const { hasGroups } = this.compiled(place).pattern(words[candidate + CANDIDATE.pattern]!)
      if (hasGroups) captures = capturesOf(found)
    } else if (words[candidate + CANDIDATE.prefixLength] !== -1) {
      prefix = path.slice(0, words[candidate + CANDIDATE.prefixLength])
    }
    return new Match(
      this,
      this.#traitsAt(words[candidate + CANDIDATE.traits]!),
      place,
      prefix,
      captures
    )
  }

  /** The route that stands at a place in the configuration. */
  compiled(place: number): CompiledRoute {
    let compiled = this.#compiled[place]
    if (compiled === undefined) {
      compiled = new CompiledRoute(this.#routeAt(place))
      this.#compiled[place] = compiled
    }
    return compiled
  }

  #traitsAt(place: number): Traits {
    let traits = this.#traits[place]
    if (traits === undefined) {
      const known = this.table.traits[place]!
      const service =
        known.serviceId === undefined ? undefined : this.#services.get(known.serviceId)
      // Always v0: the format honours `path_handling: v1` only in a flavour this router is not.
      const upstreamPath = compileUpstreamPath(service?.path, known.stripPath, 'v0')
      traits = { ...known, service, upstreamPath }
      this.#traits[place] = traits
    }
    return traits
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
