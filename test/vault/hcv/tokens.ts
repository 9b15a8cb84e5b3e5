import { randomUUID } from 'node:crypto'

/** Seconds a token lives where nothing says otherwise, as the real server has it. */
export const DEFAULT_TTL = 2_764_800

/** What a role or a token request says of the tokens it makes; seconds. */
export interface TokenTerms {
  readonly policies?: readonly string[]
  readonly ttl?: number
  readonly maxTtl?: number
  readonly uses?: number
  readonly renewable?: boolean
  readonly metadata?: Readonly<Record<string, string>>
  readonly path: string
  readonly orphan?: boolean
  /** Leaves the default policy out, which lets a token look at, renew and revoke itself. */
  readonly bare?: boolean
}

export interface TokenEntry {
  readonly id: string
  readonly accessor: string
  readonly policies: readonly string[]
  readonly ttl: number
  readonly createdAt: number
  /** Milliseconds; Infinity for the root token. */
  expiresAt: number
  readonly endsAt: number
  readonly renewable: boolean
  readonly uses: number
  usesLeft: number
  readonly namespace: string
  readonly terms: TokenTerms
}

/** The token store: entries end by themselves, by their uses, or by being revoked. */
export class Tokens {
  readonly #entries = new Map<string, TokenEntry>()

  root(id: string): TokenEntry {
    return this.#add({
      ...this.#entry({ path: 'auth/token/root', policies: ['root'], renewable: false }, ''),
      id,
      ttl: 0,
      expiresAt: Number.POSITIVE_INFINITY,
      endsAt: Number.POSITIVE_INFINITY
    })
  }

  create(terms: TokenTerms, namespace: string): TokenEntry {
    return this.#add(this.#entry(terms, namespace))
  }

  #entry(terms: TokenTerms, namespace: string): TokenEntry {
    const now = Date.now()
    const endsAt = now + (terms.maxTtl || DEFAULT_TTL) * 1000
    const ttl = Math.min(terms.ttl || DEFAULT_TTL, terms.maxTtl || DEFAULT_TTL)
    return {
      id: `s.${randomUUID().replaceAll('-', '').slice(0, 24)}`,
      accessor: randomUUID().replaceAll('-', '').slice(0, 24),
      policies: [...new Set([...(terms.bare ? [] : ['default']), ...(terms.policies ?? [])])],
      ttl,
      createdAt: now,
      expiresAt: now + ttl * 1000,
      endsAt,
      renewable: terms.renewable ?? true,
      uses: terms.uses ?? 0,
      usesLeft: terms.uses ?? 0,
      namespace,
      terms
    }
  }

  #add(entry: TokenEntry): TokenEntry {
    this.#entries.set(entry.id, entry)
    return entry
  }

  /** A token that may be used now, one use of it spent; undefined when it is dead or never was. */
  use(id: string): TokenEntry | undefined {
    const entry = this.peek(id)
    if (entry !== undefined && entry.uses > 0 && --entry.usesLeft === 0) this.#entries.delete(id)
    return entry
  }

  peek(id: string): TokenEntry | undefined {
    const entry = this.#entries.get(id)
    if (entry === undefined || Date.now() >= entry.expiresAt) return undefined
    return entry
  }

  renew(entry: TokenEntry): number {
    entry.expiresAt = Math.min(Date.now() + entry.ttl * 1000, entry.endsAt)
    return Math.round((entry.expiresAt - Date.now()) / 1000)
  }

  revoke(id: string): void {
    this.#entries.delete(id)
  }

  /** Ends every token but the root token. */
  revokeAll(): void {
    for (const [id, { ttl }] of this.#entries) if (ttl !== 0) this.#entries.delete(id)
  }

  /** How many are alive besides the root token. */
  get alive(): number {
    return [...this.#entries.keys()].filter(id => this.peek(id)?.ttl !== 0).length
  }
}

/** The `auth` member of the answer that hands a token out. */
export function authOf(entry: TokenEntry, leaseDuration = entry.ttl): object {
  return {
    client_token: entry.id,
    accessor: entry.accessor,
    policies: entry.policies,
    token_policies: entry.policies,
    metadata: entry.terms.metadata ?? null,
    lease_duration: leaseDuration,
    renewable: entry.renewable,
    entity_id: '',
    token_type: 'service',
    orphan: entry.terms.orphan ?? true,
    mfa_requirement: null,
    num_uses: entry.uses
  }
}
