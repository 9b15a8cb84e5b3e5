import type { TSchema } from 'typebox'
import { SECRET_UNAVAILABLE_TEXT } from '../errors.ts'
import type { PluginEntity } from '../schema/entities.ts'
import type { Context, Hooks, InstanceScope, Logger, Plugin, Store } from './plugin.ts'

/** What the thread lends to its plugin instances. */
export interface InstanceEnvironment {
  readonly log: Logger
  readonly store: Store
  /** Shared memory by plugin name. */
  readonly shared: Readonly<Record<string, SharedArrayBuffer>>
  readonly kept: Kept
  /**
   * Re-reads the references of the plugin entity with this id and gives its configuration in force
   * afterwards; undefined when that is `config` still.
   */
  refresh(entityId: string, config: unknown): Promise<unknown>
}

interface Closable {
  close?(): void | Promise<void>
}

interface KeptEntry {
  readonly value: Closable
  holders: number
}

/** State that outlives rotations and reloads: counted by its holders, closed with the last of them. */
export class Kept {
  readonly #entries = new Map<string, KeptEntry>()

  acquire<T extends Closable>(key: string, create: () => T): T {
    let entry = this.#entries.get(key)
    if (entry === undefined) {
      entry = { value: create(), holders: 0 }
      this.#entries.set(key, entry)
    }
    entry.holders++
    return entry.value as T
  }

  async release(key: string): Promise<void> {
    const entry = this.#entries.get(key)
    if (entry === undefined || --entry.holders > 0) return
    this.#entries.delete(key)
    await entry.value.close?.()
  }
}

/**
 * One set-up of a plugin entity with one set of resolved secrets. Immutable; a rotation makes a new
 * one. Counted by the snapshots that hold it and closed after the last of them.
 */
export class Instance {
  readonly plugin: Plugin
  readonly entity: PluginEntity
  readonly scope: InstanceScope
  readonly config: unknown
  readonly hooks: Hooks
  readonly #keys: readonly string[]
  readonly #environment: InstanceEnvironment
  #holders = 0

  private constructor(
    plugin: Plugin,
    entity: PluginEntity,
    scope: InstanceScope,
    config: unknown,
    hooks: Hooks,
    keys: readonly string[],
    environment: InstanceEnvironment
  ) {
    this.plugin = plugin
    this.entity = entity
    this.scope = scope
    this.config = config
    this.hooks = hooks
    this.#keys = keys
    this.#environment = environment
  }

  /** Runs the plugin's set-up; rejects with whatever it throws, having released what it kept. */
  static async create(
    plugin: Plugin,
    entity: PluginEntity,
    config: unknown,
    environment: InstanceEnvironment
  ): Promise<Instance> {
    const scope: InstanceScope = {
      id: entity.id,
      instanceName: entity.instance_name,
      routeId: entity.route?.id,
      serviceId: entity.service?.id,
      consumerId: entity.consumer?.id
    }
    const keys: string[] = []
    const context: Context<never> = {
      scope,
      log: environment.log,
      keep(name, create) {
        const key = `${plugin.name}\0${name}`
        const value = environment.kept.acquire(key, create)
        keys.push(key)
        return value
      },
      shared: environment.shared[plugin.name],
      store: environment.store,
      refresh: () => environment.refresh(entity.id, config) as Promise<never>
    }
    try {
      const hooks = await (plugin as Plugin<TSchema>).setup(config as never, context)
      return new Instance(plugin, entity, scope, config, hooks, keys, environment)
    } catch (error) {
      for (const key of keys) await environment.kept.release(key)
      throw error
    }
  }

  /** An instance whose secrets are missing: whatever it applies to answers 503. */
  static unavailable(
    plugin: Plugin,
    entity: PluginEntity,
    reason: string,
    environment: InstanceEnvironment
  ): Instance {
    const scope = {
      id: entity.id,
      instanceName: entity.instance_name,
      routeId: entity.route?.id,
      serviceId: entity.service?.id,
      consumerId: entity.consumer?.id
    }
    const hooks: Hooks = {
      access(exchange) {
        environment.log.error(
          { request_id: exchange.id, plugin: plugin.name, code: 'POSTERN_SECRET_UNAVAILABLE' },
          `answered 503: ${plugin.name} lacks a secret (${reason})`
        )
        exchange.error(503, SECRET_UNAVAILABLE_TEXT)
      }
    }
    return new Instance(plugin, entity, scope, undefined, hooks, [], environment)
  }

  acquire(): void {
    this.#holders++
  }

  async release(): Promise<void> {
    if (--this.#holders > 0) return
    try {
      await this.hooks.close?.()
    } finally {
      for (const key of this.#keys) await this.#environment.kept.release(key)
    }
  }
}
