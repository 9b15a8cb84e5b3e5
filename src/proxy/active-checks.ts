import { createSecureContext, type SecureContext } from 'node:tls'
import pLimit, { type LimitFunction } from 'p-limit'
import type { Logger } from '../plugins/plugin.ts'
import type { Certificate, Target, Upstream } from '../schema/entities.ts'
import type { Answer, Resolver } from './dns.ts'
import { type Endpoint, endpointOf, type Place, placeOf } from './endpoints.ts'
import {
  type Check,
  HealthRules,
  type HealthSlot,
  type HealthTable,
  healthKey,
  isChecked
} from './health.ts'
import { type Finding, probe } from './probe.ts'

/** One upstream as the control thread watches it. */
export interface WatchedUpstream {
  readonly upstream: Upstream
  readonly targets: readonly Target[]
  /** What probes show over TLS; undefined when there is none or it has no value. */
  readonly certificate: Certificate | undefined
  /** Authorities that probes trust over TLS, PEM; undefined trusts those the process does. */
  readonly trusted: readonly string[] | undefined
}

export interface WatchEnvironment {
  readonly resolver: Resolver
  readonly health: HealthTable
  readonly log: Logger
}

/** Whether a target, an address or an upstream can be used. */
export type HealthState = 'HEALTHY' | 'UNHEALTHY' | 'DNS_ERROR' | 'HEALTHCHECKS_OFF'

/** One address with its health, as the status API shows it. */
export interface AddressStatus {
  readonly ip: string
  readonly port: number
  readonly weight: number
  readonly health: HealthState
  /** What each kind of check has counted since the last change of state. */
  readonly counters: Readonly<Record<Check, ReturnType<HealthSlot['counters']>>>
  readonly last_check?: { readonly at: string; readonly result: string }
}

/** One target with its addresses, as the status API shows it. */
export interface TargetStatus {
  readonly target: string
  readonly weight: number
  readonly failover: boolean
  readonly health: HealthState
  /** Why its name has no address. */
  readonly dns_failure?: string
  readonly addresses: readonly AddressStatus[]
}

/** One upstream, as the status API shows it. */
export interface UpstreamStatus {
  readonly name: string
  readonly algorithm: string
  readonly health: HealthState
  readonly targets: readonly TargetStatus[]
}

interface Watched {
  readonly key: string
  place: Place
  readonly slot: HealthSlot
  last: { readonly at: number; readonly finding: Finding } | undefined
}

/** A target and the addresses its name has now. */
interface WatchedTarget {
  readonly target: Target
  readonly endpoint: Endpoint
  addresses: readonly Watched[]
  answer: Answer | undefined
}

/** Follows the addresses of one upstream's targets and probes them, once for the whole node. */
export class UpstreamWatch {
  readonly #watched: WatchedUpstream
  readonly #environment: WatchEnvironment
  readonly #targets: readonly WatchedTarget[]
  readonly #rules: HealthRules
  readonly #limit: LimitFunction
  readonly #timers: NodeJS.Timeout[] = []
  readonly #probing = new Set<Watched>()
  #version = -1
  #closed = false
  #context: SecureContext | undefined

  constructor(watched: WatchedUpstream, environment: WatchEnvironment) {
    const { active } = watched.upstream.healthchecks
    this.#watched = watched
    this.#environment = environment
    this.#rules = new HealthRules('active', active)
    this.#limit = pLimit(active.concurrency)
    this.#targets = watched.targets.map(target => ({
      target,
      endpoint: endpointOf(target),
      addresses: [],
      answer: undefined
    }))
    this.follow()
    this.#every(active.healthy.interval, true)
    this.#every(active.unhealthy.interval, false)
  }

  get name(): string {
    return this.#watched.upstream.name
  }

  /** Probes those that are in a state now, and again each `interval` seconds; 0 never does. */
  #every(interval: number, healthy: boolean): void {
    if (interval === 0) return
    this.#round(healthy)
    const timer = setInterval(() => this.#round(healthy), interval * 1000)
    timer.unref()
    this.#timers.push(timer)
  }

  #round(healthy: boolean): void {
    this.follow()
    for (const { endpoint, addresses } of this.#targets) {
      if (endpoint.weight === 0) continue
      for (const watched of addresses) {
        if (watched.slot.healthy !== healthy || this.#probing.has(watched)) continue
        this.#probing.add(watched)
        void this.#limit(() => this.#check(watched))
      }
    }
  }

  /** Takes over what changed in the addresses of the targets' names. */
  follow(): void {
    const { resolver } = this.#environment
    if (this.#closed || resolver.version === this.#version) return
    this.#version = resolver.version
    for (const target of this.#targets) {
      const answer = resolver.resolve(target.endpoint.host)
      if (!(answer instanceof Promise)) this.#adopt(target, answer)
      else {
        void answer.then(known => {
          if (this.#closed) return
          const first = target.answer === undefined
          this.#adopt(target, known)
          if (first && this.#watched.upstream.healthchecks.active.healthy.interval > 0)
            this.#round(true)
        })
      }
    }
  }

  #adopt(target: WatchedTarget, answer: Answer): void {
    if (target.answer === answer) return
    target.answer = answer
    const { upstream } = this.#watched
    const { health } = this.#environment
    const before = new Map(target.addresses.map(watched => [watched.key, watched]))
    target.addresses = answer.addresses.map(address => {
      const place = placeOf(target.endpoint, address, upstream.use_srv_name)
      const key = healthKey(upstream, target.endpoint.host, place)
      const known = before.get(key)
      if (known === undefined) return { key, place, slot: health.acquire(key), last: undefined }
      before.delete(key)
      known.place = place
      return known
    })
    for (const key of before.keys()) health.release(key)
  }

  async #check(watched: Watched): Promise<void> {
    try {
      if (this.#closed) return
      const finding = await probe(this.#probeOf(watched.place))
      if (this.#closed) return
      watched.last = { at: Date.now(), finding }
      if (this.#judge(watched.slot, finding)) this.#logChange(watched, finding)
    } finally {
      this.#probing.delete(watched)
    }
  }

  #judge(slot: HealthSlot, finding: Finding): boolean {
    if ('status' in finding) return this.#rules.status(slot, finding.status)
    if ('success' in finding) return this.#rules.success(slot)
    if ('unable' in finding) return false
    return this.#rules.failure(slot, finding.failure)
  }

  #probeOf({ host, ip, port }: Place) {
    const { upstream, certificate, trusted } = this.#watched
    const { active } = upstream.healthchecks
    return {
      type: active.type,
      ip,
      port,
      host: upstream.host_header ?? host,
      path: active.http_path,
      headers: active.headers ?? {},
      timeout: (active.timeout || 1) * 1000,
      servername: active.https_sni,
      verify: active.https_verify_certificate,
      context: certificate === undefined && trusted === undefined ? undefined : this.#material
    }
  }

  /** What probes show and trust; made once, since reading all authorities takes milliseconds. */
  readonly #material = (): SecureContext => {
    const { certificate, trusted } = this.#watched
    this.#context ??= createSecureContext({
      ...(trusted === undefined ? {} : { ca: [...trusted] }),
      ...(certificate === undefined
        ? {}
        : { cert: certificate.cert.reveal(), key: certificate.key.reveal() })
    })
    return this.#context
  }

  #logChange({ place, slot }: Watched, finding: Finding): void {
    const { log } = this.#environment
    const facts = {
      upstream: this.#watched.upstream.name,
      target: place.host,
      address: `${place.ip}:${place.port}`,
      cause: textOf(finding)
    }
    if (slot.healthy) log.info(facts, 'a target is healthy again')
    else log.warn(facts, 'a target is unhealthy')
  }

  /** Sets the state of every address of a target, or of all; gives how many changed. */
  turn(target: string | undefined, healthy: boolean): number {
    let changed = 0
    for (const each of this.#targets) {
      if (target !== undefined && each.target.target !== target) continue
      for (const { slot } of each.addresses) if (slot.turn(healthy)) changed++
    }
    return changed
  }

  status(): UpstreamStatus {
    this.follow()
    const { name, algorithm, healthchecks } = this.#watched.upstream
    const checked = isChecked(healthchecks)
    let total = 0
    let available = 0
    const targets = this.#targets.map(({ target, endpoint, addresses, answer }): TargetStatus => {
      for (const { place, slot } of endpoint.weight === 0 ? [] : addresses) {
        total += place.weight
        if (!checked || slot.healthy) available += place.weight
      }
      const listed = addresses.map(address => addressStatus(address, checked))
      return {
        target: target.target,
        weight: target.weight,
        failover: endpoint.failover,
        health: targetHealth(listed, checked),
        ...(answer?.failure === undefined ? {} : { dns_failure: answer.failure }),
        addresses: listed
      }
    })
    const healthy = total > 0 && (available / total) * 100 > healthchecks.threshold
    const health = healthy ? (checked ? 'HEALTHY' : 'HEALTHCHECKS_OFF') : 'UNHEALTHY'
    return { name, algorithm, health, targets }
  }

  close(): void {
    this.#closed = true
    for (const timer of this.#timers) clearInterval(timer)
    for (const { addresses } of this.#targets) {
      for (const { key } of addresses) this.#environment.health.release(key)
    }
  }
}

function targetHealth(addresses: readonly AddressStatus[], checked: boolean): HealthState {
  if (addresses.length === 0) return 'DNS_ERROR'
  if (!checked) return 'HEALTHCHECKS_OFF'
  return addresses.some(({ health }) => health === 'HEALTHY') ? 'HEALTHY' : 'UNHEALTHY'
}

function addressStatus({ place, slot, last }: Watched, checked: boolean): AddressStatus {
  const { ip, port, weight } = place
  return {
    ip,
    port,
    weight,
    health: checked ? (slot.healthy ? 'HEALTHY' : 'UNHEALTHY') : 'HEALTHCHECKS_OFF',
    counters: { active: slot.counters('active'), passive: slot.counters('passive') },
    ...(last === undefined
      ? {}
      : { last_check: { at: new Date(last.at).toISOString(), result: textOf(last.finding) } })
  }
}

function textOf(finding: Finding): string {
  if ('status' in finding) return `status ${finding.status}`
  if ('unable' in finding) return `not checked: ${finding.unable}`
  return 'success' in finding ? finding.success : `${finding.failure}: ${finding.cause}`
}
