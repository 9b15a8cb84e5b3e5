import { randomUUID, X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import http, { type IncomingMessage, type ServerResponse } from 'node:http'
import https from 'node:https'
import type { AddressInfo, Socket } from 'node:net'
import type { TLSSocket } from 'node:tls'
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

/** What goes wrong with the next answers. */
export interface Fault {
  /** Paths below `/v1/` concerned; all when left out. */
  readonly path?: RegExp
  /** How many answers; all when left out. */
  times?: number
  /** What happens instead of an answer. */
  readonly kind: 'status' | 'hang' | 'reset' | 'cut' | 'half' | 'huge' | 'drip' | 'page'
  readonly status?: number
  readonly headers?: Readonly<Record<string, string>>
  readonly errors?: readonly string[]
}

/** One request the server has received. */
export interface Seen {
  readonly method: string
  readonly path: string
  readonly headers: IncomingMessage['headers']
  readonly body: Body
}

export interface FakeVault extends HcvServer {
  /** Everything received, in order; entries may be taken out. */
  readonly seen: Seen[]
  readonly tokens: Tokens
  readonly leases: Leases
  fault: Fault | undefined
  sealed: boolean
  /** Answers everything with a redirect there, as a standby does whose forwarding is off. */
  standbyOf: string | undefined
  /** Ends every connection, as a crash would; `listen` takes the same port again. */
  stop(): Promise<void>
  listen(): Promise<void>
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
const HUGE = 16 * 1024 * 1024

/**
 * A server that speaks the HTTP API of Vault and OpenBao as far as tests need it: both key-value
 * engines, leases, tokens, policies, namespaces, response wrapping and the auth methods, each of
 * which checks its proof. Its answers are those of OpenBao 2.7; test/live/hcv.live.ts runs the same
 * tests against the real one.
 */
export async function startFakeVault(options: FakeVaultOptions = {}): Promise<FakeVault> {
  const server = new Server(options)
  await server.listen()
  return server
}

class Server implements FakeVault {
  readonly seen: Seen[] = []
  readonly tokens = new Tokens()
  readonly leases = new Leases()
  fault: Fault | undefined
  standbyOf: string | undefined
  port = 0
  readonly #vault: Vault
  readonly #spaces = new Map<string, Space>()
  readonly #server: http.Server | https.Server
  readonly #protocol: string

  constructor({ tls }: FakeVaultOptions) {
    this.#vault = { tokens: this.tokens, leases: this.leases, wrapped: new Map(), sealed: false }
    this.tokens.root(ROOT_TOKEN)
    this.#spaces.set('', new Space('', this.#vault))
    const listener = (request: IncomingMessage, response: ServerResponse): void => {
      void this.#serve(request, response)
    }
    this.#protocol = tls === undefined ? 'http' : 'https'
    this.#server =
      tls === undefined
        ? http.createServer(listener)
        : https.createServer(
            {
              cert: tls.cert,
              key: tls.key,
              requestCert: true,
              rejectUnauthorized: tls.requireClient ?? false,
              ...(tls.clients === undefined ? {} : { ca: tls.clients })
            },
            listener
          )
  }

  get sealed(): boolean {
    return this.#vault.sealed
  }

  set sealed(sealed: boolean) {
    this.#vault.sealed = sealed
  }

  get url(): string {
    return `${this.#protocol}://127.0.0.1:${this.port}`
  }

  async listen(): Promise<void> {
    this.#server.listen(this.port, '127.0.0.1')
    await once(this.#server, 'listening')
    this.port = (this.#server.address() as AddressInfo).port
  }

  async stop(): Promise<void> {
    if (!this.#server.listening) return
    const closed = once(this.#server, 'close')
    this.#server.close()
    this.#server.closeAllConnections()
    await closed
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop()
  }

  async call(
    method: string,
    path: string,
    body: Body = {},
    headers: Record<string, string> = {}
  ): Promise<Answer> {
    const { status, json } = await this.#answer({
      method,
      url: new URL(path, `${this.url}/v1/`),
      headers: { 'x-vault-token': ROOT_TOKEN, ...headers },
      body,
      peer: undefined
    })
    if (status > 299) throw new Error(`${method} ${path}: ${status} ${JSON.stringify(json)}`)
    return json
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const chunks: Buffer[] = []
    try {
      for await (const chunk of request) chunks.push(chunk as Buffer)
    } catch {
      return
    }
    const text = Buffer.concat(chunks).toString()
    const url = new URL(request.url!, this.url)
    const path = url.pathname.replace(/^\/v1\//, '')
    const body = text === '' ? {} : JSON.parse(text)
    this.seen.push({ method: request.method!, path, headers: request.headers, body })
    if (this.standbyOf !== undefined) {
      response.writeHead(307, { location: `${this.standbyOf}${request.url}` }).end()
      return
    }
    if (this.#fails(path, request.socket, response)) return
    const raw = (request.socket as TLSSocket).getPeerCertificate?.()?.raw
    const { status, json } = await this.#answer({
      method: request.method!,
      url,
      headers: request.headers,
      body,
      peer: raw === undefined ? undefined : new X509Certificate(raw)
    })
    response.writeHead(status, {
      'content-type': 'application/json',
      'cache-control': 'no-store'
    })
    response.end(json === undefined ? undefined : `${JSON.stringify(json)}\n`)
  }

  async #answer(
    request: Pick<Call, 'method' | 'headers' | 'body' | 'peer'> & { readonly url: URL }
  ): Promise<{ readonly status: number; readonly json?: object }> {
    try {
      return await this.#judged(request)
    } catch (error) {
      if (!(error instanceof Refusal)) throw error
      return { status: error.status, json: { errors: error.errors } }
    }
  }

  async #judged({
    method,
    url,
    headers,
    body,
    peer
  }: Pick<Call, 'method' | 'headers' | 'body' | 'peer'> & { readonly url: URL }) {
    const path = url.pathname.replace(/^\/v1\//, '')
    if (path === 'sys/unseal') {
      this.sealed = false
      return { status: 200, json: { sealed: false } }
    }
    if (this.sealed) throw new Refusal(503, 'Vault is sealed')
    const namespace = String(headers['x-vault-namespace'] ?? '').replace(/^\/|\/$/g, '')
    if (path.startsWith('sys/namespaces/')) {
      const name = [namespace, path.slice('sys/namespaces/'.length)].filter(Boolean).join('/')
      this.#spaces.set(name, new Space(name, this.#vault))
      return { status: 200, json: { data: { path: `${name}/` } } }
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
      if (!known || !home!.allows(token, method, path)) throw new Refusal(403, 'permission denied')
    }
    const call = { method, path, query: url.searchParams, headers, body, namespace, token, peer }
    const reply = await space.answer(wrapping ? { ...call, body: { ...body, token: id } } : call)
    const wrapTtl = seconds(headers['x-vault-wrap-ttl'])
    if (wrapTtl === undefined) return { status: reply.status ?? 200, ...enveloped(reply) }
    return { status: 200, ...enveloped({}, space.wrap(reply, path, wrapTtl)) }
  }

  /** Whether the fault in force took the answer over. */
  #fails(path: string, socket: Socket, response: ServerResponse): boolean {
    const fault = this.fault
    if (fault === undefined || fault.path?.test(path) === false) return false
    if (fault.times !== undefined && fault.times-- <= 1) this.fault = undefined
    const head = { 'content-type': 'application/json' }
    switch (fault.kind) {
      case 'status':
        response.writeHead(fault.status!, { ...head, ...fault.headers })
        response.end(JSON.stringify({ errors: fault.errors ?? [] }))
        break
      case 'reset':
        socket.resetAndDestroy()
        break
      case 'cut':
        response.writeHead(200, { ...head, 'content-length': 1000 })
        response.write('{"data": {"data"', () => socket.destroy())
        break
      case 'half':
        response.writeHead(200, head).end('{"data": {"data": {"pass')
        break
      case 'huge':
        response.writeHead(200, head).end(`{"data": {"data": {"a": "${'x'.repeat(HUGE)}"}}}`)
        break
      case 'drip': {
        response.writeHead(200, head).write('{')
        const timer = setInterval(() => response.write(' '), 50)
        response.on('close', () => clearInterval(timer))
        break
      }
      case 'page':
        response.writeHead(200, { 'content-type': 'text/html' }).end('<html>welcome</html>')
        break
      case 'hang':
        break
    }
    return true
  }
}

/** The members every answer has. */
function enveloped(reply: Reply, wrapInfo: object | null = null): { readonly json?: object } {
  if (reply.status === 204) return {}
  return {
    json: {
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
