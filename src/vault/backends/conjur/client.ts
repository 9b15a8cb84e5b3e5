import { readFile } from 'node:fs/promises'
import { SecretMalformed, VaultDenied, VaultThrottled, VaultUnreachable } from '../../../errors.ts'
import { networkFailure } from '../network-failure.ts'
import { retryAfter } from '../retry-after.ts'
import { SharedCall } from '../shared-call.ts'
import { Transport, type TransportAnswer } from '../transport.ts'
import type { ConjurSettings } from './settings.ts'

/** How long Conjur's tokens live where they do not say, and the part of it after which another is fetched. */
const TOKEN_LIFE = 8 * 60_000
const RENEWAL_PART = 5 / 8

interface Token {
  readonly header: string
  /** `performance.now()` from which another is fetched. */
  readonly renewAt: number
  /** Unix milliseconds. */
  readonly expiresAt: number
}

/** A Conjur server as one identity: logs in when needed, once for all who wait. */
export class ConjurClient {
  readonly #settings: ConjurSettings
  readonly #transport: Transport
  readonly #base: string
  #token: Token | undefined
  readonly #logins = new SharedCall<Token>()

  constructor(settings: ConjurSettings, env: Readonly<Record<string, string | undefined>>) {
    this.#settings = settings
    this.#base = settings.endpoint_url.replace(/\/+$/, '')
    this.#transport = new Transport(
      {
        verify: settings.ssl_verify ?? true,
        ca: settings.ca_cert,
        names: ['ca_cert', '', '']
      },
      env
    )
  }

  /** Unix milliseconds at which the token in use ends; undefined before the first login. */
  get tokenExpiresAt(): number | undefined {
    return this.#token?.expiresAt
  }

  /**
   * Reads `path`; undefined means nothing is there. An answer with the status `taken` is given, too,
   * others that are no success are errors. `resource` names in errors what was asked for.
   * Throws VaultDenied, VaultThrottled, VaultUnreachable.
   */
  async get(
    path: string,
    resource: string,
    signal: AbortSignal,
    headers: Readonly<Record<string, string>> = {},
    taken?: number
  ): Promise<TransportAnswer | undefined> {
    const token = await this.#tokenFor(resource, signal)
    let answer = await this.#send('GET', path, resource, signal, {
      ...headers,
      authorization: token.header
    })
    if (answer.status === 401) {
      // The server may have lost or outlived the token: once more with a new one.
      if (this.#token === token) this.#token = undefined
      const { header } = await this.#tokenFor(resource, signal)
      answer = await this.#send('GET', path, resource, signal, {
        ...headers,
        authorization: header
      })
    }
    if (isAbsence(answer)) return undefined
    if (answer.status !== taken) refuse(answer, resource)
    return answer
  }

  async #tokenFor(resource: string, signal: AbortSignal): Promise<Token> {
    if (this.#token !== undefined && performance.now() < this.#token.renewAt) {
      return this.#token
    }
    this.#token = await this.#logins.join(wanted => this.#authenticate(resource, wanted), signal)
    return this.#token
  }

  async #authenticate(resource: string, signal: AbortSignal): Promise<Token> {
    const {
      account,
      auth_method: method,
      login,
      api_key: apiKey,
      service_id: service
    } = this.#settings
    const identity = login === undefined ? '' : `/${encodeURIComponent(login)}`
    const jwt = method === 'jwt'
    const path = jwt
      ? `/authn-jwt/${encodeURIComponent(service!)}/${encodeURIComponent(account)}${identity}/authenticate`
      : `/authn/${encodeURIComponent(account)}${identity}/authenticate`
    const body = jwt ? `jwt=${encodeURIComponent(await this.#jwt(resource))}` : apiKey!
    const answer = await this.#send(
      'POST',
      path,
      resource,
      signal,
      {
        'accept-encoding': 'base64',
        'content-type': jwt ? 'application/x-www-form-urlencoded' : 'text/plain'
      },
      body
    )
    if (answer.status === 401 || isAbsence(answer)) {
      throw new VaultDenied(resource, `the login was refused (${answer.status})`)
    }
    refuse(answer, resource)
    const token = answer.body.trim()
    if (!/^[A-Za-z0-9+/_-]+={0,2}$/.test(token)) {
      throw new VaultUnreachable(resource, 'the answer to the login is no token')
    }
    const life = lifeOf(token)
    return {
      header: `Token token="${token}"`,
      renewAt: performance.now() + life * RENEWAL_PART,
      expiresAt: Date.now() + life
    }
  }

  async #jwt(resource: string): Promise<string> {
    const { jwt, jwt_file: path } = this.#settings
    if (jwt !== undefined) return jwt
    try {
      return (await readFile(path!, 'utf8')).trim()
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      throw new VaultUnreachable(resource, `the token file ${path} cannot be read (${code})`)
    }
  }

  async #send(
    method: string,
    path: string,
    resource: string,
    signal: AbortSignal,
    headers: Readonly<Record<string, string>>,
    body?: string
  ): Promise<TransportAnswer> {
    try {
      signal.throwIfAborted()
      return await this.#transport.send({
        method,
        url: new URL(this.#base + path),
        headers,
        body,
        signal
      })
    } catch (error) {
      const { code } = error as { code?: unknown }
      if (code === 'POSTERN_VAULT_SETTINGS') throw error
      throw new VaultUnreachable(resource, networkFailure(error))
    }
  }

  close(): void {
    this.#transport.close()
  }
}

/** Milliseconds a token lives by what it says itself, on the server's clock alone. */
function lifeOf(token: string): number {
  try {
    const { payload } = JSON.parse(Buffer.from(token, 'base64').toString()) as { payload: string }
    const { iat, exp } = JSON.parse(Buffer.from(payload, 'base64').toString()) as {
      readonly iat?: unknown
      readonly exp?: unknown
    }
    const life = (Number(exp) - Number(iat)) * 1000
    return life > 0 ? life : TOKEN_LIFE
  } catch {
    return TOKEN_LIFE
  }
}

/** Whether Conjur itself says that there is no such thing: a 404 of anything else is none. */
function isAbsence({ status, body }: TransportAnswer): boolean {
  if (status !== 404) return false
  try {
    return (JSON.parse(body) as { error?: { code?: unknown } }).error?.code === 'not_found'
  } catch {
    return false
  }
}

/** What an answer that is no success means. Bodies are never passed on. */
function refuse({ status, headers }: TransportAnswer, resource: string): void {
  if (status >= 200 && status < 300) return
  if (status === 401 || status === 403) throw new VaultDenied(resource, `it answered ${status}`)
  if (status === 429) {
    const pause = retryAfter(headers['retry-after'], headers.date)
    throw new VaultThrottled(resource, 'it answered 429', pause)
  }
  const other = status === 404 ? ', and not as Conjur does: check endpoint_url' : ''
  throw new VaultUnreachable(resource, `it answered ${status}${other}`)
}

/** The JSON of an answer. Throws SecretMalformed without a word of it. */
export function jsonOf({ body }: TransportAnswer, resource: string): unknown {
  try {
    return JSON.parse(body)
  } catch {
    throw new SecretMalformed(resource, 'the answer is not JSON')
  }
}
