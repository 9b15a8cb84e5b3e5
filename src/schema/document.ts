import type { Node, Pair, Scalar, YAMLError, YAMLMap } from 'yaml'
import { type Document, isAlias, isMap, isSeq, LineCounter, parseDocument } from 'yaml'
import { ConfigError, type Place, type Problem } from '../errors.ts'
import { unquotedReference } from '../vault/reference.ts'
import { readPlain } from './plain-yaml.ts'

/** Steps from an object to a part of it: property names and array indexes. */
export type Segments = readonly (string | number)[]

/** How deep a document may nest, aliases expanded. */
const DEPTH_LIMIT = 100
/** How many values aliases may add to a document, so that a few lines cannot expand into gigabytes. */
const ALIAS_LIMIT = 500_000

const YAML_FIXES: Readonly<Record<string, string>> = {
  BAD_INDENT: 'Indent the line like its neighbours',
  TAB_AS_INDENT: 'Indent with spaces',
  RESOURCE_EXHAUSTION: `Nest at most ${DEPTH_LIMIT} levels`,
  MISSING_CHAR: 'Add the missing character',
  DUPLICATE_KEY: 'Keep one of the two keys',
  MULTIPLE_DOCS: 'Keep one document in the file: remove the `---` between them',
  TAG_RESOLVE_FAILED: 'Remove the tag',
  NON_STRING_KEY: 'Write a plain text key, or quote the value if it was meant as text'
}

/** Errors of the parser that are not about syntax. */
const YAML_MEANINGS: Readonly<Record<string, readonly [code: string, message: string]>> = {
  DUPLICATE_KEY: ['POSTERN_CONFIG_DUPLICATE', 'this key stands twice in the same map'],
  RESOURCE_EXHAUSTION: ['POSTERN_CONFIG_LIMIT', 'nested too deeply']
}

/** `services[2].config.redis.port`; names that are not words stand in brackets and quotes. */
export function pathText(segments: Segments): string {
  let text = ''
  for (const segment of segments) {
    if (typeof segment === 'number') text += `[${segment}]`
    else if (!/^[\w-]+$/.test(segment)) text += `[${JSON.stringify(segment)}]`
    else text += text === '' ? segment : `.${segment}`
  }
  return text
}

/** Whether documents of this text are empty: a `---` at the end of a file separates nothing. */
function holdsNothing(text: string): boolean {
  return text.split('\n').every(line => /^(?:---|\.\.\.)?\s*(?:#.*)?$/.test(line))
}

/** The path of the key that stands again at this offset, and where it stood first. */
function findTwice(
  node: unknown,
  at: number,
  path: Segments
): { readonly path: Segments; readonly other: number } | undefined {
  if (isSeq(node)) {
    for (const [index, item] of node.items.entries()) {
      const found = findTwice(item, at, [...path, index])
      if (found !== undefined) return found
    }
  } else if (isMap(node)) {
    const { items } = node as YAMLMap<Scalar, Node>
    for (const { key, value } of items) {
      const here = [...path, String(key.value)]
      if (key.range?.[0] === at) {
        const first = items.find(item => item.key.value === key.value)
        return { path: here, other: first?.key.range?.[0] ?? at }
      }
      const found = findTwice(value, at, here)
      if (found !== undefined) return found
    }
  }
  return undefined
}

type Container = Readonly<Record<string | number, unknown>>

function isContainer(value: unknown): value is Container {
  return typeof value === 'object' && value !== null
}

interface Converted {
  readonly value: unknown
  /** Values below and including this one, aliases expanded. */
  readonly size: number
  readonly height: number
}

interface KeyOffsets {
  readonly key: number
  readonly value: number
}

/**
 * A YAML or JSON text as plain data that still knows where each part stands. Aliased parts are
 * shared objects and stand where they are defined. Most texts are read by {@link readPlain}, twice
 * if a place is asked for; all others, the wrong ones among them, by the parser.
 */
export class SourceDocument {
  readonly file: string
  readonly root: unknown
  readonly #text: string
  readonly #lines = new LineCounter()
  /** Whether the places of parts are noted only when the first is asked for. */
  readonly #isPlain: boolean
  /** The parts whose places are noted then. */
  #placed: unknown
  readonly #offsets = new Map<object, number>()
  readonly #keys = new Map<object, Map<string, KeyOffsets>>()
  /** What is wrong without keeping the rest from being read: unquoted references. */
  readonly findings: readonly Problem[]
  readonly #problems: Problem[] = []
  readonly #findings: Problem[] = []
  readonly #anchors = new Map<string, Node>()
  readonly #converted = new Map<Node, Converted | undefined>()
  #aliased = 0

  /** Throws ConfigError with every syntax problem. */
  constructor(text: string, file: string) {
    this.file = file
    this.#text = text
    this.findings = this.#findings
    const plain = readPlain(text)
    this.#isPlain = plain !== undefined
    if (plain !== undefined) {
      this.root = plain.root
      return
    }
    const document = this.#parse(text)
    const errors: readonly YAMLError[] = [...document.errors, ...document.warnings]
    // Text nested thousands of levels deep exhausts the parser's stack; what it says then is noise.
    const exhausted = errors.find(error => error.code === 'RESOURCE_EXHAUSTION')
    for (const error of exhausted === undefined ? errors : [exhausted])
      this.#addYamlError(error, document)
    if (this.#problems.length > 0) throw new ConfigError(this.#problems)
    this.root = this.#convert(document.contents, [], 0).value
    if (this.#problems.length > 0) throw new ConfigError(this.#problems)
  }

  /**
   * The place of what `segments` lead to from `start`, or of the deepest part of it that the text
   * holds. `base` leads from the document to `start`.
   */
  place(
    start: object,
    base: Segments,
    segments: Segments = [],
    at: 'key' | 'value' = 'value'
  ): Place {
    let value: unknown = this.#isPlain ? this.#placedPart(base) : start
    let offset = this.#offsets.get(value as object) ?? 0
    let found = true
    const path: (string | number)[] = [...base]
    for (const segment of segments) {
      path.push(Array.isArray(value) && /^\d+$/.test(String(segment)) ? Number(segment) : segment)
      const keys = isContainer(value) ? this.#keys.get(value) : undefined
      const offsets: KeyOffsets | undefined = found ? keys?.get(String(segment)) : undefined
      found = offsets !== undefined
      value = found ? (value as Container)[segment] : undefined
      if (offsets !== undefined) offset = at === 'key' ? offsets.key : offsets.value
    }
    return this.#placeAt(offset, path)
  }

  /** The part that `base` leads to in a copy of the document whose places are noted. */
  #placedPart(base: Segments): unknown {
    this.#placed ??= this.#notePlaces()
    return base.reduce((part: unknown, segment) => (part as Container)[segment], this.#placed)
  }

  #notePlaces(): unknown {
    const text = this.#text
    this.#lines.addNewLine(0)
    for (let at = text.indexOf('\n'); at !== -1; at = text.indexOf('\n', at + 1))
      this.#lines.addNewLine(at + 1)
    const keysOf = (container: object): Map<string, KeyOffsets> => {
      let keys = this.#keys.get(container)
      if (keys === undefined) {
        keys = new Map()
        this.#keys.set(container, keys)
      }
      return keys
    }
    return readPlain(text, {
      container: (value, offset) => this.#offsets.set(value, offset),
      member: (container, key, keyOffset, valueOffset) =>
        keysOf(container).set(key, { key: keyOffset, value: valueOffset })
    })!.root
  }

  #parse(text: string): Document.Parsed {
    return parseDocument(text, {
      lineCounter: this.#lines,
      prettyErrors: false,
      schema: 'core',
      stringKeys: true,
      resolveKnownTags: false,
      // With 'silent' the parser would drop every document but the first without a word.
      logLevel: 'error'
    })
  }

  #placeAt(offset: number, path: Segments): Place {
    const { line, col } = this.#lines.linePos(offset)
    return {
      file: this.file,
      line: Math.max(line, 1),
      column: Math.max(col, 1),
      path: pathText(path)
    }
  }

  #addYamlError(error: YAMLError, document: Document.Parsed): void {
    const at = error.pos[0]
    if (error.code === 'MULTIPLE_DOCS' && holdsNothing(this.#text.slice(at))) return
    const [code, message] = YAML_MEANINGS[error.code] ?? ['POSTERN_CONFIG_SYNTAX', error.message]
    const fix =
      YAML_FIXES[error.code] ?? 'Correct the YAML here, or quote the value if it was meant as text'
    const twice = error.code === 'DUPLICATE_KEY' ? findTwice(document.contents, at, []) : undefined
    if (twice === undefined) {
      this.#problems.push({ code, message, fix, place: this.#placeAt(at, []) })
      return
    }
    const { line, column } = this.#placeAt(twice.other, [])
    const where = `${fix}; the other stands at line ${line}, column ${column}`
    this.#problems.push({ code, message, fix: where, place: this.#placeAt(at, twice.path) })
  }

  #add(node: Node | null, path: Segments, code: string, message: string, fix: string): Converted {
    this.#problems.push({ code, message, fix, place: this.#placeAt(node?.range?.[0] ?? 0, path) })
    return { value: null, size: 1, height: 1 }
  }

  #convert(node: Node | null, path: Segments, depth: number): Converted {
    if (node === null) return { value: null, size: 1, height: 1 }
    if (isAlias(node)) return this.#alias(node, node.source, path, depth)
    if (depth > DEPTH_LIMIT) return this.#tooDeep(node, path)
    if ('anchor' in node && node.anchor !== undefined) {
      this.#anchors.set(node.anchor, node)
      this.#converted.set(node, undefined)
    }
    const converted = this.#convertOwn(node, path, depth)
    this.#converted.set(node, converted)
    return converted
  }

  #convertOwn(node: Node, path: Segments, depth: number): Converted {
    if (isMap(node)) return this.#map(node as YAMLMap<Scalar, Node>, path, depth)
    if (isSeq(node)) {
      const array: unknown[] = []
      const keys = new Map<string, KeyOffsets>()
      let size = 1
      let height = 0
      for (const [index, item] of (node.items as (Node | null)[]).entries()) {
        const part = this.#convert(item, [...path, index], depth + 1)
        const offset = item?.range?.[0] ?? node.range?.[0] ?? 0
        array.push(part.value)
        keys.set(String(index), { key: offset, value: offset })
        size += part.size
        height = Math.max(height, part.height)
      }
      this.#offsets.set(array, node.range?.[0] ?? 0)
      this.#keys.set(array, keys)
      return { value: array, size, height: height + 1 }
    }
    // The core schema without further tags makes text, numbers, booleans and null only.
    return { value: (node as Scalar).value, size: 1, height: 1 }
  }

  #tooDeep(node: Node, path: Segments): Converted {
    const fix = `Nest at most ${DEPTH_LIMIT} levels`
    return this.#add(node, path.slice(0, 8), 'POSTERN_CONFIG_LIMIT', 'nested too deeply', fix)
  }

  #alias(node: Node, name: string, path: Segments, depth: number): Converted {
    const target = this.#anchors.get(name)
    if (target === undefined) {
      const fix = `Define it before this line with &${name}, or quote the value if * was meant as text`
      return this.#add(node, path, 'POSTERN_CONFIG_SYNTAX', `there is no anchor "${name}"`, fix)
    }
    const converted = this.#converted.get(target)
    if (converted === undefined) {
      const message = `the anchor "${name}" contains itself`
      return this.#add(node, path, 'POSTERN_CONFIG_SYNTAX', message, 'Remove this alias')
    }
    if (depth + converted.height > DEPTH_LIMIT) return this.#tooDeep(node, path)
    this.#aliased += converted.size
    if (this.#aliased > ALIAS_LIMIT) {
      this.#aliased = Number.NEGATIVE_INFINITY
      const message = `aliases expand to more than ${ALIAS_LIMIT} values`
      return this.#add(node, path, 'POSTERN_CONFIG_LIMIT', message, 'Use fewer or smaller aliases')
    }
    return converted
  }

  #map(node: YAMLMap<Scalar, Node>, path: Segments, depth: number): Converted {
    const map: Record<string, unknown> = {}
    const keys = new Map<string, KeyOffsets>()
    const merges: Converted[] = []
    let size = 1
    let height = 0
    for (const pair of node.items) {
      const key = String(pair.key.value)
      const offset = pair.key.range?.[0] ?? 0
      if (key === '__proto__') {
        this.#add(pair.key, path, 'POSTERN_CONFIG_UNKNOWN_FIELD', 'unknown field', 'Remove it')
        continue
      }
      const isMerge = key === '<<' && pair.key.type === 'PLAIN'
      const part = this.#convert(pair.value, isMerge ? path : [...path, key], depth + 1)
      size += part.size
      height = Math.max(height, part.height)
      if (isMerge) {
        merges.push(...this.#mergeSources(pair, part, path))
        continue
      }
      map[key] = part.value
      const hasText = pair.value?.range != null && pair.value.range[1] > pair.value.range[0]
      keys.set(key, { key: offset, value: hasText ? pair.value!.range![0] : offset })
    }
    for (const merge of merges) this.#mergeInto(map, keys, merge.value as Record<string, unknown>)
    const quoted = unquotedReference(map)
    if (quoted !== undefined) {
      const text = quoted.slice(1, -1)
      const message = 'a reference without quotes is a YAML map'
      this.#findings.push({
        code: 'POSTERN_CONFIG_REFERENCE',
        message,
        fix: `Quote it: ${quoted}`,
        place: this.#placeAt(node.range?.[0] ?? 0, path),
        reference: text
      })
      return { value: text, size: 1, height: 1 }
    }
    this.#offsets.set(map, node.range?.[0] ?? 0)
    this.#keys.set(map, keys)
    return { value: map, size, height: height + 1 }
  }

  /** The maps a `<<` key names (https://yaml.org/type/merge.html): one, or a list of them. */
  #mergeSources(pair: Pair<Scalar, Node>, part: Converted, path: Segments): readonly Converted[] {
    const sources = Array.isArray(part.value) ? (part.value as unknown[]) : [part.value]
    const isMapValue = (value: unknown) =>
      typeof value === 'object' && value !== null && !Array.isArray(value)
    if (sources.every(isMapValue)) return sources.map(value => ({ ...part, value }))
    this.#add(
      pair.key,
      path,
      'POSTERN_CONFIG_SYNTAX',
      'a merge key (<<) takes a map or a list of maps',
      'Name an anchored map: `<<: *name`'
    )
    return []
  }

  #mergeInto(
    map: Record<string, unknown>,
    keys: Map<string, KeyOffsets>,
    source: Readonly<Record<string, unknown>>
  ): void {
    for (const [key, value] of Object.entries(source)) {
      // Keys of the map itself, and of earlier sources, win.
      if (Object.hasOwn(map, key)) continue
      map[key] = value
      const offsets = this.#keys.get(source)?.get(key)
      if (offsets !== undefined) keys.set(key, offsets)
    }
  }
}
