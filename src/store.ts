import { LRUCache } from 'lru-cache'
import { RedisDenied, SecretUnavailable } from './errors.ts'
import type { Logger, Store } from './plugins/plugin.ts'
import { RedisConnection, type RedisOptions, type Reply } from './plugins/redis-connection.ts'
import { RedisRetry } from './plugins/redis-retry.ts'

/** Most entries the memory store holds; the least recently used give way. */
const MAX_ENTRIES = 100_000
const KEY_PREFIX = 'postern:store:'

/** The node's key-value store, with what it has to release. */
export interface OwnedStore extends Store {
  close(): Promise<void>
}

/** Whole and never 0, which would mean no end to one store and an error to the other. */
function milliseconds(seconds: number): number {
  return Math.max(1, Math.ceil(seconds * 1000))
}

/** A store in this process's memory, bounded; its entries are gone with the process. */
export function memoryStore(): OwnedStore {
  const entries = new LRUCache<string, string>({ max: MAX_ENTRIES })
  return {
    async get(key) {
      return entries.get(key)
    },
    async set(key, value, ttl) {
      entries.set(key, value, { ttl: milliseconds(ttl) })
    },
    async expire(key, ttl) {
      const value = entries.get(key)
      if (value !== undefined) entries.set(key, value, { ttl: milliseconds(ttl) })
    },
    async delete(key) {
      entries.delete(key)
    },
    async close() {
      entries.clear()
    }
  }
}

/** Milliseconds a call of Redis may take, and connecting to it. */
const TIMEOUT = 2000

/** A store in Redis, whose address may change while it is used. */
export interface RedisStore extends OwnedStore {
  /** Uses another address, or other credentials, from now on; calls under way end as they began. */
  use(url: string): void
}

export interface RedisStoreOptions {
  readonly log: Logger
  /** Has the references of the address read again, and {@link RedisStore.use} called if it changed. */
  refresh(): Promise<unknown>
}

/**
 * A store in Redis, shared by every node that uses the same. Calls reject with POSTERN_REDIS_AWAY,
 * at once while it is known to be away, and with POSTERN_REDIS_DENIED when it refuses the credentials
 * after they were read again, too. `url` may hold credentials, so it is never logged; while it is
 * undefined, its vault not having answered, calls reject with POSTERN_SECRET_UNAVAILABLE.
 */
export function redisStore(
  url: string | undefined,
  { log, refresh }: RedisStoreOptions
): RedisStore {
  let current = url === undefined ? undefined : new Link(url, log)
  /** The last that worked, while the server does not take the credentials of a newer one yet. */
  let former: Link | undefined

  const retry = new RedisRetry<Link>(async refused => {
    if (current === refused) await refresh()
    return current === refused ? undefined : current
  })
  const attempt = async (link: Link, words: readonly string[]): Promise<Reply> => {
    try {
      const reply = await link.run(words)
      if (link === current) {
        former?.close()
        former = undefined
      }
      return reply
    } catch (error) {
      if (former === undefined || link === former || !(error instanceof RedisDenied)) throw error
      return former.run(words)
    }
  }
  const run = async (...words: string[]): Promise<Reply> => {
    if (current === undefined) throw new SecretUnavailable('The address of the session store')
    return retry.run(current, link => attempt(link, words))
  }

  return {
    async get(key) {
      return ((await run('GET', KEY_PREFIX + key)) as string | null) ?? undefined
    },
    async set(key, value, ttl) {
      await run('SET', KEY_PREFIX + key, value, 'PX', String(milliseconds(ttl)))
    },
    async expire(key, ttl) {
      await run('PEXPIRE', KEY_PREFIX + key, String(milliseconds(ttl)))
    },
    async delete(key) {
      await run('DEL', KEY_PREFIX + key)
    },
    use(next) {
      if (next === current?.url) return
      if (current?.works) {
        former?.close()
        former = current
      } else current?.close()
      current = new Link(next, log)
    },
    async close() {
      retry.close()
      former?.close()
      current?.close()
    }
  }
}

/** A connection that closes once its calls have ended. */
class Link {
  readonly url: string
  readonly #connection: RedisConnection
  #calls = 0
  #closing = false
  #worked = false

  constructor(url: string, log: Logger) {
    this.url = url
    this.#connection = new RedisConnection(redisAddress(url), log)
  }

  /** Whether it ever gave an answer. */
  get works(): boolean {
    return this.#worked
  }

  async run(words: readonly string[]): Promise<Reply> {
    this.#calls++
    try {
      const reply = await this.#connection.run(words)
      this.#worked = true
      return reply
    } finally {
      this.#calls--
      this.#closeUnused()
    }
  }

  close(): void {
    this.#closing = true
    this.#closeUnused()
  }

  #closeUnused(): void {
    if (this.#closing && this.#calls === 0) void this.#connection.close()
  }
}

function redisAddress(url: string): RedisOptions {
  const { protocol, hostname, port, username, password, pathname } = new URL(url)
  return {
    host: hostname,
    port: port === '' ? 6379 : Number(port),
    username: username === '' ? undefined : decodeURIComponent(username),
    password: password === '' ? undefined : decodeURIComponent(password),
    database: Number(pathname.slice(1)),
    tls: protocol === 'rediss:' ? { verify: true, serverName: undefined } : undefined,
    timeout: TIMEOUT
  }
}
