import type { Kept } from '../plugins/instance.ts'
import type { Logger } from '../plugins/plugin.ts'
import type { Upstream } from '../schema/entities.ts'
import type { BalancedRequest, Balancer, Candidate } from './balancer.ts'
import { algorithms, type BalancerFactory } from './balancers/index.ts'
import { peakEwma } from './balancers/latency.ts'
import { roundRobin } from './balancers/round-robin.ts'
import { nodeClock } from './clock.ts'
import { type Answer, type Resolver, sameAddresses } from './dns.ts'
import { type Endpoint, type Place, placeOf } from './endpoints.ts'
import {
  type Failure,
  HealthRules,
  type HealthSlot,
  type HealthTable,
  healthKey,
  isChecked
} from './health.ts'

/** What a thread knows of an address besides its health, for as long as any snapshot holds it. */
class AddressState {
  readonly slot: HealthSlot
  readonly #release: () => void
  inFlight = 0

  constructor(table: HealthTable, key: string) {
    this.slot = table.acquire(key)
    this.#release = () => table.release(key)
  }

  close(): void {
    this.#release()
  }
}

/** One address of an endpoint. */
export class TargetAddress implements Candidate, Place {
  readonly host: string
  readonly ip: string
  readonly port: number
  readonly weight: number
  readonly failover: boolean
  readonly key: string
  /** Undefined for a service without an upstream: it has one choice, whatever its health. */
  readonly state: AddressState | undefined
  available = true

  constructor(place: Place, state: AddressState | undefined) {
    this.host = place.host
    this.ip = place.ip
    this.port = place.port
    this.weight = place.weight
    this.failover = place.failover
    this.key = `${place.ip}:${place.port}`
    this.state = state
  }

  get inFlight(): number {
    return this.state?.inFlight ?? 0
  }

  get latency(): number {
    return this.state?.slot.latency ?? 0
  }

  get latencyAt(): number {
    return this.state?.slot.latencyAt ?? 0
  }
}

/** What target sets of a thread share. */
export interface TargetsEnvironment {
  readonly resolver: Resolver
  readonly health: HealthTable
  /** State of addresses by upstream and address. */
  readonly kept: Kept
  readonly log: Logger
}

/** A name of a service, which nothing else can stand in for, has no address. */
export class Unresolved extends Error {
  readonly host: string
  readonly failure: string

  constructor(host: string, failure: string) {
    super(`${host}: ${failure}`)
    this.host = host
    this.failure = failure
  }
}

/** The addresses of an upstream's targets, or of a service's own host, and the choice among them. */
export class Targets {
  readonly #endpoints: readonly Endpoint[]
  readonly #upstream: Upstream | undefined
  readonly #environment: TargetsEnvironment
  readonly #factory: BalancerFactory
  readonly #passive: HealthRules | undefined
  readonly #checked: boolean
  readonly #takesStatuses: boolean
  /** Whether the choice may set a cookie, and so is to be made even of one. */
  readonly #binds: boolean
  readonly #addresses = new Map<string, TargetAddress>()
  #primary: Balancer<TargetAddress> | undefined
  #secondary: Balancer<TargetAddress> | undefined
  /** The one address there is, which needs no balancer. */
  #only: TargetAddress | undefined
  #answers: readonly (Answer | undefined)[] = []
  #version = -1
  #transient = false
  #epoch = -1
  #healthy = true
  /** Grows when addresses came or went. */
  generation = 0

  /** `upstream` undefined: the endpoint is a service's own host. */
  constructor(
    endpoints: readonly Endpoint[],
    upstream: Upstream | undefined,
    environment: TargetsEnvironment
  ) {
    this.#endpoints = endpoints.filter(({ weight }) => weight > 0)
    this.#upstream = upstream
    this.#environment = environment
    this.#factory = upstream === undefined ? roundRobin : algorithms[upstream.algorithm](upstream)
    this.#checked = upstream !== undefined && isChecked(upstream.healthchecks)
    this.#passive = this.#checked
      ? new HealthRules('passive', upstream!.healthchecks.passive)
      : undefined
    this.#takesStatuses = upstream?.healthchecks.passive.type !== 'tcp'
    this.#binds = upstream?.algorithm === 'sticky-sessions' || upstream?.hash_on === 'cookie'
    // Names of targets are asked for before the first request waits for them.
    if (upstream !== undefined) {
      for (const { host } of this.#endpoints) void environment.resolver.resolve(host)
    }
  }

  /**
   * The next address; undefined when none is available. Throws or rejects with {@link Unresolved}.
   * Synchronous once a name is known.
   */
  pick(
    request: BalancedRequest,
    tried: ReadonlySet<TargetAddress> | undefined
  ): TargetAddress | undefined | Promise<TargetAddress | undefined> {
    if (this.#version !== this.#environment.resolver.version || this.#transient) {
      const pending = this.#resolve()
      if (pending !== undefined) return pending.then(() => this.#choose(request, tried))
    }
    return this.#choose(request, tried)
  }

  #choose(
    request: BalancedRequest,
    tried: ReadonlySet<TargetAddress> | undefined
  ): TargetAddress | undefined {
    if (this.#checked && this.#environment.health.epoch !== this.#epoch) this.#readHealth()
    if (!this.#healthy) return undefined
    if (this.#only !== undefined) return this.#only.available ? this.#only : undefined
    const first = this.#primary?.pick(request, tried)
    if (this.#secondary === undefined) return first
    if (first !== undefined && tried?.has(first) !== true) return first
    // Failover targets stand in when no other is available, or each was tried for this request.
    const second = this.#secondary.pick(request, tried)
    return second !== undefined && tried?.has(second) !== true ? second : (first ?? second)
  }

  /** Looks up every name; gives a promise when no address is known yet but one may come. */
  #resolve(): Promise<void> | undefined {
    const { resolver } = this.#environment
    this.#version = resolver.version
    const pending: Promise<Answer>[] = []
    const answers = this.#endpoints.map(({ host }) => {
      const answer = resolver.resolve(host)
      if (!(answer instanceof Promise)) return answer
      pending.push(answer)
      return undefined
    })
    const known = answers.some(answer => answer !== undefined && answer.addresses.length > 0)
    if (pending.length === 0 || (known && !this.#transient)) {
      this.#adopt(answers)
      return undefined
    }
    return this.#await(answers, pending)
  }

  async #await(
    answers: readonly (Answer | undefined)[],
    pending: readonly Promise<Answer>[]
  ): Promise<void> {
    const arrived = [...answers]
    const holes = arrived.flatMap((answer, index) => (answer === undefined ? [index] : []))
    // The first address serves the request; those that come later are taken over as they come.
    await new Promise<void>(resolve => {
      let left = pending.length
      for (const [index, promise] of pending.entries()) {
        void promise.then(answer => {
          arrived[holes[index]!] = answer
          if (--left === 0 || answer.addresses.length > 0) resolve()
        })
      }
    })
    this.#adopt(arrived)
    if (arrived.includes(undefined)) this.#version = -1
  }

  #adopt(answers: readonly (Answer | undefined)[]): void {
    this.#transient = answers.some(answer => answer?.transient === true)
    const same =
      this.generation > 0 &&
      answers.every((answer, index) => {
        const before = this.#answers[index]
        if (answer === before) return true
        return (
          answer !== undefined &&
          before !== undefined &&
          sameAddresses(before.addresses, answer.addresses)
        )
      })
    this.#answers = answers
    if (!same) this.#rebuild()
    if (this.#addresses.size > 0 || this.#upstream !== undefined) return
    const index = answers.findIndex(answer => answer?.failure !== undefined)
    if (index !== -1) throw new Unresolved(this.#endpoints[index]!.host, answers[index]!.failure!)
  }

  #rebuild(): void {
    const gone = new Map(this.#addresses)
    for (const [index, endpoint] of this.#endpoints.entries()) {
      for (const address of this.#answers[index]?.addresses ?? []) {
        const place = placeOf(endpoint, address, this.#upstream?.use_srv_name ?? false)
        const name = `${endpoint.host} ${place.ip} ${place.port}`
        const known = this.#addresses.get(name)
        gone.delete(name)
        if (known?.weight === place.weight && known.host === place.host) continue
        if (known === undefined) this.#addresses.set(name, this.#open(endpoint, place))
        else this.#addresses.set(name, new TargetAddress(place, known.state))
      }
    }
    for (const name of gone.keys()) this.#drop(name)
    this.generation++
    this.#epoch = -1
    const all = [...this.#addresses.values()]
    const primary = all.filter(({ failover }) => !failover)
    const secondary = all.filter(({ failover }) => failover)
    this.#only = all.length === 1 && !this.#binds ? all[0] : undefined
    if (this.#only !== undefined) return
    this.#primary = this.#factory(primary)
    this.#secondary = secondary.length > 0 ? this.#factory(secondary) : undefined
  }

  #open({ host }: Endpoint, place: Place): TargetAddress {
    const { kept, health } = this.#environment
    if (this.#upstream === undefined) return new TargetAddress(place, undefined)
    const key = healthKey(this.#upstream, host, place)
    return new TargetAddress(
      place,
      kept.acquire(key, () => new AddressState(health, key))
    )
  }

  #drop(name: string): void {
    this.#addresses.delete(name)
    if (this.#upstream === undefined) return
    const [host, ip, port] = name.split(' ') as [string, string, string]
    void this.#environment.kept.release(healthKey(this.#upstream, host, { ip, port: Number(port) }))
  }

  /** Notes which addresses are available, after some state changed. */
  #readHealth(): void {
    this.#epoch = this.#environment.health.epoch
    let total = 0
    let available = 0
    for (const address of this.#addresses.values()) {
      address.available = address.state!.slot.healthy
      total += address.weight
      if (address.available) available += address.weight
    }
    const { threshold } = this.#upstream!.healthchecks
    this.#healthy = total > 0 && (available / total) * 100 > threshold
  }

  /** A request to an address begins. */
  begin({ state }: TargetAddress): void {
    if (state !== undefined) state.inFlight++
  }

  /** The request has ended, whichever way. */
  end({ state }: TargetAddress): void {
    if (state !== undefined) state.inFlight--
  }

  /** An address answered with a status, `milliseconds` after the request was begun. */
  answered(address: TargetAddress, status: number, milliseconds: number): void {
    const { state } = address
    if (state === undefined) return
    if (this.#upstream!.algorithm === 'latency') {
      const { slot } = state
      const now = nodeClock()
      slot.setLatency(peakEwma(slot.latency, slot.latencyAt, milliseconds, now), now)
    }
    if (this.#passive === undefined) return
    const changed = this.#takesStatuses
      ? this.#passive.status(state.slot, status)
      : this.#passive.success(state.slot)
    if (changed) this.#logChange(address, `answered ${status}`)
  }

  /** An address gave no answer. */
  failed(address: TargetAddress, kind: Failure): void {
    const { state } = address
    if (state === undefined || this.#passive === undefined) return
    if (this.#passive.failure(state.slot, kind)) this.#logChange(address, kind)
  }

  #logChange({ host, key, state }: TargetAddress, cause: string): void {
    const { healthy } = state!.slot
    const facts = { upstream: this.#upstream!.name, target: host, address: key, cause }
    if (healthy) this.#environment.log.info(facts, 'a target is healthy again')
    else this.#environment.log.warn(facts, 'a target is unhealthy')
  }

  /** The addresses known now. */
  get addresses(): ReadonlySet<TargetAddress> {
    return new Set(this.#addresses.values())
  }

  release(): void {
    for (const name of [...this.#addresses.keys()]) this.#drop(name)
  }
}
