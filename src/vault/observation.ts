/** How one call to a vault ended. `absent` is an answer too: the vault said that nothing is there. */
export type ReadOutcome = 'ok' | 'absent' | 'denied' | 'unreachable' | 'throttled' | 'malformed'

/** What the vault layer tells of its work, for metrics. Nothing in it is ever a value. */
export type VaultEvent =
  | {
      readonly kind: 'read'
      /** The name references use: a prefix, or a type for its default vault. */
      readonly vault: string
      readonly type: string
      /** `probe` asked for the version alone. */
      readonly operation: 'fetch' | 'probe'
      readonly outcome: ReadOutcome
      /** From the first byte sent to the end of the answer; waiting for a turn is not counted. */
      readonly seconds: number
    }
  | {
      /** The vault asked to be asked less, so nothing is read from it for a while. */
      readonly kind: 'paused'
      readonly vault: string
      readonly type: string
      readonly seconds: number
    }
  | {
      /** A new value is in force; a state (`absent`, …) stands where there is none, `unversioned` where the vault names no version. */
      readonly kind: 'changed'
      readonly vault: string
      readonly reference: string
      readonly from: string
      readonly to: string
    }
  | {
      /** A new value was refused, and the last one stays. */
      readonly kind: 'refused'
      readonly vault: string
      readonly reference: string
    }

/** Told of every event as it happens; what it throws is not caught. */
export type Observe = (event: VaultEvent) => void
