import { createPublicKey, type JsonWebKey, type KeyObject } from 'node:crypto'
import { request } from 'undici'
import { WebhookKeysUnavailable } from '../errors.ts'
import { member } from './source.ts'

/** Milliseconds for the whole answer, and its bytes at most. */
const TIMEOUT = 5000
const MAX_SIZE = 512 * 1024
/** Milliseconds that keys are used for without looking again, and that a look is not repeated. */
const FRESH = 3_600_000
const PAUSE = 30_000

/** The public keys at an address (RFC 7517), by key id; read when a token needs them. */
export class KeySet {
  readonly url: string
  readonly #now: () => number
  #keys: ReadonlyMap<string, KeyObject> = new Map()
  #readAt = Number.NEGATIVE_INFINITY
  #triedAt = Number.NEGATIVE_INFINITY
  #pending: Promise<void> | undefined

  constructor(url: string, now: () => number = Date.now) {
    this.url = url
    this.#now = now
  }

  /**
   * The key with this id; undefined when there is none. An id that is not known has the keys read
   * again, at most twice a minute however many tokens name one. Rejects with POSTERN_WEBHOOK_KEYS
   * when there are no keys and none can be had.
   */
  async find(id: string): Promise<KeyObject | undefined> {
    const now = this.#now()
    const known = this.#keys.get(id)
    const due = now - this.#readAt > FRESH || known === undefined
    if (due && (this.#pending !== undefined || now - this.#triedAt > PAUSE)) {
      this.#pending ??= this.#read().finally(() => {
        this.#pending = undefined
      })
      await this.#pending.catch(error => {
        if (this.#keys.size === 0) throw error
      })
    }
    return this.#keys.get(id)
  }

  async #read(): Promise<void> {
    this.#triedAt = this.#now()
    try {
      const { statusCode, body } = await request(this.url, { signal: AbortSignal.timeout(TIMEOUT) })
      const chunks: Buffer[] = []
      let size = 0
      for await (const chunk of body) {
        size += (chunk as Buffer).length
        if (size > MAX_SIZE) throw new Error(`it is larger than ${MAX_SIZE} bytes`)
        chunks.push(chunk as Buffer)
      }
      if (statusCode !== 200) throw new Error(`the answer was ${statusCode}`)
      const parsed: unknown = JSON.parse(Buffer.concat(chunks).toString('utf8'))
      this.#keys = keysOf(member(parsed, 'keys'))
      this.#readAt = this.#now()
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException
      throw new WebhookKeysUnavailable(this.url, code ?? message)
    }
  }
}

/** RSA keys only: the tokens here are signed with RS256. */
function keysOf(list: unknown): ReadonlyMap<string, KeyObject> {
  const keys = new Map<string, KeyObject>()
  for (const jwk of Array.isArray(list) ? (list as unknown[]) : []) {
    const id = member(jwk, 'kid')
    if (typeof id !== 'string' || member(jwk, 'kty') !== 'RSA') continue
    try {
      keys.set(id, createPublicKey({ key: jwk as JsonWebKey, format: 'jwk' }))
    } catch {
      // One bad key must not hold back the others.
    }
  }
  return keys
}
