import { LRUCache } from 'lru-cache'
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

/**
 * A store in Redis, shared by every node that uses the same. Calls fail fast while it is away.
 * `url` may hold credentials, so it is never logged.
 */
export async function redisStore(url: string, log: Logger): Promise<OwnedStore> {
  const { createClient } = await import('@redis/client')
  const client = createClient({
    url,
    disableOfflineQueue: true,
    socket: {
      connectTimeout: 2000,
      reconnectStrategy: retries => Math.min(100 * 2 ** retries, 5000)
    }
  })
  client.on('error', error =>
    log.warn({ code: error.code ?? error.name }, 'the session store is away')
  )
  client.connect().catch(() => {})
  return {
    async get(key) {
      return (await client.get(KEY_PREFIX + key)) ?? undefined
    },
    async set(key, value, ttl) {
      await client.set(KEY_PREFIX + key, value, {
        expiration: { type: 'PX', value: milliseconds(ttl) }
      })
    },
    async expire(key, ttl) {
      await client.pExpire(KEY_PREFIX + key, milliseconds(ttl))
    },
    async delete(key) {
      await client.del(KEY_PREFIX + key)
    },
    async close() {
      client.destroy()
    }
  }
}
