import { VaultMisconfigured, VaultUnreachable } from '../errors.ts'
import type { VaultEntity } from '../schema/entities.ts'
import type { BackendEnvironment, BackendType } from './backend.ts'
import { type FailureState, type ReadFailure, Resource } from './cache.ts'
import {
  type Complaint,
  checkReference,
  type Definition,
  type Definitions,
  define,
  type Policy,
  policyOf,
  referencesIn,
  settingsFor,
  settle,
  typed
} from './definitions.ts'
import { extract } from './extract.ts'
import { Gate, type GateOptions, outcomeOf } from './gate.ts'
import type { LastKnownGood } from './last-known-good.ts'
import { Libraries } from './libraries.ts'
import type { Observe } from './observation.ts'
import { OpenVault } from './open-vault.ts'
import type { Reference } from './reference.ts'

export type { Complaint } from './definitions.ts'

/** What a reference came to. Messages never hold a value. */
export type Outcome =
  | { readonly state: 'ok'; readonly value: string; readonly version?: string }
  | ReadFailure

/** What is known of one reference, for people; never a value. */
export interface ReferenceStatus {
  readonly reference: string
  readonly vault: string
  readonly resource: string
  /** `ok`, `stale` while the last good value outlives failing refreshes, `invalid` when a new value was refused, else why there is none. */
  readonly state: 'ok' | 'stale' | 'invalid' | FailureState
  readonly version: string | undefined
  /** Seconds since the value was known to be current. */
  readonly age: number | undefined
  /** Seconds to the next read; undefined when none is due by time. */
  readonly next_refresh: number | undefined
  readonly last_error: string | undefined
  /** Failed reads and refused values in a row. */
  readonly failures: number
  /** Where the value came from, when that was not the vault. */
  readonly source?: 'last-known-good'
}

/** What operators watch of one open vault. */
export interface VaultHealth {
  readonly vault: string
  /** Unix milliseconds at which the credential in use ends. */
  readonly tokenExpiresAt?: number
}

export interface VaultsOptions {
  readonly backendTypes: readonly BackendType[]
  /** Settings of the default vault of each type, as text from the environment. */
  readonly defaults: Readonly<Record<string, Readonly<Record<string, string>>>>
  /** What opened vaults are lent; an empty environment and no log when left out. */
  readonly environment?: BackendEnvironment
  /** Told of every call to a vault. */
  readonly observe?: Observe
  /** Told of each value that a vault takes for a setting of its own, before it is used. */
  readonly taken?: (reference: string, value: string) => void
  /** Milliseconds of a clock that does not jump. Default `performance.now`. */
  readonly now?: () => number
  readonly random?: () => number
  /** Seconds one read may take, where a vault has no `timeout`. Default 10. */
  readonly timeout?: number
  /** Calls to one vault at a time. Default 8. */
  readonly concurrency?: number
}

const DEFAULT_TIMEOUT = 10
const DEFAULT_CONCURRENCY = 8

export interface LoadOptions {
  /** Whether values an earlier process had may stand in for a vault that gives no answer. */
  readonly lastKnownGood?: boolean
}

/** The vaults of one configuration. Sets share what they have read, so a reload reads nothing twice. */
export interface VaultSet {
  /** What is wrong with a reference as far as can be told without asking a vault. */
  check(reference: Reference): Complaint | undefined
  /** Resolves references, each resource with one read. Never rejects. */
  load(
    references: readonly Reference[],
    options?: LoadOptions
  ): Promise<ReadonlyMap<string, Outcome>>
  /** Those of these references that were loaded. */
  references(texts: Iterable<string>): readonly Reference[]
  /** The resource a reference is part of, once it was loaded. */
  resourceOf(reference: string): Resource | undefined
  /** What a loaded reference stands for now, without reading. */
  outcome(reference: string): Outcome
  /** Seconds the previous value of a loaded reference still verifies; undefined is the gateway's setting. */
  grace(reference: string): number | undefined
  /** Resources that settings of these vaults are read from. */
  readonly dependencies: readonly Resource[]
  /** These are in force: what they hold may be kept as last known good. */
  confirm(references: Iterable<string>): void
  /** Every reference that was loaded; `nextRead` gives when a resource is read, by default when it is due. */
  status(nextRead?: (resource: Resource) => number): readonly ReferenceStatus[]
  health(): readonly VaultHealth[]
  close(): void
}

/** Every vault of the process: definitions by configuration, open vaults and what was read shared. */
export interface Vaults {
  readonly backendTypes: readonly BackendType[]
  /** The same checks as those of a set, before there is one. */
  check(reference: Reference, entities: readonly VaultEntity[]): Complaint | undefined
  /** The vaults of a configuration; opens nothing yet. */
  prepare(entities: readonly VaultEntity[]): VaultSet
  /** Where values in force are kept from now on. */
  useLastKnownGood(store: LastKnownGood): void
  /** Ends every read under way and closes every vault. */
  close(): Promise<void>
}

export function createVaults(options: VaultsOptions): Vaults {
  const shared = new SharedVaults(options)
  return {
    backendTypes: options.backendTypes,
    check: (reference, entities) => checkReference(reference, shared.define(entities)),
    prepare: entities => new DefinedVaults(shared.define(entities), shared),
    useLastKnownGood(store) {
      shared.lastKnownGood = store
    },
    close: () => shared.close()
  }
}

/** A reference with where its value comes from. Thousands share their resource and its access. */
interface Tracked {
  readonly reference: Reference
  readonly access: Access
  readonly held: HeldResource
}

/** A resource of an access. */
interface HeldResource {
  readonly resource: Resource
  /** Of the resource, and of what kept values are bound to. */
  readonly identity: string
}

interface Shared<T> {
  readonly value: T
  holders: number
  release(): void
}

/** Open vaults and resources by what identifies them. */
class SharedVaults {
  readonly timeout: number
  readonly now: () => number
  lastKnownGood: LastKnownGood | undefined
  readonly #options: VaultsOptions
  readonly #environment: BackendEnvironment
  readonly #clock: Pick<GateOptions, 'now' | 'random'>
  readonly #libraries = new Libraries()
  readonly #gates = new Map<string, Gate>()
  readonly #open = new Map<string, Shared<OpenVault>>()
  readonly #resources = new Map<string, Shared<Resource>>()

  constructor(options: VaultsOptions) {
    this.#options = options
    this.#environment = options.environment ?? { env: {}, log: { info() {}, warn() {} } }
    this.timeout = options.timeout ?? DEFAULT_TIMEOUT
    this.now = options.now ?? (() => performance.now())
    this.#clock = { now: this.now, random: options.random ?? Math.random }
  }

  define(entities: readonly VaultEntity[]): Definitions {
    return define(this.#options.backendTypes, this.#options.defaults, entities)
  }

  /** One reference with an access of its own. Throws when its vault does not exist. */
  track(reference: Reference, definitions: Definitions): Tracked {
    const access = this.access(reference, definitions)
    return { reference, access, held: access.resource(reference) }
  }

  /**
   * The vault of a reference, asked as this and others that override the same settings want it; held
   * until it is released. Throws when there is no such vault.
   */
  access(reference: Reference, definitions: Definitions): Access {
    const definition = definitions.get(reference.vault)
    if (definition === undefined) throw new Error(`there is no vault "${reference.vault}"`)
    const circle = checkReference(reference, definitions)
    if (circle !== undefined) throw new VaultMisconfigured(circle.message, circle.fix)
    const { policy, own } = settingsFor(definition, reference)
    const vaultIdentity = this.#identityOf(definition, own, definitions)
    const open = this.#hold(this.#open, vaultIdentity, () =>
      this.#openVault(definition, own, definitions)
    )
    const needed = referencesIn(policy).map(part => this.track(part, definitions))
    const hold = (identity: string, name: string, version: string | undefined): Shared<Resource> =>
      this.#hold(this.#resources, identity, () => {
        const gone = (): void => this.lastKnownGood?.drop(identity)
        return { value: new Resource(name, version, open.value, this.#clock, gone), release() {} }
      })
    return new Access({
      definition,
      vault: open.value,
      vaultIdentity,
      hold,
      drop: (identity, entry) => this.#release(this.#resources, identity, entry),
      policy: () =>
        policyOf(
          settle(policy, (part, name) => this.#valueFor(part, needed, name)),
          this.timeout
        ),
      needed,
      release: () => {
        this.#release(this.#open, vaultIdentity, open)
        for (const { access } of needed) access.release()
      }
    })
  }

  #valueFor(part: Reference, needed: readonly Tracked[], setting: string): string {
    const value = valueFor(part, needed, setting)
    this.#options.taken?.(part.text, value)
    return value
  }

  /** A vault is its name and settings, and what the vaults are that they come from. */
  #identityOf(
    definition: Definition,
    own: Readonly<Record<string, unknown>>,
    definitions: Definitions
  ): string {
    const sources = referencesIn(own).map(part => {
      const source = definitions.get(part.vault)
      return source === undefined
        ? part.vault
        : this.#identityOf(source, settingsFor(source, part).own, definitions)
    })
    const settings = Object.entries(own).sort(([a], [b]) => (a < b ? -1 : 1))
    return JSON.stringify([definition.name, definition.type.name, settings, sources])
  }

  #openVault(
    definition: Definition,
    own: Readonly<Record<string, unknown>>,
    definitions: Definitions
  ): Omit<Shared<OpenVault>, 'holders'> {
    const { name, type } = definition
    const needed = referencesIn(own).map(part => this.track(part, definitions))
    const vault = new OpenVault(
      name,
      type,
      {
        written: own,
        dependencies: needed.map(({ held }) => held.resource),
        current: () =>
          typed(
            settle(own, (part, setting) => this.#valueFor(part, needed, setting)),
            type.schema
          )
      },
      this.#environment,
      this.#gate(definition),
      this.now,
      this.#libraries
    )
    // All vaults that a set of references needs are made in one turn, so all imports precede all reads.
    if (type.load !== undefined) this.#libraries.load(async () => type.load?.(own))
    return {
      value: vault,
      release() {
        void vault.close()
        for (const { access } of needed) access.release()
      }
    }
  }

  #gate({ name, type }: Definition): Gate {
    const known = this.#gates.get(name)
    if (known !== undefined) return known
    const { concurrency = DEFAULT_CONCURRENCY, observe = () => {} } = this.#options
    const gate = new Gate({ ...this.#clock, vault: name, type: type.name, concurrency, observe })
    this.#gates.set(name, gate)
    return gate
  }

  #hold<T>(
    all: Map<string, Shared<T>>,
    identity: string,
    create: () => Omit<Shared<T>, 'holders'>
  ): Shared<T> {
    let entry = all.get(identity)
    if (entry === undefined) {
      entry = { ...create(), holders: 0 }
      all.set(identity, entry)
    }
    entry.holders++
    return entry
  }

  #release<T>(all: Map<string, Shared<T>>, identity: string, entry: Shared<T>): void {
    if (--entry.holders > 0) return
    if (all.get(identity) === entry) all.delete(identity)
    entry.release()
  }

  async close(): Promise<void> {
    const open = [...this.#open.values()]
    this.#open.clear()
    this.#resources.clear()
    for (const gate of this.#gates.values()) gate.close()
    await Promise.all(open.map(({ value }) => value.close(true)))
  }
}

interface AccessOptions {
  readonly definition: Definition
  readonly vault: OpenVault
  readonly vaultIdentity: string
  /** What the policy is made of. */
  readonly needed: readonly Tracked[]
  /** The policy, once what is needed was read; throws when it cannot be. */
  policy(): Policy
  hold(identity: string, name: string, version: string | undefined): Shared<Resource>
  drop(identity: string, entry: Shared<Resource>): void
  release(): void
}

/** One vault asked in one way: with what its references override, and the resources they are part of. */
class Access {
  readonly definition: Definition
  readonly vault: OpenVault
  readonly #options: AccessOptions
  readonly #resources = new Map<string, HeldResource & { readonly entry: Shared<Resource> }>()
  readonly #holds: (() => void)[] = []
  #policy: Policy | undefined
  /** Resolves when `policy` is there; rejects when it cannot be. */
  readonly settled: Promise<void>

  constructor(options: AccessOptions) {
    this.#options = options
    this.definition = options.definition
    this.vault = options.vault
    this.settled = this.#settle()
    this.settled.catch(() => {})
  }

  /** Undefined until the references in it (a ttl may be one) have been read. */
  get policy(): Policy | undefined {
    return this.#policy
  }

  async #settle(): Promise<void> {
    const { needed } = this.#options
    if (needed.length > 0) await Promise.all(needed.map(ready))
    this.#policy = this.#options.policy()
    for (const { resource } of this.#resources.values()) this.#keepFresh(resource)
  }

  #keepFresh(resource: Resource): void {
    if (this.#policy !== undefined) this.#holds.push(resource.hold(this.#policy.freshness))
  }

  /** Finds or makes the resource of a reference. */
  resource({ resource: name, version }: Reference): HeldResource {
    const identity = JSON.stringify([this.#options.vaultIdentity, name, version ?? null])
    let held = this.#resources.get(identity)
    if (held === undefined) {
      const entry = this.#options.hold(identity, name, version)
      held = { resource: entry.value, identity, entry }
      this.#resources.set(identity, held)
      this.#keepFresh(held.resource)
    }
    return held
  }

  release(): void {
    for (const release of this.#holds) release()
    for (const { identity, entry } of this.#resources.values()) this.#options.drop(identity, entry)
    this.#options.release()
  }
}

/** Reads what a setting refers to. */
async function ready({ access, held }: Tracked): Promise<void> {
  await access.settled
  await held.resource.load()
}

/** What a reference in a vault's setting stands for; throws what keeps the vault from being asked. */
function valueFor(part: Reference, needed: readonly Tracked[], setting: string): string {
  const outcome = outcomeOfTracked(needed.find(({ reference }) => reference.text === part.text)!)
  if (outcome.state === 'ok') return outcome.value
  const reason = `its setting ${setting} needs ${part.text}: ${outcome.message}`
  // That the credential is missing must not look as if the secret itself were.
  if (outcome.state === 'unreachable') throw new VaultUnreachable('it', reason)
  throw new VaultMisconfigured(reason, 'Store it there, or correct the setting')
}

function outcomeOfTracked({ reference, access, held: { resource } }: Tracked): Outcome {
  const fetched = resource.current
  if (fetched === undefined) {
    const failure = failureOf(resource)
    if (failure.state === 'absent' && reference.fallback !== undefined)
      return { state: 'ok', value: reference.fallback, version: 'default' }
    return failure
  }
  try {
    const { text, key, pointer } = reference
    const value = extract(fetched, text, key, pointer, access.policy?.base64 ?? false)
    return fetched.version === undefined
      ? { state: 'ok', value }
      : { state: 'ok', value, version: fetched.version }
  } catch (error) {
    const state = outcomeOf(error) === 'absent' ? 'absent' : 'malformed'
    if (state === 'absent' && reference.fallback !== undefined)
      return { state: 'ok', value: reference.fallback, version: 'default' }
    const code = state === 'absent' ? 'POSTERN_VAULT_ABSENT' : 'POSTERN_VAULT_MALFORMED'
    return { state, code, message: (error as Error).message }
  }
}

function failureOf(resource: Resource): ReadFailure {
  if (resource.failure !== undefined) return resource.failure
  if (resource.rejected !== undefined) {
    return { state: 'malformed', code: 'POSTERN_VAULT_MALFORMED', message: resource.rejected }
  }
  return { state: 'unreachable', code: 'POSTERN_VAULT_UNREACHABLE', message: 'it was never read' }
}

class DefinedVaults implements VaultSet {
  readonly #definitions: Definitions
  readonly #shared: SharedVaults
  readonly #tracked = new Map<string, Tracked>()
  /** By vault and what is overridden of it. */
  readonly #accesses = new Map<string, Access>()
  /** References whose vault could not be set up, and why. */
  readonly #broken = new Map<string, ReadFailure>()

  constructor(definitions: Definitions, shared: SharedVaults) {
    this.#definitions = definitions
    this.#shared = shared
  }

  check(reference: Reference): Complaint | undefined {
    return checkReference(reference, this.#definitions)
  }

  async load(
    references: readonly Reference[],
    options: LoadOptions = {}
  ): Promise<ReadonlyMap<string, Outcome>> {
    await Promise.all(references.map(reference => this.#load(reference, options)))
    return new Map(references.map(({ text }) => [text, this.outcome(text)]))
  }

  async #load(reference: Reference, options: LoadOptions): Promise<void> {
    try {
      let tracked = this.#tracked.get(reference.text)
      if (tracked === undefined) {
        const access = this.#access(reference)
        tracked = { reference, access, held: access.resource(reference) }
        this.#tracked.set(reference.text, tracked)
      }
      this.#broken.delete(reference.text)
      await ready(tracked)
      if (options.lastKnownGood) this.#restore(tracked.held)
    } catch (error) {
      const { message } = error as Error
      this.#broken.set(reference.text, {
        state: 'malformed',
        code: 'POSTERN_VAULT_SETTINGS',
        message
      })
    }
  }

  #access(reference: Reference): Access {
    const key = JSON.stringify([reference.vault, reference.overrides])
    let access = this.#accesses.get(key)
    if (access === undefined) {
      access = this.#shared.access(reference, this.#definitions)
      this.#accesses.set(key, access)
    }
    return access
  }

  #restore({ resource, identity }: HeldResource): void {
    if (resource.current !== undefined || resource.failure?.state !== 'unreachable') return
    const known = this.#shared.lastKnownGood?.get(identity)
    if (known !== undefined) resource.restore(known.fetched, known.age)
  }

  references(texts: Iterable<string>): readonly Reference[] {
    const known: Reference[] = []
    for (const text of texts) {
      const tracked = this.#tracked.get(text)
      if (tracked !== undefined) known.push(tracked.reference)
    }
    return known
  }

  resourceOf(reference: string): Resource | undefined {
    return this.#tracked.get(reference)?.held.resource
  }

  outcome(reference: string): Outcome {
    const broken = this.#broken.get(reference)
    if (broken !== undefined) return broken
    const tracked = this.#tracked.get(reference)
    return tracked === undefined
      ? {
          state: 'unreachable',
          code: 'POSTERN_VAULT_UNREACHABLE',
          message: 'it was never asked for'
        }
      : outcomeOfTracked(tracked)
  }

  grace(reference: string): number | undefined {
    return this.#tracked.get(reference)?.access.policy?.grace
  }

  get dependencies(): readonly Resource[] {
    const vaults = new Set([...this.#accesses.values()].map(({ vault }) => vault))
    return [...new Set([...vaults].flatMap(vault => vault.allDependencies))]
  }

  confirm(references: Iterable<string>): void {
    const store = this.#shared.lastKnownGood
    if (store === undefined) return
    for (const text of references) {
      const tracked = this.#tracked.get(text)
      if (tracked === undefined || tracked.access.definition.type.local) continue
      const { identity, resource } = tracked.held
      const { current, age } = resource
      if (current !== undefined && age !== undefined) store.keep(identity, current, age)
    }
  }

  status(nextRead = (resource: Resource): number => resource.dueAt): readonly ReferenceStatus[] {
    const now = this.#shared.now()
    const known = [...this.#tracked.values()]
      .filter(({ reference }) => !this.#broken.has(reference.text))
      .map(tracked => statusOf(tracked, now, nextRead(tracked.held.resource)))
    const broken = [...this.#broken].map(
      ([text, { state, message }]): ReferenceStatus => ({
        reference: text,
        vault: '',
        resource: '',
        state,
        version: undefined,
        age: undefined,
        next_refresh: undefined,
        last_error: message,
        failures: 0
      })
    )
    return [...known, ...broken]
  }

  health(): readonly VaultHealth[] {
    const vaults = new Set([...this.#accesses.values()].map(({ vault }) => vault))
    return [...vaults].map(vault => ({ vault: vault.name, ...vault.health() }))
  }

  close(): void {
    for (const access of this.#accesses.values()) access.release()
    this.#accesses.clear()
    this.#tracked.clear()
  }
}

function statusOf(tracked: Tracked, now: number, next: number): ReferenceStatus {
  const { reference, held } = tracked
  const { resource } = held
  const outcome = outcomeOfTracked(tracked)
  // What was read last may lack what the value in force has: that one serves on.
  const refused = resource.rejected !== undefined && resource.current !== undefined
  const standing = refused
    ? 'invalid'
    : resource.failure !== undefined && resource.age !== undefined
      ? 'stale'
      : 'ok'
  return {
    reference: reference.text,
    vault: reference.vault,
    resource: reference.resource,
    state: outcome.state === 'ok' || refused ? standing : outcome.state,
    version: outcome.state === 'ok' ? outcome.version : undefined,
    age: resource.age === undefined ? undefined : Math.round(resource.age),
    next_refresh: Number.isFinite(next) ? Math.max(0, Math.round((next - now) / 1000)) : undefined,
    last_error: resource.rejected ?? resource.failure?.message,
    failures: resource.failures,
    ...(resource.restored ? { source: 'last-known-good' as const } : {})
  }
}
