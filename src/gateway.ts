import { X509Certificate } from 'node:crypto'
import type { Worker } from 'node:worker_threads'
import { type CertificateExpiry, certificateExpiries } from './certificate-expiry.ts'
import type { Config, Entities } from './config.ts'
import { schemasOf, validateEntity } from './config-values.ts'
import { ConfigError, formatProblem, type Problem } from './errors.ts'
import {
  type ListenerTls,
  maskSecrets,
  overlay,
  type SecretLookup,
  type SecretState,
  type Secrets,
  servedConfig,
  valuesOf,
  watchedConfig
} from './generation.ts'
import { Graces } from './graces.ts'
import { dispensable, type LiveSetting, LiveSettings } from './live-settings.ts'
import { createLogger } from './log.ts'
import { releaseLoadGarbage } from './memory.ts'
import { Metrics } from './metrics.ts'
import { lacks, referenceReport } from './overview.ts'
import { inSlices } from './pace.ts'
import { plugins } from './plugins/index.ts'
import type { Logger } from './plugins/plugin.ts'
import { createCounts } from './proxy/counts.ts'
import { selfSigned } from './proxy/self-signed.ts'
import { UpstreamControl } from './proxy/upstream-control.ts'
import { redactor } from './redaction.ts'
import {
  type Loaded,
  type Prepared,
  prepareSettings,
  problemsOf,
  readConfig,
  refusedCache,
  resolveAll,
  uniqueReferences
} from './resolve.ts'
import { kinds } from './schema/kinds.ts'
import type { Environment, Settings } from './settings.ts'
import { openStatus, type StatusServer } from './status.ts'
import { memoryStore, type OwnedStore, type RedisStore, redisStore } from './store.ts'
import { firstWorker, Threads } from './threads.ts'
import { type Touched, touchedBy } from './uses.ts'
import type { LastKnownGood } from './vault/last-known-good.ts'
import type { Reference } from './vault/reference.ts'
import { createRotation, type Rotation } from './vault/rotation.ts'
import type { Outcome, ReferenceStatus, Vaults } from './vault/vaults.ts'
import { product, version } from './version.ts'
import { watchFile } from './watch.ts'
import { Refresher } from './webhooks/refresher.ts'
import type { Changed, Webhooks } from './webhooks/source.ts'
import type { WebhookSecret } from './webhooks/webhooks.ts'

/** An open address of the data plane. */
export interface OpenListener {
  /** `unix:` and the path for a Unix socket, whose port is 0. */
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
 * `worker` is what the first data-plane thread runs in, and ends when the start fails.
 */
export async function startGateway(
  env: Environment,
  worker: Worker = firstWorker()
): Promise<Gateway> {
  try {
    const metrics = new Metrics()
    const prepared = await prepareSettings(env, {
      observe: metrics.observe,
      lastKnownGood: true,
      dispensable
    })
    const control = new ControlThread(prepared, metrics)
    await control.start(worker)
    return control
  } catch (error) {
    await worker.terminate()
    throw error
  }
}

/** The control thread: the only one that reads files and talks to vaults. */
class ControlThread implements Gateway {
  readonly settings: Settings
  readonly #vaults: Vaults
  readonly #log: Logger
  readonly #warnings: readonly Problem[]
  readonly #startedAt = Date.now()
  /** The same on a clock that nobody sets. */
  readonly #began = performance.now()
  /** Tail of the single-writer queue: load, reload, rotate and refresh never overlap. */
  #queue: Promise<unknown> = Promise.resolve()
  #loaded: Loaded | undefined
  #threads: Threads | undefined
  #rotation: Rotation | undefined
  #store: OwnedStore | undefined
  /** The same, when it is Redis. */
  #redis: RedisStore | undefined
  #status: StatusServer | undefined
  #unwatch: () => void = () => {}
  #unwatchCacheKey: () => void = () => {}
  #lastReload: { at: number; ok: boolean; error?: string } | undefined
  readonly #live: LiveSettings
  /** What listeners serve where no certificate is set. */
  #generated = { cert: '', key: '' }
  #tls: ListenerTls | undefined
  /** What stops watching, by the path of a file that TLS settings are read from. */
  readonly #tlsFiles = new Map<string, () => void>()
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
  /** Number of the change under way, or of the last one. */
  #change = 0
  readonly #graces = new Graces(texts => this.#endGraces(texts))
  readonly #refreshes = new Map<
    string,
    { readonly until: number; readonly pause: number; readonly result: Promise<boolean> }
  >()
  listeners: readonly OpenListener[] = []

  constructor(
    { settings, warnings, vaults, vaultLog, references, authored, lastKnownGood }: Prepared,
    metrics: Metrics
  ) {
    this.#metrics = metrics
    this.#lastKnownGood = lastKnownGood
    this.settings = settings
    this.#live = new LiveSettings(settings, references, authored)
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

  /** The states of references that are in force. */
  get #secrets(): Secrets {
    return this.#threads?.secrets ?? NO_SECRETS
  }

  get workers(): readonly Worker[] {
    return this.#threads?.workers ?? []
  }

  async start(worker: Worker): Promise<void> {
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
      const { cacheKeyFile } = this.#live
      if (this.#lastKnownGood !== undefined && cacheKeyFile !== undefined)
        this.#unwatchCacheKey = watchFile(cacheKeyFile, () => this.#takeCacheKey())
      // Before it is read: a change meanwhile is loaded once this load is done.
      if (settings.configString === undefined) {
        this.#unwatch = watchFile(settings.config, () => void this.reload().catch(() => {}))
      }
      await this.#exclusively(() => this.#load(worker))
    } catch (error) {
      await this.close()
      throw error
    }
  }

  /** The first load: reads, resolves, starts the threads and serves. */
  async #load(worker: Worker): Promise<void> {
    const { settings } = this
    const loaded = await readConfig(settings, this.#vaults)
    const secrets = await this.#resolve(loaded, true)
    this.#store = this.#openStore(secrets)
    if (!this.#live.isSet('sslCert') && settings.proxyListen.some(({ ssl }) => ssl))
      this.#generated = selfSigned()
    const tls = this.#readTls(secrets)
    this.#threads = new Threads(
      { config: await servedConfig(loaded.config), secrets, tls },
      {
        worker,
        settings,
        product,
        shared: sharedMemory(),
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
    this.#adopt(loaded, secrets, tls)
    this.#log.info(
      {
        version,
        listen: this.listeners.map(textOf),
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
    const isSet = (name: WebhookSecret): boolean => this.#live.isSet(name)
    const { webhookGcpAudience, webhookAzureAudience } = this.settings
    const audience = webhookGcpAudience ?? webhookAzureAudience
    if (audience === undefined && !WEBHOOK_SECRETS.some(isSet)) return undefined
    // Loaded on demand: most gateways have none.
    const { createWebhooks } = await import('./webhooks/webhooks.ts')
    const webhooks = createWebhooks({
      settings: this.settings,
      isSet,
      secret: name => this.#live.text(name, this.#secrets),
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

  /** Where sessions are kept. */
  #openStore(secrets: Secrets): OwnedStore {
    if (!this.#live.isSet('sessionRedisUrl')) return memoryStore()
    const url = this.#live.lacks('sessionRedisUrl', secrets)
      ? undefined
      : this.#live.text('sessionRedisUrl', secrets)?.value
    this.#redis = redisStore(url, {
      log: this.#log,
      refresh: () =>
        this.#refreshOnUse('the session store', this.#live.referencesOf('sessionRedisUrl'))
    })
    return this.#redis
  }

  /** What TLS with clients takes from settings; from now on changes of its files are noticed. */
  #readTls(secrets: SecretLookup): ListenerTls {
    const files = this.#live.tlsFiles(secrets)
    for (const [path, unwatch] of this.#tlsFiles) {
      if (files.has(path)) continue
      unwatch()
      this.#tlsFiles.delete(path)
    }
    for (const path of files) {
      if (this.#tlsFiles.has(path)) continue
      this.#tlsFiles.set(
        path,
        watchFile(path, () => void this.#renewTls(path))
      )
    }
    return this.#live.tls(secrets, this.#generated)
  }

  /** Takes a changed certificate, key or list of authorities over, or keeps what there is. */
  #renewTls(file: string): Promise<void> {
    return this.#exclusively(async () => {
      if (this.#draining) return
      const tls = this.#readTls(this.#secrets)
      if (sameTls(tls, this.#tls)) return
      await this.#apply(new Map(), tls)
      this.#log.info(
        { audit: 'certificate-changed', file, ...describe(tls.cert) },
        'what listeners take from a file changed and is in force'
      )
    }).catch(error => {
      const { message, fix = '' } = error as Error & { fix?: string }
      this.#log.error(
        { code: 'POSTERN_SETTING_INVALID', file },
        `a file of the listeners is not taken over, what was read before stays: ${message}. ${fix}`
      )
    })
  }

  /** Seals the last known good values with the key that is in force. */
  #takeCacheKey(): void {
    if (this.#draining || this.#live.lacks('vaultCacheKey', this.#secrets)) return
    try {
      const key = this.#live.cacheKey(this.#secrets)
      if (key === undefined || this.#lastKnownGood?.useKey(key) !== true) return
      redactor.hold('setting vaultCacheKey', [key.toString('hex'), key.toString('base64')])
      this.#log.info(
        { file: this.settings.vaultCacheFile },
        'the last known good values are sealed with a new key'
      )
    } catch (error) {
      const { message, fix = '' } = error as Error & { fix?: string }
      this.#log.error(
        { code: 'POSTERN_SETTING_INVALID' },
        `the key of the last known good values is not taken over, the one before stays: ${message}. ${fix}`
      )
    }
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
    this.#change++
    const outcomes = await resolveAll(loaded, this.#live.references, { lastKnownGood: atStart })
    const problems = [...problemsOf(loaded.uses, outcomes)]
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
    const live = new Set(this.#live.references.flatMap(setting => setting.references))
    const states = new Map<string, SecretState>(
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
    return this.#fitSettings(states, own)
  }

  /** Settings keep what they were while their vaults hold what they cannot be. Throws ConfigError. */
  #fitSettings(states: Map<string, SecretState>, own: ReadonlySet<string>): Secrets {
    const unfit = this.#unfitSettings(states, states)
    if (unfit.length === 0) return states
    const kept = new Map(states)
    for (const text of this.#live.references.flatMap(({ references }) => references)) {
      const before = this.#secrets.get(text)
      if (before !== undefined && !own.has(text)) kept.set(text, before)
    }
    const still = this.#unfitSettings(kept, kept)
    if (still.length > 0) throw new ConfigError(still)
    for (const problem of unfit) this.#warn(problem)
    return kept
  }

  /** Settings that cannot be what references that changed have become. */
  #unfitSettings(changed: Secrets, secrets: SecretLookup): readonly Problem[] {
    const problem = (place: Problem['place'], error: unknown): Problem => {
      const { message, fix = 'Correct what the vault holds.' } = error as Error & { fix?: string }
      return { code: 'POSTERN_SETTING_INVALID', message, fix, place }
    }
    const concerned = this.#live.references.filter(({ references }) =>
      references.some(text => changed.has(text))
    )
    const problems = concerned.flatMap(({ name, place }) => {
      // What a degraded start went without may lack on; what has a value keeps it.
      if (this.#goesWithout(name, secrets)) return []
      try {
        this.#live.check(name, secrets)
        return []
      } catch (error) {
        return [problem(place, error)]
      }
    })
    if (problems.length > 0 || !this.#live.concernsTls(changed)) return problems
    try {
      this.#live.tls(secrets, this.#generated)
      return problems
    } catch (error) {
      return [problem(concerned[0]!.place, error)]
    }
  }

  #goesWithout(name: LiveSetting, secrets: SecretLookup): boolean {
    return (
      this.settings.vaultStart === 'degraded' &&
      dispensable.has(name) &&
      this.#live.lacks(name, secrets) &&
      this.#live.lacks(name, this.#secrets)
    )
  }

  #tellFixedSettings(): void {
    const { fixed } = this.#live
    if (fixed.length === 0) return
    this.#log.warn(
      { settings: fixed.map(({ place }) => place.path) },
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
    const now = { value: outcome.value, since: this.#change }
    if (before === undefined || 'failure' in before) return now
    return before.value === outcome.value ? before : { ...now, previous: before.value }
  }

  /** Makes a configuration the running one, and follows its vaults. */
  #adopt(loaded: Loaded, secrets: Secrets, tls: ListenerTls): void {
    this.#rotation?.close()
    const old = this.#loaded
    this.#loaded = loaded
    this.#loads++
    this.#inForce(tls)
    maskSecrets(secrets)
    redactor.retain(name => !name.startsWith('{') || secrets.has(name))
    for (const warning of loaded.config.warnings) this.#warn(warning)
    const { set, uses } = loaded
    this.#rotation = createRotation({
      set,
      references: set.references(secrets.keys()),
      inForce: inForce(set, secrets),
      interval: this.settings.vaultRotationInterval,
      log: this.#log,
      run: task => this.#exclusively(task),
      publish: changes => this.#publish(changes),
      usersOf: text => [...uses.of(text).map(({ id }) => id), ...this.#live.usersOf(text)],
      observe: this.#metrics.observe
    })
    set.confirm(secrets.keys())
    old?.set.close()
  }

  /** Starts the time that previous values still verify, for those that are new. */
  #limitGraces(before: SecretLookup, states: Secrets): void {
    const rotated = [...states]
      .filter(
        ([text, state]) =>
          state !== before.get(text) && 'value' in state && state.previous !== undefined
      )
      .map(([text]) => text)
    const { set } = this.#loaded!
    this.#graces.start(rotated, text => set.grace(text) ?? this.settings.secretGrace)
  }

  #endGraces(texts: readonly string[]): void {
    this.#exclusively(async () => {
      const ended = new Map<string, SecretState>()
      for (const text of texts) {
        const state = this.#secrets.get(text)
        // It may have been rotated again meanwhile.
        if (this.#graces.has(text) || state === undefined || 'failure' in state) continue
        const { previous, ...rest } = state
        if (previous !== undefined) ended.set(text, rest)
      }
      if (ended.size > 0) await this.#apply(ended)
    }).catch(error => this.#log.error({ err: error }, 'a grace period could not be ended'))
  }

  /** Brings new states of references into force, or rejects and changes nothing. */
  async #publish(changes: ReadonlyMap<string, Outcome>): Promise<void> {
    const { config, uses, set } = this.#loaded!
    this.#change++
    const states = new Map<string, SecretState>()
    await inSlices(changes, ([text, outcome]) => {
      const state = this.#stateOf(text, outcome)
      states.set(text, state)
      // Before anything can complain about it. What is in force stays so if this is refused.
      const before = valuesOf(this.#secrets.get(text))
      redactor.hold(text, 'value' in state ? [state.value, ...before] : before)
    })
    const next = overlay(this.#secrets, states)
    const lookup = (text: string): { readonly value: string } | undefined => {
      const state = next.get(text)
      return state === undefined || 'failure' in state ? undefined : state
    }
    const concerns = (text: string): boolean => states.has(text)
    const entities = uses.entities(states.keys())
    const problems: Problem[] = []
    await inSlices(entities, entity =>
      problems.push(...validateEntity(config, schemas, entity, lookup, concerns))
    )
    problems.push(...this.#unfitSettings(states, next))
    if (problems.length > 0) throw new ConfigError(problems)
    const tls = this.#live.concernsTls(states) ? this.#readTls(next) : undefined
    await this.#apply(states, tls, touchedBy(entities))
    set.confirm(states.keys())
  }

  async #apply(
    states: Secrets,
    tls?: ListenerTls,
    touched = touchedBy(this.#loaded!.uses.entities(states.keys()))
  ): Promise<void> {
    const before = new Map([...states.keys()].map(text => [text, this.#secrets.get(text)] as const))
    await this.#threads!.apply({
      secrets: states,
      touched,
      ...(tls === undefined ? {} : { tls })
    })
    this.#limitGraces(before, states)
    this.#inForce(tls, touched)
  }

  /** Has everything of this thread that follows secrets take them over; `touched` are entities with new ones. */
  #inForce(tls = this.#tls, touched?: Touched): void {
    if (tls !== undefined && tls !== this.#tls) redactor.hold('setting sslCertKey', [tls.key])
    const renewed = touched === undefined || CERTIFICATES.some(kind => touched.has(kind))
    if (tls !== this.#tls || renewed) this.#certificates = undefined
    this.#tls = tls
    if (renewed) this.#upstreams.adopt(watchedConfig(this.#loaded!.config, this.#secrets))
    if (this.#live.referencesOf('vaultCacheKey').length > 0) this.#takeCacheKey()
    if (this.#redis === undefined || this.#live.lacks('sessionRedisUrl', this.#secrets)) return
    const redis = this.#live.text('sessionRedisUrl', this.#secrets)!
    redactor.hold('setting sessionRedisUrl', [redis.value, URL.parse(redis.value)?.password ?? ''])
    this.#redis.use(redis.value)
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
        const tls = this.#readTls(secrets)
        const before = this.#secrets
        const config = await servedConfig(loaded.config)
        await this.#threads!.apply({ generation: { config, secrets, tls } })
        this.#adopt(loaded, secrets, tls)
        this.#limitGraces(before, secrets)
        this.#lastReload = { at, ok: true }
        this.#metrics.reloaded(true)
        this.#log.info(
          { file: loaded.config.file, routes: loaded.config.routes.length },
          'configuration reloaded'
        )
      } catch (error) {
        loaded?.set.close()
        this.#metrics.reloaded(false)
        const reason = briefly(error as Error)
        this.#lastReload = { at, ok: false, error: reason }
        const problems = error instanceof ConfigError ? error.problems : undefined
        this.#log.error(
          {
            code: (error as { code?: string }).code,
            problems: problems?.slice(0, MAX_TOLD),
            count: problems?.length
          },
          `the configuration was not reloaded, the running one stays: ${reason}`
        )
        throw error
      }
    })
  }

  /** Whether any reference goes to the vault with this prefix; none named is every vault. */
  #hasVault(prefix: string | undefined): boolean {
    if (prefix === undefined || this.#loaded === undefined) return true
    const { config, set } = this.#loaded
    return (
      set.status().some(({ vault }) => vault === prefix) ||
      config.uses.some(use => uniqueReferences(use.references).some(each => each.vault === prefix))
    )
  }

  async refresh(prefix?: string): Promise<number> {
    return (await this.#rotation?.refresh(prefix)) ?? 0
  }

  #refreshEntity(entityId: string): Promise<boolean> {
    const uses = this.#loaded!.config.uses.filter(use => use.id === entityId)
    return this.#refreshOnUse(
      entityId,
      uses.flatMap(use => use.references)
    )
  }

  /**
   * For what was refused with its secrets: re-reads them, at most once a second, and less and less
   * often while that changes nothing, so that a wrong secret costs no quota.
   */
  #refreshOnUse(user: string, texts: readonly string[]): Promise<boolean> {
    const last = this.#refreshes.get(user)
    const now = performance.now()
    if (last !== undefined && now < last.until) return last.result
    const references = uniqueReferences(texts)
    if (references.length === 0 || this.#rotation === undefined) return Promise.resolve(false)
    const pause = Math.min((last?.pause ?? 500) * 2, MAX_REFRESH_PAUSE)
    const result = this.#rotation.refresh(references).then(changed => {
      if (changed > 0) this.#refreshes.delete(user)
      return changed > 0
    })
    this.#refreshes.set(user, { until: now + pause, pause, result })
    return result
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
        uptime: Math.round((performance.now() - this.#began) / 1000),
        ...(await this.#traffic()),
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
      vaults: () => ({
        references:
          this.#loaded === undefined
            ? []
            : referenceReport(this.#loaded, this.#statuses(), this.#secrets, this.#live)
      }),
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
      refresh: async (prefix: string | undefined) => {
        if (!this.#hasVault(prefix)) return undefined
        const changed = await this.refresh(prefix)
        const failing = this.#statuses().filter(
          ({ vault, state }) => state !== 'ok' && (prefix === undefined || vault === prefix)
        )
        return { changed, failing: failing.length }
      }
    }
  }

  /** What the data-plane threads do now, in sum, and how late each of them is. */
  async #traffic() {
    const told = [...((await this.#threads?.stats()) ?? [])]
    const stats = told.flatMap(([thread, of]) => (of === undefined ? [] : [{ thread, ...of }]))
    const unresponsive = told.filter(([, of]) => of === undefined).map(([thread]) => thread)
    return {
      workers: {
        configured: this.settings.workers,
        serving: this.#threads?.serving ?? 0,
        unresponsive
      },
      inFlight: stats.reduce((sum, { inFlight }) => sum + inFlight, 0),
      webSockets: stats.reduce((sum, { webSockets }) => sum + webSockets, 0),
      event_loop_delay: stats.map(({ thread, delay }) => ({ thread, ...delay }))
    }
  }

  #statuses(): readonly ReferenceStatus[] {
    const rotation = this.#rotation
    return (
      this.#loaded?.set.status(resource => rotation?.nextRead(resource) ?? resource.dueAt) ?? []
    )
  }

  async #renderMetrics(): Promise<string> {
    const { config, set } = this.#loaded ?? {}
    const { workers, inFlight, webSockets, event_loop_delay } = await this.#traffic()
    return this.#metrics.render({
      version,
      startedAt: this.#startedAt,
      workers,
      inFlight,
      webSockets,
      delays: event_loop_delay,
      requests: this.#threads?.counts ?? createCounts(),
      entities: config === undefined ? {} : countEntities(config),
      lastReload: this.#lastReload,
      references: this.#statuses(),
      health: set?.health() ?? [],
      certificates: config === undefined ? [] : this.#expiries(config)
    })
  }

  /** When each configured certificate ends; computed once for each change of a certificate. */
  #expiries(config: Config): readonly CertificateExpiry[] {
    this.#certificates ??= certificateExpiries(
      config,
      this.#secrets,
      this.#live.isSet('sslCert') ? this.#tls?.cert : undefined
    )
    return this.#certificates
  }

  #unready(): readonly string[] {
    if (this.#draining) return ['the gateway is draining']
    if (this.#loaded === undefined || !this.#threads?.serving)
      return ['no configuration serves yet']
    return lacks(this.#loaded, this.#secrets)
  }

  async close(): Promise<void> {
    if (this.#draining) return
    this.#draining = true
    this.#unwatch()
    this.#unwatchCacheKey()
    for (const unwatch of this.#tlsFiles.values()) unwatch()
    if (this.settings.shutdownDelay > 0 && this.#threads !== undefined) {
      await new Promise(resolve => setTimeout(resolve, this.settings.shutdownDelay * 1000))
    }
    this.#rotation?.close()
    this.#graces.close()
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

/** Problems of a reload in the log and the status: an outage has one for each reference. */
const MAX_TOLD = 10

/** The message of an error, of bounded length: collectors cut long lines, and pipes tear them. */
function briefly(error: Error): string {
  if (!(error instanceof ConfigError) || error.problems.length <= MAX_TOLD) return error.message
  const { problems } = error
  const first = problems.slice(0, MAX_TOLD).map(problem => `  ${formatProblem(problem)}`)
  return [
    `${problems.length} problems in the configuration, the first ${MAX_TOLD} (postern check --resolve tells all):`,
    ...first
  ].join('\n')
}

/** What references stand for in the data plane; the vaults may know something newer already. */
function inForce(
  set: Loaded['set'],
  secrets: ReadonlyMap<string, SecretState>
): ReadonlyMap<string, Outcome> {
  return new Map(
    [...secrets].map(([text, state]): [string, Outcome] => {
      const now = set.outcome(text)
      if ('failure' in state) {
        const code = 'POSTERN_VAULT_UNREACHABLE'
        const failed = { state: 'unreachable', code, message: state.failure } as const
        return [text, now.state === 'ok' ? failed : now]
      }
      const same = now.state === 'ok' && now.value === state.value
      return [text, same ? now : { state: 'ok', value: state.value }]
    })
  )
}

const NO_SECRETS: Secrets = new Map()
const schemas = schemasOf(plugins)
/** Kinds whose expiry is told. */
const CERTIFICATES = ['certificates', 'ca_certificates'] as const

/** Each of these turns a webhook on. */
const WEBHOOK_SECRETS: readonly WebhookSecret[] = [
  'webhookSecret',
  'webhookAwsSecret',
  'webhookAzureSecret'
]

function sameTls(a: ListenerTls, b: ListenerTls | undefined): boolean {
  return a.cert === b?.cert && a.key === b.key && a.clientCa === b.clientCa
}

/** What tells a certificate from another one, for the log. */
function describe(cert: string): { readonly serial?: string; readonly not_after?: string } {
  if (cert === '') return {}
  const { serialNumber, validTo } = new X509Certificate(cert)
  return { serial: serialNumber, not_after: new Date(validTo).toISOString() }
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

function urlOf(
  { host, port }: { readonly host: string; readonly port: number },
  scheme = 'http'
): string {
  return `${scheme}://${host.includes(':') ? `[${host}]` : host}:${port}`
}

/** A listener as people read it: the URL of an address, or `unix:/path (http)`. */
function textOf(listener: OpenListener): string {
  const scheme = listener.ssl ? 'https' : 'http'
  return listener.host.startsWith('unix:')
    ? `${listener.host} (${scheme})`
    : urlOf(listener, scheme)
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
