import type { Static, TSchema } from 'typebox'
import * as Type from 'typebox'
import { looksLikeReference } from '../vault/reference.ts'
import { Secret } from '../vault/secret.ts'
import { deepFreeze } from './freeze.ts'
import { toPointer, validatePlain } from './validator.ts'
import { isRecord, REFERENCEABLE, type Shape, shapeOf } from './walk.ts'

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

type Leaf = (shape: Shape, text: string) => unknown

/**
 * A new frozen value in which every referenceable text is a `Secret`, literals too, and references
 * in integer, number and boolean fields are of that type; parts without such texts are those of the
 * value. `resolve` is asked for texts that hold references; what it throws passes through.
 */
export function resolveFields(
  schema: TSchema,
  value: unknown,
  resolve: (template: string) => ResolvedField
): unknown {
  return deepFreeze(
    mapReferenceable(schema, value, (shape, text) => {
      const field: ResolvedField = looksLikeReference(text) ? resolve(text) : { value: text }
      const typed = coerce(shape, field.value)
      return typeof typed === 'string'
        ? Object.freeze(new Secret(field.value, field.previous, field.since))
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
  return mapReferenceable(schema, value, (shape, text) =>
    looksLikeReference(text) ? coerce(shape, resolve(text)) : text
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

/** A copy with other leaves; parts that can hold none are shared with the value. */
function mapReferenceable(schema: TSchema, value: unknown, leaf: Leaf): unknown {
  const visit = (shape: Shape, part: unknown): unknown => {
    if (!shape.holdsReferences) return part
    if (typeof part === 'string') return shape.referenceable ? leaf(shape, part) : part
    if (Array.isArray(part)) return part.map(item => visit(shape.items, item))
    if (!isRecord(part)) return part
    const copy = { ...part }
    for (const key of Object.keys(part)) copy[key] = visit(shape.member(key), part[key])
    return copy
  }
  return visit(shapeOf([schema as Readonly<Record<string, unknown>>]), value)
}

/** Text as the type its field has; text that does not read as that type stays text. */
function coerce({ types }: Shape, text: string): string | number | boolean {
  if (types.has('string')) return text
  const trimmed = text.trim()
  if (types.has('integer') && /^-?\d{1,15}$/.test(trimmed)) return Number(trimmed)
  if (types.has('number') && /^-?\d{1,15}(\.\d{1,15})?$/.test(trimmed)) return Number(trimmed)
  if (types.has('boolean') && (trimmed === 'true' || trimmed === 'false')) return trimmed === 'true'
  return text
}
