import { lookup } from 'node:dns/promises'
import { isIP } from 'node:net'
import createError from '@fastify/error'
import { LRUCache } from 'lru-cache'
import type { Logger } from '../plugins/plugin.ts'

export interface Address {
  readonly address: string
}

const NameNotResolved = createError('POSTERN_DNS_FAILED', 'The name %s does not resolve: %s', 503)

export interface ResolverOptions {
  /** Gives every address of a name; the system's resolver (hosts file included) by default. */
  readonly lookup?: (host: string) => Promise<readonly Address[]>
  /** Milliseconds an answer is fresh; afterwards it is renewed in the background. */
  readonly ttl?: number
  readonly log: Logger
}

/** Host names to addresses, without waiting once a name is known. */
export interface Resolver {
  /**
   * Every address of a name. The same array until the answer changes. Rejects with
   * POSTERN_DNS_FAILED when the name never resolved; later failures keep the last answer.
   */
  resolve(host: string): readonly Address[] | Promise<readonly Address[]>
  close(): void
}

interface Entry {
  addresses: readonly Address[] | undefined
  staleAt: number
  pending: Promise<readonly Address[]> | undefined
}

const MAX_NAMES = 10_000
/** Milliseconds before a name that failed is asked again in the background. */
const RETRY = 1000

const systemLookup = (host: string): Promise<readonly Address[]> =>
  lookup(host, { all: true, order: 'verbatim' })

const sameAddresses = (a: readonly Address[], b: readonly Address[]): boolean =>
  a.length === b.length && a.every(({ address }) => b.some(other => other.address === address))

/** Caches answers, renews them in the background and keeps stale ones while the resolver fails. */
export function createResolver(options: ResolverOptions): Resolver {
  const { ttl = 30_000, log } = options
  const ask = options.lookup ?? systemLookup
  const names = new LRUCache<string, Entry>({ max: MAX_NAMES })
  const literals = new LRUCache<string, readonly Address[]>({ max: MAX_NAMES })

  async function renew(host: string, entry: Entry): Promise<readonly Address[]> {
    try {
      const answer = await ask(host)
      if (answer.length === 0) throw Object.assign(new Error('no address'), { code: 'ENODATA' })
      if (entry.addresses === undefined || !sameAddresses(entry.addresses, answer)) {
        entry.addresses = answer.map(({ address }) => ({ address }))
      }
      entry.staleAt = Date.now() + ttl
      return entry.addresses
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException
      entry.staleAt = Date.now() + RETRY
      if (entry.addresses === undefined) throw new NameNotResolved(host, code ?? message)
      log.warn({ host, code }, 'a name could not be resolved again; its last addresses stay')
      return entry.addresses
    } finally {
      entry.pending = undefined
    }
  }

  return {
    resolve(host) {
      let entry = names.get(host)
      if (entry === undefined) {
        if (isIP(host) !== 0) {
          let literal = literals.get(host)
          if (literal === undefined) {
            literal = [{ address: host }]
            literals.set(host, literal)
          }
          return literal
        }
        entry = { addresses: undefined, staleAt: 0, pending: undefined }
        names.set(host, entry)
      }
      if (entry.addresses === undefined) {
        entry.pending ??= renew(host, entry)
        return entry.pending
      }
      if (Date.now() >= entry.staleAt && entry.pending === undefined) {
        entry.pending = renew(host, entry)
      }
      return entry.addresses
    },
    close() {
      names.clear()
      literals.clear()
    }
  }
}
