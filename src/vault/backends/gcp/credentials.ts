import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { CredentialBody, JWTInput } from 'google-auth-library'
import { VaultDenied, VaultMisconfigured, VaultUnreachable } from '../../../errors.ts'
import { fetchOver } from '../fetch-over.ts'
import { networkFailure, plainName } from '../network-failure.ts'
import { Transport } from '../transport.ts'
import { type Identity, MetadataIdentity } from './metadata.ts'
import type { GcpSettings } from './settings.ts'

const SCOPE = 'https://www.googleapis.com/auth/cloud-platform'

type Environment = Readonly<Record<string, string | undefined>>

/** What proves who asks by a service account or application default credentials. */
export function importGoogleAuth(): Promise<typeof import('google-auth-library')> {
  return import('google-auth-library')
}

/** The identity by configuration, found at its first use; many callers share one look. */
export class Credentials {
  readonly #settings: GcpSettings
  readonly #env: Environment
  readonly #transport: Transport
  /** Metadata servers are on this machine: no proxy leads there. */
  readonly #local = new Transport()
  #identity: Promise<Identity> | undefined
  #found: Identity | undefined

  constructor(settings: GcpSettings, env: Environment, transport: Transport) {
    this.#settings = settings
    this.#env = env
    this.#transport = transport
  }

  /** Throws VaultDenied when the identity is refused, VaultUnreachable when there is none to be had. */
  async headers(): Promise<Headers> {
    this.#identity ??= this.#find().catch(error => {
      this.#identity = undefined
      throw error
    })
    this.#found = await this.#identity
    try {
      return await this.#found.getRequestHeaders()
    } catch (error) {
      throw refusal(error)
    }
  }

  /** Unix milliseconds at which the token in use ends; undefined when there is none. */
  get expiresAt(): number | undefined {
    return this.#found?.credentials.expiry_date ?? undefined
  }

  /** Forgets the token in use, which was not accepted. */
  renew(): void {
    this.#identity = undefined
  }

  close(): void {
    this.#local.close()
  }

  async #find(): Promise<Identity> {
    const { service_account: account, auth_method_order: order } = this.#settings
    const metadata = new MetadataIdentity(this.#local, this.#env)
    if (order === 'legacy') {
      if (await metadata.answers()) return metadata
      if (account !== undefined) return this.#identityOf(account, 'service_account')
      throw new VaultUnreachable(
        'a token',
        'no metadata server answers and there is no GCP_SERVICE_ACCOUNT'
      )
    }
    if (account !== undefined) return this.#identityOf(account, 'service_account')
    const file = await this.#applicationDefault()
    return file === undefined ? metadata : this.#identityOf(file.text, file.path)
  }

  /** The file that the variable names, else that of the gcloud command; undefined without either. */
  async #applicationDefault(): Promise<
    { readonly path: string; readonly text: string } | undefined
  > {
    const { GOOGLE_APPLICATION_CREDENTIALS: named, CLOUDSDK_CONFIG: folder, HOME } = this.#env
    if (named !== undefined && named !== '') {
      const text = await readFile(named, 'utf8').catch(error => {
        throw new VaultMisconfigured(
          `GOOGLE_APPLICATION_CREDENTIALS names ${named}, which cannot be read (${error.code})`,
          'Mount the file, or unset the variable'
        )
      })
      return { path: named, text }
    }
    const path = join(
      folder ?? join(HOME ?? '', '.config/gcloud'),
      'application_default_credentials.json'
    )
    const text = await readFile(path, 'utf8').catch(() => undefined)
    return text === undefined ? undefined : { path, text }
  }

  async #identityOf(text: string, source: string): Promise<Identity> {
    const { GoogleAuth } = await importGoogleAuth()
    try {
      return await new GoogleAuth({
        credentials: JSON.parse(text) as JWTInput & CredentialBody,
        scopes: SCOPE,
        clientOptions: { transporterOptions: { fetchImplementation: fetchOver(this.#transport) } }
      }).getClient()
    } catch {
      // Messages of parsers quote what they were given.
      throw new VaultMisconfigured(
        `${source} holds no JSON of Google credentials`,
        'Give it the whole file that Google made'
      )
    }
  }
}

/** What a failure to get a token comes to. Messages of the library may quote what was answered. */
export function refusal(error: unknown): Error {
  const { code: coded, response } = error as {
    code?: unknown
    response?: { readonly status: number; readonly data?: { readonly error?: unknown } }
  }
  if (typeof coded === 'string' && coded.startsWith('POSTERN_')) return error as Error
  if (response === undefined) {
    const { cause } = error as Error
    return new VaultUnreachable('a token', networkFailure(cause ?? error))
  }
  const { status, data } = response
  const code = plainName(data?.error) ?? 'no code'
  return status >= 400 && status <= 403
    ? new VaultDenied('a token', `the credentials are refused (${code})`)
    : new VaultUnreachable('a token', `the token service answered ${status} (${code})`)
}
