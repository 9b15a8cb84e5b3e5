import { LRUCache } from 'lru-cache'
import { StoreTimeout } from './errors.ts'
import type { Logger, Store } from './plugins/plugin.ts'

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

/** Milliseconds a call of Redis may take. */
const TIMEOUT = 2000
/** Calls that may wait for Redis at once. */
const MAX_WAITING = 10_000

/**
 * A store in Redis, shared by every node that uses the same. Calls reject fast while it is away, and
 * with POSTERN_STORE_TIMEOUT when it does not answer. `url` may hold credentials, so it is never logged.
 */
export async function redisStore(url: string, log: Logger): Promise<OwnedStore> {
  const { createClient } = await import('@redis/client')
  const client = createClient({
    url,
    disableOfflineQueue: true,
    commandsQueueMaxLength: MAX_WAITING,
    socket: {
      connectTimeout: TIMEOUT,
      reconnectStrategy: retries => Math.min(100 * 2 ** retries, 5000)
    }
  })
  client.on('error', error =>
    log.warn({ code: error.code ?? error.name }, 'the session store is away')
  )
  client.connect().catch(() => {})
  return {
    async get(key) {
      return (await inTime(client.get(KEY_PREFIX + key))) ?? undefined
    },
    async set(key, value, ttl) {
      const expiration = { type: 'PX', value: milliseconds(ttl) } as const
      await inTime(client.set(KEY_PREFIX + key, value, { expiration }))
    },
    async expire(key, ttl) {
      await inTime(client.pExpire(KEY_PREFIX + key, milliseconds(ttl)))
    },
    async delete(key) {
      await inTime(client.del(KEY_PREFIX + key))
    },
    async close() {
      client.destroy()
    }
  }
}

/** What the call gives; the client itself waits without end for a server that keeps silent. */
function inTime<T>(call: Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new StoreTimeout(TIMEOUT)), TIMEOUT)
    call.then(resolve, reject).finally(() => clearTimeout(timer))
  })
}
