import { VaultUnreachable } from '../../../errors.ts'
import { networkFailure } from '../network-failure.ts'
import type { Transport } from '../transport.ts'

const HOST = 'metadata.google.internal'
const BASE = '/computeMetadata/v1/instance/service-accounts/default'
const FLAVOR = { 'metadata-flavor': 'Google' }
/** Milliseconds: it is on this machine, or it is not there. */
const TIMEOUT = 3000
/** Milliseconds before its end that a token is replaced; the server itself keeps one for as long. */
const MARGIN = 240_000

/** Someone who can prove who asks. */
export interface Identity {
  /** What to send along, taken anew when it nears its end. */
  getRequestHeaders(): Promise<Headers>
  /** Unix milliseconds. */
  readonly credentials: { readonly expiry_date?: number | null }
}

/** The service account of this machine, pod or function, as its metadata server gives tokens for it. */
export class MetadataIdentity implements Identity {
  readonly #transport: Transport
  readonly #origin: string
  #token: string | undefined
  /** On the clock of `performance.now`: setting the wall clock neither ends the token nor prolongs it. */
  #endsAt = Number.NEGATIVE_INFINITY
  #pending: Promise<void> | undefined
  credentials: { readonly expiry_date?: number } = {}

  constructor(transport: Transport, env: Readonly<Record<string, string | undefined>>) {
    this.#transport = transport
    const host = env.GCE_METADATA_HOST ?? env.GCE_METADATA_IP ?? HOST
    this.#origin = /^https?:\/\//.test(host) ? host : `http://${host}`
  }

  /** Whether there is such a server. */
  async answers(): Promise<boolean> {
    try {
      const { headers } = await this.#get('/email')
      return headers['metadata-flavor'] === 'Google'
    } catch {
      return false
    }
  }

  async getRequestHeaders(): Promise<Headers> {
    if (this.#endsAt - MARGIN < performance.now()) {
      this.#pending ??= this.#renew().finally(() => {
        this.#pending = undefined
      })
      await this.#pending
    }
    return new Headers({ authorization: `Bearer ${this.#token}` })
  }

  async #renew(): Promise<void> {
    const { status, body } = await this.#get('/token')
    if (status !== 200) {
      throw new VaultUnreachable(
        'a token',
        status === 404
          ? 'no service account is attached to this machine or pod'
          : `the metadata server answered ${status}`
      )
    }
    const { access_token: token, expires_in: life } = parse(body)
    if (typeof token !== 'string' || typeof life !== 'number') {
      throw new VaultUnreachable('a token', 'the metadata server gives none')
    }
    this.#token = token
    this.#endsAt = performance.now() + life * 1000
    this.credentials = { expiry_date: Date.now() + life * 1000 }
  }

  async #get(path: string) {
    try {
      return await this.#transport.send({
        method: 'GET',
        url: new URL(BASE + path, this.#origin),
        headers: FLAVOR,
        signal: AbortSignal.timeout(TIMEOUT)
      })
    } catch (error) {
      throw new VaultUnreachable('a token', `the metadata server: ${networkFailure(error)}`)
    }
  }
}

function parse(body: string): { readonly access_token?: unknown; readonly expires_in?: unknown } {
  try {
    return JSON.parse(body) as object
  } catch {
    return {}
  }
}
