import type { TokenCredential } from '@azure/identity'
import type { KeyVaultSecret, SecretClient } from '@azure/keyvault-secrets'
import { SecretMalformed } from '../../../errors.ts'
import type { BackendEnvironment } from '../../backend.ts'
import { Transport, type TransportAnswer } from '../transport.ts'
import { untilAborted } from '../until-aborted.ts'
import { createCredential } from './credentials.ts'
import {
  AnswerError,
  classify,
  identityTrouble,
  isAbsent,
  isIdentityFailure,
  isUnauthorized,
  troubleOf
} from './failure.ts'
import { type HttpClient, httpClientOver } from './http.ts'
import { type AzureSettings, settingsOf } from './settings.ts'

const NAME = /^[A-Za-z0-9-]{1,127}$/
const VERSION = /^[0-9a-f]{32}$/

/** A Key Vault, asked for its secrets; certificates are secrets to it, too. */
export class KeyVault {
  readonly #transport: Transport
  /** Metadata services are on this machine: no proxy leads there. */
  readonly #local = new Transport()
  readonly #connect: () => Promise<SecretClient>
  #client: Promise<SecretClient>
  #expiresAt: number | undefined
  /** What the identity service answered last, where that told of its own trouble. */
  #trouble: AnswerError | undefined

  constructor(settings: AzureSettings, env: BackendEnvironment['env']) {
    this.#transport = new Transport({}, env)
    const http = {
      remote: httpClientOver(this.#transport, answer => {
        this.#trouble = identityTrouble(answer)
      }),
      local: httpClientOver(this.#local)
    }
    const judging = httpClientOver(this.#transport, judge)
    this.#connect = async () =>
      openClient(settings.vault_uri, this.#watched(await createCredential(settings, http)), judging)
    this.#client = this.#connect()
    // Whoever reads meets it.
    this.#client.catch(() => {})
  }

  /** Gives the secret; undefined when there is none. Throws coded errors. */
  async read(
    resource: string,
    version: string | undefined,
    signal: AbortSignal
  ): Promise<KeyVaultSecret | undefined> {
    if (!NAME.test(resource)) {
      throw new SecretMalformed(resource, 'names are made of letters, digits and dashes')
    }
    if (version !== undefined && !VERSION.test(version)) {
      throw new SecretMalformed(resource, `"${version}" is no version: those are 32 hex digits`)
    }
    const get = async (): Promise<KeyVaultSecret> => {
      const client = await this.#client
      return client.getSecret(resource, {
        abortSignal: signal,
        ...(version === undefined ? {} : { version })
      })
    }
    try {
      signal.throwIfAborted()
      const answered = get().catch(error => {
        if (!isUnauthorized(error)) throw error
        // The clock may have been set while the token was in use, so that it ended unnoticed.
        this.#client = this.#connect()
        return get()
      })
      // The SDK does not heed the signal while it gets a token.
      return await untilAborted(answered, signal)
    } catch (error) {
      if (isAbsent(error)) return undefined
      if (this.#trouble !== undefined && isIdentityFailure(error)) {
        // The SDK would give the same answer for a minute without asking: when to ask is the cache's.
        this.#client = this.#connect()
        throw troubleOf(this.#trouble, resource)
      }
      throw classify(error, resource)
    }
  }

  health(): { readonly tokenExpiresAt?: number } {
    return this.#expiresAt === undefined ? {} : { tokenExpiresAt: this.#expiresAt }
  }

  close(): void {
    this.#transport.close()
    this.#local.close()
  }

  #watched(credential: TokenCredential): TokenCredential {
    return {
      getToken: async (scopes, options) => {
        const token = await credential.getToken(scopes, options)
        this.#expiresAt = token?.expiresOnTimestamp
        return token
      }
    }
  }
}

/** What a vault is asked with. */
export function importSdk(): Promise<unknown> {
  return Promise.all([import('@azure/identity'), import('@azure/keyvault-secrets')])
}

/** Opens the vault of a configuration. Throws VaultMisconfigured; asks nothing yet. */
export async function openKeyVault(
  config: Readonly<Record<string, unknown>>,
  { env }: BackendEnvironment
): Promise<KeyVault> {
  const settings = settingsOf(config, env)
  // Here, so that it is no part of what the first read may take.
  await importSdk()
  return new KeyVault(settings, env)
}

async function openClient(
  uri: string,
  credential: TokenCredential,
  httpClient: HttpClient
): Promise<SecretClient> {
  const { SecretClient } = await import('@azure/keyvault-secrets')
  return new SecretClient(uri, credential, {
    httpClient,
    retryOptions: { maxRetries: 0 },
    redirectOptions: { maxRetries: 0 }
  })
}

/** A 401 is the SDK's to answer: it is how a vault says where tokens come from. */
function judge({ status, body, headers }: TransportAnswer): void {
  if (status >= 200 && status <= 299) return
  if (status !== 401) throw new AnswerError(status, body, headers)
}
