import type { Config, Entities, ReferenceUse } from './config.ts'

/** Entities by their places among those of their kind. Crosses threads as plain data. */
export type Touched = ReadonlyMap<keyof Entities, readonly number[]>

/** Uses of one entity. */
export interface EntityUses {
  readonly kind: keyof Entities
  /** Its place among those of its kind. */
  readonly index: number
  /** Every use of it. */
  readonly all: readonly ReferenceUse[]
}

/** Where references stand, found from either end. Made once for a configuration. */
export class UseIndex {
  readonly config: Config
  /** Places in `config.uses`; nearly always one alone, kept without a list. */
  readonly #byReference = new Map<string, number | number[]>()

  constructor(config: Config) {
    this.config = config
    for (const [at, { references }] of config.uses.entries()) {
      for (const text of references) {
        const known = this.#byReference.get(text)
        if (typeof known === 'object') known.push(at)
        else this.#byReference.set(text, known === undefined ? at : [known, at])
      }
    }
  }

  /** Every use of a reference. */
  of(reference: string): readonly ReferenceUse[] {
    return this.#placesOf(reference).map(at => this.config.uses[at]!)
  }

  /** The entities that use any of these references, in the order of the file. Without any, all that use one. */
  entities(references?: Iterable<string>): readonly EntityUses[] {
    const { uses } = this.config
    const places =
      references === undefined
        ? uses.keys()
        : [...references].flatMap(text => this.#placesOf(text)).sort((a, b) => a - b)
    const found: EntityUses[] = []
    let end = 0
    for (const at of places) {
      // The uses of an entity follow each other.
      if (at < end) continue
      const { kind, index } = uses[at]!
      const same = (use: ReferenceUse | undefined): boolean =>
        use?.kind === kind && use.index === index
      let start = at
      while (same(uses[start - 1])) start--
      end = at + 1
      while (same(uses[end])) end++
      found.push({ kind, index, all: uses.slice(start, end) })
    }
    return found
  }

  #placesOf(reference: string): readonly number[] {
    const places = this.#byReference.get(reference)
    if (places === undefined) return []
    return typeof places === 'number' ? [places] : places
  }
}

/** The same entities as places alone. */
export function touchedBy(entities: readonly EntityUses[]): Touched {
  const touched = new Map<keyof Entities, number[]>()
  for (const { kind, index } of entities) {
    const places = touched.get(kind)
    if (places === undefined) touched.set(kind, [index])
    else places.push(index)
  }
  return touched
}
