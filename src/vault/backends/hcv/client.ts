import { setTimeout as pause } from 'node:timers/promises'
import type { BackendEnvironment } from '../../backend.ts'
import { retryAfter } from '../retry-after.ts'
import { Transport, type TransportAnswer } from '../transport.ts'
import { VaultAnswerError } from './failure.ts'
import type { HcvSettings } from './settings.ts'

/** Redirects followed for one call: standby → active → moved again. */
const MAX_REDIRECTS = 3
const REDIRECTS = new Set([301, 302, 307, 308])
/** Statuses whose meaning is that this node lags behind: asked once more after a moment. */
const NOT_CAUGHT_UP = 412
const CATCH_UP_PAUSE = 300

/** What the vault answers; members that a call does not have are undefined. */
export interface Answer {
  readonly data?: unknown
  readonly lease_id?: string
  readonly lease_duration?: number
  readonly renewable?: boolean
  readonly warnings?: readonly string[] | null
  readonly auth?: {
    readonly client_token: string
    readonly lease_duration: number
    readonly renewable: boolean
  } | null
}

export interface VaultCall {
  readonly method: 'GET' | 'POST'
  /** Below `/v1/`, its segments encoded. */
  readonly path: string
  readonly token?: string
  readonly body?: object
  readonly signal: AbortSignal
}

/** What node-vault hands to the function that carries its requests. */
interface Carried {
  readonly method: string
  readonly uri: string
  readonly headers: Readonly<Record<string, string>>
  readonly json?: unknown
  readonly signal: AbortSignal
}

/** A vault's HTTP API. */
export interface VaultClient {
  /** Rejects with a VaultAnswerError or the network's error. */
  call(call: VaultCall): Promise<Answer>
  /** Reads certificate files again. */
  renewTls(): Promise<void>
  close(): void
}

/** node-vault. */
export function importClient(): Promise<{ default: typeof import('node-vault') }> {
  return import('node-vault')
}

/** Opens a client that asks nothing yet. */
export async function createClient(
  settings: HcvSettings,
  environment: BackendEnvironment
): Promise<VaultClient> {
  const { default: nodeVault } = await importClient()
  const transport = new Transport(
    {
      verify: settings.ssl_verify,
      ca: settings.ssl_ca,
      cert: settings.cert_auth_cert ?? settings.ssl_cert,
      key: settings.cert_auth_cert_key ?? settings.ssl_cert_key,
      serverName: settings.ssl_server_name,
      names:
        settings.cert_auth_cert === undefined
          ? ['ssl_ca', 'ssl_cert', 'ssl_cert_key']
          : ['ssl_ca', 'cert_auth_cert', 'cert_auth_cert_key']
    },
    environment.env
  )
  const host = settings.host.includes(':') ? `[${settings.host}]` : settings.host
  const endpoint = `${settings.protocol}://${host}:${settings.port}`
  const carrier = new Carrier(transport, new URL(endpoint), settings.redirect_hosts)
  const client = nodeVault({
    endpoint,
    // Its own would print what is sent.
    debug() {},
    'request-promise': { defaults: () => (options: Carried) => carrier.carry(options) }
  })
  // It takes what is left out from variables of the process; a vault here is its settings alone.
  Object.assign(client, { token: '', pathPrefix: '', namespace: settings.namespace ?? '' })
  return {
    async call({ method, path, token, body, signal }) {
      const answer: unknown = await client.request({
        method,
        path: `/${path}`,
        headers: token === undefined ? {} : { 'X-Vault-Token': token },
        ...(body === undefined ? {} : { json: body }),
        signal
      })
      return (typeof answer === 'object' && answer !== null ? answer : {}) as Answer
    },
    renewTls: () => transport.renewTls(),
    close: () => transport.close()
  }
}

/** Carries node-vault's requests: follows redirects to where the token may go, judges the answer. */
class Carrier {
  readonly #transport: Transport
  readonly #origin: URL
  readonly #hosts: ReadonlySet<string>

  constructor(transport: Transport, origin: URL, redirectHosts: readonly string[]) {
    this.#transport = transport
    this.#origin = origin
    this.#hosts = new Set([addressOf(origin), ...redirectHosts])
  }

  async carry(options: Carried): Promise<object> {
    const answer = await this.#follow(options)
    if (answer.status !== NOT_CAUGHT_UP) return judge(answer, options.uri)
    await pause(CATCH_UP_PAUSE, undefined, { signal: options.signal })
    return judge(await this.#follow(options), options.uri)
  }

  async #follow({ method, uri, headers, json, signal }: Carried): Promise<TransportAnswer> {
    let url = new URL(uri)
    for (let hops = 0; ; hops++) {
      const answer = await this.#transport.send({
        method,
        url,
        headers: {
          ...headers,
          // What an agent or proxy that guards against request forgery asks for.
          'X-Vault-Request': 'true',
          ...(json === undefined ? {} : { 'Content-Type': 'application/json' })
        },
        body: json === undefined ? undefined : JSON.stringify(json),
        signal
      })
      const { location } = answer.headers
      if (!REDIRECTS.has(answer.status) || location === undefined) return answer
      if (hops === MAX_REDIRECTS) throw new Error(`it redirected more than ${MAX_REDIRECTS} times`)
      url = this.#redirected(new URL(location, url))
    }
  }

  /** Refuses to carry a token to a host that was not configured, or in the clear. */
  #redirected(target: URL): URL {
    const address = addressOf(target)
    if (!this.#hosts.has(address) && !this.#hosts.has(target.hostname)) {
      throw new Error(`it redirects to ${address}; list that in redirect_hosts to allow it`)
    }
    if (target.protocol !== 'https:' && target.protocol !== this.#origin.protocol) {
      throw new Error(`it redirects from ${this.#origin.protocol} to ${target.protocol}`)
    }
    return target
  }
}

function addressOf({ hostname, port, protocol }: URL): string {
  return `${hostname}:${port === '' ? (protocol === 'https:' ? 443 : 80) : port}`
}

/** The answer as node-vault expects it. Throws VaultAnswerError unless it is 2xx. */
function judge({ status, headers, body }: TransportAnswer, uri: string): object {
  if (status < 200 || status > 299) {
    throw new VaultAnswerError(status, body, retryAfter(headers['retry-after'], headers.date))
  }
  return { statusCode: 200, body: parse(body), request: { path: new URL(uri).pathname } }
}

function parse(body: string): unknown {
  if (body === '') return undefined
  try {
    return JSON.parse(body)
  } catch {
    // What V8 says of it would quote the answer.
    throw new Error('its answer is not JSON')
  }
}
