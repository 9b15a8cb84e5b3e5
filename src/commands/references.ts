import type { Problem } from '../errors.ts'
import { fingerprinter } from '../fingerprint.ts'
import { renderTable } from '../report.ts'
import type { Loaded, Use } from '../resolve.ts'
import { parseReference } from '../vault/reference.ts'
import type { Outcome } from '../vault/vaults.ts'
import type { Output } from './command.ts'

/** A reference at one place, and what it came to. */
export interface ReferenceRow {
  readonly reference: string
  /** `file:line:column`, or the environment variable. */
  readonly place: string
  readonly path: string
  readonly vault: string
  /** Empty when the vault names none. */
  readonly version: string
  /** Seconds since it was read; null before. */
  readonly age: number | null
  /** `unresolved` when no vault was asked. */
  readonly state: 'ok' | 'unresolved' | 'invalid' | Exclude<Outcome['state'], 'ok'>
  /** Empty when there is no value. */
  readonly fingerprint: string
  readonly message?: string
}

/** What the vaults said: outcomes, and the problems found with them. */
export interface Resolution {
  readonly outcomes: ReadonlyMap<string, Outcome>
  readonly problems: readonly Problem[]
  /** Key of the fingerprints; undefined makes them comparable within this output only. */
  readonly fingerprintKey: string | undefined
}

/** One row for each reference at each place, in file order; nothing is asked here. */
export function referenceRows(
  { set }: Loaded,
  uses: readonly Use[],
  resolution?: Resolution
): readonly ReferenceRow[] {
  const fingerprint = fingerprinter(resolution?.fingerprintKey)
  const ages = new Map(set.status().map(({ reference, age }) => [reference, age]))
  const row = (reference: string, { place }: Use): ReferenceRow => {
    const common = {
      reference,
      place:
        place.file === 'environment' ? place.path : `${place.file}:${place.line}:${place.column}`,
      path: place.file === 'environment' ? '' : place.path,
      vault: parseReference(reference).vault,
      age: ages.get(reference) ?? null
    }
    const outcome = resolution?.outcomes.get(reference)
    if (outcome === undefined)
      return { ...common, version: '', state: 'unresolved', fingerprint: '' }
    if (outcome.state !== 'ok')
      return {
        ...common,
        version: '',
        state: outcome.state,
        fingerprint: '',
        message: outcome.message
      }
    const misfit = resolution!.problems.find(
      problem => problem.reference?.includes(reference) && samePlace(problem.place, place)
    )
    return {
      ...common,
      version: outcome.version ?? '',
      state: misfit === undefined ? 'ok' : 'invalid',
      fingerprint: fingerprint(outcome.value),
      ...(misfit === undefined ? {} : { message: misfit.message })
    }
  }
  return uses.flatMap(use => use.references.map(reference => row(reference, use)))
}

function samePlace(a: Problem['place'], b: Problem['place']): boolean {
  return a.file === b.file && a.line === b.line && a.column === b.column && a.path === b.path
}

/** Writes the rows for people. */
export function showReferences(
  rows: readonly ReferenceRow[],
  { fingerprintKey }: Resolution,
  output: Output
): void {
  output.out(renderReferences(rows, output.color))
  if (fingerprintKey === undefined && rows.some(({ fingerprint }) => fingerprint !== ''))
    output.tell(
      'Fingerprints compare within this output, and with others under POSTERN_FINGERPRINT_KEY.'
    )
}

function renderReferences(rows: readonly ReferenceRow[], color: boolean): string {
  return renderTable(
    ['reference', 'place', 'vault', 'version', 'age', 'state', 'fingerprint'],
    rows.map(row => [
      row.reference,
      row.place,
      row.vault,
      row.version,
      row.age === null ? '' : `${row.age} s`,
      row.state,
      row.fingerprint
    ]),
    { color }
  )
}
