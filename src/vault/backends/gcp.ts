import { SecretMalformed, VaultUnreachable } from '../../errors.ts'
import type { Backend, BackendType, Fetched } from '../backend.ts'
import { fetchOver } from './fetch-over.ts'
import { type AccessedVersion, type Api, importClient, openApi } from './gcp/api.ts'
import { crc32c } from './gcp/crc32c.ts'
import { Credentials, importGoogleAuth } from './gcp/credentials.ts'
import { AnswerError, classify, isAbsent, isUnauthenticated } from './gcp/failure.ts'
import { type GcpSettings, gcpSchema, protectedFields, settingsOf } from './gcp/settings.ts'
import { textOf } from './payload.ts'
import { Transport } from './transport.ts'
import { untilAborted } from './until-aborted.ts'

const LATEST = 'latest'
const NAME = /^[A-Za-z0-9_-]{1,255}$/
/** A number or an alias. */
const VERSION = /^[A-Za-z0-9_-]{1,63}$/

/**
 * Secrets from Google Secret Manager. Its parts are in gcp/: the settings, who asks (credentials,
 * metadata), Google's client (api), the checksum, and what errors mean. It has no `probe`: looking at a
 * version is a request just as reading it is, with a fraction of the quota and by a role of its own.
 */
export const gcpBackend: BackendType = {
  name: 'gcp',
  schema: gcpSchema,
  protectedFields,
  load: () => Promise.all([importClient(), importGoogleAuth()]),
  async open(config, { env }) {
    const settings = settingsOf(config, env)
    const transport = new Transport({}, env)
    const credentials = new Credentials(settings, env, transport)
    const api = await openApi(settings, carrier(transport, credentials))
    return new GcpVault(settings, api, credentials, transport)
  }
}

class GcpVault implements Backend {
  readonly #parent: string
  readonly #api: Api
  readonly #credentials: Credentials
  readonly #transport: Transport

  constructor(settings: GcpSettings, api: Api, credentials: Credentials, transport: Transport) {
    const { project_id: project, location } = settings
    this.#parent = `projects/${project}${location === undefined ? '' : `/locations/${location}`}`
    this.#api = api
    this.#credentials = credentials
    this.#transport = transport
  }

  async fetch(
    resource: string,
    version: string | undefined,
    signal: AbortSignal
  ): Promise<Fetched | undefined> {
    const request = { name: this.#nameOf(resource, version) }
    const answer = await this.#ask(resource, signal, () =>
      this.#api.accessSecretVersion(request, signal)
    )
    return answer && fetchedOf(answer, resource)
  }

  health(): { readonly tokenExpiresAt?: number } {
    const { expiresAt } = this.#credentials
    return expiresAt === undefined ? {} : { tokenExpiresAt: expiresAt }
  }

  close(): void {
    this.#credentials.close()
    this.#transport.close()
  }

  #nameOf(resource: string, version = LATEST): string {
    if (!NAME.test(resource)) {
      throw new SecretMalformed(
        resource,
        'names are made of letters, digits, dashes and underscores'
      )
    }
    if (!VERSION.test(version)) {
      throw new SecretMalformed(resource, `"${version}" is neither a number nor an alias`)
    }
    return `${this.#parent}/secrets/${resource}/versions/${version}`
  }

  async #ask<T>(
    resource: string,
    signal: AbortSignal,
    call: () => Promise<T>
  ): Promise<T | undefined> {
    try {
      signal.throwIfAborted()
      const answered = call().catch(error => {
        if (!isUnauthenticated(error)) throw error
        // The clock may have been set while the token was in use, so that it ended unnoticed.
        this.#credentials.renew()
        return call()
      })
      return await untilAborted(answered, signal)
    } catch (error) {
      if (isAbsent(error)) return undefined
      throw classify(error, resource)
    }
  }
}

function fetchedOf({ name, payload }: AccessedVersion, resource: string): Fetched {
  const bytes = payload?.data ?? new Uint8Array()
  const checksum = payload?.dataCrc32c
  if (checksum !== undefined && checksum !== null && Number(checksum) !== crc32c(bytes)) {
    throw new VaultUnreachable(resource, 'its checksum does not match: it was damaged on its way')
  }
  const value = textOf(bytes, resource)
  const version = numberOf(name)
  return version === undefined ? { value } : { value, version }
}

function numberOf(name: string | null | undefined): string | undefined {
  return name?.slice(name.lastIndexOf('/') + 1)
}

/** Carries the client's requests with proof of who asks; an answer that is none of 2xx is an error. */
function carrier(transport: Transport, credentials: Credentials): typeof fetch {
  const carry = fetchOver(transport)
  return async (input, init) => {
    const headers = new Headers(init?.headers)
    for (const [name, value] of await credentials.headers()) headers.set(name, value)
    const answer = await carry(input, { ...init, headers })
    if (answer.ok) return answer
    throw new AnswerError(
      answer.status,
      await answer.text(),
      answer.headers.get('retry-after'),
      answer.headers.get('date')
    )
  }
}
