import http, { type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { LRUCache } from 'lru-cache'
import { WebhookMalformed } from '../errors.ts'
import { listenAt } from '../listener/listen.ts'
import type { Settings } from '../settings.ts'
import { awsSource } from './aws.ts'
import { azureSource } from './azure.ts'
import { gcpSource } from './gcp.ts'
import { genericSource } from './generic.ts'
import { KeySet } from './keys.ts'
import {
  type Changed,
  type LiveSecret,
  type Receipt,
  type Source,
  WEBHOOK_PATH,
  type Webhooks
} from './source.ts'

/** Bytes of a delivery: EventBridge sends at most this much. */
const MAX_BODY = 256 * 1024
/** Milliseconds for a whole delivery to arrive. */
const TIMEOUT = 10_000
/** Deliveries whose repetition is noticed. */
const MAX_IDS = 10_000
/** Milliseconds an id is remembered: longer than the tolerance of a signed time, twice. */
const ID_TTL = 900_000
/** Deliveries of one second; more are answered 429. Senders try again. */
const MAX_RATE = 50

/** A setting that authenticates deliveries. */
export type WebhookSecret = 'webhookSecret' | 'webhookAwsSecret' | 'webhookAzureSecret'

export interface WebhooksOptions {
  readonly settings: Settings
  /** Whether a secret is set, be it without a value now. */
  isSet(name: WebhookSecret): boolean
  /** The secret in force; undefined when it is not set. Throws POSTERN_SECRET_UNAVAILABLE. */
  secret(name: WebhookSecret): LiveSecret | undefined
  /** Refreshes what changed, soon; gives how many references that concerns. */
  changed(changed: readonly Changed[]): number
  readonly log: {
    info(fields: object, message: string): void
    warn(fields: object, message: string): void
  }
  readonly now?: () => number
}

interface Answer {
  readonly status: number
  readonly headers?: Readonly<Record<string, string>>
  readonly body?: object
}

/** The webhooks that the settings turn on; undefined when that is none. */
export function createWebhooks(options: WebhooksOptions): Webhooks | undefined {
  const sources = sourcesOf(options)
  return sources.size === 0 ? undefined : new Receiver(sources, options)
}

function sourcesOf({ settings, isSet, secret, now }: WebhooksOptions): ReadonlyMap<string, Source> {
  const sources = new Map<string, Source>()
  const live = (name: WebhookSecret) => (): LiveSecret => secret(name)!
  const { webhookGcpAudience, webhookGcpAccount, webhookGcpKeysUrl } = settings
  const { webhookAzureAudience, webhookAzureTenant } = settings
  if (isSet('webhookSecret')) sources.set('generic', genericSource(live('webhookSecret'), now))
  if (isSet('webhookAwsSecret')) sources.set('aws', awsSource(live('webhookAwsSecret')))
  if (webhookGcpAudience !== undefined && webhookGcpAccount !== undefined) {
    const keys = new KeySet(webhookGcpKeysUrl)
    sources.set('gcp', gcpSource(keys, webhookGcpAudience, webhookGcpAccount))
  }
  if (isSet('webhookAzureSecret') || webhookAzureAudience !== undefined) {
    const token =
      webhookAzureAudience === undefined || webhookAzureTenant === undefined
        ? undefined
        : {
            keys: new KeySet(settings.webhookAzureKeysUrl),
            audience: webhookAzureAudience,
            tenant: webhookAzureTenant,
            client: settings.webhookAzureClient
          }
    sources.set('azure', azureSource({ secret: () => secret('webhookAzureSecret'), token }))
  }
  return sources
}

class Receiver implements Webhooks {
  readonly #sources: ReadonlyMap<string, Source>
  readonly #options: WebhooksOptions
  readonly #now: () => number
  readonly #seen = new LRUCache<string, true>({ max: MAX_IDS, ttl: ID_TTL })
  #second = 0
  #inSecond = 0

  constructor(sources: ReadonlyMap<string, Source>, options: WebhooksOptions) {
    this.#sources = sources
    this.#options = options
    this.#now = options.now ?? Date.now
  }

  async listen(
    host: string,
    port: number
  ): Promise<{ readonly port: number; close(): Promise<void> }> {
    const server = http.createServer(
      { requestTimeout: TIMEOUT, headersTimeout: TIMEOUT, maxHeaderSize: 16 * 1024 },
      (request, response) => this.serve(request, response)
    )
    await listenAt(server, { host, port }, 'POSTERN_WEBHOOK_LISTEN')
    return {
      port: (server.address() as AddressInfo).port,
      close: () =>
        new Promise(resolve => {
          server.close(() => resolve())
          server.closeAllConnections()
        })
    }
  }

  serve(request: IncomingMessage, response: ServerResponse): void {
    this.#answer(request).then(
      answer => write(request, response, answer),
      error => write(request, response, this.#failure(request, error))
    )
  }

  async #answer(request: IncomingMessage): Promise<Answer> {
    const url = URL.parse(request.url ?? '/', 'http://webhooks')
    const name = url?.pathname.startsWith(WEBHOOK_PATH)
      ? url.pathname.slice(WEBHOOK_PATH.length)
      : ''
    const source = this.#sources.get(name)
    if (source === undefined || url === null) return { status: 404, body: { message: 'Not found' } }
    const { method = '' } = request
    if (method !== 'POST' && method !== 'OPTIONS')
      return { status: 405, headers: { Allow: 'POST' }, body: { message: 'Use POST' } }
    if (this.#tooMany())
      return {
        status: 429,
        headers: { 'Retry-After': '1' },
        body: { message: 'Too many requests' }
      }
    const body = await readBody(request)
    if (body === undefined) return { status: 413, body: { message: 'Payload too large' } }
    const { headers } = request
    const receipt = await source.receive({ method, headers, query: url.searchParams, body })
    return receipt.answer ?? this.#accept(name, receipt)
  }

  #accept(source: string, { changed, id }: Receipt): Answer {
    const key = id === undefined ? undefined : `${source} ${id}`
    if (key !== undefined && this.#seen.has(key)) return { status: 202, body: { repeated: true } }
    if (key !== undefined) this.#seen.set(key, true)
    const references = this.#options.changed(changed)
    this.#options.log.info({ webhook: source, references }, 'a vault told of a change')
    return { status: 202, body: { references } }
  }

  #tooMany(): boolean {
    const second = Math.floor(this.#now() / 1000)
    if (second !== this.#second) {
      this.#second = second
      this.#inSecond = 0
    }
    return ++this.#inSecond > MAX_RATE
  }

  /** The sender is told no more than the kind of the failure; the log has the reason. */
  #failure(request: IncomingMessage, error: unknown): Answer {
    const { statusCode, code, message } = error as {
      readonly statusCode?: number
      readonly code?: string
      readonly message: string
    }
    const remote = request.socket.remoteAddress
    this.#options.log.warn({ code, remote, path: request.url?.split('?')[0] }, message)
    const status = statusCode ?? 500
    const messages: Readonly<Record<number, string>> = {
      400: 'Bad request',
      401: 'Unauthorized',
      503: 'Try again later'
    }
    return { status, body: { message: messages[status] ?? 'An unexpected error occurred' } }
  }
}

/** Undefined when it is too large; then the rest is read and dropped, so that the answer arrives. */
function readBody(request: IncomingMessage): Promise<Buffer | undefined> {
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = []
    let size = 0
    request.on('data', (chunk: Buffer) => {
      size += chunk.length
      if (size <= MAX_BODY) chunks.push(chunk)
      else resolve(undefined)
    })
    request.on('end', () => resolve(Buffer.concat(chunks)))
    request.on('error', reject)
    request.on('close', () => reject(new WebhookMalformed('it was not sent to its end')))
  })
}

function write(request: IncomingMessage, response: ServerResponse, answer: Answer): void {
  const text = answer.body === undefined ? '' : `${JSON.stringify(answer.body)}\n`
  // What was not read would be taken for the next request.
  const closing = request.complete ? {} : { Connection: 'close' }
  response.writeHead(answer.status, {
    'Content-Type': 'application/json; charset=utf-8',
    'Content-Length': Buffer.byteLength(text),
    'Cache-Control': 'no-store',
    ...closing,
    ...answer.headers
  })
  response.end(text)
}
