import { X509Certificate } from 'node:crypto'
import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { readFile } from 'node:fs/promises'
import http, {
  type ClientRequest,
  type IncomingMessage,
  type OutgoingHttpHeaders,
  type RequestOptions
} from 'node:http'
import https from 'node:https'
import type { Socket } from 'node:net'
import { createSecureContext } from 'node:tls'
import { VaultMisconfigured } from '../../errors.ts'

/** Bytes of an answer at most; a key-value entry holds at most 1 MiB. */
const MAX_ANSWER = 4 * 1024 * 1024
/** Milliseconds an exchange may take that no read waits for: one for credentials. */
const DEFAULT_TIMEOUT = 10_000
/** Where Node tells of each connection as it is begun. */
const CONNECTIONS = 'net.client.socket'
const PROXY_VARIABLES = ['http_proxy', 'https_proxy', 'no_proxy']

/** How a server is trusted and how the gateway proves itself to it; texts are PEM or paths of PEM files. */
export interface TlsSettings {
  readonly verify?: boolean
  readonly ca?: string | undefined
  readonly cert?: string | undefined
  readonly key?: string | undefined
  readonly serverName?: string | undefined
  /** The settings that `ca`, `cert` and `key` come from, for messages. */
  readonly names?: readonly [ca: string, cert: string, key: string]
}

const NAMES = ['ca', 'cert', 'key'] as const

export interface TransportRequest {
  readonly method: string
  readonly url: URL
  readonly headers?: OutgoingHttpHeaders
  readonly body?: string | Uint8Array | undefined
  /**
   * Whether the server may get it twice: it is sent anew when a kept connection turns out to have been
   * closed. Default: whether the method is GET.
   */
  readonly repeatable?: boolean
  /** Bounds the whole exchange, the answer's body included. Default: ten seconds. */
  readonly signal?: AbortSignal
}

export interface TransportAnswer {
  readonly status: number
  readonly headers: IncomingMessage['headers']
  readonly body: string
}

interface Agents {
  readonly http: http.Agent
  readonly https: https.Agent
}

/** A request under way. */
interface Exchange {
  readonly sent: ClientRequest
  /** Ends it, and the connection that was made for it. */
  cut(): void
}

/** An exchange this side gave up; the message is made here and safe to show. */
export class TransportError extends Error {
  constructor(message: string) {
    super(message)
    this.name = 'TransportError'
  }
}

/**
 * HTTP exchanges with one kind of trust over kept-alive connections: bounded in time by the request's
 * signal and in size, through the proxy that the environment names, never following a redirect.
 */
export class Transport {
  readonly #tls: TlsSettings
  readonly #proxyEnv: Record<string, string> | undefined
  readonly #underWay = new Set<Exchange>()
  #agents: Agents | undefined
  #closed = false
  /** The PEM texts the agents were made with. */
  #material: string | undefined

  /** `env` names the proxies; without it none is used, as for link-local metadata services. */
  constructor(tls: TlsSettings = {}, env?: Readonly<Record<string, string | undefined>>) {
    this.#tls = tls
    this.#proxyEnv = env && proxiesOf(env)
  }

  /**
   * Reads PEM files again, so that what was renewed on disk is used by connections made from now on.
   * Throws VaultMisconfigured naming the setting whose text cannot be used.
   */
  async renewTls(): Promise<void> {
    const { verify = true, serverName, names = NAMES } = this.#tls
    const [ca, cert, key] = await Promise.all([
      pemOf(this.#tls.ca, names[0]),
      pemOf(this.#tls.cert, names[1]),
      pemOf(this.#tls.key, names[2], false)
    ])
    const material = JSON.stringify([ca, cert, key])
    if (material === this.#material) return
    check(names, ca, cert, key)
    const old = this.#agents
    const shared = {
      keepAlive: true,
      maxFreeSockets: 4,
      ...(this.#proxyEnv === undefined ? {} : { proxyEnv: this.#proxyEnv })
    }
    this.#agents = {
      http: new http.Agent(shared),
      https: new https.Agent({
        ...shared,
        rejectUnauthorized: verify,
        ...(ca === undefined ? {} : { ca }),
        ...(cert === undefined ? {} : { cert }),
        ...(key === undefined ? {} : { key }),
        ...(serverName === undefined ? {} : { servername: serverName })
      })
    }
    this.#material = material
    // Exchanges under way on the old connections end with them and are asked again by the cache.
    if (old !== undefined) destroy(old)
  }

  /** One exchange. Rejects with the network's error, or when the answer is too large or incomplete. */
  async send(request: TransportRequest): Promise<TransportAnswer> {
    if (this.#closed) throw new TransportError('the vault was closed')
    if (this.#agents === undefined) await this.renewTls()
    const agents = this.#agents!
    try {
      return await this.#exchange(request, agents)
    } catch (error) {
      // The server closed a kept-alive connection just as it was used again: nothing was read.
      const { code, reused } = error as NodeJS.ErrnoException & { reused?: boolean }
      const { method, repeatable = method === 'GET' } = request
      if (this.#closed || !repeatable || reused !== true || code !== 'ECONNRESET') throw error
      return this.#exchange(request, agents)
    }
  }

  async #exchange(request: TransportRequest, agents: Agents): Promise<TransportAnswer> {
    const { signal = AbortSignal.timeout(DEFAULT_TIMEOUT) } = request
    const begun = begin({ ...request, signal }, agents)
    const cut = (): void => begun.cut()
    this.#underWay.add(begun)
    signal.addEventListener('abort', cut, { once: true })
    try {
      return await answerTo(begun.sent, request.body)
    } finally {
      signal.removeEventListener('abort', cut)
      this.#underWay.delete(begun)
    }
  }

  /** Ends what is under way; whatever is sent afterwards is refused. */
  close(): void {
    this.#closed = true
    if (this.#agents !== undefined) destroy(this.#agents)
    for (const begun of this.#underWay) begun.cut()
  }
}

function destroy({ http, https }: Agents): void {
  for (const agent of [http, https]) {
    // A tunnel that is still being made for an aborted request would be kept once it is there.
    agent.maxFreeSockets = 0
    agent.destroy()
  }
}

function proxiesOf(env: Readonly<Record<string, string | undefined>>): Record<string, string> {
  const proxies: Record<string, string> = {}
  for (const [name, value] of Object.entries(env)) {
    if (value !== undefined && PROXY_VARIABLES.includes(name.toLowerCase())) proxies[name] = value
  }
  return proxies
}

/** Node takes an authority that is none for no authority, and tells OpenSSL's name of the rest. */
function check(
  names: NonNullable<TlsSettings['names']>,
  ca: string | undefined,
  cert: string | undefined,
  key: string | undefined
): void {
  if (ca !== undefined) {
    try {
      new X509Certificate(ca)
    } catch {
      throw new VaultMisconfigured(
        `${names[0]} holds no certificate`,
        'Give it certificates as PEM'
      )
    }
  }
  try {
    createSecureContext({
      ...(cert === undefined ? {} : { cert }),
      ...(key === undefined ? {} : { key })
    })
  } catch {
    throw new VaultMisconfigured(
      `${names[1]} and ${names[2]} are not a certificate and its key`,
      'Give them as PEM, the key without a password'
    )
  }
}

/** A PEM text, or that of the file it names. What is no file's name may be a key in another form. */
async function pemOf(
  text: string | undefined,
  name: string,
  shown = true
): Promise<string | undefined> {
  if (text === undefined || text.includes('-----BEGIN')) return text
  try {
    return await readFile(text, 'utf8')
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    throw new VaultMisconfigured(
      `${name} is no PEM text, and no file that can be read (${code}${shown ? ` ${text.slice(0, 200)}` : ''})`,
      'Mount the file, or correct its path'
    )
  }
}

function begin({ method, url, headers, body, signal }: TransportRequest, agents: Agents): Exchange {
  const secure = url.protocol === 'https:'
  return withConnection(secure ? https : http, url, {
    method,
    headers: {
      ...headers,
      ...(body === undefined ? {} : { 'content-length': Buffer.byteLength(body) })
    },
    agent: secure ? agents.https : agents.http,
    ...(signal === undefined ? {} : { signal })
  })
}

/**
 * Begins a request and keeps hold of the connection made for it. A tunnel through a proxy is no
 * request's own until it stands: ending the request alone would neither end one that hangs nor be
 * noticed before it stands.
 */
function withConnection(
  { request }: Pick<typeof http, 'request'>,
  url: URL,
  options: RequestOptions
): Exchange {
  const made: Socket[] = []
  const note = (message: unknown): void => {
    made.push((message as { readonly socket: Socket }).socket)
  }
  subscribe(CONNECTIONS, note)
  try {
    const sent = request(url, options)
    return {
      sent,
      cut() {
        sent.destroy()
        for (const socket of made) socket.destroy(new TransportError('it was given up'))
      }
    }
  } finally {
    unsubscribe(CONNECTIONS, note)
  }
}

async function answerTo(
  sent: ClientRequest,
  body: TransportRequest['body']
): Promise<TransportAnswer> {
  const answered = Promise.withResolvers<IncomingMessage>()
  sent.on('response', answered.resolve)
  sent.on('error', error => {
    answered.reject(Object.assign(error, { reused: sent.reusedSocket }))
  })
  sent.end(body)
  const response = await answered.promise
  // Nothing of an answer that says it is too large is taken.
  if (Number(response.headers['content-length']) > MAX_ANSWER) {
    response.destroy()
    throw tooLarge()
  }
  return {
    status: response.statusCode!,
    headers: response.headers,
    body: await textOf(response)
  }
}

async function textOf(response: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = []
  let size = 0
  for await (const chunk of response as AsyncIterable<Buffer>) {
    size += chunk.length
    if (size > MAX_ANSWER) throw tooLarge()
    chunks.push(chunk)
  }
  return Buffer.concat(chunks).toString()
}

function tooLarge(): TransportError {
  return new TransportError(`its answer is larger than ${MAX_ANSWER} bytes`)
}
