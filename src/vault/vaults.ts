import { closest, distance } from 'fastest-levenshtein'
import type { TSchema } from 'typebox'

import type { VaultEntity } from '../schema/entities.ts'
import type { BackendEnvironment, BackendType } from './backend.ts'
import {
  type CacheOptions,
  extract,
  type FailureState,
  type Freshness,
  OpenVault,
  Resource
} from './cache.ts'
import { parseTemplate, type Reference } from './reference.ts'

/** What a reference came to. Messages never hold a value. */
export type Outcome =
  | { readonly state: 'ok'; readonly value: string; readonly version?: string }
  | { readonly state: FailureState; readonly message: string }

/** What is known of one reference, for people; never a value. */
export interface ReferenceStatus {
  readonly reference: string
  readonly vault: string
  readonly resource: string
  /** `ok`, `stale` while the last good value outlives failing refreshes, `invalid` when a new value was refused, else why there is none. */
  readonly state: 'ok' | 'stale' | 'invalid' | FailureState
  readonly version: string | undefined
  /** Seconds since the value was read. */
  readonly age: number | undefined
  /** Seconds to the next read; undefined when none is due by time. */
  readonly next_refresh: number | undefined
  readonly last_error: string | undefined
  readonly failures: number
}

/** What is wrong with a reference, and what to write. */
export interface Complaint {
  readonly message: string
  readonly fix: string
  /** It lacks in the environment: the file that holds the reference is all right. */
  readonly environment?: true
}

export interface VaultsOptions {
  readonly backendTypes: readonly BackendType[]
  /** Settings of the default vault of each type, as text from the environment. */
  readonly defaults: Readonly<Record<string, Readonly<Record<string, string>>>>
  /** What opened vaults are lent; an empty environment and no log when left out. */
  readonly environment?: BackendEnvironment
  readonly now?: () => number
  readonly random?: () => number
  /** Seconds one read may take. Default 10. */
  readonly timeout?: number
  /** Reads of one vault at a time. Default 8. */
  readonly concurrency?: number
}

/** Settings every vault has besides those of its type. */
const POLICY_FIELDS = ['ttl', 'neg_ttl', 'resurrect_ttl', 'base64_decode', 'on_denied'] as const
const DEFAULT_NEG_TTL = 60
const DEFAULT_RESURRECT_TTL = 1e8
/** Longest a chain of vaults that take their own settings from vaults may be. */
const MAX_CHAIN = 8

interface Definition {
  readonly name: string
  readonly type: BackendType
  /** As authored: texts may hold references. */
  readonly config: Readonly<Record<string, unknown>>
}

/** The vaults of one configuration. Sets share what they have read, so a reload reads nothing twice. */
export interface VaultSet {
  /** What is wrong with a reference as far as can be told without asking a vault. */
  check(reference: Reference): Complaint | undefined
  /** Resolves references, each resource with one read. Never rejects. */
  load(references: readonly Reference[]): Promise<ReadonlyMap<string, Outcome>>
  /** The resource a reference is part of, once it was loaded. */
  resourceOf(reference: Reference): Resource | undefined
  /** What a loaded reference stands for now, without reading. */
  outcome(reference: Reference): Outcome
  /** Every reference that was loaded. */
  status(): readonly ReferenceStatus[]
  close(): Promise<void>
}

/** Every vault of the process: definitions by configuration, open vaults and what was read shared. */
export interface Vaults {
  /** The same checks as those of a set, before there is one. */
  check(reference: Reference, entities: readonly VaultEntity[]): Complaint | undefined
  /** Opens nothing yet. Throws ConfigError when default vaults are set up wrongly. */
  prepare(entities: readonly VaultEntity[]): Promise<VaultSet>
  close(): Promise<void>
}

export function createVaults(options: VaultsOptions): Vaults {
  const shared = new SharedVaults(options)
  return {
    check: (reference, entities) => checkReference(reference, shared.define(entities)),
    async prepare(entities) {
      return new DefinedVaults(shared.define(entities), shared)
    },
    close: () => shared.close()
  }
}

interface OpenEntry {
  readonly vault: Promise<OpenVault>
  holders: number
}

/** Open vaults and resources by what identifies them. */
class SharedVaults {
  readonly types: readonly BackendType[]
  readonly cache: CacheOptions
  readonly #defaults: VaultsOptions['defaults']
  readonly #environment: BackendEnvironment
  readonly #open = new Map<string, OpenEntry>()
  readonly #resources = new Map<string, { readonly resource: Promise<Resource>; holders: number }>()

  constructor(options: VaultsOptions) {
    this.types = options.backendTypes
    this.#defaults = options.defaults
    this.#environment = options.environment ?? { env: {}, log: { info() {}, warn() {} } }
    this.cache = {
      now: options.now ?? Date.now,
      random: options.random ?? Math.random,
      timeout: options.timeout ?? 10,
      concurrency: options.concurrency ?? 8
    }
  }

  define(entities: readonly VaultEntity[]): ReadonlyMap<string, Definition> {
    const definitions = new Map<string, Definition>()
    for (const type of this.types) {
      definitions.set(type.name, { name: type.name, type, config: this.#defaults[type.name] ?? {} })
    }
    for (const { prefix, name, config } of entities) {
      const type = this.types.find(candidate => candidate.name === name)
      if (type !== undefined) definitions.set(prefix, { name: prefix, type, config })
    }
    return definitions
  }

  /** The resource with this identity, held until released by the same identity. */
  resource(
    vaultIdentity: string,
    type: BackendType,
    config: Readonly<Record<string, unknown>>,
    reference: Reference,
    freshness: Freshness
  ): { readonly identity: string; readonly resource: Promise<Resource> } {
    const identity = JSON.stringify([
      vaultIdentity,
      reference.resource,
      reference.version ?? '',
      freshness
    ])
    let entry = this.#resources.get(identity)
    if (entry === undefined) {
      const resource = this.#vault(vaultIdentity, type, config).then(
        vault => new Resource(reference.resource, reference.version, vault, freshness, this.cache)
      )
      entry = { resource, holders: 0 }
      this.#resources.set(identity, entry)
    }
    entry.holders++
    return { identity, resource: entry.resource }
  }

  release(identity: string): void {
    const entry = this.#resources.get(identity)
    if (entry !== undefined && --entry.holders === 0) this.#resources.delete(identity)
  }

  #vault(
    identity: string,
    type: BackendType,
    config: Readonly<Record<string, unknown>>
  ): Promise<OpenVault> {
    let entry = this.#open.get(identity)
    if (entry === undefined) {
      const vault = Promise.resolve(type.open(config, this.#environment)).then(
        backend => new OpenVault(backend, this.cache)
      )
      entry = { vault, holders: 0 }
      this.#open.set(identity, entry)
    }
    return entry.vault
  }

  async close(): Promise<void> {
    const open = [...this.#open.values()]
    this.#open.clear()
    this.#resources.clear()
    for (const { vault } of open) await (await vault).backend.close?.()
  }
}

interface Tracked {
  readonly reference: Reference
  readonly base64: boolean
  readonly identity: string
  readonly resource: Resource
}

class DefinedVaults implements VaultSet {
  readonly #definitions: ReadonlyMap<string, Definition>
  readonly #shared: SharedVaults
  readonly #tracked = new Map<string, Tracked>()
  /** References whose vault could not be set up, and why. */
  readonly #broken = new Map<string, Outcome>()

  constructor(definitions: ReadonlyMap<string, Definition>, shared: SharedVaults) {
    this.#definitions = definitions
    this.#shared = shared
  }

  check(reference: Reference): Complaint | undefined {
    return checkReference(reference, this.#definitions)
  }

  async load(references: readonly Reference[]): Promise<ReadonlyMap<string, Outcome>> {
    await Promise.all(references.map(reference => this.#load(reference, 0)))
    return new Map(references.map(reference => [reference.text, this.outcome(reference)]))
  }

  async #load(reference: Reference, depth: number): Promise<void> {
    try {
      const tracked = this.#tracked.get(reference.text) ?? (await this.#track(reference, depth))
      this.#broken.delete(reference.text)
      await tracked.resource.load()
    } catch (error) {
      this.#broken.set(reference.text, { state: 'unreachable', message: (error as Error).message })
    }
  }

  async #track(reference: Reference, depth: number): Promise<Tracked> {
    const definition = this.#definitions.get(reference.vault)
    if (definition === undefined) throw new Error(`there is no vault "${reference.vault}"`)
    if (depth > MAX_CHAIN)
      throw new Error('the settings of these vaults refer to each other in a circle')
    const settings = await this.#settle({ ...definition.config, ...reference.overrides }, depth)
    const { policy, config } = coerce(settings, definition.type.schema)
    const freshness: Freshness = {
      ttl: Number(policy.ttl ?? 0),
      negTtl: Number(
        policy.neg_ttl ??
          (Number(policy.ttl ?? 0) > 0
            ? Math.min(Number(policy.ttl), DEFAULT_NEG_TTL)
            : DEFAULT_NEG_TTL)
      ),
      resurrectTtl: Number(policy.resurrect_ttl ?? DEFAULT_RESURRECT_TTL),
      failOnDenied: policy.on_denied === 'fail'
    }
    const vaultIdentity = JSON.stringify([definition.type.name, config])
    const { identity, resource } = this.#shared.resource(
      vaultIdentity,
      definition.type,
      config,
      reference,
      freshness
    )
    const tracked = {
      reference,
      base64: String(policy.base64_decode) === 'true',
      identity,
      resource: await resource
    }
    const raced = this.#tracked.get(reference.text)
    if (raced !== undefined) {
      this.#shared.release(identity)
      return raced
    }
    this.#tracked.set(reference.text, tracked)
    return tracked
  }

  /** A vault's settings with the references in them resolved through other vaults. */
  async #settle(
    settings: Readonly<Record<string, unknown>>,
    depth: number
  ): Promise<Readonly<Record<string, unknown>>> {
    const settled: Record<string, unknown> = {}
    for (const [name, value] of Object.entries(settings)) {
      const template = typeof value === 'string' ? parseTemplate(value) : undefined
      if (template === undefined) {
        settled[name] = value
        continue
      }
      let text = ''
      for (const part of template) {
        if (typeof part === 'string') {
          text += part
          continue
        }
        await this.#load(part, depth + 1)
        const outcome = this.outcome(part)
        if (outcome.state !== 'ok')
          throw new Error(`its setting ${name} needs ${part.text}: ${outcome.message}`)
        text += outcome.value
      }
      settled[name] = text
    }
    return settled
  }

  resourceOf(reference: Reference): Resource | undefined {
    return this.#tracked.get(reference.text)?.resource
  }

  outcome(reference: Reference): Outcome {
    const broken = this.#broken.get(reference.text)
    if (broken !== undefined) return broken
    const tracked = this.#tracked.get(reference.text)
    if (tracked === undefined) return { state: 'unreachable', message: 'it was never asked for' }
    const { resource, base64 } = tracked
    const fetched = resource.current
    if (fetched === undefined) {
      const { state, message } = resource.failure ?? {
        state: 'unreachable' as const,
        message: 'it was never read'
      }
      if (state === 'absent' && reference.fallback !== undefined)
        return { state: 'ok', value: reference.fallback, version: 'default' }
      return { state, message }
    }
    try {
      const value = extract(fetched, reference.text, reference.key, reference.pointer, base64)
      return fetched.version === undefined
        ? { state: 'ok', value }
        : { state: 'ok', value, version: fetched.version }
    } catch (error) {
      const { code, message } = error as Error & { code?: string }
      const state = code === 'POSTERN_VAULT_ABSENT' ? 'absent' : 'malformed'
      if (state === 'absent' && reference.fallback !== undefined)
        return { state: 'ok', value: reference.fallback, version: 'default' }
      return { state, message }
    }
  }

  status(): readonly ReferenceStatus[] {
    const now = this.#shared.cache.now()
    const known = [...this.#tracked.values()].map(({ reference, resource }): ReferenceStatus => {
      const outcome = this.outcome(reference)
      const due = resource.dueAt
      const state =
        outcome.state !== 'ok'
          ? outcome.state
          : resource.rejected !== undefined
            ? 'invalid'
            : resource.failure !== undefined && resource.fetchedAt > 0
              ? 'stale'
              : 'ok'
      return {
        reference: reference.text,
        vault: reference.vault,
        resource: reference.resource,
        state,
        version: outcome.state === 'ok' ? outcome.version : undefined,
        age: resource.fetchedAt === 0 ? undefined : Math.round((now - resource.fetchedAt) / 1000),
        next_refresh: Number.isFinite(due)
          ? Math.max(0, Math.round((due - now) / 1000))
          : undefined,
        last_error: resource.rejected ?? resource.failure?.message,
        failures: resource.failures
      }
    })
    const broken = [...this.#broken].map(
      ([text, outcome]): ReferenceStatus => ({
        reference: text,
        vault: '',
        resource: '',
        state: outcome.state,
        version: undefined,
        age: undefined,
        next_refresh: undefined,
        last_error: outcome.state === 'ok' ? undefined : outcome.message,
        failures: 0
      })
    )
    return [...known, ...broken]
  }

  async close(): Promise<void> {
    for (const { identity } of this.#tracked.values()) this.#shared.release(identity)
    this.#tracked.clear()
  }
}

/** Splits settings into the layer's own and the type's, texts turned into what the type's schema says. */
function coerce(
  settings: Readonly<Record<string, unknown>>,
  schema: TSchema
): { readonly policy: Record<string, unknown>; readonly config: Record<string, unknown> } {
  const policy: Record<string, unknown> = {}
  const config: Record<string, unknown> = {}
  const properties = propertiesOf(schema)
  for (const [name, value] of Object.entries(settings)) {
    if ((POLICY_FIELDS as readonly string[]).includes(name)) {
      policy[name] = value
    } else if (value !== '') {
      const type = properties[name]?.type
      config[name] =
        typeof value !== 'string'
          ? value
          : type === 'integer' || type === 'number'
            ? Number(value)
            : type === 'boolean'
              ? value === 'true'
              : value
    }
  }
  return { policy, config }
}

function propertiesOf(schema: TSchema): Readonly<Record<string, { readonly type?: string }>> {
  return (schema as { properties?: Record<string, { type?: string }> }).properties ?? {}
}

const NUMBERS = new Set(['ttl', 'neg_ttl', 'resurrect_ttl'])

function checkReference(
  reference: Reference,
  definitions: ReadonlyMap<string, Definition>
): Complaint | undefined {
  const definition = definitions.get(reference.vault)
  if (definition === undefined) {
    const names = [...definitions.keys()]
    const near = closest(reference.vault, names)
    return {
      message: `there is no vault "${reference.vault}"`,
      fix:
        distance(reference.vault, near) <= 2
          ? `Did you mean "${near}"?`
          : `Use one of ${names.join(', ')}, or declare it under vaults.`
    }
  }
  const own = Object.keys(propertiesOf(definition.type.schema))
  for (const [name, value] of Object.entries(reference.overrides)) {
    if (definition.type.protectedFields.includes(name)) {
      return {
        message: `"${name}" decides where this vault is or who asks it, so a reference may not change it`,
        fix: 'Declare another vault under vaults for it.'
      }
    }
    const known = [...own, ...POLICY_FIELDS, 'pointer', 'default', 'version']
    if (!known.includes(name)) {
      const near = closest(name, known)
      return {
        message: `there is no query name "${name}"`,
        fix:
          distance(name, near) <= 2 ? `Did you mean "${near}"?` : `Use one of ${known.join(', ')}.`
      }
    }
    if (NUMBERS.has(name) && !/^\d+$/.test(value)) {
      return { message: `"${name}" takes seconds as a whole number`, fix: `Write ${name}=60.` }
    }
    if (name === 'base64_decode' && value !== 'true' && value !== 'false') {
      return { message: '"base64_decode" is true or false', fix: 'Write base64_decode=true.' }
    }
  }
  const { type } = definition
  const required = (type.schema as { required?: readonly string[] }).required ?? []
  const missing = required.filter(
    name => definition.config[name] === undefined && reference.overrides[name] === undefined
  )
  if (missing.length > 0) {
    const variable = `POSTERN_VAULT_${type.name.replaceAll('-', '_').toUpperCase()}_${missing[0]!.toUpperCase()}`
    const message = `the vault "${definition.name}" lacks its setting ${missing.join(', ')}`
    return definition.name === type.name
      ? { message, fix: `Set ${variable}.`, environment: true }
      : { message, fix: `Write it under the vault's config.` }
  }
  return undefined
}
