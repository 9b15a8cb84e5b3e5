import type { Static, TSchema } from 'typebox'
import * as Type from 'typebox'
import { looksLikeReference } from '../vault/reference.ts'
import { Secret } from '../vault/secret.ts'
import { deepFreeze } from './freeze.ts'
import { toPointer, validatePlain } from './validator.ts'
import { branches, isRecord, isReferenceable, memberSchemas, REFERENCEABLE } from './walk.ts'

export { REFERENCEABLE } from './walk.ts'

/** What a plugin gets for a referenceable field: strings arrive as {@link Secret}, the rest resolved. */
export type Resolved<T> = T extends string ? Secret : T

/** The shape in the file of what a plugin gets resolved: `Secret`s as text. */
export type Authored<T> = T extends Secret
  ? string
  : T extends readonly (infer E)[]
    ? readonly Authored<E>[]
    : T extends object
      ? { [K in keyof T]: Authored<T[K]> }
      : T

/**
 * Marks a string, integer, number or boolean field as one that may hold references. The file may
 * hold a reference or a literal; the plugin gets the resolved value, strings as `Secret`.
 * `Type.Optional` goes around it, never inside: throws a TypeError there.
 */
export function referenceable<S extends TSchema>(schema: S) {
  if (Type.IsOptional(schema)) throw new TypeError('write Type.Optional(referenceable(…))')
  return Type.Unsafe<Resolved<Static<S>>>({ ...schema, [REFERENCEABLE]: true })
}

/** What a text with references stands for now, and stood for before the last rotation. */
export interface ResolvedField {
  readonly value: string
  readonly previous?: string
  /** Which change brought the value into force; see `Secret.since`. */
  readonly since?: number
}

/** A constraint that a resolved value breaks; `path` is a JSON pointer. No text holds the value. */
export interface FieldViolation {
  readonly path: string
  readonly message: string
  readonly fix: string
}

type Schema = Readonly<Record<string, unknown>>
type Leaf = (schemas: readonly Schema[], text: string) => unknown

/**
 * A new frozen value in which every referenceable text is a `Secret`, literals too, and references
 * in integer, number and boolean fields are of that type. `resolve` is asked for texts that hold
 * references; what it throws passes through.
 */
export function resolveFields(
  schema: TSchema,
  value: unknown,
  resolve: (template: string) => ResolvedField
): unknown {
  return freezeAround(
    mapReferenceable(schema, value, (schemas, text) => {
      const field: ResolvedField = looksLikeReference(text) ? resolve(text) : { value: text }
      const typed = coerce(schemas, field.value)
      return typeof typed === 'string'
        ? new Secret(field.value, field.previous, field.since)
        : typed
    })
  )
}

/** The value with every reference replaced by plain text or its coerced value; only for validation. */
export function plainFields(
  schema: TSchema,
  value: unknown,
  resolve: (template: string) => string
): unknown {
  return mapReferenceable(schema, value, (schemas, text) =>
    looksLikeReference(text) ? coerce(schemas, resolve(text)) : text
  )
}

/** What a resolved plain value breaks of its schema; empty when it fits. */
export function validateResolved(schema: TSchema, value: unknown): readonly FieldViolation[] {
  return validatePlain(schema, value).map(({ segments, message, fix }) => ({
    path: toPointer(segments),
    message,
    fix
  }))
}

function mapReferenceable(schema: object, value: unknown, leaf: Leaf): unknown {
  const visit = (schemas: readonly Schema[], part: unknown): unknown => {
    if (typeof part === 'string') return isReferenceable(schemas) ? leaf(schemas, part) : part
    if (Array.isArray(part)) return part.map((item, i) => visit(memberSchemas(schemas, i), item))
    if (!isRecord(part)) return part
    return Object.fromEntries(
      Object.entries(part).map(([key, member]) => [key, visit(memberSchemas(schemas, key), member)])
    )
  }
  return visit([schema as Schema], value)
}

/** Text as the type its field has; text that does not read as that type stays text. */
function coerce(schemas: readonly Schema[], text: string): string | number | boolean {
  const types = new Set(
    schemas
      .flatMap(branches)
      .flatMap(schema => (schema.type as string | string[] | undefined) ?? [])
  )
  if (types.has('string')) return text
  const trimmed = text.trim()
  if (types.has('integer') && /^-?\d{1,15}$/.test(trimmed)) return Number(trimmed)
  if (types.has('number') && /^-?\d{1,15}(\.\d{1,15})?$/.test(trimmed)) return Number(trimmed)
  if (types.has('boolean') && (trimmed === 'true' || trimmed === 'false')) return trimmed === 'true'
  return text
}

/** Freezes plain containers and leaves `Secret`s, which are immutable, as they are. */
function freezeAround(value: unknown): unknown {
  if (value instanceof Secret) return Object.freeze(value)
  if (Array.isArray(value) || isRecord(value)) {
    for (const part of Object.values(value)) freezeAround(part)
    return Object.freeze(value)
  }
  return deepFreeze(value)
}
