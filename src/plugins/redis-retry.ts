import { RedisDenied } from '../errors.ts'

/** Least time between two attempts to have the references read again, in milliseconds. */
const PAUSE = 1000

/**
 * Repeats what a Redis server refused for its credentials: once, on the connection of newer ones.
 * However many calls are refused at a time, the references are read again once. `C` is what calls
 * are made on.
 */
export class RedisRetry<C> {
  readonly #renew: (refused: C) => Promise<C | undefined>
  #renewing: Promise<C | undefined> | undefined
  #next = 0

  /** `renew` reads the references again; undefined says that they still stand for the same. */
  constructor(renew: (refused: C) => Promise<C | undefined>) {
    this.#renew = renew
  }

  /** What `call` gives on the connection, or on the renewed one; rejects like it. */
  run<T>(connection: C, call: (connection: C) => Promise<T>): Promise<T> {
    return call(connection).catch(async error => call(await this.#after(connection, error)))
  }

  /** From now on nothing is read again. */
  close(): void {
    this.#next = Number.POSITIVE_INFINITY
  }

  /** The connection of the credentials in force after a refusal; throws `error` when they are the same. */
  async #after(refused: C, error: unknown): Promise<C> {
    if (!(error instanceof RedisDenied)) throw error
    if (this.#renewing === undefined) {
      if (performance.now() < this.#next) throw error
      this.#renewing = this.#renewOnce(refused)
    }
    const connection = await this.#renewing
    if (connection === undefined) throw error
    return connection
  }

  async #renewOnce(refused: C): Promise<C | undefined> {
    try {
      return await this.#renew(refused)
    } finally {
      this.#renewing = undefined
      this.#next = Math.max(this.#next, performance.now() + PAUSE)
    }
  }
}
