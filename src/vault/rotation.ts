import type { Resource } from './cache.ts'
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
  /** The references in force, loaded already. */
  readonly references: readonly Reference[]
  /** Seconds between looks for what is due. */
  readonly interval: number
  readonly log: RotationLog
  /** Brings changed references into force, all at once, or rejects and leaves everything as it was. */
  publish(changes: ReadonlyMap<string, Outcome>): Promise<void>
  /** Runs a task when no other change is under way. */
  run<T>(task: () => Promise<T>): Promise<T>
  readonly random?: () => number
  readonly now?: () => number
}

/** Keeps the references of a configuration fresh. */
export interface Rotation {
  /**
   * Reads again what is due and brings what changed into force. Part of an exclusive task: the timer
   * runs it through `run`.
   */
  tick(): Promise<number>
  /**
   * Reads again now: every reference, those of one vault, or just these; gives how many changed.
   * Part of an exclusive task, as `tick` is.
   */
  refresh(only?: string | readonly Reference[]): Promise<number>
  close(): void
}

interface Group {
  readonly resource: Resource
  readonly references: Reference[]
}

export function createRotation(options: RotationOptions): Rotation {
  return new Rotating(options)
}

class Rotating implements Rotation {
  readonly #options: RotationOptions
  readonly #now: () => number
  readonly #groups: readonly Group[]
  /** What is in force. */
  readonly #published = new Map<string, Outcome>()
  readonly #unwatch: (() => void)[] = []
  readonly #changedAtSource = new Set<Resource>()
  #timer: NodeJS.Timeout | undefined
  #closed = false

  constructor(options: RotationOptions) {
    this.#options = options
    this.#now = options.now ?? Date.now
    const groups = new Map<Resource, Reference[]>()
    for (const reference of options.references) {
      this.#published.set(reference.text, options.set.outcome(reference))
      const resource = options.set.resourceOf(reference)
      if (resource === undefined) continue
      const group = groups.get(resource)
      if (group === undefined) groups.set(resource, [reference])
      else group.push(reference)
    }
    this.#groups = [...groups].map(([resource, references]) => ({ resource, references }))
    for (const { resource, references } of this.#groups) {
      this.#follow(resource)
      const ttl = Number(references[0]!.overrides.ttl ?? 0)
      if (ttl > 0 && ttl < options.interval) {
        options.log.warn(
          { reference: references[0]!.text },
          `its ttl of ${ttl} s is shorter than the rotation interval of ${options.interval} s, which decides`
        )
      }
    }
    this.#schedule()
  }

  #follow(resource: Resource): void {
    const { backend } = resource.vault
    const stop = backend.watch?.(resource.name, () => {
      this.#changedAtSource.add(resource)
      this.#soon()
    })
    if (stop !== undefined) this.#unwatch.push(stop)
  }

  #schedule(): void {
    if (this.#closed) return
    // A tenth of jitter keeps many nodes from asking in step.
    const jitter = 0.95 + (this.#options.random ?? Math.random)() / 10
    this.#timer = setTimeout(
      () => {
        void this.#exclusively(() => this.tick()).then(() => this.#schedule())
      },
      this.#options.interval * 1000 * jitter
    )
    this.#timer.unref()
  }

  #soon(): void {
    void this.#exclusively(() => this.tick())
  }

  async #exclusively(task: () => Promise<unknown>): Promise<void> {
    try {
      await this.#options.run(async () => (this.#closed ? 0 : task()))
    } catch (error) {
      this.#options.log.error({ err: error }, 'a rotation failed')
    }
  }

  tick(): Promise<number> {
    const now = this.#now()
    const due = this.#groups.filter(
      ({ resource }) => resource.dueAt <= now || this.#changedAtSource.has(resource)
    )
    return this.#read(due)
  }

  refresh(only?: string | readonly Reference[]): Promise<number> {
    const wanted = typeof only === 'object' ? new Set(only.map(({ text }) => text)) : undefined
    const chosen = this.#groups.filter(({ references }) =>
      references.some(reference =>
        wanted === undefined
          ? only === undefined || reference.vault === only
          : wanted.has(reference.text)
      )
    )
    return this.#read(chosen)
  }

  async #read(groups: readonly Group[]): Promise<number> {
    if (groups.length === 0) return this.#publish(this.#expired())
    for (const { resource } of groups) this.#changedAtSource.delete(resource)
    await Promise.all(groups.map(({ resource }) => resource.refresh()))
    for (const { resource, references } of groups) {
      if (resource.failure === undefined) continue
      const { state, message } = resource.failure
      this.#options.log.warn(
        {
          reference: references[0]!.text,
          vault: references[0]!.vault,
          state,
          failures: resource.failures
        },
        `a secret could not be read again, ${resource.current === undefined ? 'and has no value now' : 'its last value stays'}: ${message}`
      )
    }
    return this.#publish([...new Set([...groups, ...this.#expired()])])
  }

  /** Groups whose last good value may no longer be served. */
  #expired(): readonly Group[] {
    return this.#groups.filter(
      ({ resource, references }) =>
        resource.current === undefined &&
        references.some(({ text }) => this.#published.get(text)?.state === 'ok')
    )
  }

  #changesOf(groups: readonly Group[]): Map<string, Outcome> {
    const changes = new Map<string, Outcome>()
    for (const { references } of groups) {
      for (const reference of references) {
        const outcome = this.#options.set.outcome(reference)
        const before = this.#published.get(reference.text)
        if (!sameOutcome(before, outcome)) changes.set(reference.text, outcome)
      }
    }
    return changes
  }

  async #publish(groups: readonly Group[]): Promise<number> {
    const changes = this.#changesOf(groups)
    if (changes.size === 0) return 0
    // A value that turned unusable (no JSON any more, a member gone) never replaces a good one.
    const unusable = groups.filter(group => this.#turnedUnusable(group))
    const usable = groups.filter(group => !unusable.includes(group))
    for (const group of unusable) this.#refuse(group, 'the new value cannot be used')
    const together = this.#changesOf(usable)
    if (together.size === 0) return 0
    try {
      await this.#options.publish(together)
      this.#accept(together)
      return together.size
    } catch (error) {
      if (usable.length === 1) {
        this.#refuse(usable[0]!, (error as Error).message)
        return 0
      }
    }
    // One bad secret must not hold back the others: each resource by itself.
    let accepted = 0
    for (const group of usable) {
      const changed = this.#changesOf([group])
      if (changed.size === 0) continue
      try {
        await this.#options.publish(changed)
        this.#accept(changed)
        accepted += changed.size
      } catch (error) {
        this.#refuse(group, (error as Error).message)
      }
    }
    return accepted
  }

  #turnedUnusable({ resource, references }: Group): boolean {
    if (resource.current === undefined) return false
    return references.some(
      reference =>
        this.#published.get(reference.text)?.state === 'ok' &&
        this.#options.set.outcome(reference).state !== 'ok'
    )
  }

  #accept(changes: ReadonlyMap<string, Outcome>): void {
    for (const [text, outcome] of changes) {
      const before = this.#published.get(text)
      this.#published.set(text, outcome)
      this.#options.log.info(
        {
          audit: 'secret-changed',
          reference: text,
          from: before?.state === 'ok' ? (before.version ?? 'unversioned') : before?.state,
          to: outcome.state === 'ok' ? (outcome.version ?? 'unversioned') : outcome.state
        },
        outcome.state === 'ok'
          ? 'a secret changed and is in force'
          : 'a secret has no value any more'
      )
    }
  }

  #refuse({ resource, references }: Group, reason: string): void {
    resource.reject(reason)
    this.#options.log.error(
      { reference: references[0]!.text, vault: references[0]!.vault, failures: resource.failures },
      `a new value was refused, the last one stays: ${reason}`
    )
  }

  close(): void {
    this.#closed = true
    clearTimeout(this.#timer)
    for (const stop of this.#unwatch) stop()
  }
}

function sameOutcome(a: Outcome | undefined, b: Outcome): boolean {
  if (a === undefined || a.state !== b.state) return false
  return a.state !== 'ok' || (b.state === 'ok' && a.value === b.value)
}
