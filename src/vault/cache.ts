import pLimit from 'p-limit'
import { SecretAbsent, SecretMalformed } from '../errors.ts'
import type { Backend, Fetched } from './backend.ts'

/** Why a resource has no value. */
export type FailureState = 'absent' | 'denied' | 'unreachable' | 'malformed'

/** What the last read that failed came to. */
export interface ReadFailure {
  readonly state: FailureState
  /** Never holds a value. */
  readonly message: string
  /** Unix milliseconds. */
  readonly at: number
}

/** Freshness of a resource, in seconds. */
export interface Freshness {
  /** How long a value is fresh; 0 is for ever. A lease the vault gives comes first. */
  readonly ttl: number
  /** How long an absence or denial is believed before it is asked again. */
  readonly negTtl: number
  /** How long past `ttl` the last good value is served while refreshing fails. */
  readonly resurrectTtl: number
  /** Whether a denial takes the value out of service at once. */
  readonly failOnDenied: boolean
}

export interface CacheOptions {
  readonly now: () => number
  /** 0 to 1, for jitter. */
  readonly random: () => number
  /** Seconds one read may take. */
  readonly timeout: number
  /** Reads of one vault at a time. */
  readonly concurrency: number
}

/** First pause after a failed refresh, and the longest, in milliseconds. */
const BACKOFF_BASE = 1000
const BACKOFF_CAP = 300_000

const STATES: Readonly<Record<string, FailureState>> = {
  POSTERN_VAULT_DENIED: 'denied',
  POSTERN_VAULT_MALFORMED: 'malformed',
  POSTERN_VAULT_ABSENT: 'absent'
}

/** An open vault with its bound on concurrent reads. */
export class OpenVault {
  readonly backend: Backend
  readonly #limit: ReturnType<typeof pLimit>
  readonly #timeout: number

  constructor(backend: Backend, options: CacheOptions) {
    this.backend = backend
    this.#limit = pLimit(options.concurrency)
    this.#timeout = options.timeout
  }

  /** Reads a resource within the vault's bounds; rejects when it fails or takes too long. */
  read(resource: string, version: string | undefined): Promise<Fetched | undefined> {
    return this.#limit(async () => {
      const timeout = Promise.withResolvers<never>()
      const aborter = new AbortController()
      const timer = setTimeout(() => {
        aborter.abort()
        timeout.reject(new Error(`no answer within ${this.#timeout} s`))
      }, this.#timeout * 1000)
      try {
        // The race is for backends whose libraries do not heed the signal.
        return await Promise.race([
          this.backend.fetch(resource, version, aborter.signal),
          timeout.promise
        ])
      } finally {
        clearTimeout(timer)
      }
    })
  }
}

/**
 * One resource of one vault: the unit of fetching. Whatever references take from it comes from the
 * same read, so parts of one secret never mix versions.
 */
export class Resource {
  readonly name: string
  readonly version: string | undefined
  readonly vault: OpenVault
  readonly #options: CacheOptions
  readonly #freshness: Freshness
  #fetched: Fetched | undefined
  #fetchedAt = 0
  #failure: ReadFailure | undefined
  #failures = 0
  #retryAt = 0
  #pending: Promise<void> | undefined
  #rejected: string | undefined

  constructor(
    name: string,
    version: string | undefined,
    vault: OpenVault,
    freshness: Freshness,
    options: CacheOptions
  ) {
    this.name = name
    this.version = version
    this.vault = vault
    this.#freshness = freshness
    this.#options = options
  }

  /** The last good read, while it may be served; undefined when there is none. */
  get current(): Fetched | undefined {
    if (this.#fetched === undefined) return undefined
    if (this.#failure?.state === 'denied' && this.#freshness.failOnDenied) return undefined
    if (this.#failure !== undefined && this.#options.now() >= this.#expiresAt) return undefined
    return this.#fetched
  }

  /** Why the last read failed; undefined when it did not. */
  get failure(): ReadFailure | undefined {
    return this.#failure
  }

  get failures(): number {
    return this.#failures
  }

  /** Unix milliseconds of the last good read; 0 before it. */
  get fetchedAt(): number {
    return this.#fetchedAt
  }

  /** Why the current value could not be brought into force; undefined when it could. */
  get rejected(): string | undefined {
    return this.#rejected
  }

  get #ttl(): number {
    return this.#fetched?.ttl ?? this.#freshness.ttl
  }

  get #expiresAt(): number {
    return this.#fetchedAt + (this.#ttl + this.#freshness.resurrectTtl) * 1000
  }

  /** Unix milliseconds of the next read; Infinity when none is due by time. */
  get dueAt(): number {
    if (this.#failure !== undefined || this.#rejected !== undefined) return this.#retryAt
    if (this.#fetched === undefined) return 0
    return this.#ttl > 0 ? this.#fetchedAt + this.#ttl * 1000 : Number.POSITIVE_INFINITY
  }

  /** Reads when nothing fresh is there. A failure is asked again, whatever is remembered of it. */
  load(): Promise<void> {
    if (
      this.#fetched !== undefined &&
      this.#failure === undefined &&
      this.#options.now() < this.dueAt
    ) {
      return Promise.resolve()
    }
    return this.refresh()
  }

  /** Reads now, once however many ask. Never rejects: a failure is a state. */
  refresh(): Promise<void> {
    this.#pending ??= this.#read().finally(() => {
      this.#pending = undefined
    })
    return this.#pending
  }

  async #read(): Promise<void> {
    try {
      const fetched = await this.vault.read(this.name, this.version)
      if (fetched === undefined) {
        this.#fail('absent', 'nothing is stored there')
        return
      }
      this.#fetched = fetched
      this.#fetchedAt = this.#options.now()
      this.#failure = undefined
      this.#failures = 0
      this.#rejected = undefined
    } catch (error) {
      const { code, message } = error as Error & { code?: string }
      this.#fail(STATES[code ?? ''] ?? 'unreachable', message)
    }
  }

  #fail(state: FailureState, message: string): void {
    this.#failure = { state, message, at: this.#options.now() }
    this.#backOff(state === 'absent' || state === 'denied' ? this.#freshness.negTtl * 1000 : 0)
  }

  /** The value in `current` could not be brought into force: it is read again after a pause. */
  reject(reason: string): void {
    this.#rejected = reason
    this.#backOff(0)
  }

  #backOff(minimum: number): void {
    const pause = Math.min(BACKOFF_BASE * 2 ** this.#failures, BACKOFF_CAP)
    this.#failures++
    // Jitter of a quarter keeps many nodes from asking in step.
    this.#retryAt =
      this.#options.now() + Math.max(minimum, pause * (0.75 + this.#options.random() / 2))
  }
}

/**
 * Takes a reference's part out of a resource. Throws POSTERN_VAULT_MALFORMED, POSTERN_VAULT_ABSENT
 * when the member does not exist. Messages name members, never values.
 */
export function extract(
  fetched: Fetched,
  text: string,
  key: string | undefined,
  pointer: string | undefined,
  base64: boolean
): string {
  let value: unknown = fetched.value
  if (key !== undefined || pointer !== undefined) {
    const root = typeof value === 'string' ? parseJson(value, text) : value
    value = key === undefined ? follow(root, pointer!, text) : member(root, key, text)
  } else if (typeof value !== 'string') {
    value = JSON.stringify(value)
  }
  if (typeof value === 'number' || typeof value === 'boolean') value = String(value)
  if (typeof value !== 'string') {
    throw new SecretMalformed(
      text,
      `it is ${value === null ? 'null' : Array.isArray(value) ? 'a list' : 'an object'}, not text`
    )
  }
  return base64 ? decodeBase64(value, text) : value
}

function parseJson(value: string, text: string): unknown {
  try {
    return JSON.parse(value)
  } catch {
    throw new SecretMalformed(text, 'it is not JSON, so it has no members')
  }
}

function member(root: unknown, key: string, text: string): unknown {
  if (typeof root !== 'object' || root === null || Array.isArray(root)) {
    throw new SecretMalformed(text, 'it is no JSON object, so it has no members')
  }
  if (!Object.hasOwn(root, key))
    throw new SecretAbsent(`${text} (the JSON object has no member "${key}")`)
  return (root as Record<string, unknown>)[key]
}

/** RFC 6901: `~1` is a slash and `~0` a tilde. */
function follow(root: unknown, pointer: string, text: string): unknown {
  let value = root
  for (const token of pointer.split('/').slice(1)) {
    const name = token.replaceAll('~1', '/').replaceAll('~0', '~')
    if (typeof value !== 'object' || value === null || !Object.hasOwn(value, name)) {
      throw new SecretAbsent(`${text} (the JSON pointer ${pointer} leads nowhere)`)
    }
    value = (value as Record<string, unknown>)[name]
  }
  return value
}

function decodeBase64(value: string, text: string): string {
  const compact = value.replace(/\s/g, '')
  if (!/^[A-Za-z0-9+/_-]*={0,2}$/.test(compact) || compact.length % 4 === 1) {
    throw new SecretMalformed(text, 'it is not base64')
  }
  return Buffer.from(compact, 'base64').toString('utf8')
}
