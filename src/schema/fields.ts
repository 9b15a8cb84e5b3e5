import type { Static, TSchema } from 'typebox'
import * as Type from 'typebox'

/** Lower-case UUID text. */
export const Uuid = Type.String({ format: 'uuid' })
/** Entity names: ASCII alphanumerics, `.`, `-`, `_`, `~` and non-ASCII characters. */
export const Name = Type.String({ minLength: 1, format: 'postern-name' })
export const Tags = Type.Array(Type.String({ minLength: 1, format: 'postern-tag' }), {
  uniqueItems: true
})
export const Path = Type.String({ format: 'postern-path' })
export const Port = Type.Integer({ minimum: 0, maximum: 65535 })

/** One of these literals; unlike a union of constants it keeps Ajv's message to one line. */
export function oneOf<const T extends readonly (string | number)[]>(
  values: T,
  options: { default?: T[number] } = {}
) {
  return Type.Unsafe<T[number]>({ enum: [...values], ...options })
}

export type { Static, TSchema }
