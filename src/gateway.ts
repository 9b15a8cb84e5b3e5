import { readFile } from 'node:fs/promises'
import type { Worker } from 'node:worker_threads'
import { type CertificateExpiry, certificateExpiries } from './certificate-expiry.ts'
import { type Config, type Entities, loadConfig } from './config.ts'
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
import { kinds } from './schema/kinds.ts'
import {
  type Collected,
  collectSettings,
  parseSettings,
  type SettingReference,
  type Settings,
  settingsTable
} from './settings.ts'
import { openStatus, type StatusServer } from './status.ts'
import { memoryStore, type OwnedStore, redisStore } from './store.ts'
import { Threads } from './threads.ts'
import { backendTypes, builtInBackends } from './vault/backends/index.ts'
import { parseReference, type Reference } from './vault/reference.ts'
import { createRotation, type Rotation } from './vault/rotation.ts'
import { createVaults, type Outcome, type VaultSet, type Vaults } from './vault/vaults.ts'
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

type Environment = Readonly<Record<string, string | undefined>>

/** Settings with their references resolved, and the vaults they came through. */
export interface Prepared {
  readonly settings: Settings
  readonly warnings: readonly Problem[]
  readonly vaults: Vaults
  readonly vaultLog: VaultLog
  /** Settings whose values come out of vaults. */
  readonly references: readonly SettingReference[]
}

/** What vaults write to: they are opened before the settings say how to log. */
class VaultLog {
  #log: Logger | undefined

  attach(log: Logger): void {
    this.#log = log
  }

  info(fields: object, message: string): void {
    this.#log?.info(fields, message)
  }

  warn(fields: object, message: string): void {
    this.#log?.warn(fields, message)
  }
}

/** The vaults of a process with this environment; nothing is asked yet. */
export function openVaults(
  env: Environment,
  { vaultDefaults }: Collected,
  log = new VaultLog()
): Vaults {
  return createVaults({
    backendTypes: builtInBackends(env),
    defaults: vaultDefaults,
    environment: { env, log }
  })
}

/**
 * Reads the environment and resolves the references in it through the default vaults. Throws
 * ConfigError with every problem.
 */
export async function prepareSettings(env: Environment): Promise<Prepared> {
  const collected = collectSettings(env)
  const vaultLog = new VaultLog()
  const vaults = openVaults(env, collected, vaultLog)
  const resolved = new Map<string, string>()
  if (collected.references.length > 0) {
    const set = await vaults.prepare([])
    const references = uniqueReferences(collected.references.flatMap(use => use.references))
    const outcomes = await set.load(references)
    maskOutcomes(outcomes, 'setting ')
    const problems = unresolvedUses(collected.references, outcomes)
    if (problems.length > 0) throw new ConfigError(problems)
    for (const [text, outcome] of outcomes)
      if (outcome.state === 'ok') resolved.set(text, outcome.value)
  }
  const { settings, warnings } = parseSettings(collected, text => resolved.get(text))
  maskSettings(settings, collected)
  return { settings, warnings, vaults, vaultLog, references: collected.references }
}

/** Fields of a default vault that authenticate the gateway, by what their names have in common. */
const CREDENTIAL = /pass|secret|token|key|credential|jwt|service_account/

function maskSettings(settings: Settings, { vaultDefaults }: Collected): void {
  for (const [name, { secret, verbatim }] of Object.entries(settingsTable)) {
    const value = settings[name as keyof Settings]
    // A configuration given as text is what GET /config shows.
    if (!secret || verbatim || typeof value !== 'string') continue
    redactor.hold(`setting ${name}`, [value, URL.parse(value)?.password ?? ''])
  }
  for (const [type, fields] of Object.entries(vaultDefaults)) {
    for (const [field, value] of Object.entries(fields)) {
      if (CREDENTIAL.test(field)) redactor.hold(`vault ${type} ${field}`, [value])
    }
  }
}

/** A configuration with the vaults its references go to. */
export interface Loaded {
  readonly config: Config
  readonly set: VaultSet
}

/** Where a configuration is read from. */
export type ConfigSource = Pick<Settings, 'config' | 'configString'>

/**
 * Reads and validates the configuration offline. Throws ConfigError with every problem. `tolerant`
 * lets pass that the environment lacks settings of default vaults, which another one may have.
 */
export async function readConfig(
  source: ConfigSource,
  vaults: Vaults,
  tolerant = false
): Promise<Loaded> {
  const { text, file } = await readSource(source)
  const config = loadConfig(text, {
    file,
    plugins,
    vaultTypes: backendTypes,
    vaultCheck(reference, entities) {
      const complaint = vaults.check(reference, entities)
      return tolerant && complaint?.environment ? undefined : complaint
    }
  })
  return { config, set: await vaults.prepare(config.vaults) }
}

async function readSource(settings: ConfigSource): Promise<{ text: string; file: string }> {
  if (settings.configString !== undefined) {
    return { text: settings.configString, file: 'POSTERN_CONFIG_STRING' }
  }
  const file = settings.config
  try {
    return { text: await readFile(file, 'utf8'), file }
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    throw new ConfigError([
      {
        code: 'POSTERN_CONFIG_UNREADABLE',
        message:
          code === 'ENOENT' ? 'the file does not exist' : `the file cannot be read (${code})`,
        fix: 'Name the configuration file with -c FILE or POSTERN_CONFIG.',
        place: { file, line: 1, column: 1, path: '' }
      }
    ])
  }
}

/** One text with references in it, and where it stands. */
export interface Use {
  readonly references: readonly string[]
  readonly place: Problem['place']
}

/** Resolves every reference of a configuration and of `more`, each resource once. */
export async function resolveAll(
  { config, set }: Loaded,
  more: readonly Use[] = []
): Promise<ReadonlyMap<string, Outcome>> {
  const outcomes = await set.load(
    uniqueReferences([...config.uses, ...more].flatMap(use => use.references))
  )
  maskOutcomes(outcomes)
  return outcomes
}

/** From now on nothing this thread writes shows these values. */
function maskOutcomes(outcomes: ReadonlyMap<string, Outcome>, prefix = ''): void {
  for (const [text, outcome] of outcomes) {
    redactor.hold(prefix + text, outcome.state === 'ok' ? [outcome.value] : [])
  }
}

/** What stands against serving a configuration with these outcomes: missing and unfit values. */
export function problemsOf(config: Config, outcomes: ReadonlyMap<string, Outcome>): Problem[] {
  const unfit = validateUses(config, plugins, config.uses, text => {
    const outcome = outcomes.get(text)
    return outcome?.state === 'ok' ? outcome : undefined
  })
  return [...unresolvedUses(config.uses, outcomes), ...unfit]
}

/** One problem for each place whose reference has no value. */
export function unresolvedUses(
  uses: readonly Use[],
  outcomes: ReadonlyMap<string, Outcome>
): Problem[] {
  return uses.flatMap(({ references, place }) =>
    references
      .filter(text => outcomes.get(text)?.state !== 'ok')
      .map(text => unresolved(text, outcomes.get(text), place))
  )
}

const FAILURE_CODES = {
  absent: 'POSTERN_VAULT_ABSENT',
  denied: 'POSTERN_VAULT_DENIED',
  unreachable: 'POSTERN_VAULT_UNREACHABLE',
  malformed: 'POSTERN_VAULT_MALFORMED'
} as const

const FAILURE_FIXES = {
  absent: 'Store it there, correct the reference, or give it a ?default=.',
  denied: "Let the gateway's identity read it.",
  unreachable: 'Check the address and the network, then start again.',
  malformed: 'Correct what the vault holds there, or the key or pointer of the reference.'
} as const

function unresolved(
  reference: string,
  outcome: Outcome | undefined,
  place: Problem['place']
): Problem {
  const state = outcome === undefined || outcome.state === 'ok' ? 'unreachable' : outcome.state
  const message = outcome === undefined || outcome.state === 'ok' ? 'never asked' : outcome.message
  return {
    code: FAILURE_CODES[state],
    message: `${reference} has no value: ${message}`,
    fix: FAILURE_FIXES[state],
    place,
    reference
  }
}

function uniqueReferences(texts: readonly string[]): readonly Reference[] {
  return [...new Set(texts)].map(parseReference)
}

/**
 * Starts a gateway from an environment. Rejects with ConfigError (every problem at once) when the
 * configuration cannot be served, or with the system's error when an address cannot be bound.
 */
export async function startGateway(env: Environment): Promise<Gateway> {
  const prepared = await prepareSettings(env)
  const control = new ControlThread(prepared)
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
  #webhookServer: { host: string; port: number; close(): Promise<void> } | undefined
  readonly #refresher = new Refresher<string>(texts =>
    this.#exclusively(async () => this.#rotation?.refresh(uniqueReferences([...texts]))).catch(
      error => this.#log.error({ err: error }, 'a refresh failed')
    )
  )
  readonly #upstreams: UpstreamControl
  readonly #metrics = new Metrics()
  #certificates: readonly CertificateExpiry[] | undefined
  #draining = false
  #loads = 0
  readonly #graces = new Map<string, NodeJS.Timeout>()
  readonly #refreshes = new Map<
    string,
    { readonly at: number; readonly result: Promise<boolean> }
  >()
  listeners: readonly OpenListener[] = []

  constructor({ settings, warnings, vaults, vaultLog, references }: Prepared) {
    this.settings = settings
    this.#liveSettings = references.filter(({ name }) => LIVE_SETTINGS.has(name))
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
      const webhooks = await this.#openWebhooks()
      if (settings.statusListen !== undefined) {
        this.#status = await openStatus(
          this.#statusSource(),
          settings.statusListen.host,
          settings.statusListen.port,
          settings.webhookListen === undefined ? webhooks : undefined
        )
      }
      const loaded = await readConfig(settings, this.#vaults)
      const secrets = await this.#resolve(loaded, settings.vaultStart === 'degraded')
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
      if (settings.configString === undefined) {
        this.#unwatch = watchFile(settings.config, () => void this.reload().catch(() => {}))
      }
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
    } catch (error) {
      await this.close()
      throw error
    }
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

  async #resolve(loaded: Loaded, degraded: boolean): Promise<ReadonlyMap<string, SecretState>> {
    const outcomes = await resolveAll(loaded, this.#liveSettings)
    const problems = problemsOf(loaded.config, outcomes)
    if (problems.length > 0) {
      const unusable = problems.filter(problem => problem.reference === undefined)
      if (!degraded || unusable.length > 0) throw new ConfigError(problems)
      for (const problem of problems) this.#warn(problem)
    }
    const own = new Set(loaded.config.uses.flatMap(use => use.references))
    return new Map(
      [...outcomes].map(([text, outcome]) => {
        const before = this.#secrets.get(text)
        // A setting keeps its last good value, whatever becomes of its vault.
        const kept = outcome.state !== 'ok' && !own.has(text) ? before : undefined
        return [text, kept ?? this.#stateOf(text, outcome)]
      })
    )
  }

  #stateOf(text: string, outcome: Outcome): SecretState {
    if (outcome.state !== 'ok') return { failure: `${outcome.state}: ${outcome.message}` }
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
    this.#rotation = createRotation({
      set: loaded.set,
      references: uniqueReferences([...secrets.keys()]),
      interval: this.settings.vaultRotationInterval,
      log: this.#log,
      run: task => this.#exclusively(task),
      publish: changes => this.#publish(changes)
    })
    void old?.set.close()
  }

  /** Ends the time a previous value still verifies. */
  #limitGrace(text: string, state: SecretState, before: SecretState | undefined): void {
    if ('failure' in state || state.previous === undefined || state === before) return
    clearTimeout(this.#graces.get(text))
    const timer = setTimeout(() => {
      this.#graces.delete(text)
      void this.#exclusively(async () => {
        const now = this.#secrets.get(text)
        if (now === undefined || 'failure' in now || now.previous === undefined) return
        await this.#apply(new Map([[text, { value: now.value }]]))
      }).catch(error =>
        this.#log.error({ err: error, reference: text }, 'a grace period could not be ended')
      )
    }, this.settings.secretGrace * 1000)
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
          await loaded.set.close()
          this.#lastReload = { at, ok: true }
          this.#metrics.reloaded(true)
          return
        }
        const secrets = await this.#resolve(loaded, false)
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
        await loaded?.set.close()
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

  refresh(prefix?: string): Promise<number> {
    return this.#exclusively(() => this.#rotation!.refresh(prefix))
  }

  /** For a plugin that was refused: re-reads what its entity refers to, at most once a second. */
  #refreshEntity(entityId: string): Promise<boolean> {
    const last = this.#refreshes.get(entityId)
    if (last !== undefined && Date.now() - last.at < 1000) return last.result
    const references = uniqueReferences(
      this.#loaded!.config.uses.filter(use => use.id === entityId).flatMap(use => use.references)
    )
    const result =
      references.length === 0
        ? Promise.resolve(false)
        : this.#exclusively(async () => (await this.#rotation!.refresh(references)) > 0)
    this.#refreshes.set(entityId, { at: Date.now(), result })
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
      tokens: this.#tokens(),
      certificates: config === undefined ? [] : this.#expiries(config)
    })
  }

  /** When the credential of each vault in use ends, for those that know. */
  #tokens(): readonly { readonly vault: string; readonly expiresAt: number }[] {
    const tokens = new Map<string, number>()
    for (const text of this.#secrets.keys()) {
      const reference = parseReference(text)
      const vault = this.#loaded?.set.resourceOf(reference)?.vault
      const expiresAt = vault?.backend.health?.().tokenExpiresAt
      if (expiresAt !== undefined) tokens.set(reference.vault, expiresAt)
    }
    return [...tokens].map(([vault, expiresAt]) => ({ vault, expiresAt }))
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
    await this.#loaded?.set.close()
    await this.#vaults.close()
    await this.#store?.close()
  }
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
