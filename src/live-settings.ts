import { SecretUnavailable } from './errors.ts'
import { type ListenerTls, resolveTemplate, type Secrets } from './generation.ts'
import { belongTogether, Misfit, pemPath } from './setting-values.ts'
import { type Collected, type SettingReference, type Settings, settingsTable } from './settings.ts'

/** Settings that follow their vaults, and their files, while the gateway runs. */
const LIVE = [
  'sslCert',
  'sslCertKey',
  'sslClientCertificate',
  'sessionRedisUrl',
  'fingerprintKey',
  'webhookSecret',
  'webhookAwsSecret',
  'webhookAzureSecret'
] as const satisfies readonly (keyof typeof settingsTable)[]

/** The name of a setting that follows. */
export type LiveSetting = (typeof LIVE)[number]

const TLS: readonly LiveSetting[] = ['sslCert', 'sslCertKey', 'sslClientCertificate']

/** A setting's value in force, and the one before while its grace lasts. */
export interface LiveValue {
  readonly value: string
  readonly previous?: string
}

/** The settings whose values change while the gateway runs; values come from the secrets in force. */
export class LiveSettings {
  readonly #settings: Settings
  readonly #authored: Collected['authored']
  readonly #byName: ReadonlyMap<string, SettingReference>
  /** The settings that follow their vaults. */
  readonly references: readonly SettingReference[]
  /** The settings whose references were read once. */
  readonly fixed: readonly SettingReference[]

  constructor(
    settings: Settings,
    references: readonly SettingReference[],
    authored: Collected['authored']
  ) {
    this.#settings = settings
    this.#authored = authored
    const isLive = ({ name }: SettingReference): boolean => LIVE.some(live => live === name)
    this.references = references.filter(isLive)
    this.fixed = references.filter(reference => !isLive(reference))
    this.#byName = new Map(this.references.map(reference => [reference.name, reference]))
  }

  /** A setting as text; undefined when it is not set. Throws POSTERN_SECRET_UNAVAILABLE. */
  text(name: LiveSetting, secrets: Secrets): LiveValue | undefined {
    const reference = this.#byName.get(name)
    if (reference === undefined) {
      const text = this.#authored.get(name)?.text
      return text === undefined ? undefined : { value: text }
    }
    const lacking = reference.references.some(text => {
      const state = secrets.get(text)
      return state === undefined || 'failure' in state
    })
    if (lacking) throw new SecretUnavailable(reference.place.path)
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

  /** Whether a change of these references changes what TLS with clients takes from settings. */
  concernsTls(changed: ReadonlyMap<string, unknown>): boolean {
    return TLS.some(name => this.referencesOf(name).some(text => changed.has(text)))
  }

  /** The files that TLS with clients takes certificates and keys from. */
  tlsFiles(secrets: Secrets): ReadonlySet<string> {
    const texts = TLS.map(name => this.text(name, secrets)?.value)
    return new Set(texts.map(text => text && pemPath(text)).filter(path => !!path) as string[])
  }

  /**
   * What TLS with clients takes from settings, read anew from vaults and files; `generated` stands
   * in where no certificate is set. Throws {@link Misfit} for what it cannot be.
   */
  tls(secrets: Secrets, generated: { readonly cert: string; readonly key: string }): ListenerTls {
    const [cert, key, clientCa] = TLS.map(name => this.#parsed(name, secrets))
    const pair = cert === undefined || key === undefined ? generated : { cert, key }
    if (pair !== generated && !belongTogether(pair.cert, pair.key)) {
      const { variable } = settingsTable.sslCertKey
      throw new Misfit(
        `${variable} is not the key of ${settingsTable.sslCert.variable}`,
        'Give the key the certificate was made with.'
      )
    }
    return { ...pair, clientCa: this.#settings.sslVerifyClient === 'off' ? undefined : clientCa }
  }

  /** Throws what is wrong with a setting's value; never the value. */
  check(name: string, secrets: Secrets): void {
    this.#parsed(name as LiveSetting, secrets)
  }

  #parsed(name: LiveSetting, secrets: Secrets): string | undefined {
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
