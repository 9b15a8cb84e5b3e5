import { ConfigError, formatProblem } from '../errors.ts'
import type { Resource, Source } from './cache.ts'
import type { Observe } from './observation.ts'
import type { Reference } from './reference.ts'
import type { Outcome, VaultSet } from './vaults.ts'

/** What a rotation tells of its work; names and versions only. */
export interface RotationLog {
  info(fields: object, message: string): void
  warn(fields: object, message: string): void
  error(fields: object, message: string): void
}

export interface RotationOptions {
  readonly set: VaultSet
  /** The references to keep fresh, loaded already. */
  readonly references: readonly Reference[]
  /** What each reference stands for where it is used, by its text. */
  readonly inForce: ReadonlyMap<string, Outcome>
  /** Seconds between looks for what is due. */
  readonly interval: number
  readonly log: RotationLog
  /** Brings changed references into force, all at once, or rejects and leaves everything as it was. */
  publish(changes: ReadonlyMap<string, Outcome>): Promise<void>
  /** Runs a task when no other change is under way. */
  run<T>(task: () => Promise<T>): Promise<T>
  /**
   * What uses a reference (ids of entities, say). References of one user come into force together,
   * or not at all. Default: each reference is used by itself.
   */
  usersOf?(reference: string): readonly string[]
  readonly observe?: Observe
  /** The clock of the vaults. Default `performance.now`. */
  readonly now?: () => number
  readonly random?: () => number
}

/** Keeps the references of a configuration fresh. */
export interface Rotation {
  /** Reads what is due and brings what changed into force. The timer does this by itself. */
  tick(): Promise<number>
  /**
   * Reads again now: every reference, those of one vault, or just these; gives how many changed.
   * A vault that asked for a pause is not asked. Never part of a task of `run`, which it waits for.
   */
  refresh(only?: string | readonly Reference[]): Promise<number>
  /** When a resource is read next, on the clock of the vaults: what is due by its ttl waits for a look. */
  nextRead(resource: Resource): number
  close(): void
}

/** A resource and what is taken from it. */
interface Group {
  readonly resource: Resource
  readonly references: readonly Reference[]
  /** The resource's revision and state that were looked at last. */
  seen: string
}

/** What a look at a group found. */
interface Finding {
  readonly group: Group
  /** References that stand for something else than what is in force. */
  readonly changes: ReadonlyMap<string, Outcome>
  /** References that stand for the same in another version. */
  readonly renamed: ReadonlyMap<string, Outcome>
  /** What is wrong with its value, when what it replaces is better. */
  readonly unusable: string | undefined
}

/** Longest a timer waits, in milliseconds, and the least between two looks that come early. */
const MAX_DELAY = 2 ** 31 - 1
const MIN_DELAY = 50
/** Part of the interval by which something may be read before it is due, rather than one look later. */
const EARLY = 0.1
/** References named in one line of the log. */
const NAMED = 5

export function createRotation(options: RotationOptions): Rotation {
  return new Rotating(options)
}

class Rotating implements Rotation {
  readonly #options: RotationOptions
  readonly #now: () => number
  readonly #groups: readonly Group[]
  /** Resources that vaults read their own settings from. */
  readonly #dependencies: readonly Resource[]
  readonly #inForce: Map<string, Outcome>
  readonly #unwatch: (() => void)[] = []
  readonly #changedAtSource = new Set<Resource>()
  #publishing: Promise<number> | undefined
  #timer: NodeJS.Timeout | undefined
  /** When the next regular look is, on the clock. */
  #nextLook: number
  #closed = false

  constructor(options: RotationOptions) {
    this.#options = options
    this.#now = options.now ?? (() => performance.now())
    this.#inForce = new Map(options.inForce)
    const groups = new Map<Resource, Reference[]>()
    for (const reference of options.references) {
      const resource = options.set.resourceOf(reference.text)
      if (resource === undefined) continue
      const references = groups.get(resource)
      if (references === undefined) groups.set(resource, [reference])
      else references.push(reference)
    }
    // What was read between the load and now is not in force yet, so nothing counts as seen.
    this.#groups = [...groups].map(([resource, references]) => ({ resource, references, seen: '' }))
    this.#dependencies = options.set.dependencies.filter(resource => !groups.has(resource))
    for (const resource of [...groups.keys(), ...this.#dependencies]) this.#follow(resource)
    this.#tellShortTtls()
    // A random phase keeps nodes that were started together from asking in step.
    const phase = 0.5 + (options.random ?? Math.random)() / 2
    this.#nextLook = this.#now() + options.interval * 1000 * phase
    this.#schedule()
  }

  #tellShortTtls(): void {
    const { interval, log } = this.#options
    const short = this.#groups.filter(
      ({ resource: { freshness } }) => freshness.ttl > 0 && freshness.ttl < interval
    )
    for (const [vault, some] of Map.groupBy(short, ({ references }) => references[0]!.vault)) {
      const references = some.flatMap(group => group.references.map(({ text }) => text))
      log.warn(
        { vault, references: references.slice(0, NAMED), count: references.length },
        `their ttl is shorter than the rotation interval of ${interval} s, which decides (POSTERN_VAULT_ROTATION_INTERVAL)`
      )
    }
  }

  #follow(resource: Resource): void {
    const stop = resource.source.watch(resource.name, () => {
      this.#changedAtSource.add(resource)
      void this.#look()
    })
    this.#unwatch.push(stop)
  }

  /** Wakes at the next regular look, or sooner for what cannot wait for it: retries and leases. */
  #schedule(): void {
    if (this.#closed) return
    clearTimeout(this.#timer)
    const now = this.#now()
    let wake = this.#nextLook
    for (const { resource } of this.#groups) {
      if (resource.urgent && !resource.reading) wake = Math.min(wake, resource.dueAt)
    }
    for (const resource of this.#dependencies) {
      if (resource.urgent && !resource.reading) wake = Math.min(wake, resource.dueAt)
    }
    this.#timer = setTimeout(
      () => void this.#look(),
      Math.min(Math.max(wake - now, MIN_DELAY), MAX_DELAY)
    )
    this.#timer.unref()
  }

  async #look(): Promise<void> {
    const period = this.#options.interval * 1000
    const now = this.#now()
    // Looks keep their period exactly, however late a busy machine wakes for one.
    if (now >= this.#nextLook)
      this.#nextLook += Math.ceil((now - this.#nextLook + 1) / period) * period
    try {
      const done = this.tick()
      this.#schedule()
      await done
    } catch (error) {
      this.#options.log.error({ err: error }, 'a rotation failed')
    }
    this.#schedule()
  }

  async tick(): Promise<number> {
    if (this.#closed) return 0
    const due = this.#groups.filter(({ resource }) => this.#isDue(resource))
    const [changed, renewed] = await Promise.all([
      this.#read(due, resource =>
        this.#changedAtSource.delete(resource) ? resource.refresh() : resource.join()
      ),
      this.#renew(this.#dependencies.filter(resource => this.#isDue(resource)))
    ])
    return changed + renewed
  }

  #isDue(resource: Resource): boolean {
    if (this.#changedAtSource.has(resource)) return true
    const early = resource.urgent ? 0 : this.#options.interval * 1000 * EARLY
    return !resource.reading && resource.dueAt <= this.#now() + early
  }

  nextRead(resource: Resource): number {
    const { dueAt, urgent } = resource
    if (urgent || !Number.isFinite(dueAt)) return dueAt
    const period = this.#options.interval * 1000
    const looks = Math.ceil((dueAt - period * EARLY - this.#nextLook) / period)
    return this.#nextLook + Math.max(0, looks) * period
  }

  /** Reads settings of vaults that come from other vaults, and then what those vaults hold. */
  async #renew(settings: readonly Resource[]): Promise<number> {
    const before = new Map(settings.map(resource => [resource, resource.revision]))
    for (const resource of settings) this.#changedAtSource.delete(resource)
    await Promise.all(settings.map(resource => resource.refresh()))
    const changed = settings.filter(resource => resource.revision !== before.get(resource))
    const concerned = this.#groups.filter(({ resource }) =>
      changed.some(each => resource.source.dependsOn(each))
    )
    return this.#read(concerned, resource => resource.refresh())
  }

  refresh(only?: string | readonly Reference[]): Promise<number> {
    const wanted = typeof only === 'object' ? new Set(only.map(({ text }) => text)) : undefined
    const chosen = this.#groups.filter(
      ({ resource, references }) =>
        resource.source.pausedUntil <= this.#now() &&
        references.some(reference =>
          wanted === undefined
            ? only === undefined || reference.vault === only
            : wanted.has(reference.text)
        )
    )
    return this.#read(chosen, resource => resource.refresh())
  }

  /** Reads each vault's resources side by side; one that hangs holds back no other. */
  async #read(
    groups: readonly Group[],
    how: (resource: Resource) => Promise<void>
  ): Promise<number> {
    if (groups.length === 0) return this.#expired().length > 0 ? this.#publishSoon() : 0
    const bySource = Map.groupBy(groups, ({ resource }) => resource.source)
    const changed = await Promise.all(
      [...bySource].map(async ([source, some]) => {
        await Promise.all(some.map(({ resource }) => how(resource)))
        this.#tellFailures(source, some)
        return this.#publishSoon()
      })
    )
    // Vaults whose reads ended together were published together, and tell the same number.
    return Math.max(...changed)
  }

  #tellFailures(source: Source, groups: readonly Group[]): void {
    const failed = groups.filter(
      ({ resource, references }) =>
        resource.failure !== undefined &&
        // An absence that every reference has a default for is no failure.
        references.some(reference => {
          const outcome = this.#options.set.outcome(reference.text)
          return outcome.state !== 'ok' || outcome.version !== 'default'
        })
    )
    if (failed.length === 0) return
    const without = failed.filter(({ resource }) => resource.current === undefined)
    const { state, message } = failed[0]!.resource.failure!
    this.#options.log.warn(
      {
        vault: failed[0]!.references[0]!.vault,
        state,
        references: failed.slice(0, NAMED).map(({ references }) => references[0]!.text),
        count: failed.length,
        failures: Math.max(...failed.map(({ resource }) => resource.failures)),
        ...(source.pausedUntil > this.#now()
          ? { pause: Math.ceil((source.pausedUntil - this.#now()) / 1000) }
          : {})
      },
      `${failed.length === 1 ? 'a secret' : `${failed.length} secrets`} could not be read again, ${
        without.length === 0 ? 'the last value stays' : `${without.length} without a value now`
      }: ${message}`
    )
  }

  /** Publishes once for all whose reads have ended when its turn comes. */
  #publishSoon(): Promise<number> {
    // In a turn of its own: a task that is run at once must find the promise it clears.
    this.#publishing ??= Promise.resolve().then(() =>
      this.#options.run(() => {
        this.#publishing = undefined
        return this.#closed ? Promise.resolve(0) : this.#publishChanged()
      })
    )
    return this.#publishing
  }

  /** Groups whose last good value may no longer be served. */
  #expired(): readonly Group[] {
    return this.#groups.filter(
      ({ resource, references }) =>
        resource.current === undefined &&
        references.some(({ text }) => this.#inForce.get(text)?.state === 'ok')
    )
  }

  async #publishChanged(): Promise<number> {
    const looked = this.#groups.filter(
      group => group.seen !== stampOf(group.resource) || group.resource.current === undefined
    )
    for (const group of looked) group.seen = stampOf(group.resource)
    const changed: Finding[] = []
    for (const finding of looked.map(group => this.#examine(group))) {
      const { group, changes, unusable } = finding
      // A value that turned unusable (no JSON any more, a member gone) never replaces a good one.
      if (unusable !== undefined) this.#refuse(group, unusable)
      else if (changes.size > 0) changed.push(finding)
      else if (group.resource.current !== undefined) this.#accept([finding])
    }
    if (changed.length === 0) return 0
    return this.#bringIntoForce([...changed, ...this.#waitingFor(changed)])
  }

  #examine(group: Group): Finding {
    const { resource, references } = group
    const changes = new Map<string, Outcome>()
    const renamed = new Map<string, Outcome>()
    const mayBeUnusable = resource.current !== undefined
    let unusable: string | undefined
    for (const { text } of references) {
      const before = this.#inForce.get(text)
      const outcome = this.#options.set.outcome(text)
      if (sameOutcome(before, outcome)) {
        if (nameOf(before) !== nameOf(outcome)) renamed.set(text, outcome)
        continue
      }
      changes.set(text, outcome)
      if (mayBeUnusable && before?.state === 'ok' && outcome.state !== 'ok')
        unusable ??= outcome.message
    }
    return { group, changes, renamed, unusable }
  }

  /** Groups refused before that share a user with these: a key is refused until its certificate is there. */
  #waitingFor(changed: readonly Finding[]): readonly Finding[] {
    const among = new Set(changed.map(({ group }) => group))
    const waiting = this.#groups
      .filter(group => group.resource.rejected !== undefined && !among.has(group))
      .map(group => this.#examine(group))
      .filter(({ unusable }) => unusable === undefined)
    if (waiting.length === 0) return waiting
    const users = new Set(changed.flatMap(({ group }) => this.#usersOf(group)))
    return waiting.filter(({ group }) => this.#usersOf(group).some(user => users.has(user)))
  }

  #usersOf({ references }: Group): readonly string[] {
    return references.flatMap(({ text }) => this.#options.usersOf?.(text) ?? [text])
  }

  /**
   * All at once. Where that is refused, those that share a user by themselves, then each by itself:
   * one bad secret holds back no other.
   */
  async #bringIntoForce(findings: readonly Finding[]): Promise<number> {
    const changes = new Map(findings.flatMap(found => [...found.changes]))
    if (changes.size === 0) return 0
    try {
      await this.#options.publish(changes)
      this.#accept(findings)
      return changes.size
    } catch (error) {
      if (findings.length === 1) {
        this.#refuse(findings[0]!.group, reasonOf(error))
        return 0
      }
    }
    const components = this.#componentsOf(findings)
    const parts = components.length > 1 ? components : findings.map(found => [found])
    // Halving keeps the number of attempts near the number of bad ones.
    const middle = Math.ceil(parts.length / 2)
    const first = await this.#bringIntoForce(parts.slice(0, middle).flat())
    return first + (await this.#bringIntoForce(parts.slice(middle).flat()))
  }

  /** Groups that share a user, directly or by way of others. */
  #componentsOf(findings: readonly Finding[]): readonly (readonly Finding[])[] {
    const byUser = new Map<string, Finding[]>()
    for (const found of findings) {
      const users = this.#usersOf(found.group)
      const component = [...new Set(users.flatMap(user => byUser.get(user) ?? []))]
      component.push(found)
      const all = new Set([...users, ...component.flatMap(({ group }) => this.#usersOf(group))])
      for (const user of all) byUser.set(user, component)
    }
    return [...new Set(byUser.values())]
  }

  #accept(findings: readonly Finding[]): void {
    for (const { group, changes, renamed } of findings) {
      if (group.resource.current !== undefined) group.resource.accept()
      const { vault } = group.references[0]!
      for (const [text, outcome] of changes) this.#tellChange(vault, text, outcome)
      if (renamed.size > 0) this.#tellVersion(vault, renamed)
    }
  }

  #tellChange(vault: string, reference: string, outcome: Outcome): void {
    const from = nameOf(this.#inForce.get(reference))
    const to = nameOf(outcome)
    this.#inForce.set(reference, outcome)
    this.#options.observe?.({ kind: 'changed', vault, reference, from, to })
    this.#options.log.info(
      { audit: 'secret-changed', reference, vault, from, to },
      outcome.state === 'ok' ? 'a secret changed and is in force' : 'a secret has no value any more'
    )
  }

  /** One line for all references of a resource, which may be many. */
  #tellVersion(vault: string, renamed: ReadonlyMap<string, Outcome>): void {
    const [reference, outcome] = [...renamed][0]!
    const from = nameOf(this.#inForce.get(reference))
    for (const [text, each] of renamed) this.#inForce.set(text, each)
    this.#options.log.info(
      {
        audit: 'secret-version',
        reference,
        count: renamed.size,
        vault,
        from,
        to: nameOf(outcome)
      },
      'a secret has another version with the same value'
    )
  }

  #refuse({ resource, references }: Group, reason: string): void {
    resource.reject(reason)
    const { vault, text } = references[0]!
    this.#options.observe?.({ kind: 'refused', vault, reference: text })
    this.#options.log.error(
      { reference: text, vault, failures: resource.failures },
      `a new value was refused, the last one stays: ${reason}`
    )
  }

  close(): void {
    this.#closed = true
    clearTimeout(this.#timer)
    for (const stop of this.#unwatch) stop()
  }
}

/** Changes whenever what a resource stands for may have changed, and when it was read after a refusal. */
function stampOf({ revision, failure, current, rejected, reads }: Resource): string {
  const again = rejected === undefined ? '' : reads
  const holds = current === undefined ? 'nothing' : `version ${current.version}`
  return `${revision} ${failure?.state ?? 'ok'} ${holds} ${again}`
}

/** On one line: it stands in logs and in answers of the status API. */
function reasonOf(error: unknown): string {
  if (!(error instanceof ConfigError)) return (error as Error).message
  const { problems } = error
  const more = problems.length > NAMED ? `; and ${problems.length - NAMED} more` : ''
  return problems.slice(0, NAMED).map(formatProblem).join('; ') + more
}

function nameOf(outcome: Outcome | undefined): string {
  if (outcome === undefined) return 'none'
  return outcome.state === 'ok' ? (outcome.version ?? 'unversioned') : outcome.state
}

function sameOutcome(a: Outcome | undefined, b: Outcome): boolean {
  if (a === undefined || a.state !== b.state) return false
  return a.state !== 'ok' || (b.state === 'ok' && a.value === b.value)
}
