import { SecretUnavailable } from './errors.ts'
import { type ListenerTls, resolveTemplate, type SecretLookup } from './generation.ts'
import { belongTogether, keyPath, Misfit, pemPath } from './setting-values.ts'
import { type Collected, type SettingReference, type Settings, settingsTable } from './settings.ts'

/** Settings that follow their vaults, and their files, while the gateway runs. */
const LIVE = [
  'sslCert',
  'sslCertKey',
  'sslClientCertificate',
  'sessionRedisUrl',
  'fingerprintKey',
  'vaultCacheKey',
  'webhookSecret',
  'webhookAwsSecret',
  'webhookAzureSecret'
] as const satisfies readonly (keyof typeof settingsTable)[]

/** Settings that a degraded start goes without: what needs them fails closed until they have a value. */
export const dispensable: ReadonlySet<string> = new Set<LiveSetting>(
  // Without authorities client certificates would be verified against those of the system, and
  // without its key the file that is for such starts could not be read.
  LIVE.filter(name => name !== 'sslClientCertificate' && name !== 'vaultCacheKey')
)

/** The name of a setting that follows. */
export type LiveSetting = (typeof LIVE)[number]

type LiveReference = SettingReference & { readonly name: LiveSetting }

const TLS: readonly LiveSetting[] = ['sslCert', 'sslCertKey', 'sslClientCertificate']

type KeyPair = Pick<ListenerTls, 'cert' | 'key'>

/** No certificate: handshakes that come to it fail. */
const NO_PAIR: KeyPair = { cert: '', key: '' }

/** A setting's value in force, and the one before while its grace lasts. */
export interface LiveValue {
  readonly value: string
  readonly previous?: string
}

/** The settings whose values change while the gateway runs; values come from the secrets in force. */
export class LiveSettings {
  readonly #settings: Settings
  readonly #authored: Collected['authored']
  readonly #byName: ReadonlyMap<string, LiveReference>
  /** The settings that follow their vaults. */
  readonly references: readonly LiveReference[]
  /** The settings whose references were read once. */
  readonly fixed: readonly SettingReference[]

  constructor(
    settings: Settings,
    references: readonly SettingReference[],
    authored: Collected['authored']
  ) {
    this.#settings = settings
    this.#authored = authored
    const isLive = (reference: SettingReference): reference is LiveReference =>
      LIVE.some(name => name === reference.name)
    this.references = references.filter(isLive)
    this.fixed = references.filter(reference => !isLive(reference))
    this.#byName = new Map(this.references.map(reference => [reference.name, reference]))
  }

  /** Whether a setting is set, with a value or without. */
  isSet(name: LiveSetting): boolean {
    return this.#authored.has(name)
  }

  /** Whether a setting is set and has no value now. */
  lacks(name: LiveSetting, secrets: SecretLookup): boolean {
    return this.referencesOf(name).some(text => {
      const state = secrets.get(text)
      return state === undefined || 'failure' in state
    })
  }

  /** A setting as text; undefined when it is not set. Throws POSTERN_SECRET_UNAVAILABLE. */
  text(name: LiveSetting, secrets: SecretLookup): LiveValue | undefined {
    const reference = this.#byName.get(name)
    if (reference === undefined) {
      const text = this.#authored.get(name)?.text
      return text === undefined ? undefined : { value: text }
    }
    if (this.lacks(name, secrets)) throw new SecretUnavailable(reference.place.path)
    const { value, previous } = resolveTemplate(reference.template, secrets)
    // As a setting of the environment, which a line end in a vault does not change.
    return previous === undefined
      ? { value: value.trimEnd() }
      : { value: value.trimEnd(), previous: previous.trimEnd() }
  }

  /** The references a setting is made of. */
  referencesOf(name: LiveSetting): readonly string[] {
    return this.#byName.get(name)?.references ?? []
  }

  /** The settings made of a reference. A certificate and its key are one user. */
  usersOf(reference: string): readonly string[] {
    return this.references
      .filter(({ references }) => references.includes(reference))
      .map(({ name }) => `setting ${name === 'sslCertKey' ? 'sslCert' : name}`)
  }

  /** Whether a change of these references changes what TLS with clients takes from settings. */
  concernsTls(changed: ReadonlyMap<string, unknown>): boolean {
    return TLS.some(name => this.referencesOf(name).some(text => changed.has(text)))
  }

  /** The files that TLS with clients takes certificates and keys from. */
  tlsFiles(secrets: SecretLookup): ReadonlySet<string> {
    const texts = TLS.map(name =>
      this.lacks(name, secrets) ? undefined : this.text(name, secrets)?.value
    )
    return new Set(texts.map(text => text && pemPath(text)).filter(path => !!path) as string[])
  }

  /** The key of the last known good values, read anew; undefined when none is set. Throws {@link Misfit}. */
  cacheKey(secrets: SecretLookup): Buffer | undefined {
    const key = this.#parsed('vaultCacheKey', secrets)
    return key === undefined ? undefined : Buffer.from(key, 'hex')
  }

  /** The file that key is taken from, where the environment names one. */
  get cacheKeyFile(): string | undefined {
    if (this.referencesOf('vaultCacheKey').length > 0) return undefined
    const text = this.#authored.get('vaultCacheKey')?.text
    return text === undefined ? undefined : keyPath(text)
  }

  /**
   * What TLS with clients takes from settings, read anew from vaults and files; `generated` stands
   * in where no certificate is set, and nothing where one is that has no value. Throws {@link Misfit}
   * for what it cannot be.
   */
  tls(secrets: SecretLookup, generated: KeyPair): ListenerTls {
    const clientCa = this.#parsed('sslClientCertificate', secrets)
    return {
      ...this.#pair(secrets, generated),
      clientCa: this.#settings.sslVerifyClient === 'off' ? undefined : clientCa
    }
  }

  #pair(secrets: SecretLookup, generated: KeyPair): KeyPair {
    if (this.lacks('sslCert', secrets) || this.lacks('sslCertKey', secrets)) return NO_PAIR
    const cert = this.#parsed('sslCert', secrets)
    const key = this.#parsed('sslCertKey', secrets)
    if (cert === undefined || key === undefined) return generated
    if (belongTogether(cert, key)) return { cert, key }
    const { variable } = settingsTable.sslCertKey
    throw new Misfit(
      `${variable} is not the key of ${settingsTable.sslCert.variable}`,
      'Give the key the certificate was made with.'
    )
  }

  /** Throws what is wrong with a setting's value; never the value. */
  check(name: LiveSetting, secrets: SecretLookup): void {
    this.#parsed(name, secrets)
  }

  #parsed(name: LiveSetting, secrets: SecretLookup): string | undefined {
    const text = this.text(name, secrets)?.value
    if (text === undefined) return undefined
    const { parse, variable } = settingsTable[name]
    try {
      return parse(text, () => {})
    } catch (error) {
      const { message, fix } = error as Misfit
      throw new Misfit(`${variable} ${message}`, fix)
    }
  }
}
