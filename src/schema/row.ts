import type { Place } from '../errors.ts'
import type { Segments } from './document.ts'
import type { Kind } from './kinds.ts'

/** One entity as authored: its own fields, apart from the entities nested in it. */
export interface Row {
  readonly kind: Kind
  readonly fields: Readonly<Record<string, unknown>>
  /** The entity it is nested in and the field that this sets. */
  readonly parent: { readonly field: string; readonly row: Row } | undefined
  /** Where a part of it stands; the entity itself when no segments are given. */
  place(segments?: Segments, at?: 'key' | 'value'): Place
}
