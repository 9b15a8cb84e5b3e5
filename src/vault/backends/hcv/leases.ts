import type { Answer, VaultClient } from './client.ts'
import { VaultAnswerError } from './failure.ts'
import type { Session, Token } from './session.ts'

/** Part of a lease after which it is renewed or followed by another. */
const PART = 2 / 3
/** Part of what is left of a token that its leases may count on: they end with it. */
const TOKEN_PART = 0.9

/** What a dynamic engine gave. */
export interface Leased {
  readonly data: unknown
  readonly id: string
  /** Seconds until it must be asked for again. */
  readonly ttl: number
}

interface Lease {
  readonly data: unknown
  readonly id: string
  /** Milliseconds granted at first. */
  readonly life: number
  readonly renewable: boolean
  /** The token that took it out, and whose end ends it. */
  readonly token: Token
  readonly endsAt: number
  /** Before this nobody asks by time alone: who does has found the credential refused. */
  readonly dueAt: number
}

/**
 * What one vault has out on lease, by resource. A lease is renewed for as long as that gives it a
 * good part of its life again; then, or when it is asked for before its time, another is taken out.
 */
export class Leases {
  readonly #client: VaultClient
  readonly #session: Session
  readonly #held = new Map<string, Lease>()

  constructor(client: VaultClient, session: Session) {
    this.#client = client
    this.#session = session
  }

  /** Remembers what an answer holds on lease; undefined when it is no lease. */
  take(resource: string, answer: Answer, token: Token): Leased | undefined {
    const { lease_id: id, lease_duration: seconds = 0, renewable } = answer
    if (id === undefined || id === '' || seconds <= 0) return undefined
    this.#session.holdLeases()
    this.#forgetEnded()
    return this.#hold(resource, {
      data: answer.data,
      id,
      life: seconds * 1000,
      seconds,
      renewable: renewable === true,
      token
    })
  }

  /** The same credential with its lease renewed; undefined when another has to be taken out. */
  async renew(resource: string, token: Token, signal: AbortSignal): Promise<Leased | undefined> {
    const lease = this.#held.get(resource)
    const now = performance.now()
    if (lease === undefined || !lease.renewable || lease.token !== token) return undefined
    if (now < lease.dueAt || now >= lease.endsAt) return undefined
    const seconds = await this.#renewed(lease, signal)
    if (seconds * 1000 < lease.life / 2) return undefined
    return this.#hold(resource, { ...lease, seconds })
  }

  async #renewed(lease: Lease, signal: AbortSignal): Promise<number> {
    try {
      const answer = await this.#client.call({
        method: 'POST',
        path: 'sys/leases/renew',
        token: lease.token.value,
        body: { lease_id: lease.id, increment: Math.round(lease.life / 1000) },
        signal
      })
      return answer.lease_duration ?? 0
    } catch (error) {
      // It was revoked, or this identity may not renew: then another one is taken out.
      if (error instanceof VaultAnswerError && error.status < 429) return 0
      throw error
    }
  }

  #hold(
    resource: string,
    { seconds, ...lease }: Omit<Lease, 'endsAt' | 'dueAt'> & { readonly seconds: number }
  ): Leased {
    const now = performance.now()
    const endsAt = Math.min(now + seconds * 1000, lease.token.endsAt)
    const wait = Math.min(seconds * 1000 * PART, (lease.token.endsAt - now) * TOKEN_PART)
    const ttl = Math.max(1, Math.floor(wait / 1000))
    // Half of the wait leaves room for jitter and for clocks that disagree.
    this.#held.set(resource, { ...lease, endsAt, dueAt: now + (ttl * 1000) / 2 })
    return { data: lease.data, id: lease.id, ttl }
  }

  #forgetEnded(): void {
    const now = performance.now()
    for (const [resource, { endsAt }] of this.#held) {
      if (endsAt <= now) this.#held.delete(resource)
    }
  }
}
