import type { Route, Service } from '../schema/entities.ts'
import type { Instance } from './instance.ts'
import type { Exchange } from './plugin.ts'

/**
 * The instances of one plugin that may run on a route. At most one of them does: the best scoped to
 * the consumer an earlier plugin authenticated, else the best without a consumer.
 */
interface Slot {
  readonly plain: Instance | undefined
  readonly byConsumer: ReadonlyMap<string, Instance> | undefined
}

/** The plugins of one route in execution order. */
export interface Chain {
  readonly slots: readonly Slot[]
  /** The whole selection when no slot depends on the consumer; saves choosing per request. */
  readonly fixed: readonly Instance[] | undefined
}

/** A route by its place in the configuration, read when it is asked for. */
export interface MatchedRoute {
  readonly place: number
  readonly route: Route
}

const EMPTY: Chain = { slots: [], fixed: [] }

/** Priority descending, ties by name descending: the order of every phase. */
function byPriority(a: Instance, b: Instance): number {
  return b.plugin.priority - a.plugin.priority || (a.plugin.name < b.plugin.name ? 1 : -1)
}

/** More specific first among the instances that apply to one route, consumer aside. */
function specificity(instance: Instance): number {
  return (
    (instance.scope.routeId === undefined ? 0 : 2) +
    (instance.scope.serviceId === undefined ? 0 : 1)
  )
}

function better(a: Instance, b: Instance | undefined): boolean {
  return b === undefined || specificity(a) > specificity(b)
}

/** Every enabled instance of a snapshot, and the chains compiled from them on first use of a route. */
export class Chains {
  /** Instances without any scope; the ones that run before routing and on unrouted requests. */
  readonly globals: Chain
  readonly instances: readonly Instance[]
  readonly #unscoped: readonly Instance[]
  readonly #byRoute = new Map<string, Instance[]>()
  readonly #byService = new Map<string, Instance[]>()
  /** By the place of the route. */
  readonly #chains: (Chain | undefined)[]
  /** Those of routes without instances of their own, by service: mostly one for thousands of routes. */
  readonly #shared = new Map<string | undefined, Chain>()

  /** `routes` is how many routes there are. */
  constructor(instances: readonly Instance[], routes: number) {
    this.instances = instances
    this.#chains = new Array(routes)
    const unscoped: Instance[] = []
    for (const instance of instances) {
      const { routeId, serviceId } = instance.scope
      if (routeId !== undefined) listOf(this.#byRoute, routeId).push(instance)
      else if (serviceId !== undefined) listOf(this.#byService, serviceId).push(instance)
      else unscoped.push(instance)
    }
    this.#unscoped = unscoped
    this.globals = compile(unscoped.filter(instance => instance.scope.consumerId === undefined))
  }

  /** The chain of a route. */
  for(matched: MatchedRoute, service: Service | undefined): Chain {
    // One of thousands of places is one more that a request would have to wait for.
    if (this.#byRoute.size === 0) return this.#ofService(service)
    let chain = this.#chains[matched.place]
    if (chain === undefined) {
      const onRoute = this.#byRoute.get(matched.route.id)
      chain = onRoute === undefined ? this.#ofService(service) : this.#compile(service, onRoute)
      this.#chains[matched.place] = chain
    }
    return chain
  }

  #ofService(service: Service | undefined): Chain {
    let chain = this.#shared.get(service?.id)
    if (chain === undefined) {
      chain = this.#compile(service, [])
      this.#shared.set(service?.id, chain)
    }
    return chain
  }

  #compile(service: Service | undefined, ofRoute: readonly Instance[]): Chain {
    const onRoute = ofRoute.filter(
      ({ scope }) => scope.serviceId === undefined || scope.serviceId === service?.id
    )
    const onService = service === undefined ? [] : (this.#byService.get(service.id) ?? [])
    const all = [...onRoute, ...onService, ...this.#unscoped]
    return all.length === 0 ? EMPTY : compile(all)
  }
}

function listOf(map: Map<string, Instance[]>, key: string): Instance[] {
  let list = map.get(key)
  if (list === undefined) {
    list = []
    map.set(key, list)
  }
  return list
}

function compile(instances: readonly Instance[]): Chain {
  const slots: Slot[] = []
  let dependsOnConsumer = false
  for (const group of Map.groupBy(
    [...instances].sort(byPriority),
    instance => instance.plugin.name
  ).values()) {
    let plain: Instance | undefined
    const byConsumer = new Map<string, Instance>()
    for (const instance of group) {
      const { consumerId } = instance.scope
      if (consumerId === undefined) {
        if (better(instance, plain)) plain = instance
      } else if (better(instance, byConsumer.get(consumerId))) {
        byConsumer.set(consumerId, instance)
      }
    }
    // Route and service together outrank a consumer alone; everything else with a consumer wins.
    if (plain !== undefined && specificity(plain) === 3) {
      for (const [id, instance] of byConsumer)
        if (specificity(instance) === 0) byConsumer.delete(id)
    }
    if (byConsumer.size > 0) dependsOnConsumer = true
    slots.push({ plain, byConsumer: byConsumer.size > 0 ? byConsumer : undefined })
  }
  const fixed = dependsOnConsumer ? undefined : slots.map(slot => slot.plain as Instance)
  return { slots, fixed }
}

function choose(slot: Slot, exchange: Exchange): Instance | undefined {
  const { consumer } = exchange
  if (consumer !== undefined && slot.byConsumer !== undefined) {
    return slot.byConsumer.get(consumer.id) ?? slot.plain
  }
  return slot.plain
}

/** Called when a hook throws; answers 500 unless an answer stands already. */
export type HookFailure = (exchange: Exchange, instance: Instance, error: unknown) => void

/**
 * Runs the access phase in priority order and gives the instances selected, which the later phases
 * run. After an answer the remaining instances are still selected, so they see the response.
 * Synchronous unless a hook is not.
 */
export function runAccess(
  chain: Chain,
  exchange: Exchange,
  failed: HookFailure
): readonly Instance[] | Promise<readonly Instance[]> {
  if (chain.fixed !== undefined) return runFixed(chain.fixed, exchange, failed, 0)
  return runSlots(chain.slots, exchange, failed, 0, [])
}

function runFixed(
  instances: readonly Instance[],
  exchange: Exchange,
  failed: HookFailure,
  from: number
): readonly Instance[] | Promise<readonly Instance[]> {
  for (let i = from; i < instances.length && !exchange.ended; i++) {
    const pending = runHook(instances[i]!, exchange, failed)
    if (pending !== undefined)
      return pending.then(() => runFixed(instances, exchange, failed, i + 1))
  }
  return instances
}

function runSlots(
  slots: readonly Slot[],
  exchange: Exchange,
  failed: HookFailure,
  from: number,
  selected: Instance[]
): readonly Instance[] | Promise<readonly Instance[]> {
  for (let i = from; i < slots.length; i++) {
    const instance = choose(slots[i]!, exchange)
    if (instance === undefined) continue
    selected.push(instance)
    if (exchange.ended) continue
    const pending = runHook(instance, exchange, failed)
    if (pending !== undefined) {
      return pending.then(() => runSlots(slots, exchange, failed, i + 1, selected))
    }
  }
  return selected
}

function runHook(
  instance: Instance,
  exchange: Exchange,
  failed: HookFailure
): Promise<void> | undefined {
  try {
    const pending = instance.hooks.access?.(exchange)
    return pending?.catch(error => failed(exchange, instance, error))
  } catch (error) {
    failed(exchange, instance, error)
    return undefined
  }
}

/** Runs one of the other phases over the selected instances; a hook that fails is reported and skipped. */
export function runPhase(
  phase: 'rewrite' | 'response',
  instances: readonly Instance[],
  exchange: Exchange,
  failed: HookFailure,
  from = 0
): void | Promise<void> {
  for (let i = from; i < instances.length; i++) {
    const instance = instances[i]!
    const hook = instance.hooks[phase]
    if (hook === undefined) continue
    try {
      const pending = hook.call(instance.hooks, exchange)
      if (pending !== undefined) {
        return pending
          .catch(error => failed(exchange, instance, error))
          .then(() => runPhase(phase, instances, exchange, failed, i + 1))
      }
    } catch (error) {
      failed(exchange, instance, error)
    }
  }
}

/** Runs the log phase; nothing that fails here reaches the client. */
export function runLog(
  instances: readonly Instance[],
  exchange: Exchange,
  failed: HookFailure
): void {
  for (const instance of instances) {
    try {
      instance.hooks.log?.(exchange)
    } catch (error) {
      failed(exchange, instance, error)
    }
  }
}
