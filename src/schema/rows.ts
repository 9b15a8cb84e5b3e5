import type { Place, Problem } from '../errors.ts'
import { pathText, type Segments, type SourceDocument } from './document.ts'
import { type Kind, kinds, kindsByName, nestingField, toolKeys, unservedKinds } from './kinds.ts'
import type { Row } from './row.ts'
import { expandShorthands } from './rules.ts'
import { nearest, unknownField } from './validator.ts'
import { isRecord } from './walk.ts'

export interface Collected {
  readonly rows: readonly Row[]
  readonly problems: readonly Problem[]
  readonly warnings: readonly Problem[]
}

/** Names of all kinds, with which a root may be misspelt. */
const rootNames = [...kinds.map(kind => kind.name), '_format_version', '_transform']

/** Every entity of a document in document order, however deep it is nested. */
export function collectRows(document: SourceDocument, root: Record<string, unknown>): Collected {
  return new Collector(document).collect(root)
}

/** Fields of a service that its url stands for. */
const URL_PARTS: ReadonlySet<string | number> = new Set(['protocol', 'host', 'port', 'path'])

class Collector {
  readonly #document: SourceDocument
  readonly #rows: Row[] = []
  readonly #problems: Problem[] = []
  readonly #unserved = new Map<string, Place[]>()
  readonly #overridden: Problem[] = []
  #version: unknown

  constructor(document: SourceDocument) {
    this.#document = document
  }

  collect(root: Record<string, unknown>): Collected {
    this.#version = root._format_version
    for (const [key, value] of Object.entries(root)) {
      if (toolKeys.has(key) || key === '_format_version' || key === '_transform') continue
      const place = (at: 'key' | 'value') => this.#document.place(root, [], [key], at)
      const kind = kindsByName.get(key)
      if (kind !== undefined) this.#list(kind, value, [key], undefined, place)
      else if (unservedKinds.has(key)) this.#noteUnserved(key, value, place('key'))
      else this.#unknownRoot(key, place('key'))
    }
    return { rows: this.#rows, problems: this.#problems, warnings: this.#warnings() }
  }

  #unknownRoot(key: string, place: Place): void {
    const { code, message, fix } = unknownField([key], [])
    const close = nearest(key, rootNames)
    const hint = close === undefined ? fix : `Did you mean ${close}?`
    this.#problems.push({ code, message, fix: hint, place })
  }

  #noteUnserved(name: string, value: unknown, place: Place): void {
    if (value === null || (Array.isArray(value) && value.length === 0)) return
    const places = this.#unserved.get(name)
    if (places === undefined) this.#unserved.set(name, [place])
    else places.push(place)
  }

  /** The url wins over fields beside it, and silently would mean that a mistake in them is not seen. */
  #noteOverridden(
    used: Readonly<Record<string, unknown>>,
    fields: Readonly<Record<string, unknown>>,
    place: Row['place']
  ): void {
    for (const part of URL_PARTS) {
      const value = fields[part] ?? used[part]
      if (value === used[part]) continue
      this.#overridden.push({
        code: 'POSTERN_CONFIG_UNUSED',
        message: 'has no effect, since url says it',
        fix: 'Leave it out, or write the parts of the url in its place',
        place: place([part], 'key')
      })
    }
  }

  #warnings(): readonly Problem[] {
    const unserved = [...this.#unserved].map(([name, places]) => ({
      code: 'POSTERN_CONFIG_NOT_SERVED',
      message: `this release does not serve ${name}; ignored here${
        places.length > 1
          ? ` and in lines ${places
              .slice(1)
              .map(place => place.line)
              .join(', ')}`
          : ''
      }`,
      fix: 'Remove them, or keep them for other tools',
      place: places[0]!
    }))
    return [...unserved, ...this.#overridden]
  }

  #list(
    kind: Kind,
    value: unknown,
    path: Segments,
    parent: Row['parent'],
    place: (at: 'key' | 'value') => Place
  ): void {
    if (value === null) return
    if (!Array.isArray(value)) {
      const fix = `Write ${kind.name} as a list, one "- " per entity`
      const message = 'expected an array'
      this.#problems.push({
        code: 'POSTERN_CONFIG_INVALID_VALUE',
        message,
        fix,
        place: place('value')
      })
      return
    }
    for (const [index, item] of value.entries()) {
      this.#entity(kind, item, value, index, [...path, index], parent)
    }
  }

  #entity(
    kind: Kind,
    item: unknown,
    list: unknown[],
    index: number,
    path: Segments,
    parent: Row['parent']
  ): void {
    const document = this.#document
    if (typeof item === 'string' && kind.name === 'snis') {
      const place = (segments: Segments = []) => ({
        ...document.place(list, path.slice(0, -1), [index]),
        path: pathText([...path, ...segments])
      })
      this.#rows.push({ kind, fields: { name: item }, parent, place })
      return
    }
    if (!isRecord(item)) {
      this.#problems.push({
        code: 'POSTERN_CONFIG_INVALID_VALUE',
        message: 'expected a record',
        fix: 'Write the fields of the entity as a map',
        place: document.place(list, path.slice(0, -1), [index])
      })
      return
    }
    const fields: Record<string, unknown> = {}
    const nested: [key: string, member: unknown, child: Kind, field: string][] = []
    const placeOf: Row['place'] = (segments = [], at = 'value') =>
      document.place(item, path, segments, at)
    /** What is wrong with a part of a url is told at the url. */
    const place: Row['place'] = (segments = [], at) =>
      typeof fields.url === 'string' && URL_PARTS.has(segments[0]!)
        ? placeOf(['url'], at)
        : placeOf(segments, at)
    for (const [key, member] of Object.entries(item)) {
      if (key === '_comment' || key === '_ignore') continue
      const child = kindsByName.get(key)
      const field = child === undefined ? undefined : nestingField(kind, child)
      const isOwn = Object.hasOwn((kind.schema as { properties?: object }).properties ?? {}, key)
      if (!isOwn && child !== undefined && field !== undefined)
        nested.push([key, member, child, field])
      else if (!isOwn && unservedKinds.has(key))
        this.#noteUnserved(key, member, place([key], 'key'))
      else fields[key] = member
    }
    const authored: Row = { kind, fields, parent, place }
    const row = { ...authored, fields: expandShorthands(authored, this.#version, this.#problems) }
    if (typeof fields.url === 'string') this.#noteOverridden(row.fields, fields, placeOf)
    this.#rows.push(row)
    for (const [key, member, child, field] of nested) {
      this.#list(child, member, [...path, key], { field, row }, at => place([key], at))
    }
  }
}
