import type { Segments } from './document.ts'
import { deepFreeze } from './freeze.ts'

/** The JSON Schema keyword that marks a field which may hold `{vault://…}`. */
export const REFERENCEABLE = 'referenceable'

type Schema = Readonly<Record<string, unknown>>

/** Whether this is a map, not an array or null. */
export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

const unfolded = new WeakMap<Schema, readonly Schema[]>()

/** A schema and those its combinators apply to the same value. */
export function branches(schema: Schema): readonly Schema[] {
  const known = unfolded.get(schema)
  if (known !== undefined) return known
  const nested = [schema.anyOf, schema.oneOf, schema.allOf].flatMap(list =>
    Array.isArray(list) ? (list as Schema[]).flatMap(branches) : []
  )
  const all = [schema, ...nested]
  unfolded.set(schema, all)
  return all
}

const patterns = new Map<string, RegExp>()

function patternOf(source: string): RegExp {
  const known = patterns.get(source)
  if (known !== undefined) return known
  const pattern = new RegExp(source, 'u')
  patterns.set(source, pattern)
  return pattern
}

/** The schemas that apply to one member of a value. */
export function memberSchemas(schemas: readonly Schema[], key: string | number): readonly Schema[] {
  return schemas
    .flatMap(schema => branches(schema))
    .flatMap(schema => {
      if (typeof key === 'number') return isRecord(schema.items) ? [schema.items] : []
      if (isRecord(schema.properties) && isRecord(schema.properties[key])) {
        return [schema.properties[key]]
      }
      const byPattern = isRecord(schema.patternProperties)
        ? Object.entries(schema.patternProperties)
        : []
      const matching = byPattern.filter(([pattern]) => patternOf(pattern).test(key))
      if (matching.length > 0) return matching.map(([, member]) => member).filter(isRecord)
      return isRecord(schema.additionalProperties) ? [schema.additionalProperties] : []
    })
}

/** Whether a text at this place may hold references. */
export function isReferenceable(schemas: readonly Schema[]): boolean {
  return schemas.some(schema => branches(schema).some(branch => branch[REFERENCEABLE] === true))
}

/**
 * What schemas say of one place of a value, worked out once: every entity is walked at load and again
 * when a secret of it rotates.
 */
export class Shape {
  readonly #schemas: readonly Schema[]
  /** Shapes of the members that schemas name: there are only so many. */
  readonly #named = new Map<string, Shape>()
  readonly #names: ReadonlySet<string>
  #items: Shape | undefined
  #defaults: Shape['defaults'] | undefined
  /** Whether a text at this place may hold references. */
  readonly referenceable: boolean
  /** Whether any text at this place or below it may. */
  readonly holdsReferences: boolean
  /** The JSON types that values at this place may have; empty when any. */
  readonly types: ReadonlySet<string>

  constructor(schemas: readonly Schema[]) {
    this.#schemas = schemas
    const all = schemas.flatMap(branches)
    this.#names = new Set(
      all.flatMap(({ properties }) => (isRecord(properties) ? Object.keys(properties) : []))
    )
    this.referenceable = isReferenceable(schemas)
    this.holdsReferences = schemas.some(holdsMark)
    this.types = new Set(all.flatMap(({ type }) => (type as string | string[] | undefined) ?? []))
  }

  /** The shape of a member of a map. */
  member(key: string): Shape {
    let shape = this.#named.get(key)
    if (shape !== undefined) return shape
    shape = shapeOf(memberSchemas(this.#schemas, key))
    if (this.#names.has(key)) this.#named.set(key, shape)
    return shape
  }

  /** The shape of the items of a list. */
  get items(): Shape {
    this.#items ??= shapeOf(memberSchemas(this.#schemas, 0))
    return this.#items
  }

  /** What members are when they are not given. Frozen, and the same in all values of this shape. */
  get defaults(): readonly (readonly [key: string, value: unknown])[] {
    this.#defaults ??= this.#schemas.flatMap(({ properties }) =>
      Object.entries(isRecord(properties) ? properties : {}).flatMap(([key, property]) =>
        isRecord(property) && property.default !== undefined
          ? [[key, deepFreeze(prepare(property, structuredClone(property.default)))] as const]
          : []
      )
    )
    return this.#defaults
  }

  /** Whether an explicit null means that a member is absent. */
  isAbsentIfNull(key: string): boolean {
    const below = memberSchemas(this.#schemas, key)
    return below.length > 0 && !takesNull(below) && !isRequired(this.#schemas, key)
  }
}

const NO_SHAPE = new Shape([])
const shapes = new WeakMap<Schema, Shape>()

/** The shape that schemas give together. */
export function shapeOf(schemas: readonly Schema[]): Shape {
  const [only] = schemas
  if (only === undefined) return NO_SHAPE
  if (schemas.length > 1) return new Shape(schemas)
  let shape = shapes.get(only)
  if (shape === undefined) {
    shape = new Shape(schemas)
    shapes.set(only, shape)
  }
  return shape
}

/** Whether a schema, or one of the parts it describes, is marked. */
function holdsMark(schema: Schema): boolean {
  return branches(schema).some(
    ({ [REFERENCEABLE]: mark, items, properties, patternProperties, additionalProperties }) =>
      mark === true ||
      [items, additionalProperties]
        .concat(...[properties, patternProperties].filter(isRecord).map(Object.values))
        .some(part => isRecord(part) && holdsMark(part))
  )
}

function takesNull(schemas: readonly Schema[]): boolean {
  return schemas.some(schema =>
    branches(schema).some(
      branch =>
        branch.type === 'null' ||
        branch.const === null ||
        (Array.isArray(branch.type) && branch.type.includes('null')) ||
        (Array.isArray(branch.enum) && branch.enum.includes(null)) ||
        Object.keys(branch).every(keyword => ['default', 'description', 'title'].includes(keyword))
    )
  )
}

/**
 * A copy of a value with every default filled in. An explicit null where the schema allows absence
 * leaves the member out and its default unused; elsewhere the null stays, for validation to refuse.
 */
export function prepare(schema: object, value: unknown): unknown {
  return prepareBy(shapeOf([schema as Schema]), value)
}

function prepareBy(shape: Shape, value: unknown): unknown {
  if (typeof value !== 'object' || value === null) return value
  if (Array.isArray(value)) return value.map(item => prepareBy(shape.items, item))
  const copy: Record<string, unknown> = {}
  for (const [key, member] of Object.entries(value)) {
    if (member === null && shape.isAbsentIfNull(key)) continue
    const isPlain = typeof member !== 'object' || member === null
    copy[key] = isPlain ? member : prepareBy(shape.member(key), member)
  }
  for (const [key, given] of shape.defaults) {
    if (!Object.hasOwn(value, key)) copy[key] = given
  }
  return copy
}

function isRequired(schemas: readonly Schema[], key: string): boolean {
  return schemas.some(schema =>
    branches(schema).some(branch => Array.isArray(branch.required) && branch.required.includes(key))
  )
}

/** One text of a value, with whether its schema lets it hold references. */
export interface TextField {
  readonly segments: Segments
  readonly text: string
  readonly referenceable: boolean
}

/**
 * The texts below a value for which `wanted` holds, in document order. `all` takes every field as
 * referenceable.
 */
export function textFields(
  schema: object,
  value: unknown,
  wanted: (text: string) => boolean = () => true,
  all = false
): readonly TextField[] {
  const found: TextField[] = []
  const segments: (string | number)[] = []
  const visit = (shape: Shape, part: unknown): void => {
    if (typeof part === 'string') {
      if (!wanted(part)) return
      const referenceable = all || shape.referenceable
      found.push({ segments: [...segments], text: part, referenceable })
    } else if (Array.isArray(part)) {
      for (const [index, item] of part.entries()) below(index, shape.items, item)
    } else if (isRecord(part)) {
      for (const [key, member] of Object.entries(part)) {
        if (typeof member === 'string' ? wanted(member) : isRecord(member) || Array.isArray(member))
          below(key, shape.member(key), member)
      }
    }
  }
  const below = (segment: string | number, shape: Shape, part: unknown): void => {
    segments.push(segment)
    visit(shape, part)
    segments.pop()
  }
  visit(shapeOf([schema as Schema]), value)
  return found
}
