import { isIP } from 'node:net'
import { LRUCache } from 'lru-cache'
import pLimit from 'p-limit'
import type { Logger } from '../plugins/plugin.ts'
import { type AddressType, type ClientOptions, type Lookup, lookUp } from './dns/client.ts'
import { candidates, type HostsFile, type ResolvConf } from './dns/system.ts'

/** One address a name leads to. Plain data: it crosses threads. */
export interface Address {
  readonly ip: string
  /** Of an SRV record, which say more than an address; undefined otherwise. */
  readonly service:
    | { readonly name: string; readonly port: number; readonly weight: number }
    | undefined
}

/** What is known of a name. Immutable; a change makes a new one. */
export interface Answer {
  /** Empty when the name does not resolve. */
  readonly addresses: readonly Address[]
  /** Why there are none, as a code such as `ENOTFOUND` or `ETIMEDOUT`. */
  readonly failure: string | undefined
  /** It holds for no time at all (TTL 0): each request asks anew. */
  readonly transient: boolean
}

/** Host names to addresses, without waiting once a name is known. Never rejects. */
export interface Resolver {
  /** The same answer until the name's addresses change. */
  resolve(host: string): Answer | Promise<Answer>
  /** Grows whenever an answer came or changed. */
  readonly version: number
}

/** The order record types are tried in; a name that one led to is tried with that one first. */
export type DnsOrder = readonly AddressType[]

export interface NameServiceOptions {
  readonly conf: ResolvConf
  readonly client: ClientOptions
  readonly hosts: Pick<HostsFile, 'find'>
  readonly order: DnsOrder
  readonly log: Logger
  /** Told of every name whose addresses changed after they were first known. */
  onChange(host: string, answer: Answer): void
}

/** Names a thread remembers. */
const MAX_NAMES = 20_000
/** Questions at a time. */
const CONCURRENCY = 64
/** Milliseconds between looks at the hosts file for a name it holds. */
const HOSTS_INTERVAL = 5000
/** Milliseconds a name is taken to not exist at most, whatever its zone says. */
const MAX_NEGATIVE = 10_000
/** Milliseconds between attempts while no server answers; doubled up to the maximum. */
const RETRY = 1000
const MAX_RETRY = 30_000
/** What setTimeout can wait, and longer than any zone should ask for. */
const MAX_TTL = 86_400_000

interface Name {
  answer: Answer | undefined
  /** `performance.now()` of the next question in the background. */
  askAt: number
  pending: Promise<Answer> | undefined
  failures: number
  /** The name and type that led to addresses last (`LAST` of the order). */
  last: { readonly name: string; readonly type: AddressType } | undefined
}

interface Found {
  readonly addresses: readonly Address[]
  /** Milliseconds. */
  readonly ttl: number
}

/** The answer for a host that is an address itself. */
function literal(ip: string): Answer {
  return { addresses: [{ ip, service: undefined }], failure: undefined, transient: false }
}

const bare = (host: string): string => (host.startsWith('[') ? host.slice(1, -1) : host)

/** Whether two answers lead to the same addresses, in any order. */
export function sameAddresses(a: readonly Address[], b: readonly Address[]): boolean {
  if (a === b) return true
  if (a.length !== b.length) return false
  const text = ({ ip, service }: Address): string =>
    service === undefined ? ip : `${ip} ${service.name} ${service.port} ${service.weight}`
  const known = new Set(a.map(text))
  return b.every(address => known.has(text(address)))
}

/**
 * Resolves names for the node: hosts file, then DNS with the search domains of the system. Answers
 * are renewed in the background when their TTL ends; while no server answers, the last ones stay.
 */
export class NameService implements Resolver {
  readonly #options: NameServiceOptions
  readonly #names = new Map<string, Name>()
  readonly #limit = pLimit(CONCURRENCY)
  #timer: NodeJS.Timeout | undefined = undefined
  #timerAt = Number.POSITIVE_INFINITY
  #closed = false
  version = 0

  constructor(options: NameServiceOptions) {
    this.#options = options
  }

  resolve(host: string): Answer | Promise<Answer> {
    const ip = bare(host)
    if (isIP(ip) !== 0) return literal(ip)
    const key = host.toLowerCase()
    let name = this.#names.get(key)
    if (name === undefined) {
      name = { answer: undefined, askAt: 0, pending: undefined, failures: 0, last: undefined }
      this.#names.set(key, name)
    }
    if (name.answer !== undefined && !name.answer.transient) return name.answer
    return this.#renew(key, name)
  }

  /** The answers that hold for a while. */
  get known(): ReadonlyMap<string, Answer> {
    const known = new Map<string, Answer>()
    for (const [key, { answer }] of this.#names) {
      if (answer !== undefined && !answer.transient) known.set(key, answer)
    }
    return known
  }

  /** Forgets every name but these, which are those of the running configuration. */
  retain(hosts: ReadonlySet<string>): void {
    const kept = new Set([...hosts].map(host => host.toLowerCase()))
    for (const key of this.#names.keys()) if (!kept.has(key)) this.#names.delete(key)
  }

  close(): void {
    this.#closed = true
    clearTimeout(this.#timer)
    this.#names.clear()
  }

  #renew(key: string, name: Name): Promise<Answer> {
    name.pending ??= this.#limit(() => this.#ask(key, name)).finally(() => {
      name.pending = undefined
    })
    return name.pending
  }

  async #ask(key: string, name: Name): Promise<Answer> {
    const { log } = this.#options
    const before = name.answer
    try {
      const { addresses, ttl } = await this.#find(key, name)
      if (name.failures > 0) log.info({ host: key }, 'a name resolves again')
      name.failures = 0
      const transient = ttl === 0 && addresses.length > 0
      name.askAt = performance.now() + ttl
      this.#adopt(key, name, {
        addresses,
        failure: addresses.length === 0 ? 'ENOTFOUND' : undefined,
        transient
      })
      // A name that is asked for by each request needs no renewal besides.
      if (!transient) this.#wakeBy(name.askAt)
    } catch (error) {
      const { code = 'EFAIL', message } = error as NodeJS.ErrnoException
      name.askAt = performance.now() + Math.min(RETRY * 2 ** name.failures, MAX_RETRY)
      if (name.failures++ === 0) {
        const kept = before !== undefined && before.addresses.length > 0
        const then = kept ? 'its last addresses stay' : 'requests to it are answered 503'
        log.warn({ host: key, code }, `no name server answered for a name (${message}); ${then}`)
      }
      if (before === undefined || before.addresses.length === 0) {
        this.#adopt(key, name, { addresses: [], failure: code, transient: false })
      } else if (before.transient) {
        this.#adopt(key, name, { ...before, transient: false })
      }
      this.#wakeBy(name.askAt)
    }
    return name.answer!
  }

  #adopt(key: string, name: Name, answer: Answer): void {
    const before = name.answer
    const same =
      before !== undefined &&
      before.failure === answer.failure &&
      sameAddresses(before.addresses, answer.addresses)
    if (same && before.transient === answer.transient) return
    name.answer = answer
    this.version++
    if (before === undefined || this.#closed || this.#names.get(key) !== name) return
    if (!same) {
      this.#options.log.info(
        { host: key, addresses: answer.addresses.map(({ ip }) => ip), code: answer.failure },
        'the addresses of a name changed'
      )
    }
    this.#options.onChange(key, answer)
  }

  async #find(host: string, name: Name): Promise<Found> {
    const listed = this.#listed(host)
    if (listed !== undefined) {
      return { addresses: listed.map(ip => ({ ip, service: undefined })), ttl: HOSTS_INTERVAL }
    }
    let error: unknown
    let negative = MAX_NEGATIVE
    const unknown = new Set<string>()
    for (const step of this.#steps(host, name)) {
      if (unknown.has(step.name)) continue
      try {
        const lookup = await lookUp(step.name, step.type, this.#options.client)
        if (lookup.records.length > 0) {
          const found = await this.#addressesOf(lookup, step.type)
          name.last = step
          return found
        }
        negative = Math.min(negative, lookup.ttl * 1000)
        // RFC 8020: what does not exist does not exist with any type.
        if (lookup.unknown) unknown.add(step.name)
      } catch (cause) {
        error ??= cause
      }
    }
    if (error !== undefined) throw error
    return { addresses: [], ttl: Math.max(RETRY, negative) }
  }

  #steps(host: string, { last }: Name): { name: string; type: AddressType }[] {
    const steps = candidates(host, this.#options.conf).flatMap(name =>
      this.#options.order.map(type => ({ name, type }))
    )
    if (last === undefined) return steps
    return [last, ...steps.filter(({ name, type }) => name !== last.name || type !== last.type)]
  }

  /** What the hosts file says of a name, of the family that comes first in the order. */
  #listed(host: string): readonly string[] | undefined {
    const listed = this.#options.hosts.find(host)
    if (listed === undefined) return undefined
    const { order } = this.#options
    const families = order.indexOf('AAAA') < order.indexOf('A') ? [6, 4] : [4, 6]
    for (const family of order.includes('AAAA') ? families : [4, 6]) {
      const found = listed.filter(ip => isIP(ip) === family)
      if (found.length > 0) return found
    }
    return undefined
  }

  async #addressesOf({ records, ttl }: Lookup, type: AddressType): Promise<Found> {
    const milliseconds = Math.min(ttl * 1000, MAX_TTL)
    if (type !== 'SRV') {
      return {
        addresses: records.map(({ data }) => ({ ip: data, service: undefined })),
        ttl: milliseconds
      }
    }
    // RFC 2782: only records of the lowest priority, as long as they are there.
    const lowest = Math.min(...records.map(({ priority }) => priority))
    const preferred = records.filter(({ priority }) => priority === lowest)
    const each = await Promise.allSettled(preferred.map(({ data }) => this.#hostAddresses(data)))
    const addresses: Address[] = []
    let shortest = milliseconds
    for (const [index, result] of each.entries()) {
      if (result.status === 'rejected') continue
      const { data: name, port, weight } = preferred[index]!
      shortest = Math.min(shortest, result.value.ttl)
      for (const { ip } of result.value.addresses) {
        addresses.push({ ip, service: { name, port, weight: Math.max(1, weight) } })
      }
    }
    const failed = each.find(result => result.status === 'rejected')
    if (addresses.length === 0 && failed !== undefined) throw failed.reason
    return { addresses, ttl: addresses.length === 0 ? RETRY : shortest }
  }

  /** The addresses of an SRV record's target, which is a full name. */
  async #hostAddresses(host: string): Promise<Found> {
    const listed = isIP(host) === 0 ? this.#listed(host) : [host]
    if (listed !== undefined) {
      return { addresses: listed.map(ip => ({ ip, service: undefined })), ttl: HOSTS_INTERVAL }
    }
    let error: unknown
    const types = this.#options.order.filter(type => type !== 'SRV')
    for (const type of types.length > 0 ? types : (['A', 'AAAA'] as const)) {
      try {
        const lookup = await lookUp(host, type, this.#options.client)
        if (lookup.records.length > 0) return await this.#addressesOf(lookup, type)
      } catch (cause) {
        error ??= cause
      }
    }
    if (error !== undefined) throw error
    return { addresses: [], ttl: RETRY }
  }

  /** One timer serves every name: it is set for the earliest and then looks at all. */
  #wakeBy(time: number): void {
    if (this.#closed || time >= this.#timerAt) return
    this.#timerAt = time
    clearTimeout(this.#timer)
    this.#timer = setTimeout(this.#wake, Math.max(1, time - performance.now()))
    this.#timer.unref()
  }

  readonly #wake = (): void => {
    const now = performance.now()
    this.#timerAt = Number.POSITIVE_INFINITY
    let next = Number.POSITIVE_INFINITY
    for (const [key, name] of this.#names) {
      if (name.answer === undefined || name.answer.transient || name.pending !== undefined) continue
      if (name.askAt <= now) void this.#renew(key, name)
      else next = Math.min(next, name.askAt)
    }
    this.#wakeBy(next)
  }
}

/** A thread's view of the node's name service: asks once for each name, then is told of changes. */
export class RemoteResolver implements Resolver {
  readonly #ask: (host: string) => Promise<Answer>
  readonly #answers = new LRUCache<string, Answer>({ max: MAX_NAMES })
  readonly #pending = new Map<string, Promise<Answer>>()
  version = 0

  /** `known` are the answers known at the start. */
  constructor(ask: (host: string) => Promise<Answer>, known: ReadonlyMap<string, Answer>) {
    this.#ask = ask
    for (const [host, answer] of known) this.#answers.set(host, answer)
  }

  resolve(host: string): Answer | Promise<Answer> {
    const ip = bare(host)
    if (isIP(ip) !== 0) return literal(ip)
    const key = host.toLowerCase()
    const answer = this.#answers.get(key)
    if (answer !== undefined) return answer
    let pending = this.#pending.get(key)
    if (pending === undefined) {
      pending = this.#fetch(key)
      this.#pending.set(key, pending)
    }
    return pending
  }

  async #fetch(key: string): Promise<Answer> {
    try {
      const answer = await this.#ask(key)
      if (!answer.transient) {
        this.#answers.set(key, answer)
        this.version++
      }
      return answer
    } catch {
      return { addresses: [], failure: 'ECLOSED', transient: true }
    } finally {
      this.#pending.delete(key)
    }
  }

  /** The addresses of a name changed. */
  update(host: string, answer: Answer): void {
    if (!this.#answers.has(host) && !answer.transient) return
    if (answer.transient) this.#answers.delete(host)
    else this.#answers.set(host, answer)
    this.version++
  }
}
