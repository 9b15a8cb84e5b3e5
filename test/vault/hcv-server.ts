import { randomUUID, X509Certificate } from 'node:crypto'
import type { Fault, ServiceRequest } from './fault-server.ts'
import {
  type FaultServer,
  RETRY_AFTER,
  type ServiceAnswer,
  startFaultServer
} from './fault-server.ts'
import { type Body, type Call, Refusal, type Reply, seconds } from './hcv/call.ts'
import { Leases } from './hcv/engines.ts'
import { Space, type Vault } from './hcv/space.ts'
import { Tokens } from './hcv/tokens.ts'

export const ROOT_TOKEN = 'root'

// biome-ignore lint/suspicious/noExplicitAny: tests look into answers of any shape
export type Answer = any

/** A vault server under test, real or not, driven by the API both have. */
export interface HcvServer {
  readonly port: number
  readonly url: string
  /** Calls its API with the root token; gives the parsed answer, rejects unless it is 2xx. */
  call(
    method: string,
    path: string,
    body?: object,
    headers?: Record<string, string>
  ): Promise<Answer>
  [Symbol.asyncDispose](): Promise<void>
}

/** An answer given instead of the true one. */
export interface Override {
  /** Paths below `/v1/` concerned; all when left out. */
  readonly path?: RegExp
  readonly status: number
  readonly headers?: Readonly<Record<string, string>>
  /** The body; `{"errors":[]}` when left out. */
  readonly body?: object | string
  /** How many times; for good when left out. */
  times?: number
}

/** One request the server has received. */
export interface Seen {
  readonly method: string
  readonly path: string
  readonly headers: ServiceRequest['headers']
  readonly body: Body
}

export interface FakeVault extends HcvServer {
  /** Everything received, in order; may be emptied. */
  readonly seen: Seen[]
  /** Fingerprints of the client certificates that were shown, in order. */
  readonly certificates: string[]
  readonly tokens: Tokens
  readonly leases: Leases
  /** Connections open now. */
  readonly connections: number
  override: Override | undefined
  sealed: boolean
  /** Answers everything with a redirect there, as a standby does whose forwarding is off. */
  standbyOf: string | undefined
  /** Makes the answers to these paths fail, or sound again. */
  fault(kind: Fault | undefined, path?: RegExp): Promise<void>
}

export interface FakeVaultOptions {
  /** The server's certificate and key, PEM; `clients` is what it trusts client certificates by. */
  readonly tls?: {
    readonly cert: string
    readonly key: string
    readonly clients?: string
    /** Whether a client without a certificate is turned away in the handshake. */
    readonly requireClient?: boolean
  }
}

/** Paths that are answered without a token. */
const OPEN = /^(auth\/.+\/login(\/.*)?|sys\/wrapping\/lookup|sys\/unseal)$/
/** What every living token may ask for, whatever its policies. */
const ANY_TOKEN = /^sys\/internal\/ui\/mounts$/
/** How the service itself answers in a fault. */
export const REFUSALS: Partial<Record<Fault, ServiceAnswer>> = {
  denied: { status: 403, body: { errors: ['permission denied'] } },
  absent: { status: 404, body: { errors: [] } },
  throttled: {
    status: 429,
    headers: { 'Retry-After': String(RETRY_AFTER) },
    body: { errors: ['request path "secret": rate limit quota exceeded'] }
  },
  unavailable: { status: 503, body: { errors: ['Vault is sealed'] } }
}

/**
 * A server that speaks the HTTP API of Vault and OpenBao as far as tests need it: both key-value
 * engines, leases, tokens, policies, namespaces, response wrapping and the auth methods, each of
 * which checks its proof. Its answers are those of OpenBao 2.7; test/live/hcv.live.ts runs the same
 * tests against the real one.
 */
export async function startFakeVault({ tls }: FakeVaultOptions = {}): Promise<FakeVault> {
  const vault = new FakeVaultServer()
  let affected: RegExp | undefined
  const wire = await startFaultServer((request, fault) => vault.serve(request, fault), {
    affects: ({ url }) => affected?.test(pathOf(url)) !== false,
    ...(tls === undefined
      ? {}
      : {
          tls: {
            cert: tls.cert,
            key: tls.key,
            requestCert: true,
            rejectUnauthorized: tls.requireClient ?? false,
            ...(tls.clients === undefined ? {} : { ca: tls.clients })
          }
        })
  })
  vault.attach(wire, (kind, path) => {
    affected = path
    return wire.fault(kind)
  })
  return vault
}

/** What is asked below `/v1/`, without the query. */
export function pathOf(url: string): string {
  return new URL(url, 'http://vault').pathname.replace(/^\/v1\//, '')
}

class FakeVaultServer implements FakeVault {
  readonly seen: Seen[] = []
  readonly certificates: string[] = []
  readonly tokens = new Tokens()
  readonly leases = new Leases()
  override: Override | undefined
  standbyOf: string | undefined
  fault: FakeVault['fault'] = () => Promise.resolve()
  readonly #vault: Vault
  readonly #spaces = new Map<string, Space>()
  #wire: FaultServer | undefined

  constructor() {
    this.#vault = { tokens: this.tokens, leases: this.leases, wrapped: new Map(), sealed: false }
    this.tokens.root(ROOT_TOKEN)
    this.#spaces.set('', new Space('', this.#vault))
  }

  attach(wire: FaultServer, fault: FakeVault['fault']): void {
    this.#wire = wire
    this.fault = fault
  }

  get port(): number {
    return this.#wire!.port
  }

  get url(): string {
    return this.#wire!.url
  }

  get connections(): number {
    return this.#wire!.connections
  }

  get sealed(): boolean {
    return this.#vault.sealed
  }

  set sealed(sealed: boolean) {
    this.#vault.sealed = sealed
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#wire!.close()
  }

  async call(
    method: string,
    path: string,
    body: Body = {},
    headers: Record<string, string> = {}
  ): Promise<Answer> {
    const answer = await this.#answer({
      method,
      url: new URL(path, `${this.url}/v1/`),
      headers: { 'x-vault-token': ROOT_TOKEN, ...headers },
      body,
      peer: undefined
    })
    if (answer.status! > 299) {
      throw new Error(`${method} ${path}: ${answer.status} ${JSON.stringify(answer.body)}`)
    }
    return answer.body
  }

  /** Answers one request from the wire. */
  async serve(request: ServiceRequest, fault: Fault | undefined): Promise<ServiceAnswer> {
    const { method, url, headers } = request
    const peer = request.certificate && new X509Certificate(request.certificate)
    if (peer !== undefined) this.certificates.push(peer.fingerprint256)
    const path = pathOf(url)
    const body = request.body === '' ? {} : JSON.parse(request.body)
    this.seen.push({ method, path, headers, body })
    if (this.standbyOf !== undefined) {
      return { status: 307, headers: { location: this.standbyOf + url } }
    }
    const { override } = this
    if (override !== undefined && override.path?.test(path) !== false) {
      if (override.times !== undefined && --override.times === 0) this.override = undefined
      return { body: { errors: [] }, ...override }
    }
    const refusal = fault && REFUSALS[fault]
    if (refusal !== undefined) return refusal
    return this.#answer({
      method,
      url: new URL(url, this.url),
      headers,
      body,
      peer
    })
  }

  async #answer(
    request: Pick<Call, 'method' | 'headers' | 'body' | 'peer'> & { readonly url: URL }
  ): Promise<ServiceAnswer> {
    try {
      return await this.#judged(request)
    } catch (error) {
      if (!(error instanceof Refusal)) throw error
      return { status: error.status, body: { errors: error.errors } }
    }
  }

  async #judged({
    method,
    url,
    headers,
    body,
    peer
  }: Pick<Call, 'method' | 'headers' | 'body' | 'peer'> & {
    readonly url: URL
  }): Promise<ServiceAnswer> {
    const path = pathOf(url.href)
    if (path === 'sys/unseal') {
      this.sealed = false
      return { status: 200, body: { sealed: false } }
    }
    if (this.sealed) throw new Refusal(503, 'Vault is sealed')
    const namespace = String(headers['x-vault-namespace'] ?? '').replace(/^\/|\/$/g, '')
    if (path.startsWith('sys/namespaces/')) {
      const name = [namespace, path.slice('sys/namespaces/'.length)].filter(Boolean).join('/')
      this.#spaces.set(name, new Space(name, this.#vault))
      return { status: 200, body: { data: { path: `${name}/` } } }
    }
    const space = this.#spaces.get(namespace)
    if (space === undefined) throw new Refusal(404, 'namespace not found')
    const id = String(headers['x-vault-token'] ?? '')
    const wrapping = path === 'sys/wrapping/unwrap' && this.#vault.wrapped.has(id)
    if (path === 'sys/wrapping/unwrap' && !wrapping && this.tokens.peek(id) === undefined) {
      throw new Refusal(400, 'wrapping token is not valid or does not exist')
    }
    const token = OPEN.test(path) || wrapping ? undefined : this.tokens.use(id)
    if (!OPEN.test(path) && !wrapping) {
      const home = token && this.#spaces.get(token.namespace)
      const known = token !== undefined && namespace.startsWith(token.namespace)
      if (!known || !(ANY_TOKEN.test(path) || home!.allows(token, method, path)))
        throw new Refusal(403, 'permission denied')
    }
    const call = { method, path, query: url.searchParams, headers, body, namespace, token, peer }
    const reply = await space.answer(wrapping ? { ...call, body: { ...body, token: id } } : call)
    const wrapTtl = seconds(headers['x-vault-wrap-ttl'])
    if (wrapTtl === undefined) return { status: reply.status ?? 200, ...enveloped(reply) }
    return { status: 200, ...enveloped({}, space.wrap(reply, path, wrapTtl)) }
  }
}

/** The members every answer has. */
function enveloped(reply: Reply, wrapInfo: object | null = null): { readonly body?: object } {
  if (reply.status === 204) return {}
  return {
    body: {
      request_id: randomUUID(),
      lease_id: reply.lease_id ?? '',
      renewable: reply.renewable ?? false,
      lease_duration: reply.lease_duration ?? 0,
      data: reply.data ?? null,
      wrap_info: wrapInfo,
      warnings: reply.warnings ?? null,
      auth: reply.auth ?? null
    }
  }
}
