import type { TSchema } from 'typebox'

/** What one read of a resource gave. */
export interface Fetched {
  /** Text, or a JSON object whose members references address by key or pointer. */
  readonly value: string | Readonly<Record<string, unknown>>
  /** The vault's own name of this version; two reads with the same version hold the same value. */
  readonly version?: string
  /** Seconds the vault says the value is good for (a lease); else the vault's `ttl` applies. */
  readonly ttl?: number
}

/**
 * One configured vault. `fetch` reads one resource: undefined means nothing is stored there, as does
 * SecretAbsent with a reason; throwing one of VaultDenied, VaultUnreachable, VaultThrottled or
 * SecretMalformed (src/errors.ts) means it failed, and any other error counts as unreachable. It must
 * honour `signal`, make no retries of its own and put no value into an error.
 */
export interface Backend {
  fetch(
    resource: string,
    version: string | undefined,
    signal: AbortSignal
  ): Promise<Fetched | undefined>
  /**
   * The version `fetch` would give now, where asking for it is cheaper than reading (metadata before
   * payload); undefined means nothing is stored there. An unchanged version is not read again.
   */
  probe?(
    resource: string,
    version: string | undefined,
    signal: AbortSignal
  ): Promise<string | undefined>
  /**
   * Calls `changed` when the resource changed at its source (file-backed vaults). Gives the function
   * that stops watching. A backend that cannot tell leaves this out and is polled by `ttl`.
   */
  watch?(resource: string, changed: () => void): () => void
  /** What operators watch of this vault; undefined members do not apply. */
  health?(): {
    /** Unix milliseconds at which the credential in use ends. */
    readonly tokenExpiresAt?: number
  }
  close?(): void | Promise<void>
}

/** What the process lends to a vault it opens. */
export interface BackendEnvironment {
  /** The gateway's environment variables. */
  readonly env: Readonly<Record<string, string | undefined>>
  readonly log: {
    info(fields: object, message: string): void
    warn(fields: object, message: string): void
  }
}

/** A type of vault: its settings and how to open one. One file each, listed in backends/index.ts. */
export interface BackendType<S extends TSchema = TSchema> {
  readonly name: string
  /** Settings besides the common ones (ttl, neg_ttl, resurrect_ttl, base64_decode, on_denied, timeout, grace). */
  readonly schema: S
  /** Settings a reference may not override (`?host=` would send credentials elsewhere). */
  readonly protectedFields: readonly string[]
  /** It reads this machine alone, so an outage cannot keep it from the gateway: nothing of it is kept on disk. */
  readonly local?: true
  /**
   * Imports what a vault with these settings (as written: references in them are not resolved) will
   * need. That blocks the thread, and is done for all vaults before any is read; `open` does not rely
   * on it. What it rejects with is left for `open` to meet again.
   */
  load?(config: Readonly<Record<string, unknown>>): Promise<unknown>
  /** Opens a vault without asking it anything. */
  open(
    config: Readonly<Record<string, unknown>>,
    environment: BackendEnvironment
  ): Backend | Promise<Backend>
}

/** A type of vault as it is; lets an editor and the compiler know what it must have. */
export function defineBackend<const T extends BackendType>(type: T): T {
  return type
}
