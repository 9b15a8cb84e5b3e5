import { createHmac, randomBytes } from 'node:crypto'

/** Hex digits shown: enough to tell values apart, too few to be the value's digest. */
const LENGTH = 8

/**
 * Gives the function that tells values apart without giving them away: a truncated HMAC-SHA-256.
 * Without `key` each call of this function takes a random one, so that fingerprints compare within
 * one output only, and not even a short secret can be guessed from them. With a key they compare
 * wherever the same key is used, and can be guessed by whoever has it.
 */
export function fingerprinter(key?: string): (value: string) => string {
  const secret = key ?? randomBytes(32)
  return value => createHmac('sha256', secret).update(value).digest('hex').slice(0, LENGTH)
}
