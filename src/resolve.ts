import { readFile } from 'node:fs/promises'
import { type Config, loadConfig } from './config.ts'
import { validateUses } from './config-values.ts'
import { ConfigError, type Problem } from './errors.ts'
import { plugins } from './plugins/index.ts'
import type { Logger } from './plugins/plugin.ts'
import { redactor } from './redaction.ts'
import {
  type Collected,
  collectSettings,
  configSource,
  type Environment,
  parseSetting,
  parseSettings,
  type SettingReference,
  type Settings,
  settingsTable
} from './settings.ts'
import { UseIndex } from './uses.ts'
import type { BackendType } from './vault/backend.ts'
import { loadBackends, type UnusableBackend } from './vault/backends/custom.ts'
import { builtInBackends } from './vault/backends/index.ts'
import { type LastKnownGood, openLastKnownGood } from './vault/last-known-good.ts'
import type { Observe } from './vault/observation.ts'
import { parseReference, type Reference } from './vault/reference.ts'
import {
  createVaults,
  type LoadOptions,
  type Outcome,
  type VaultSet,
  type Vaults
} from './vault/vaults.ts'

/** Settings with their references resolved, and the vaults they came through. */
export interface Prepared {
  readonly settings: Settings
  readonly warnings: readonly Problem[]
  readonly vaults: Vaults
  readonly vaultLog: VaultLog
  /** Settings whose values come out of vaults. */
  readonly references: readonly SettingReference[]
  /** Every setting as written. */
  readonly authored: Collected['authored']
  /** Undefined when none is kept. */
  readonly lastKnownGood: LastKnownGood | undefined
}

/** What vaults write to: they are opened before the settings say how to log. */
export class VaultLog {
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

/**
 * Reads the environment, with the types of vaults that its POSTERN_VAULT_BACKENDS adds. Throws
 * ConfigError with every problem.
 */
export async function collect(env: Environment): Promise<Collected> {
  try {
    return collectSettings(env, await vaultTypes(env))
  } catch (error) {
    if (error instanceof BackendsUnusable) throw withOthers(error, env)
    throw error
  }
}

/**
 * Problems of the environment with those of the file beside them, as far as they can be told without
 * it: nobody should correct the one only to be shown the other. Others stay as they are.
 */
export async function withFileProblems(error: ConfigError, env: Environment): Promise<ConfigError> {
  if (!error.problems.every(({ place }) => place.file === 'environment')) return error
  const given = ({ variable, kong }: { variable: string; kong: readonly string[] }) =>
    [variable, ...kong].map(name => env[name]).find(text => text !== undefined && text !== '')
  const { config, configString } = settingsTable
  const source = { config: given(config) ?? config.default!, configString: given(configString) }
  if ([given(config), given(configString)].some(text => text?.trim().startsWith('{vault:')))
    return error
  try {
    const { text, file } = await readSource(source)
    loadConfig(text, {
      file,
      plugins,
      vaultTypes: builtInBackends(env),
      vaultCheck: () => undefined
    })
    return error
  } catch (found) {
    if (!(found instanceof ConfigError)) return error
    // A vault may be of a type that the environment would have added.
    const others = found.problems.filter(({ place }) => !place.path.startsWith('vaults'))
    return new ConfigError([...error.problems, ...others])
  }
}

/** Modules of own types of vaults cannot be used: what else is wrong with the environment is not told yet. */
class BackendsUnusable extends ConfigError {}

function withOthers(unusable: ConfigError, env: Environment): ConfigError {
  try {
    collectSettings(env)
    return unusable
  } catch (error) {
    // Which fields the missing types have is not known.
    const others = (error as ConfigError).problems.filter(
      ({ code, place }) =>
        code !== 'POSTERN_SETTING_UNKNOWN' || !place.path.startsWith('POSTERN_VAULT_')
    )
    return new ConfigError([...unusable.problems, ...others])
  }
}

/** Every type of vault: those included, and those of POSTERN_VAULT_BACKENDS. Throws ConfigError. */
export async function vaultTypes(env: Environment): Promise<readonly BackendType[]> {
  const included = builtInBackends(env)
  const { variable, parse } = settingsTable.vaultBackends
  const modules = parse(env[variable] ?? '', () => {})
  if (modules.length === 0) return included
  try {
    const names = included.map(({ name }) => name)
    return [...included, ...(await loadBackends(modules, names))]
  } catch (error) {
    const { message, fix } = error as UnusableBackend
    const place = { file: 'environment', line: 1, column: 1, path: variable }
    throw new BackendsUnusable([{ code: 'POSTERN_SETTING_INVALID', message, fix, place }])
  }
}

/** The vaults of a process with this environment; nothing is asked yet. */
export function openVaults(
  env: Environment,
  { types, vaultDefaults }: Collected,
  log = new VaultLog(),
  observe: Observe = () => {}
): Vaults {
  return createVaults({
    backendTypes: types,
    defaults: vaultDefaults,
    environment: { env, log },
    observe,
    // What a vault authenticates with is no secret of the configuration, and masked all the same.
    taken: (reference, value) => redactor.hold(`vault setting ${reference}`, [value])
  })
}

export interface PrepareOptions {
  readonly observe?: Observe
  /** Whether the last known good values stand in for vaults that give no answer, and are kept. */
  readonly lastKnownGood?: boolean
  /** Names of settings that a degraded start goes without until their vaults answer. */
  readonly dispensable?: ReadonlySet<string>
}

/** Settings that must be known before the other references are resolved. */
const CACHE_SETTINGS: ReadonlySet<string> = new Set([
  'vaultCacheFile',
  'vaultCacheKey',
  'vaultCacheMaxAge'
])

/**
 * Reads the environment and resolves the references in it through the default vaults. Throws
 * ConfigError with every problem.
 */
export async function prepareSettings(
  env: Environment,
  { observe, lastKnownGood: keeps = false, dispensable }: PrepareOptions = {}
): Promise<Prepared> {
  const collected = await collect(env)
  const vaultLog = new VaultLog()
  const vaults = openVaults(env, collected, vaultLog, observe)
  const set = vaults.prepare([])
  const resolved = new Map<string, string>()
  const outcomes = new Map<string, Outcome>()
  const load = async (uses: readonly SettingReference[]): Promise<void> => {
    const references = uniqueReferences(uses.flatMap(use => use.references))
    for (const [text, outcome] of await set.load(references, { lastKnownGood: true })) {
      outcomes.set(text, outcome)
      if (outcome.state === 'ok') resolved.set(text, outcome.value)
    }
  }
  let lastKnownGood: LastKnownGood | undefined
  try {
    await load(collected.references.filter(({ name }) => CACHE_SETTINGS.has(name)))
    lastKnownGood = keeps ? await openCache(collected, resolved, vaultLog) : undefined
    if (lastKnownGood !== undefined) vaults.useLastKnownGood(lastKnownGood)
    await load(collected.references)
    maskOutcomes(outcomes, 'setting ')
    const problems = unresolvedUses(collected.references, outcomes)
    const lacking = collected.references.filter(({ references }) =>
      references.some(text => !resolved.has(text))
    )
    const lookup = (text: string): string | undefined => resolved.get(text)
    const goesOn =
      parseSetting(collected, 'vaultStart', lookup) === 'degraded' &&
      lacking.every(({ name }) => dispensable?.has(name))
    if (problems.length > 0 && !goesOn)
      throw new ConfigError([...problems, ...refusedCache(lastKnownGood)])
    const { settings, warnings } = parseSettings(without(collected, lacking), lookup)
    maskSettings(settings, collected)
    set.confirm(resolved.keys())
    return {
      settings,
      warnings: [...warnings, ...problems],
      vaults,
      vaultLog,
      references: collected.references,
      authored: collected.authored,
      lastKnownGood
    }
  } catch (error) {
    await vaults.close()
    // What was denied must not come back at the next start.
    await lastKnownGood?.close()
    throw error
  }
}

/** The environment without these settings; a certificate goes with its key. */
function without(collected: Collected, lacking: readonly SettingReference[]): Collected {
  const names = new Set(lacking.map(({ name }) => name))
  if (names.has('sslCert') || names.has('sslCertKey')) names.add('sslCert').add('sslCertKey')
  return {
    ...collected,
    references: collected.references.filter(({ name }) => !names.has(name)),
    authored: new Map([...collected.authored].filter(([name]) => !names.has(name)))
  }
}

async function openCache(
  collected: Collected,
  resolved: ReadonlyMap<string, string>,
  log: VaultLog
): Promise<LastKnownGood | undefined> {
  const lookup = (text: string): string | undefined => resolved.get(text)
  const file = parseSetting(collected, 'vaultCacheFile', lookup)
  const key = parseSetting(collected, 'vaultCacheKey', lookup)
  const maxAge = parseSetting(collected, 'vaultCacheMaxAge', lookup)
  if (file === undefined || key === undefined || maxAge === undefined) return undefined
  return openLastKnownGood({
    file,
    key: Buffer.from(key, 'hex'),
    maxAge,
    failed: error =>
      log.warn({ err: error, file }, 'the last known good values could not be written')
  })
}

/** Told with what has no value: the file could have helped. */
export function refusedCache(lastKnownGood: LastKnownGood | undefined): readonly Problem[] {
  const problem = (error: Error | undefined, path: string, fix: string): readonly Problem[] => {
    if (error === undefined) return []
    const place = { file: 'environment', line: 1, column: 1, path }
    return [{ code: 'POSTERN_VAULT_CACHE_REFUSED', message: error.message, fix, place }]
  }
  return [
    ...problem(
      lastKnownGood?.refused,
      'POSTERN_VAULT_CACHE_FILE',
      'Give the key it was written with, or put back its newest copy with the .generation file of that; or delete both, which are written anew once the vaults answer.'
    ),
    ...problem(
      lastKnownGood?.outdated,
      'POSTERN_VAULT_CACHE_MAX_AGE',
      'Wait for the vault, or set a longer one if such values may serve still.'
    )
  ]
}

/** Fields of a default vault that authenticate the gateway, by what their names have in common. */
const CREDENTIAL = /pass|secret|token|key|credential|jwt|nonce|service_account/
/** Fields that say where a credential is or whose; and those that hold PEM or the path of a file of it. */
const NO_CREDENTIAL = /_(file|path|endpoint|url|uri|role)$|(cert|cert_key|certificate)$/

function isCredential(field: string, value: string): boolean {
  if (value.includes('-----BEGIN')) return true
  return CREDENTIAL.test(field) && !NO_CREDENTIAL.test(field)
}

function maskSettings(settings: Settings, { vaultDefaults }: Collected): void {
  for (const [name, { secret, verbatim }] of Object.entries(settingsTable)) {
    const value = settings[name as keyof Settings]
    // A configuration given as text is what GET /config shows.
    if (!secret || verbatim || typeof value !== 'string') continue
    redactor.hold(`setting ${name}`, [value, URL.parse(value)?.password ?? ''])
  }
  for (const [type, fields] of Object.entries(vaultDefaults)) {
    for (const [field, value] of Object.entries(fields)) {
      if (isCredential(field, value)) redactor.hold(`vault ${type} ${field}`, [value])
    }
  }
}

/** A configuration with the vaults its references go to. */
export interface Loaded {
  readonly config: Config
  /** Where references stand in it. */
  readonly uses: UseIndex
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
    vaultTypes: vaults.backendTypes,
    vaultCheck(reference, entities) {
      const complaint = vaults.check(reference, entities)
      return tolerant && complaint?.environment ? undefined : complaint
    }
  })
  return { config, uses: new UseIndex(config), set: vaults.prepare(config.vaults) }
}

/** Where the configuration comes from, which a vault may have to tell. Throws ConfigError. */
export async function resolvedSource(collected: Collected, vaults: Vaults): Promise<ConfigSource> {
  const uses = collected.references.filter(
    ({ name }) => name === 'config' || name === 'configString'
  )
  if (uses.length === 0) return configSource(collected)
  const set = vaults.prepare([])
  try {
    const outcomes = await set.load(uniqueReferences(uses.flatMap(use => use.references)))
    maskOutcomes(outcomes, 'setting ')
    const problems = unresolvedUses(uses, outcomes)
    if (problems.length > 0) throw new ConfigError(problems)
    const lookup = (text: string): string | undefined => {
      const outcome = outcomes.get(text)
      return outcome?.state === 'ok' ? outcome.value : undefined
    }
    return {
      config: parseSetting(collected, 'config', lookup)!,
      configString: parseSetting(collected, 'configString', lookup)
    }
  } finally {
    set.close()
  }
}

const NAME_IT = 'Name the configuration file with -c FILE or POSTERN_CONFIG.'
const UNREADABLE: Readonly<Record<string, readonly [message: string, fix: string]>> = {
  ENOENT: ['the file does not exist', NAME_IT],
  EISDIR: ['this is a directory', NAME_IT],
  EACCES: ['the file may not be read (EACCES)', 'Let the user that postern runs as read it.']
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
    const [message, fix] = UNREADABLE[code ?? ''] ?? [`the file cannot be read (${code})`, NAME_IT]
    throw new ConfigError([
      {
        code: 'POSTERN_CONFIG_UNREADABLE',
        message,
        fix,
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
  more: readonly Use[] = [],
  options: LoadOptions = {}
): Promise<ReadonlyMap<string, Outcome>> {
  const outcomes = await set.load(
    uniqueReferences([...config.uses, ...more].flatMap(use => use.references)),
    options
  )
  maskOutcomes(outcomes)
  return outcomes
}

/** From now on nothing this thread writes shows these values. */
export function maskOutcomes(outcomes: ReadonlyMap<string, Outcome>, prefix = ''): void {
  for (const [text, outcome] of outcomes) {
    redactor.hold(prefix + text, outcome.state === 'ok' ? [outcome.value] : [])
  }
}

/** What stands against serving a configuration with these outcomes: missing and unfit values. */
export function problemsOf(
  uses: UseIndex,
  outcomes: ReadonlyMap<string, Outcome>
): readonly Problem[] {
  const unfit = validateUses(uses, plugins, text => {
    const outcome = outcomes.get(text)
    return outcome?.state === 'ok' ? outcome : undefined
  })
  return [...unresolvedUses(uses.config.uses, outcomes), ...unfit]
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

const FAILURE_FIXES: Readonly<Record<string, string>> = {
  POSTERN_VAULT_ABSENT: 'Store it there, correct the reference, or give it a ?default=.',
  POSTERN_VAULT_DENIED: "Let the gateway's identity read it.",
  POSTERN_VAULT_UNREACHABLE: 'Check the address and the network, then start again.',
  POSTERN_VAULT_THROTTLED: "Start again later, or raise the vault's quota.",
  POSTERN_VAULT_MALFORMED:
    'Correct what the vault holds there, or the key or pointer of the reference.',
  POSTERN_VAULT_SETTINGS:
    "Correct the vault's config in the file, or its variables POSTERN_VAULT_… in the environment."
}

function unresolved(
  reference: string,
  outcome: Outcome | undefined,
  place: Problem['place']
): Problem {
  const { code, message } =
    outcome === undefined || outcome.state === 'ok'
      ? { code: 'POSTERN_VAULT_UNREACHABLE', message: 'never asked' }
      : outcome
  return {
    code,
    message: `${reference} has no value: ${message}`,
    fix: FAILURE_FIXES[code]!,
    place,
    reference
  }
}

/** References by their texts, each once. */
export function uniqueReferences(texts: readonly string[]): readonly Reference[] {
  return [...new Set(texts)].map(parseReference)
}
