import type { Worker } from 'node:worker_threads'
import { type CertificateExpiry, certificateExpiries } from './certificate-expiry.ts'
import type { Config, Entities } from './config.ts'
import { validateUses } from './config-values.ts'
import { ConfigError, type Problem, SecretUnavailable } from './errors.ts'
import {
  type Generation,
  maskSecrets,
  resolveTemplate,
  type SecretState,
  watchedConfig
} from './generation.ts'
import { createLogger } from './log.ts'
import { releaseLoadGarbage } from './memory.ts'
import { Metrics } from './metrics.ts'
import { plugins } from './plugins/index.ts'
import type { Logger } from './plugins/plugin.ts'
import { createCounts } from './proxy/counts.ts'
import { selfSigned } from './proxy/tls.ts'
import { UpstreamControl } from './proxy/upstream-control.ts'
import { redactor } from './redaction.ts'
import {
  type Loaded,
  maskOutcomes,
  type Prepared,
  prepareSettings,
  problemsOf,
  readConfig,
  refusedCache,
  resolveAll,
  uniqueReferences
} from './resolve.ts'
import { kinds } from './schema/kinds.ts'
import {
  type Environment,
  type SettingReference,
  type Settings,
  settingsTable
} from './settings.ts'
import { openStatus, type StatusServer } from './status.ts'
import { memoryStore, type OwnedStore, redisStore } from './store.ts'
import { Threads } from './threads.ts'
import type { LastKnownGood } from './vault/last-known-good.ts'
import { parseReference, type Reference } from './vault/reference.ts'
import { createRotation, type Rotation } from './vault/rotation.ts'
import type { Outcome, Vaults } from './vault/vaults.ts'
import { product, version } from './version.ts'
import { watchFile } from './watch.ts'
import { Refresher } from './webhooks/refresher.ts'
import type { Changed, LiveSecret, Webhooks } from './webhooks/source.ts'
import type { WebhookSecret } from './webhooks/webhooks.ts'

/** An open address of the data plane. */
export interface OpenListener {
  readonly host: string
  readonly port: number
  readonly ssl: boolean
}

/** A running gateway. */
export interface Gateway {
  readonly settings: Settings
  readonly listeners: readonly OpenListener[]
  /** Undefined when the status API is off. */
  readonly statusUrl: string | undefined
  /** Undefined when the webhooks have no address of their own. */
  readonly webhookUrl: string | undefined
  /** The data-plane threads, for supervision. */
  readonly workers: readonly Worker[]
  /** Loads the configuration again. Rejects with what is wrong; then the running one stays. */
  reload(): Promise<void>
  /** Re-reads references now: of one vault, or all. Gives how many changed. */
  refresh(prefix?: string): Promise<number>
  /** Goes unready, drains, closes. */
  close(): Promise<void>
}

/**
 * Starts a gateway from an environment. Rejects with ConfigError (every problem at once) when the
 * configuration cannot be served, or with the system's error when an address cannot be bound.
 */
export async function startGateway(env: Environment): Promise<Gateway> {
  const metrics = new Metrics()
  const prepared = await prepareSettings(env, { observe: metrics.observe, lastKnownGood: true })
  const control = new ControlThread(prepared, metrics)
  await control.start()
  return control
}

/** The control thread: the only one that reads files and talks to vaults. */
class ControlThread implements Gateway {
  readonly settings: Settings
  readonly #vaults: Vaults
  readonly #log: Logger
  readonly #warnings: readonly Problem[]
  readonly #startedAt = Date.now()
  /** Tail of the single-writer queue: load, reload, rotate and refresh never overlap. */
  #queue: Promise<unknown> = Promise.resolve()
  #loaded: Loaded | undefined
  #secrets = new Map<string, SecretState>()
  #threads: Threads | undefined
  #rotation: Rotation | undefined
  #store: OwnedStore | undefined
  #status: StatusServer | undefined
  #unwatch: () => void = () => {}
  #lastReload: { at: number; ok: boolean; error?: string } | undefined
  /** Settings that follow their vaults while the gateway runs. */
  readonly #liveSettings: readonly SettingReference[]
  /** Settings whose references were read once. */
  readonly #fixedSettings: readonly SettingReference[]
  #webhookServer: { host: string; port: number; close(): Promise<void> } | undefined
  readonly #refresher = new Refresher<string>(async texts => {
    try {
      await this.#rotation?.refresh(uniqueReferences([...texts]))
    } catch (error) {
      this.#log.error({ err: error }, 'a refresh failed')
    }
  })
  readonly #upstreams: UpstreamControl
  readonly #metrics: Metrics
  readonly #lastKnownGood: LastKnownGood | undefined
  #certificates: readonly CertificateExpiry[] | undefined
  #draining = false
  #loads = 0
  readonly #graces = new Map<string, NodeJS.Timeout>()
  readonly #refreshes = new Map<
    string,
    { readonly until: number; readonly pause: number; readonly result: Promise<boolean> }
  >()
  listeners: readonly OpenListener[] = []

  constructor(
    { settings, warnings, vaults, vaultLog, references, lastKnownGood }: Prepared,
    metrics: Metrics
  ) {
    this.#metrics = metrics
    this.#lastKnownGood = lastKnownGood
    this.settings = settings
    this.#liveSettings = references.filter(({ name }) => LIVE_SETTINGS.has(name))
    this.#fixedSettings = references.filter(({ name }) => !LIVE_SETTINGS.has(name))
    this.#vaults = vaults
    this.#warnings = warnings
    this.#log = createLogger({ level: settings.logLevel, format: settings.logFormat, thread: 0 })
    vaultLog.attach(this.#log)
    this.#upstreams = new UpstreamControl({
      servers: settings.dnsResolver,
      hostsFile: settings.dnsHostsFile,
      order: settings.dnsOrder,
      log: this.#log,
      onNameChange: (host, answer) => this.#threads?.nameChanged(host, answer)
    })
    vaultLog.attach(this.#log)
  }

  get statusUrl(): string | undefined {
    return this.#status === undefined ? undefined : urlOf(this.#status)
  }

  get webhookUrl(): string | undefined {
    return this.#webhookServer === undefined ? undefined : urlOf(this.#webhookServer)
  }

  get workers(): readonly Worker[] {
    return this.#threads?.workers ?? []
  }

  async start(): Promise<void> {
    const { settings } = this
    try {
      for (const warning of this.#warnings) this.#warn(warning)
      this.#tellRefusedCache()
      this.#tellFixedSettings()
      const webhooks = await this.#openWebhooks()
      if (settings.statusListen !== undefined) {
        this.#status = await openStatus(this.#statusSource(), {
          host: settings.statusListen.host,
          port: settings.statusListen.port,
          names: settings.statusHosts,
          webhooks: settings.webhookListen === undefined ? webhooks : undefined
        })
      }
      // Before it is read: a change meanwhile is loaded once this load is done.
      if (settings.configString === undefined) {
        this.#unwatch = watchFile(settings.config, () => void this.reload().catch(() => {}))
      }
      await this.#exclusively(() => this.#load())
    } catch (error) {
      await this.close()
      throw error
    }
  }

  /** The first load: reads, resolves, starts the threads and serves. */
  async #load(): Promise<void> {
    const { settings } = this
    const loaded = await readConfig(settings, this.#vaults)
    const secrets = await this.#resolve(loaded, true)
    this.#store =
      settings.sessionRedisUrl === undefined
        ? memoryStore()
        : await redisStore(settings.sessionRedisUrl, this.#log)
    this.#threads = new Threads(
      { config: loaded.config, secrets },
      {
        settings,
        product,
        shared: sharedMemory(),
        fallbackCertificate: await this.#fallbackCertificate(),
        health: this.#upstreams.memory,
        names: () => this.#upstreams.known,
        log: this.#log,
        control: {
          get: key => this.#store!.get(key),
          set: (key, value, ttl) => this.#store!.set(key, value, ttl),
          expire: (key, ttl) => this.#store!.expire(key, ttl),
          delete: key => this.#store!.delete(key),
          refresh: entityId => this.#refreshEntity(entityId),
          resolve: host => this.#upstreams.resolve(host)
        }
      }
    )
    const ports = await this.#threads.start()
    this.listeners = settings.proxyListen.map((listener, index) => ({
      host: listener.host,
      port: ports[index]!,
      ssl: listener.ssl
    }))
    this.#adopt(loaded, secrets)
    this.#log.info(
      {
        version,
        listen: this.listeners.map(
          ({ host, port, ssl }) => `${ssl ? 'https' : 'http'}://${host}:${port}`
        ),
        status: this.statusUrl,
        webhooks: this.webhookUrl,
        workers: settings.workers,
        routes: loaded.config.routes.length,
        references: secrets.size
      },
      'serving'
    )
    releaseLoadGarbage()
  }

  /** The webhooks that are set, listening if they have an address of their own. */
  async #openWebhooks(): Promise<Webhooks | undefined> {
    if (!WEBHOOK_SETTINGS.some(name => this.settings[name] !== undefined)) return undefined
    // Loaded on demand: most gateways have none.
    const { createWebhooks } = await import('./webhooks/webhooks.ts')
    const webhooks = createWebhooks({
      settings: this.settings,
      secret: name => this.#liveSetting(name),
      changed: changed => this.#refreshChanged(changed),
      log: this.#log
    })
    const { webhookListen: own } = this.settings
    if (webhooks !== undefined && own !== undefined) {
      const { port, close } = await webhooks.listen(own.host, own.port)
      this.#webhookServer = { host: own.host, port, close }
    }
    return webhooks
  }

  /** A secret setting as its vault has it now. */
  #liveSetting(name: WebhookSecret): LiveSecret | undefined {
    const authored = this.#liveSettings.find(setting => setting.name === name)
    if (authored === undefined) {
      const value = this.settings[name]
      return value === undefined ? undefined : { value }
    }
    const lacking = authored.references.some(text => {
      const state = this.#secrets.get(text)
      return state === undefined || 'failure' in state
    })
    if (lacking) throw new SecretUnavailable(authored.place.path)
    return resolveTemplate(authored.template, this.#secrets)
  }

  /** Refreshes, soon, the references that an event of a vault may concern; gives how many. */
  #refreshChanged(changed: readonly Changed[]): number {
    const types = new Map(this.#loaded?.config.vaults.map(({ prefix, name }) => [prefix, name]))
    const concerned = uniqueReferences([...this.#secrets.keys()]).filter(reference =>
      changed.some(change => concerns(change, reference, types))
    )
    this.#refresher.request(concerned.map(({ text }) => text))
    return concerned.length
  }

  /** Runs a task after every earlier one of the queue. */
  #exclusively<T>(task: () => Promise<T>): Promise<T> {
    const result = this.#queue.then(task)
    this.#queue = result.catch(() => {})
    return result
  }

  /** What the references of a configuration stand for. Throws ConfigError where that does not do. */
  async #resolve(loaded: Loaded, atStart = false): Promise<ReadonlyMap<string, SecretState>> {
    const outcomes = await resolveAll(loaded, this.#liveSettings, { lastKnownGood: atStart })
    const problems = problemsOf(loaded.config, outcomes)
    if (problems.length > 0) {
      if (atStart) problems.push(...refusedCache(this.#lastKnownGood))
      if (!atStart || this.settings.vaultStart !== 'degraded') throw new ConfigError(problems)
      for (const problem of problems) this.#warn(problem)
    }
    // A value that its field does not take is none.
    const unfit = new Map(
      problems
        .filter(({ code }) => code === 'POSTERN_CONFIG_RESOLVED')
        .flatMap(({ reference = '', message }) =>
          reference.split(' ').map(text => [text, message] as const)
        )
    )
    if (atStart) this.#tellLastKnownGood(loaded)
    // What only vaults use for themselves is no business of the data plane.
    const own = new Set(
      loaded.config.uses.filter(({ kind }) => kind !== 'vaults').flatMap(use => use.references)
    )
    const live = new Set(this.#liveSettings.flatMap(setting => setting.references))
    return new Map(
      [...outcomes]
        .filter(([text]) => own.has(text) || live.has(text))
        .map(([text, outcome]) => {
          const before = this.#secrets.get(text)
          // A setting keeps its last good value, whatever becomes of its vault.
          const kept = outcome.state !== 'ok' && !own.has(text) ? before : undefined
          const misfit = unfit.get(text)
          if (misfit !== undefined) return [text, { failure: `malformed: ${misfit}` }]
          return [text, kept ?? this.#stateOf(text, outcome)]
        })
    )
  }

  #tellFixedSettings(): void {
    if (this.#fixedSettings.length === 0) return
    this.#log.warn(
      { settings: this.#fixedSettings.map(({ place }) => place.path) },
      'these settings come from vaults and are read at start only: a new value takes a restart'
    )
  }

  #tellRefusedCache(): void {
    const refused = this.#lastKnownGood?.refused
    if (refused === undefined) return
    const { code } = refused as Error & { code?: string }
    this.#log.error({ code }, `${refused.message}. It is written anew once the vaults answer.`)
  }

  #tellLastKnownGood({ set }: Loaded): void {
    const old = set.status().filter(({ source }) => source === 'last-known-good')
    if (old.length === 0) return
    this.#log.error(
      {
        vaults: [...new Set(old.map(({ vault }) => vault))],
        references: old.slice(0, 5).map(({ reference }) => reference),
        count: old.length,
        oldest: Math.max(...old.map(({ age }) => age ?? 0))
      },
      `${old.length === 1 ? 'a secret is' : `${old.length} secrets are`} the last known good of an earlier run, since the vault gives no answer; it is asked again until it does`
    )
  }

  #stateOf(text: string, outcome: Outcome): SecretState {
    if (outcome.state !== 'ok') {
      // Data-plane threads log it, and do not know the secrets that vaults have for settings.
      return { failure: redactor.text(`${outcome.state}: ${outcome.message}`) }
    }
    const before = this.#secrets.get(text)
    if (before === undefined || 'failure' in before) return { value: outcome.value }
    if (before.value === outcome.value) return before
    return { value: outcome.value, previous: before.value }
  }

  /** Makes a configuration the running one, and follows its vaults. */
  #adopt(loaded: Loaded, secrets: ReadonlyMap<string, SecretState>): void {
    this.#rotation?.close()
    const old = this.#loaded
    this.#loaded = loaded
    this.#loads++
    for (const [text, state] of secrets) this.#limitGrace(text, state, this.#secrets.get(text))
    this.#secrets = new Map(secrets)
    this.#watchUpstreams()
    this.#certificates = undefined
    maskSecrets(secrets)
    redactor.retain(name => !name.startsWith('{') || secrets.has(name))
    for (const warning of loaded.config.warnings) this.#warn(warning)
    const users = usersByReference(loaded.config, this.#liveSettings)
    this.#rotation = createRotation({
      set: loaded.set,
      references: uniqueReferences([...secrets.keys()]),
      inForce: inForce(loaded.set, secrets),
      interval: this.settings.vaultRotationInterval,
      log: this.#log,
      run: task => this.#exclusively(task),
      publish: changes => this.#publish(changes),
      usersOf: text => users.get(text) ?? [],
      observe: this.#metrics.observe
    })
    loaded.set.confirm(uniqueReferences([...secrets.keys()]))
    old?.set.close()
  }

  /** Ends the time a previous value still verifies. */
  #limitGrace(text: string, state: SecretState, before: SecretState | undefined): void {
    if ('failure' in state || state.previous === undefined || state === before) return
    clearTimeout(this.#graces.get(text))
    const grace = this.#loaded?.set.grace(parseReference(text)) ?? this.settings.secretGrace
    const timer = setTimeout(() => {
      this.#graces.delete(text)
      void this.#exclusively(async () => {
        const now = this.#secrets.get(text)
        if (now === undefined || 'failure' in now || now.previous === undefined) return
        await this.#apply(new Map([[text, { value: now.value }]]))
      }).catch(error =>
        this.#log.error({ err: error, reference: text }, 'a grace period could not be ended')
      )
    }, grace * 1000)
    timer.unref()
    this.#graces.set(text, timer)
  }

  /** Brings new states of references into force, or rejects and changes nothing. */
  async #publish(changes: ReadonlyMap<string, Outcome>): Promise<void> {
    const { config } = this.#loaded!
    // Before anything can complain about them.
    maskOutcomes(changes, 'candidate ')
    const states = new Map(
      [...changes].map(([text, outcome]) => [text, this.#stateOf(text, outcome)])
    )
    const next = new Map<string, SecretState>([...this.#secrets, ...states])
    const affected = config.uses.filter(use => use.references.some(text => states.has(text)))
    const problems = [
      ...validateUses(config, plugins, affected, text => {
        const state = next.get(text)
        return state === undefined || 'failure' in state ? undefined : state
      })
    ]
    problems.push(...unfitSettings(this.#liveSettings, states, next))
    if (problems.length > 0) throw new ConfigError(problems)
    await this.#apply(states)
    this.#loaded!.set.confirm(uniqueReferences([...states.keys()]))
  }

  async #apply(states: ReadonlyMap<string, SecretState>): Promise<void> {
    await this.#threads!.apply({ secrets: states })
    for (const [text, state] of states) {
      this.#limitGrace(text, state, this.#secrets.get(text))
      this.#secrets.set(text, state)
    }
    maskSecrets(states)
    this.#watchUpstreams()
    this.#certificates = undefined
  }

  #watchUpstreams(): void {
    this.#upstreams.adopt(watchedConfig({ config: this.#loaded!.config, secrets: this.#secrets }))
  }

  reload(): Promise<void> {
    return this.#exclusively(async () => {
      if (this.#draining) return
      const at = Date.now()
      let loaded: Loaded | undefined
      try {
        loaded = await readConfig(this.settings, this.#vaults)
        if (loaded.config.text === this.#loaded?.config.text) {
          loaded.set.close()
          this.#lastReload = { at, ok: true }
          this.#metrics.reloaded(true)
          return
        }
        const secrets = await this.#resolve(loaded)
        const generation: Generation = { config: loaded.config, secrets }
        await this.#threads!.apply({ generation })
        this.#adopt(loaded, secrets)
        this.#lastReload = { at, ok: true }
        this.#metrics.reloaded(true)
        this.#log.info(
          { file: loaded.config.file, routes: loaded.config.routes.length },
          'configuration reloaded'
        )
      } catch (error) {
        loaded?.set.close()
        this.#metrics.reloaded(false)
        this.#lastReload = { at, ok: false, error: (error as Error).message }
        const problems = error instanceof ConfigError ? error.problems : undefined
        this.#log.error(
          { code: (error as { code?: string }).code, problems },
          `the configuration was not reloaded, the running one stays: ${(error as Error).message}`
        )
        throw error
      }
    })
  }

  async refresh(prefix?: string): Promise<number> {
    return (await this.#rotation?.refresh(prefix)) ?? 0
  }

  /**
   * For a plugin that was refused: re-reads what its entity refers to, at most once a second, and less
   * and less often while that changes nothing, so that a wrong secret costs no quota.
   */
  #refreshEntity(entityId: string): Promise<boolean> {
    const last = this.#refreshes.get(entityId)
    const now = performance.now()
    if (last !== undefined && now < last.until) return last.result
    const references = uniqueReferences(
      this.#loaded!.config.uses.filter(use => use.id === entityId).flatMap(use => use.references)
    )
    if (references.length === 0) return Promise.resolve(false)
    const pause = Math.min((last?.pause ?? 500) * 2, MAX_REFRESH_PAUSE)
    const result = this.#rotation!.refresh(references).then(changed => {
      if (changed > 0) this.#refreshes.delete(entityId)
      return changed > 0
    })
    this.#refreshes.set(entityId, { until: now + pause, pause, result })
    return result
  }

  async #fallbackCertificate(): Promise<{ readonly cert: string; readonly key: string }> {
    const { sslCert, sslCertKey, proxyListen } = this.settings
    if (sslCert !== undefined && sslCertKey !== undefined) return { cert: sslCert, key: sslCertKey }
    return proxyListen.some(listener => listener.ssl) ? selfSigned() : { cert: '', key: '' }
  }

  #warn(problem: Problem): void {
    const { code, place, message, fix } = problem
    this.#log.warn(
      { code, file: place.file, line: place.line, column: place.column, path: place.path },
      `${message}. ${fix}`
    )
  }

  #statusSource() {
    return {
      status: async () => ({
        version,
        uptime: Math.round((Date.now() - this.#startedAt) / 1000),
        workers: { configured: this.settings.workers, serving: this.#threads?.serving ?? 0 },
        ...(this.#threads === undefined ? {} : await this.#threads.stats()),
        memory: process.memoryUsage.rss(),
        configuration: {
          file: this.#loaded?.config.file,
          loads: this.#loads,
          services: this.#loaded?.config.services.length ?? 0,
          routes: this.#loaded?.config.routes.length ?? 0,
          plugins: this.#loaded?.config.plugins.length ?? 0,
          ...(this.#lastReload === undefined
            ? {}
            : {
                last_reload: {
                  ...this.#lastReload,
                  at: new Date(this.#lastReload.at).toISOString()
                }
              })
        }
      }),
      metrics: () => this.#renderMetrics(),
      unready: () => this.#unready(),
      vaults: () => ({ references: this.#vaultStatus() }),
      upstreams: () => ({ upstreams: this.#upstreams.status() }),
      setHealth: (upstream: string, target: string | undefined, healthy: boolean) =>
        this.#upstreams.turn(upstream, target, healthy),
      config: () => ({
        file: this.#loaded?.config.file ?? '',
        text: this.#loaded?.config.text ?? ''
      }),
      reload: async () => {
        await this.reload()
        return { reloaded: true }
      },
      refresh: async (prefix: string | undefined) => ({ changed: await this.refresh(prefix) })
    }
  }

  async #renderMetrics(): Promise<string> {
    const { config, set } = this.#loaded ?? {}
    const stats = await this.#threads?.stats()
    return this.#metrics.render({
      version,
      startedAt: this.#startedAt,
      workers: { configured: this.settings.workers, serving: this.#threads?.serving ?? 0 },
      inFlight: stats?.inFlight ?? 0,
      webSockets: stats?.webSockets ?? 0,
      requests: this.#threads?.counts ?? createCounts(),
      entities: config === undefined ? {} : countEntities(config),
      lastReload: this.#lastReload,
      references: set?.status() ?? [],
      health: set?.health() ?? [],
      certificates: config === undefined ? [] : this.#expiries(config)
    })
  }

  /** When each configured certificate ends; computed once for each change of a certificate. */
  #expiries(config: Config): readonly CertificateExpiry[] {
    this.#certificates ??= certificateExpiries(config, this.#secrets, this.settings.sslCert)
    return this.#certificates
  }

  #unready(): readonly string[] {
    if (this.#draining) return ['the gateway is draining']
    if (this.#threads === undefined || this.#threads.serving === 0)
      return ['no configuration serves yet']
    const failed = [...this.#secrets].filter(([, state]) => 'failure' in state)
    return failed.map(
      ([text, state]) => `${text} has no value (${(state as { failure: string }).failure})`
    )
  }

  #vaultStatus(): readonly object[] {
    const used = Map.groupBy(
      (this.#loaded?.config.uses ?? []).flatMap(use => use.references.map(text => ({ text, use }))),
      ({ text }) => text
    )
    return (this.#loaded?.set.status() ?? []).map(status => ({
      ...status,
      used: (used.get(status.reference) ?? []).map(
        ({ use }) => `${use.place.file}:${use.place.line}:${use.place.column} ${use.place.path}`
      )
    }))
  }

  async close(): Promise<void> {
    if (this.#draining) return
    this.#draining = true
    this.#unwatch()
    if (this.settings.shutdownDelay > 0 && this.#threads !== undefined) {
      await new Promise(resolve => setTimeout(resolve, this.settings.shutdownDelay * 1000))
    }
    this.#rotation?.close()
    for (const timer of this.#graces.values()) clearTimeout(timer)
    await this.#threads?.close(this.settings.shutdownTimeout * 1000)
    this.#upstreams.close()
    this.#refresher.close()
    await this.#webhookServer?.close()
    await this.#status?.close()
    this.#loaded?.set.close()
    await this.#vaults.close()
    await this.#lastKnownGood?.close()
    await this.#store?.close()
  }
}

/** Longest pause between two re-reads for a plugin that keeps being refused, in milliseconds. */
const MAX_REFRESH_PAUSE = 60_000

/** What references stand for in the data plane; the vaults may know something newer already. */
function inForce(
  set: Loaded['set'],
  secrets: ReadonlyMap<string, SecretState>
): ReadonlyMap<string, Outcome> {
  return new Map(
    [...secrets].map(([text, state]): [string, Outcome] => {
      const now = set.outcome(parseReference(text))
      if ('failure' in state) {
        const failed = { state: 'unreachable', message: state.failure } as const
        return [text, now.state === 'ok' ? failed : now]
      }
      const same = now.state === 'ok' && now.value === state.value
      return [text, same ? now : { state: 'ok', value: state.value }]
    })
  )
}

/** The entities and settings that use each reference. A certificate and its key are one user. */
function usersByReference(
  config: Config,
  settings: readonly SettingReference[]
): ReadonlyMap<string, readonly string[]> {
  const users = new Map<string, string[]>()
  const add = (references: readonly string[], user: string): void => {
    for (const text of references) {
      const known = users.get(text)
      if (known === undefined) users.set(text, [user])
      else known.push(user)
    }
  }
  for (const { id, references } of config.uses) add(references, id)
  for (const { name, references } of settings) add(references, `setting ${name}`)
  return users
}

type WebhookSetting = WebhookSecret | 'webhookGcpAudience' | 'webhookAzureAudience'

/** Each of these turns a webhook on. */
const WEBHOOK_SETTINGS: readonly WebhookSetting[] = [
  'webhookSecret',
  'webhookAwsSecret',
  'webhookAzureSecret',
  'webhookGcpAudience',
  'webhookAzureAudience'
]

/** Settings whose references are followed while the gateway runs. */
const LIVE_SETTINGS: ReadonlySet<string> = new Set<WebhookSecret>([
  'webhookSecret',
  'webhookAwsSecret',
  'webhookAzureSecret'
])

/** Settings that could not be what their references have become. */
function unfitSettings(
  settings: readonly SettingReference[],
  changed: ReadonlyMap<string, SecretState>,
  secrets: ReadonlyMap<string, SecretState>
): readonly Problem[] {
  return settings
    .filter(({ references }) => references.some(text => changed.has(text)))
    .flatMap(({ name, template, place }) => {
      try {
        const { parse } = settingsTable[name as keyof typeof settingsTable]
        parse(resolveTemplate(template, secrets).value, () => {})
        return []
      } catch (error) {
        const { message, fix = 'Correct what the vault holds.' } = error as Error & { fix?: string }
        return [
          { code: 'POSTERN_SETTING_INVALID', message: `${place.path} ${message}`, fix, place }
        ]
      }
    })
}

/** Whether a change at a vault may concern a reference; `types` are those of the file's own vaults. */
function concerns(
  { types, vault, names }: Changed,
  reference: Reference,
  ownTypes: ReadonlyMap<string, string>
): boolean {
  if (vault !== undefined && vault !== reference.vault) return false
  if (types !== undefined && !types.includes(ownTypes.get(reference.vault) ?? reference.vault))
    return false
  const resource = reference.resource.toLowerCase()
  return names === undefined || names.some(name => name.toLowerCase() === resource)
}

function urlOf({ host, port }: { readonly host: string; readonly port: number }): string {
  return `http://${host.includes(':') ? `[${host}]` : host}:${port}`
}

function countEntities(config: Config): Readonly<Record<string, number>> {
  return Object.fromEntries(kinds.map(({ name }) => [name, config[name as keyof Entities].length]))
}

function sharedMemory(): Readonly<Record<string, SharedArrayBuffer>> {
  const shared: Record<string, SharedArrayBuffer> = {}
  for (const { name, sharedBytes } of plugins) {
    if (sharedBytes !== undefined) shared[name] = new SharedArrayBuffer(sharedBytes)
  }
  return shared
}
