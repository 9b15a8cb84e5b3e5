import fc from 'fast-check'

/** How far one fuzzer goes, and where it begins. */
export interface Budget {
  /** The same seed makes the same inputs in the same order. */
  readonly seed: number
  readonly milliseconds: number
  /** Inputs at most; as many as fit into the time when left out. */
  readonly runs?: number
  /** Where a failure was found, as its report says: goes there at once. */
  readonly path?: string
}

/** Runs a property within a budget; gives how many inputs it saw. Throws with the smallest that fails. */
export async function explore<T>(
  property: fc.IRawProperty<T>,
  { seed, milliseconds, runs, path }: Budget
): Promise<number> {
  const details = await fc.check(property, {
    seed,
    numRuns: runs ?? Number.MAX_SAFE_INTEGER,
    interruptAfterTimeLimit: milliseconds,
    ...(path === undefined ? {} : { path })
  })
  if (details.failed) throw new Error(fc.defaultReportMessage(details))
  return details.numRuns
}

/** Where and how a text is changed. */
interface Edit {
  /** 0 to 1: the place within the text. */
  readonly at: number
  readonly remove: number
  readonly insert: string
}

/** Texts changed in a few places: pieces taken out, tokens put in, pieces said again. */
export function mutated(
  texts: fc.Arbitrary<string>,
  tokens: readonly string[]
): fc.Arbitrary<string> {
  const edit: fc.Arbitrary<Edit> = fc.record({
    at: fc.double({ min: 0, max: 1, noNaN: true }),
    remove: fc.oneof(fc.constant(0), fc.nat(3), fc.nat(60)),
    insert: fc.oneof(fc.constantFrom('', ...tokens), fc.string({ maxLength: 4, unit: 'binary' }))
  })
  return fc
    .tuple(texts, fc.array(edit, { maxLength: 4 }), fc.boolean())
    .map(([text, edits, again]) => {
      let changed = text
      for (const { at, remove, insert } of edits) {
        const from = Math.floor(at * changed.length)
        const gone = changed.slice(from, from + remove)
        changed =
          changed.slice(0, from) +
          insert +
          (again ? gone + gone : '') +
          changed.slice(from + remove)
      }
      return changed
    })
}
