import { hash } from 'node:crypto'
import type { RedisAccess } from '../redis.ts'
import type { RedisScript } from '../redis-connection.ts'
import { type Limit, type Policy, passes, type Verdict } from './limits.ts'

/** Counts one more for each key, gives the new counts, and has new keys expire with their period. */
export const COUNT = script(`
local counts = {}
for i, key in ipairs(KEYS) do
  counts[i] = redis.call('INCR', key)
  if counts[i] == 1 then redis.call('EXPIRE', key, ARGV[i]) end
end
return counts`)

/** A script with the digest Redis knows it by. */
export function script(source: string): RedisScript {
  return { source, sha: hash('sha1', source) }
}

/** The counters of an identifier, in the order of the limits; the same names as Kong's. */
export function counterKeys(limits: readonly Limit[], subject: string, now: number): string[] {
  return limits.map(({ period }) => `${subject}:${period.startOf(now)}:${period.name}`)
}

/**
 * Counts in Redis with one round trip per request, for all nodes together and exactly. Refused
 * requests are counted too.
 */
export class RedisPolicy implements Policy {
  readonly #limits: readonly Limit[]
  readonly #prefix: string
  readonly #redis: RedisAccess
  readonly #lives: readonly string[]

  /** `prefix` tells the instance's scope. */
  constructor(limits: readonly Limit[], prefix: string, redis: RedisAccess) {
    this.#limits = limits
    this.#prefix = prefix
    this.#redis = redis
    this.#lives = limits.map(({ period }) => String(period.seconds))
  }

  async take(identifier: string, now: number): Promise<Verdict> {
    const keys = counterKeys(this.#limits, this.#prefix + identifier, now)
    const counts = (await this.#redis.script(COUNT, keys, this.#lives)) as readonly number[]
    const counted = counts.map(count => count - 1)
    return { passes: passes(this.#limits, counted), counted }
  }

  close(): void {
    this.#redis.close()
  }
}
