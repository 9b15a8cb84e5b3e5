import { inspect } from 'node:util'

const MASK = '[secret]'

/**
 * A resolved value of a referenceable field. It prints as `[secret]` wherever text is made of it
 * (template strings, JSON, `util.inspect`, error dumps); only {@link Secret.reveal} gives the value,
 * so a leak has to be written down on purpose.
 */
export class Secret {
  readonly #value: string
  readonly #previous: string | undefined
  /** Which change brought the value into force: greater is later, and one change has one number. */
  readonly since: number

  /** `previous` is the value this one replaced, while its grace period lasts. */
  constructor(value: string, previous?: string, since = 0) {
    this.#value = value
    this.#previous = previous
    this.since = since
  }

  /** The current value: sign, encrypt and authenticate with this one. */
  reveal(): string {
    return this.#value
  }

  /** The value before the last rotation, to verify with during the grace period; else undefined. */
  revealPrevious(): string | undefined {
    return this.#previous
  }

  toString(): string {
    return MASK
  }

  toJSON(): string {
    return MASK
  }

  [inspect.custom](): string {
    return MASK
  }
}
