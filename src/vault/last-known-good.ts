import type { Fetched } from './backend.ts'

/** Values that were in force, kept for a start during an outage. */
export interface LastKnownGood {
  /** What was kept of a resource and how many seconds ago it was read, unless that is too long. */
  get(identity: string): { readonly fetched: Fetched; readonly age: number } | undefined
  /** Keeps what is in force; `age` as before. */
  keep(identity: string, fetched: Fetched, age: number): void
  /** Forgets a resource: the vault says that there is nothing, or nothing for the gateway. */
  drop(identity: string): void
}
