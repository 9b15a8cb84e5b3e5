import { Ajv, type ErrorObject, type ValidateFunction } from 'ajv'
import addFormats from 'ajv-formats'
import { distance } from 'fastest-levenshtein'
import type { TSchema } from 'typebox'
import { looksLikeReference } from '../vault/reference.ts'
import type { Segments } from './document.ts'
import { type Finding, formats } from './formats.ts'
import { canonicalJson } from './identity.ts'
import { REFERENCEABLE } from './walk.ts'

/** A JSON Schema as plain data; TypeBox schemas are such objects. */
export type JsonSchema = Readonly<Record<string, unknown>>

/** Something a value's schema forbids. */
export interface Violation extends Finding {
  readonly code: string
  /** From the validated value to the part concerned. */
  readonly segments: Segments
  /** Whether the key itself is wrong rather than its value. */
  readonly atKey: boolean
}

const isText = (value: unknown): boolean => typeof value === 'string'

const HOLDS_REFERENCE = 'posternHoldsReference'

function createAjv(): Ajv {
  const ajv = new Ajv({
    allErrors: true,
    strict: false,
    verbose: true,
    logger: false,
    // Schemas are code, not input: checking them against their own schema, and the code generator's
    // pass that V8 does better, take more than half of the time a small configuration takes to load.
    validateSchema: false,
    code: { optimize: false }
  })
  // ESM interop: the plugin is the module's default export or the module itself.
  const add =
    (addFormats as unknown as { default?: typeof addFormats.default }).default ?? addFormats
  ;(add as unknown as (ajv: Ajv) => void)(ajv)
  for (const [name, format] of Object.entries(formats)) {
    ajv.addFormat(name, { type: 'string', validate: text => format.check(text) === undefined })
  }
  ajv.addKeyword(REFERENCEABLE)
  // Ajv's own compares objects by their toString member, which a file may set to anything.
  ajv.removeKeyword('uniqueItems')
  ajv.addKeyword({
    keyword: 'uniqueItems',
    type: 'array',
    schemaType: 'boolean',
    errors: false,
    validate: (on: boolean, items: readonly unknown[]) =>
      !on || new Set(items.every(isText) ? items : items.map(canonicalJson)).size === items.length
  })
  ajv.addKeyword({
    keyword: HOLDS_REFERENCE,
    errors: false,
    validate: (_: unknown, data: unknown) => typeof data === 'string' && looksLikeReference(data)
  })
  return ajv
}

const ajv = createAjv()
const authored = new WeakMap<object, ValidateFunction>()
const resolved = new WeakMap<object, ValidateFunction>()

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/** The schema of what a file may hold: each referenceable part also takes text with references. */
function orReference(schema: unknown): unknown {
  if (Array.isArray(schema)) return schema.map(orReference)
  if (!isObject(schema)) return schema
  if (schema[REFERENCEABLE] === true)
    return { if: { [HOLDS_REFERENCE]: true }, else: { ...schema } }
  return Object.fromEntries(
    Object.entries(schema).map(([key, value]) => {
      if (['enum', 'const', 'default', 'examples'].includes(key)) return [key, value]
      if (key !== 'properties' || !isObject(value)) return [key, orReference(value)]
      // A property may be named like a keyword.
      const properties = Object.entries(value).map(([name, member]) => [name, orReference(member)])
      return [key, Object.fromEntries(properties)]
    })
  )
}

function compiled(cache: WeakMap<object, ValidateFunction>, schema: TSchema): ValidateFunction {
  const known = cache.get(schema)
  if (known !== undefined) return known
  const validate = ajv.compile((cache === authored ? orReference(schema) : schema) as object)
  cache.set(schema, validate)
  return validate
}

/** The name closest to `name`, when it is close enough to be what was meant. */
export function nearest(name: string, known: Iterable<string>): string | undefined {
  let best: string | undefined
  let bestDistance = Math.min(3, Math.floor(name.length / 2)) + 0.5
  for (const candidate of known) {
    const swapped = letters(name) === letters(candidate) ? 1 : Number.POSITIVE_INFINITY
    const away = Math.min(swapped, distance(name.toLowerCase(), candidate.toLowerCase()))
    if (away < bestDistance) [best, bestDistance] = [candidate, away]
  }
  return best
}

function letters(text: string): string {
  return [...text.toLowerCase()].sort().join('')
}

/** What the file may hold: references stand unresolved in referenceable fields. */
export function validateAuthored(schema: TSchema, value: unknown): readonly Violation[] {
  return violations(compiled(authored, schema), value)
}

/** A value whose references are resolved to plain text, by the same schema. */
export function validatePlain(schema: TSchema, value: unknown): readonly Violation[] {
  return violations(compiled(resolved, schema), value)
}

function violations(validate: ValidateFunction, value: unknown): readonly Violation[] {
  if (validate(value)) return []
  const errors = (validate.errors ?? []).filter(error => error.keyword !== 'if')
  const seen = new Set<string>()
  const found: Violation[] = []
  for (const error of withoutBranches(errors)) {
    const violation = describe(error)
    const key = JSON.stringify([violation.segments, violation.message])
    if (!seen.has(key)) found.push(violation)
    seen.add(key)
  }
  return found
}

const isUnion = (error: ErrorObject) => error.keyword === 'anyOf' || error.keyword === 'oneOf'

/**
 * A failed union comes with the errors of every branch. Those of the one branch whose type fits are
 * told in its place; when none or several fit, the union itself is told.
 */
function withoutBranches(errors: readonly ErrorObject[]): readonly ErrorObject[] {
  let rest = [...errors]
  for (const union of errors.filter(isUnion)) {
    if (!rest.includes(union)) continue
    const prefix = `${union.schemaPath}/`
    const branches = Map.groupBy(
      rest.filter(error => error !== union && error.schemaPath.startsWith(prefix)),
      error => error.schemaPath.slice(prefix.length).split('/')[0]!
    )
    const fitting = [...branches.values()].filter(
      branch =>
        !branch.some(
          error =>
            error.instancePath === union.instancePath &&
            ['type', 'const', 'enum'].includes(error.keyword)
        )
    )
    const keep = fitting.length === 1 ? fitting[0]! : [union]
    const drop = new Set([union, ...[...branches.values()].flat()])
    rest = [...rest.filter(error => !drop.has(error)), ...keep]
  }
  return rest
}

/** Segments of a JSON pointer (RFC 6901), as strings. */
export function pointerSegments(pointer: string): readonly string[] {
  return pointer
    .split('/')
    .slice(1)
    .map(part => part.replaceAll('~1', '/').replaceAll('~0', '~'))
}

/** JSON pointer (RFC 6901) of these segments. */
export function toPointer(segments: Segments): string {
  return segments
    .map(part => `/${String(part).replaceAll('~', '~0').replaceAll('/', '~1')}`)
    .join('')
}

const ARTICLES: Readonly<Record<string, string>> = {
  string: 'a string',
  number: 'a number',
  integer: 'an integer',
  boolean: 'a boolean',
  array: 'an array',
  object: 'a record',
  null: 'null'
}

const TYPE_FIXES: Readonly<Record<string, string>> = {
  string: 'Write text; quote it when it looks like a number, a boolean or a map',
  number: 'Write a number without quotes',
  integer: 'Write a whole number without quotes',
  boolean: 'Write true or false without quotes',
  array: 'Write a list: [a, b], or one "- item" per line',
  object: 'Write a map of field names and values'
}

function describe(error: ErrorObject): Violation {
  const segments: (string | number)[] = [...pointerSegments(error.instancePath)]
  const invalid = (finding: Finding): Violation => ({
    code: 'POSTERN_CONFIG_INVALID_VALUE',
    segments,
    atKey: false,
    ...finding
  })
  const { params, keyword } = error
  if (error.data === null && keyword !== 'additionalProperties') return required(segments, error)
  switch (keyword) {
    case 'required':
      return required([...segments, params.missingProperty as string], error)
    case 'additionalProperties':
    case 'unevaluatedProperties': {
      const name = (params.additionalProperty ?? params.unevaluatedProperty) as string
      const patterns = (error.parentSchema as JsonSchema | undefined)?.patternProperties
      if (isObject(patterns)) {
        const fix = `Write a name that matches ${Object.keys(patterns).join(' or ')}`
        return {
          ...invalid({ message: 'invalid name', fix }),
          segments: [...segments, name],
          atKey: true
        }
      }
      return unknownField([...segments, name], Object.keys(propertiesOf(error)))
    }
    case 'type': {
      const types = ([] as string[]).concat(params.type as string | string[])
      const expected = types.map(type => ARTICLES[type] ?? type).join(' or ')
      return invalid({
        message: `expected ${expected}`,
        fix: TYPE_FIXES[types[0]!] ?? 'Correct the value'
      })
    }
    case 'enum':
    case 'const': {
      const allowed = (params.allowedValues ?? [params.allowedValue]) as unknown[]
      const list = allowed.map(String).join(', ')
      const close =
        typeof error.data === 'string' ? nearest(error.data, allowed.map(String)) : undefined
      const fix = close === undefined ? 'Write one of these' : `Did you mean ${close}?`
      return invalid({ message: `expected one of: ${list}`, fix })
    }
    case 'format':
      return invalid(
        formats[params.format as string]?.check(String(error.data)) ?? {
          message: `not a valid ${params.format as string}`,
          fix: `Write a ${params.format as string}`
        }
      )
    case 'anyOf':
    case 'oneOf':
      return invalid(union(error))
    default:
      return invalid(bound(error))
  }
}

function propertiesOf(error: ErrorObject): object {
  const properties = (error.parentSchema as JsonSchema | undefined)?.properties
  return isObject(properties) ? properties : {}
}

function required(segments: Segments, error: ErrorObject): Violation {
  const name = String(segments.at(-1) ?? 'a value')
  const property = (propertiesOf(error) as Record<string, JsonSchema | undefined>)[name]
  const description = property?.description
  const fix =
    error.data === null
      ? 'Give it a value, or leave the key out if it has a default'
      : `Add ${name}${typeof description === 'string' ? `: ${description}` : ''}`
  return {
    code: 'POSTERN_CONFIG_REQUIRED',
    message: 'required field missing',
    fix,
    segments,
    atKey: false
  }
}

/** The finding of a field that does not exist, with the nearest name that does. */
export function unknownField(segments: Segments, known: readonly string[]): Violation {
  const close = nearest(String(segments.at(-1)), known)
  const list =
    known.length > 0 && known.length <= 8 ? `Known here: ${known.join(', ')}` : 'Remove it'
  return {
    code: 'POSTERN_CONFIG_UNKNOWN_FIELD',
    message: 'unknown field',
    fix: close === undefined ? list : `Did you mean ${close}?`,
    segments,
    atKey: true
  }
}

function union(error: ErrorObject): Finding {
  const branches = Array.isArray(error.schema) ? (error.schema as JsonSchema[]) : []
  const constants = branches.flatMap(branch =>
    branch.const !== undefined
      ? [String(branch.const)]
      : Array.isArray(branch.enum)
        ? branch.enum.map(String)
        : []
  )
  if (constants.length === branches.length) {
    const close = typeof error.data === 'string' ? nearest(error.data, constants) : undefined
    const fix = close === undefined ? 'Write one of these' : `Did you mean ${close}?`
    return { message: `expected one of: ${constants.join(', ')}`, fix }
  }
  const types = new Set(branches.flatMap(branch => ARTICLES[String(branch.type)] ?? []))
  const message =
    types.size > 0 ? `expected ${[...types].join(' or ')}` : 'matches none of its forms'
  return { message, fix: 'Write one of the forms the field takes' }
}

function patternFix(pattern: string, schema: ErrorObject['parentSchema']): string {
  if (pattern === '\\S') return 'It is blank: give it a value, or leave it out'
  const { examples } = (schema ?? {}) as { readonly examples?: readonly unknown[] }
  const like = examples === undefined ? '' : `, ${examples.map(String).join(' or ')} say`
  return `Write text that matches ${pattern}${like}`
}

function bound({ keyword, params, parentSchema, message }: ErrorObject): Finding {
  const { minimum, maximum } = (parentSchema ?? {}) as Record<string, unknown>
  const limit = String(params.limit)
  switch (keyword) {
    case 'minimum':
    case 'maximum':
      if (minimum !== undefined && maximum !== undefined) {
        const range = `value should be between ${String(minimum)} and ${String(maximum)}`
        return { message: range, fix: 'Write a number of this range' }
      }
      return keyword === 'minimum'
        ? { message: `value should be at least ${limit}`, fix: `Write ${limit} or more` }
        : { message: `value should be at most ${limit}`, fix: `Write ${limit} or less` }
    case 'exclusiveMinimum':
      return { message: `value must be greater than ${limit}`, fix: `Write more than ${limit}` }
    case 'exclusiveMaximum':
      return { message: `value must be less than ${limit}`, fix: `Write less than ${limit}` }
    case 'multipleOf':
      return {
        message: `value must be a multiple of ${String(params.multipleOf)}`,
        fix: 'Round it'
      }
    case 'minLength':
    case 'minItems':
    case 'minProperties':
      return {
        message: `length must be at least ${limit}`,
        fix: 'Give it a longer value, or leave it out'
      }
    case 'maxLength':
    case 'maxItems':
    case 'maxProperties':
      return { message: `length must be at most ${limit}`, fix: 'Shorten it' }
    case 'uniqueItems':
      return { message: 'the same item stands twice', fix: 'Remove one of them' }
    case 'pattern':
      return { message: 'invalid value', fix: patternFix(String(params.pattern), parentSchema) }
    default:
      return { message: message ?? 'invalid value', fix: 'Correct the value' }
  }
}
