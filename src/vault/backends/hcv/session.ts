import type { BackendEnvironment } from '../../backend.ts'
import { SharedCall } from '../shared-call.ts'
import { untilAborted } from '../until-aborted.ts'
import type { Answer, VaultClient } from './client.ts'
import { classify, classifyLogin, VaultAnswerError } from './failure.ts'
import type { Login } from './login.ts'

/** Milliseconds a renewal or a login may take that no read waits for. */
const CALL_TIMEOUT = 10_000
const REVOKE_TIMEOUT = 2000
/** Milliseconds until a refused login is tried again, and a token is doubted again in vain. */
const REFUSAL_PAUSE = 1000
const DOUBT_PAUSE = 60_000
/** Milliseconds between tries of a renewal that failed: a third of what is left, within these. */
const MIN_RETRY = 1000
const MAX_RETRY = 60_000
const MAX_TIMER = 2 ** 31 - 1
/**
 * What tells whether a token lives: the first needs the default policy, the other none (its answer is
 * what the vault's own interface shows at a login).
 */
const LOOKS = ['auth/token/lookup-self', 'sys/internal/ui/mounts'] as const

/** A token in use. */
export interface Token {
  readonly value: string
  /** Milliseconds it was granted at first; Infinity for one that never ends. */
  readonly life: number
  /** On the clock of `performance.now`, which no change of the wall clock moves. */
  endsAt: number
  renewable: boolean
}

/**
 * The gateway's standing with one vault: logs in when it has no token, renews the token at two thirds
 * of its life, logs in anew when renewals grow short before max_ttl or the token is found dead. Many
 * callers share one login.
 */
export class Session {
  readonly #client: VaultClient
  readonly #login: Login
  readonly #log: BackendEnvironment['log']
  /** Which vault, for the log. */
  readonly #address: string
  readonly #closing = new AbortController()
  #token: Token | undefined
  readonly #logins = new SharedCall<Token>()
  #timer: NodeJS.Timeout | undefined
  #refusal: { readonly error: Error; readonly until: number } | undefined
  #doubtAgainAt = 0
  #holdsLeases = false

  constructor(client: VaultClient, login: Login, log: BackendEnvironment['log'], address: string) {
    this.#client = client
    this.#login = login
    this.#log = log
    this.#address = address
  }

  /** The token in use, without asking for one. */
  get token(): Token | undefined {
    return this.#token
  }

  /** Unix milliseconds at which the token in use ends; undefined when it does not, or there is none. */
  get tokenExpiresAt(): number | undefined {
    const left = (this.#token?.endsAt ?? Number.POSITIVE_INFINITY) - performance.now()
    return Number.isFinite(left) ? Math.round(Date.now() + left) : undefined
  }

  /**
   * Runs a call with the token, logging in first when there is none, and once more with a new token
   * when the call is refused and the token turns out to be dead.
   */
  async run<T>(call: (token: Token) => Promise<T>, signal: AbortSignal): Promise<T> {
    const token = await this.#current(signal)
    try {
      return await call(token)
    } catch (error) {
      if (!isRefusal(error)) throw error
      const fresh = await this.#replaced(token, signal)
      if (fresh === undefined) throw error
      return this.#again(call, fresh, signal)
    }
  }

  async #again<T>(
    call: (token: Token) => Promise<T>,
    token: Token,
    signal: AbortSignal
  ): Promise<T> {
    try {
      return await call(token)
    } catch (error) {
      // It was refused for good; and where looks at living tokens are refused, too, they mislead.
      if (isRefusal(error) && !(await this.#lives(token, signal)))
        this.#doubtAgainAt = performance.now() + DOUBT_PAUSE
      throw error
    }
  }

  /** A token other than the refused one, when that one is not in use any more or is dead. */
  async #replaced(refused: Token, signal: AbortSignal): Promise<Token | undefined> {
    if (this.#token !== refused) return this.#current(signal)
    if (!this.#login.repeatable || performance.now() < this.#doubtAgainAt) return undefined
    if (await this.#lives(refused, signal)) return undefined
    if (this.#token === refused) this.#token = undefined
    return this.#current(signal)
  }

  /** Whether the vault still takes the token; what gives no answer counts as a yes. */
  async #lives({ value }: Token, signal: AbortSignal): Promise<boolean> {
    for (const path of LOOKS) {
      try {
        await this.#client.call({ method: 'GET', path, token: value, signal })
        return true
      } catch (error) {
        if (!isRefusal(error)) return path === LOOKS[0] || !isAnswer(error)
      }
    }
    return false
  }

  async #current(signal: AbortSignal): Promise<Token> {
    const token = this.#token
    if (token !== undefined && (performance.now() < token.endsAt || !this.#login.repeatable)) {
      return token
    }
    return this.#logIn(signal)
  }

  /** Logs in, once however many ask, for as long as the most patient of them waits. */
  #logIn(signal: AbortSignal): Promise<Token> {
    if (this.#refusal !== undefined && performance.now() < this.#refusal.until) {
      return Promise.reject(this.#refusal.error)
    }
    return this.#logins.join(wanted => this.#loggedIn(wanted), signal)
  }

  async #loggedIn(wanted: AbortSignal): Promise<Token> {
    try {
      await this.#client.renewTls()
      const signal = AbortSignal.any([wanted, this.#closing.signal])
      const token = tokenOf(await untilAborted(this.#login.perform(this.#client, signal), signal))
      this.#refusal = undefined
      this.#take(token)
      return token
    } catch (error) {
      const told = classifyLogin(error, this.#login.method)
      if ((told as { code?: string }).code === 'POSTERN_VAULT_DENIED') {
        this.#refusal = { error: told, until: performance.now() + REFUSAL_PAUSE }
      }
      throw told
    }
  }

  #bounded(): AbortSignal {
    return AbortSignal.any([AbortSignal.timeout(CALL_TIMEOUT), this.#closing.signal])
  }

  #take(token: Token): void {
    if (this.#closing.signal.aborted) return
    this.#token = token
    this.#holdsLeases = false
    this.#schedule((token.endsAt - performance.now()) * (2 / 3))
  }

  #schedule(wait: number): void {
    clearTimeout(this.#timer)
    if (!Number.isFinite(wait) || this.#closing.signal.aborted) return
    this.#timer = setTimeout(() => void this.#prolong(), Math.min(wait, MAX_TIMER))
    this.#timer.unref()
  }

  /** Renews the token or takes a new one; what fails is tried again until the token has ended. */
  async #prolong(): Promise<void> {
    const token = this.#token
    if (token === undefined) return
    try {
      if (await this.#renewed(token)) {
        this.#schedule((token.endsAt - performance.now()) * (2 / 3))
        return
      }
      if (this.#login.repeatable) {
        await this.#logIn(this.#bounded())
        return
      }
      this.#log.warn(
        {
          vault: this.#address,
          ends_at: new Date(this.tokenExpiresAt ?? Date.now()).toISOString()
        },
        'the token of a vault cannot be renewed any further: give the vault a new one'
      )
    } catch (error) {
      const left = token.endsAt - performance.now()
      this.#log.warn(
        {
          vault: this.#address,
          error: (error as Error).message,
          seconds_left: Math.round(left / 1000)
        },
        'the token of a vault could not be prolonged'
      )
      if (left > 0) this.#schedule(Math.min(Math.max(left / 3, MIN_RETRY), MAX_RETRY))
    }
  }

  /** Whether a renewal gave the token a good part of its life again; near max_ttl it does not. */
  async #renewed(token: Token): Promise<boolean> {
    if (!token.renewable) return false
    try {
      const answer = await this.#client.call({
        method: 'POST',
        path: 'auth/token/renew-self',
        token: token.value,
        body: {},
        signal: this.#bounded()
      })
      const granted = tokenOf(answer)
      token.endsAt = granted.endsAt
      token.renewable = granted.renewable
      return granted.life >= token.life / 2
    } catch (error) {
      const told = classify(error, 'the renewal of the token')
      // A refusal means that it is dead or may not renew itself; a login helps, another try does not.
      if ((told as { code?: string }).code === 'POSTERN_VAULT_DENIED') return false
      throw told
    }
  }

  /** What the token in use has taken out on lease dies with it, so closing must not revoke it. */
  holdLeases(): void {
    this.#holdsLeases = true
  }

  /** Ends what is under way, and the token of a login unless leases hang on it. */
  async close(): Promise<void> {
    clearTimeout(this.#timer)
    this.#closing.abort()
    const token = this.#token
    this.#token = undefined
    if (token !== undefined && this.#login.revocable && !this.#holdsLeases) {
      await this.#client
        .call({
          method: 'POST',
          path: 'auth/token/revoke-self',
          token: token.value,
          body: {},
          signal: AbortSignal.timeout(REVOKE_TIMEOUT)
        })
        .catch(() => {
          // It ends by itself at its time.
        })
    }
    this.#client.close()
  }
}

/** Whether the vault has answered, if only that it has no such path. */
function isAnswer(error: unknown): boolean {
  return error instanceof VaultAnswerError && error.status < 500 && error.status !== 429
}

function isRefusal(error: unknown): boolean {
  return error instanceof VaultAnswerError && error.own && error.status === 403
}

function tokenOf({ auth }: Answer): Token {
  if (typeof auth?.client_token !== 'string') throw new Error('its answer holds no token')
  const life = auth.lease_duration > 0 ? auth.lease_duration * 1000 : Number.POSITIVE_INFINITY
  return {
    value: auth.client_token,
    life,
    endsAt: performance.now() + life,
    renewable: auth.renewable === true
  }
}
