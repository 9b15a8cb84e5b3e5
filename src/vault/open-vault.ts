import { normalize } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import { VaultUnreachable } from '../errors.ts'
import type { Backend, BackendEnvironment, BackendType, Fetched } from './backend.ts'
import type { Resource, Source } from './cache.ts'
import { type Gate, outcomeOf } from './gate.ts'
import type { Libraries } from './libraries.ts'

/** A vault's settings, which may come from other vaults. */
export interface LiveSettings {
  /** The settings as of now, with the references in them resolved. Throws while one has no value. */
  current(): Readonly<Record<string, unknown>>
  /** The same as written. */
  readonly written: Readonly<Record<string, unknown>>
  /** What the references in them are read from. */
  readonly dependencies: readonly Resource[]
}

/** Least milliseconds between two readings of a vault's own settings because it refused a call. */
const CREDENTIALS_PAUSE = 1000
/** Milliseconds that what the settings come from may take before it counts as part of a read. */
const SETTINGS_TIMEOUT = 30_000
/** Milliseconds after which an opening has failed, so that another may be tried. */
const OPENING_TIMEOUT = 30_000

/** Resolves when the work ends or the time is over; until then the process does not end for lack of work. */
async function waited(work: Promise<unknown>, milliseconds: number): Promise<void> {
  const over = Promise.withResolvers<void>()
  const timer = setTimeout(over.resolve, milliseconds)
  work.then(
    () => over.resolve(),
    () => over.resolve()
  )
  await over.promise
  clearTimeout(timer)
}

/** A backend that opens in time; one that comes later is closed. */
async function inTime(opening: Backend | Promise<Backend>): Promise<Backend> {
  const late = Promise.withResolvers<never>()
  const timer = setTimeout(() => {
    late.reject(new Error(`it was not opened within ${OPENING_TIMEOUT / 1000} s`))
    void Promise.resolve(opening)
      .then(backend => backend.close?.())
      .catch(() => {})
  }, OPENING_TIMEOUT).unref()
  try {
    return await Promise.race([opening, late.promise])
  } finally {
    clearTimeout(timer)
  }
}

/** Characters of a value that an error could show at least: fewer stand in any sentence. */
const LEAST_SHOWN = 3
/** Errors that cause each other and are looked at. */
const MAX_CAUSES = 5

/**
 * Puts settings as written where an error repeats the values their references have. Text that is
 * masked wherever it stands has 8 characters and more; a path is shortened when it is used.
 */
function withhold(
  error: unknown,
  config: Readonly<Record<string, unknown>>,
  written: Readonly<Record<string, unknown>>
): void {
  const replacements = Object.entries(written).flatMap(([field, text]) => {
    const value = config[field]
    if (typeof text !== 'string' || typeof value !== 'string' || text === value) return []
    return [value, normalize(value).replace(/\/+$/, '')]
      .filter(form => form.length >= LEAST_SHOWN)
      .map(form => [new RegExp(`(?<!\\w)${RegExp.escape(form)}`, 'g'), text] as const)
  })
  let part = error
  for (let depth = 0; part instanceof Error && depth < MAX_CAUSES; depth++) {
    for (const member of ['message', 'stack'] as const) {
      for (const [value, text] of replacements)
        part[member] = part[member]?.replace(value, () => text) ?? ''
    }
    part = part.cause
  }
}

/** One opening of a vault's backend. */
class Opening {
  readonly backend: Backend
  readonly config: Readonly<Record<string, unknown>>
  #users = 0
  #idle: (() => void) | undefined

  constructor(backend: Backend, config: Readonly<Record<string, unknown>>) {
    this.backend = backend
    this.config = config
  }

  async use<T>(call: (backend: Backend) => Promise<T>): Promise<T> {
    this.#users++
    try {
      return await call(this.backend)
    } finally {
      if (--this.#users === 0) this.#idle?.()
    }
  }

  /** Closes after the last call under way, which a library that heeds no signal may never end. */
  async close(atOnce: boolean): Promise<void> {
    if (this.#users > 0 && !atOnce) {
      await new Promise<void>(resolve => {
        this.#idle = resolve
      })
    }
    await this.backend.close?.()
  }
}

interface Watch {
  readonly resource: string
  readonly changed: () => void
  stop: (() => void) | undefined
}

/**
 * A configured vault: opened when it is first read, and anew when settings of its own that are
 * references change. A new opening that fails leaves the one there was.
 */
export class OpenVault implements Source {
  readonly name: string
  readonly #type: BackendType
  readonly #settings: LiveSettings
  readonly #environment: BackendEnvironment
  readonly #gate: Gate
  readonly #now: () => number
  readonly #libraries: Libraries
  readonly #watches = new Set<Watch>()
  #opened: Opening | undefined
  #opening: Promise<Opening> | undefined
  /** Settings a reopening failed with, which is not tried again. */
  #refused: Readonly<Record<string, unknown>> | undefined
  #credentials: { readonly at: number; readonly read: Promise<unknown> } | undefined

  constructor(
    name: string,
    type: BackendType,
    settings: LiveSettings,
    environment: BackendEnvironment,
    gate: Gate,
    now: () => number,
    libraries: Libraries
  ) {
    this.name = name
    this.#type = type
    this.#settings = settings
    this.#environment = environment
    this.#gate = gate
    this.#now = now
    this.#libraries = libraries
  }

  get pausedUntil(): number {
    return this.#gate.pausedUntil
  }

  fetch(
    resource: string,
    version: string | undefined,
    timeout: number,
    begun: () => void
  ): Promise<Fetched | undefined> {
    return this.#call('fetch', resource, timeout, begun, (backend, signal) =>
      backend.fetch(resource, version, signal)
    )
  }

  get probe(): Source['probe'] {
    if (this.#opened?.backend.probe === undefined) return undefined
    return (resource, version, timeout, begun) =>
      this.#call('probe', resource, timeout, begun, async (backend, signal) =>
        backend.probe === undefined
          ? (await backend.fetch(resource, version, signal))?.version
          : backend.probe(resource, version, signal)
      )
  }

  async #call<T>(
    operation: 'fetch' | 'probe',
    resource: string,
    timeout: number,
    begun: () => void,
    call: (backend: Backend, signal: AbortSignal) => Promise<T | undefined>
  ): Promise<T | undefined> {
    let opening: Opening | undefined
    const attempt = async (): Promise<T | undefined> => {
      await this.#libraries.loaded()
      // What the settings come from has time-outs of its own, and is no part of what a read may take.
      if (this.#opened === undefined) await waited(this.#settingsRead(), SETTINGS_TIMEOUT)
      let late = false
      const read = this.#gate.run(
        operation,
        resource,
        timeout,
        async signal => {
          opening = undefined
          signal.addEventListener('abort', () => {
            late = opening === undefined
          })
          const ready = await this.#ready()
          opening = ready
          return ready.use(backend => this.#withheld(call(backend, signal), ready.config))
        },
        begun
      )
      return read.catch(error => {
        if (!late) throw error
        throw new VaultUnreachable(resource, `it was not opened within ${timeout} s`)
      })
    }
    try {
      return await attempt()
    } catch (error) {
      if (outcomeOf(error) !== 'denied' || !(await this.#credentialsChanged(opening))) throw error
      return attempt()
    }
  }

  /** After a refusal: whether its own settings are others than those it was opened with. */
  async #credentialsChanged(opening: Opening | undefined): Promise<boolean> {
    const { dependencies } = this.#settings
    if (dependencies.length === 0 || opening === undefined) return false
    const now = this.#now()
    if (this.#credentials === undefined || now - this.#credentials.at >= CREDENTIALS_PAUSE) {
      const read = Promise.all(dependencies.map(resource => resource.refresh()))
      this.#credentials = { at: now, read }
    }
    await this.#credentials.read
    try {
      return !isDeepStrictEqual(this.#settings.current(), opening.config)
    } catch {
      return false
    }
  }

  #ready(): Promise<Opening> {
    if (this.#opened !== undefined && this.#settings.dependencies.length === 0)
      return Promise.resolve(this.#opened)
    this.#opening ??= this.#open().finally(() => {
      this.#opening = undefined
    })
    return this.#opening
  }

  #settingsRead(): Promise<unknown> {
    return Promise.all(this.#settings.dependencies.map(resource => resource.load()))
  }

  async #open(): Promise<Opening> {
    await this.#settingsRead()
    const old = this.#opened
    let config: Readonly<Record<string, unknown>>
    try {
      config = this.#settings.current()
      if (old !== undefined && isDeepStrictEqual(config, old.config)) return old
      if (old !== undefined && isDeepStrictEqual(config, this.#refused)) return old
    } catch (error) {
      if (old !== undefined) return old
      throw error
    }
    try {
      const opened = async (): Promise<Backend> =>
        inTime(this.#type.open(config, this.#environment))
      const backend = await this.#withheld(opened(), config)
      const opening = new Opening(backend, config)
      this.#opened = opening
      for (const watch of this.#watches) this.#attach(watch)
      if (old !== undefined) {
        this.#environment.log.info({ vault: this.name }, 'opened with its new settings')
        void this.#closed(old)
      }
      return opening
    } catch (error) {
      if (old === undefined) throw error
      this.#refused = config
      const { code, message } = error as Error & { code?: string }
      this.#environment.log.warn(
        { vault: this.name, code },
        `its new settings cannot be used, the ones before stay: ${message}`
      )
      return old
    }
  }

  /** Errors show what is written in place of settings that come from a vault. */
  async #withheld<T>(call: Promise<T>, config: Readonly<Record<string, unknown>>): Promise<T> {
    try {
      return await call
    } catch (error) {
      if (this.#settings.dependencies.length > 0) withhold(error, config, this.#settings.written)
      throw error
    }
  }

  async #closed(opening: Opening, atOnce = false): Promise<void> {
    try {
      await opening.close(atOnce)
    } catch (error) {
      const { code } = error as { code?: string }
      this.#environment.log.warn({ vault: this.name, code }, 'a vault did not close')
    }
  }

  /** Calls `changed` when the resource changed at its source, where this vault can tell. */
  watch(resource: string, changed: () => void): () => void {
    const watch: Watch = { resource, changed, stop: undefined }
    this.#watches.add(watch)
    this.#attach(watch)
    return () => {
      this.#watches.delete(watch)
      watch.stop?.()
    }
  }

  #attach(watch: Watch): void {
    watch.stop?.()
    watch.stop = this.#opened?.backend.watch?.(watch.resource, watch.changed)
  }

  /** What its settings are read from, and those of the vaults they come from. */
  get allDependencies(): readonly Resource[] {
    return this.#settings.dependencies.flatMap(dependency => [
      dependency,
      ...dependency.source.allDependencies
    ])
  }

  /** Whether settings of this vault, or of one they come from, are read from a resource. */
  dependsOn(resource: Resource): boolean {
    return this.#settings.dependencies.some(
      dependency => dependency === resource || dependency.source.dependsOn(resource)
    )
  }

  health(): { readonly tokenExpiresAt?: number } {
    return this.#opened?.backend.health?.() ?? {}
  }

  /** Closes after the last call under way, or at once, when calls were ended already; never rejects. */
  async close(atOnce = false): Promise<void> {
    for (const watch of this.#watches) watch.stop?.()
    this.#watches.clear()
    if (!atOnce) await this.#opening?.catch(() => {})
    if (this.#opened !== undefined) await this.#closed(this.#opened, atOnce)
  }
}
