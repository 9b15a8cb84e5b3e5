import http, { type IncomingMessage, type ServerResponse } from 'node:http'
import { type AddressInfo, isIP } from 'node:net'
import { StatusHostRefused } from './errors.ts'
import { listenAt } from './listener/listen.ts'
import { redactor } from './redaction.ts'
import { WEBHOOK_PATH, type Webhooks } from './webhooks/source.ts'

/** What the status API tells and does; the gateway gives it. */
export interface StatusSource {
  /** `GET /status`. */
  status(): Promise<object>
  /** Why the node does not serve; empty when it does. `GET /status/ready`. */
  unready(): readonly string[]
  /** In Prometheus's text format. `GET /metrics`. */
  metrics(): Promise<string>
  /** `GET /vaults`. */
  vaults(): object
  /** `GET /upstreams`: every target with its addresses, their health and counters. */
  upstreams(): object
  /**
   * `POST /upstreams/health`: sets the health of an upstream's targets, or of one; gives how many
   * addresses changed, undefined when there is no such upstream.
   */
  setHealth(upstream: string, target: string | undefined, healthy: boolean): number | undefined
  /** The configuration as authored. `GET /config`. */
  config(): { readonly file: string; readonly text: string }
  /** `POST /reload`: loads the configuration again; rejects with what is wrong with it. */
  reload(): Promise<object>
  /**
   * `POST /vaults/refresh`: re-reads the references of the vault with this prefix, or all; undefined
   * when no reference goes to such a vault.
   */
  refresh(prefix: string | undefined): Promise<object | undefined>
}

/** The status API while it listens. */
export interface StatusServer {
  readonly host: string
  readonly port: number
  close(): Promise<void>
}

/** How the status API is to be reached. */
export interface StatusOptions {
  readonly host: string
  /** 0 lets the system choose. */
  readonly port: number
  /**
   * Names it may be called by, besides IP addresses, `localhost` and `host`: lower case, `*.domain`
   * for all below a domain, `*` for any.
   */
  readonly names?: readonly string[]
  /** Answered here too; undefined when there are none, or at an address of their own. */
  readonly webhooks?: Webhooks | undefined
}

type Answer = { readonly status: number; readonly body: object | string; readonly type?: string }
type Action = (url: URL) => Promise<Answer> | Answer

/**
 * Opens the status API on an address of its own. It only reads, but for its triggers; the
 * configuration's truth is the file. Built on node:http, so that the control thread stays light.
 * Rejects with the system's error when the address cannot be bound.
 */
export async function openStatus(
  source: StatusSource,
  { host, port, names = [], webhooks }: StatusOptions
): Promise<StatusServer> {
  const actions: Readonly<Record<string, Action>> = {
    'GET /status': async () => ({ status: 200, body: await source.status() }),
    'GET /status/ready': () => {
      const reasons = source.unready()
      return reasons.length === 0
        ? { status: 200, body: { ready: true } }
        : { status: 503, body: { ready: false, reasons } }
    },
    'GET /metrics': async () => ({
      status: 200,
      body: await source.metrics(),
      type: 'text/plain; version=0.0.4; charset=utf-8'
    }),
    'GET /vaults': () => ({ status: 200, body: source.vaults() }),
    'GET /upstreams': () => ({ status: 200, body: source.upstreams() }),
    'POST /upstreams/health': url => setHealth(source, url.searchParams),
    'GET /config': () => {
      const { text } = source.config()
      return { status: 200, body: text, type: 'application/yaml; charset=utf-8' }
    },
    'POST /reload': () => attempt(() => source.reload()),
    'POST /vaults/refresh': url => refresh(source, url.searchParams.get('prefix') ?? undefined)
  }
  const known = knownNames([host.toLowerCase(), ...names])
  const server = http.createServer((request, response) => {
    // Those authenticate what they are sent, and are called by public names.
    if (webhooks !== undefined && request.url?.startsWith(WEBHOOK_PATH)) {
      webhooks.serve(request, response)
      return
    }
    respond(request, actions, known).then(
      answer => write(response, answer, request.method === 'HEAD'),
      () =>
        write(response, { status: 500, body: { message: 'An unexpected error occurred' } }, false)
    )
  })
  await listenAt(server, { host, port }, 'POSTERN_STATUS_LISTEN')
  return {
    host,
    port: (server.address() as AddressInfo).port,
    close: () =>
      new Promise(resolve => {
        server.close(() => resolve())
        server.closeAllConnections()
      })
  }
}

async function respond(
  request: IncomingMessage,
  actions: Readonly<Record<string, Action>>,
  isKnown: (name: string) => boolean
): Promise<Answer> {
  request.resume()
  const foreign = foreignHost(request, isKnown)
  if (foreign !== undefined) {
    const { code, message } = new StatusHostRefused(foreign)
    return { status: 421, body: { code, message } }
  }
  // A page a browser has open may reach this address: it must not pull the triggers (Fetch §3.2).
  if (request.headers.origin !== undefined && request.method !== 'GET') {
    return { status: 403, body: { message: 'Requests of web pages are refused' } }
  }
  const url = URL.parse(request.url ?? '/', 'http://status')
  if (url === null) return { status: 400, body: { message: 'Bad request' } }
  const method = request.method === 'HEAD' ? 'GET' : request.method
  const action = actions[`${method} ${url.pathname}`]
  if (action !== undefined) return action(url)
  const known = Object.keys(actions).filter(key => key.endsWith(` ${url.pathname}`))
  if (known.length > 0) {
    return {
      status: 405,
      body: { message: `Use ${known.map(key => key.split(' ')[0]).join(' or ')}` }
    }
  }
  return { status: 404, body: { message: 'Not found', paths: Object.keys(actions) } }
}

/**
 * The name a request was made to, when it is none of ours: a page of that name whose DNS answer was
 * turned to this address would otherwise be of the same origin, and read everything (DNS rebinding).
 */
function foreignHost(
  { headers, url = '/' }: IncomingMessage,
  isKnown: (name: string) => boolean
): string | undefined {
  // RFC 9112 §3.2.2: the authority of an absolute target stands for the field.
  const authority = url.startsWith('/') ? headers.host : URL.parse(url)?.host
  // Only HTTP/1.0 may come without, which no browser speaks.
  if (authority === undefined || authority === '') return undefined
  const name = URL.parse(`http://${authority}`)?.hostname.replace(/\.$/, '')
  if (name === undefined) return 'a name that cannot be read'
  if (isIP(name.replace(/^\[(.+)\]$/, '$1')) !== 0 || isKnown(name)) return undefined
  return name
}

function knownNames(names: readonly string[]): (name: string) => boolean {
  const exact = new Set(['localhost', ...names])
  const below = names.filter(name => name.startsWith('*.')).map(name => name.slice(1))
  const any = exact.has('*')
  return name => any || exact.has(name) || below.some(domain => name.endsWith(domain))
}

function setHealth(source: StatusSource, query: URLSearchParams): Answer {
  const upstream = query.get('upstream')
  const state = query.get('state')
  if (upstream === null || (state !== 'healthy' && state !== 'unhealthy')) {
    const message =
      'Use ?upstream=NAME&state=healthy or unhealthy, and &target=TARGET for one alone'
    return { status: 400, body: { message } }
  }
  const changed = source.setHealth(upstream, query.get('target') ?? undefined, state === 'healthy')
  return changed === undefined
    ? { status: 404, body: { message: `There is no upstream ${upstream}` } }
    : { status: 200, body: { changed } }
}

async function refresh(source: StatusSource, prefix: string | undefined): Promise<Answer> {
  try {
    const body = await source.refresh(prefix)
    if (body !== undefined) return { status: 200, body }
    return { status: 404, body: { message: `No reference goes to a vault ${prefix}` } }
  } catch (error) {
    return refusal(error)
  }
}

async function attempt(action: () => Promise<object>): Promise<Answer> {
  try {
    return { status: 200, body: await action() }
  } catch (error) {
    return refusal(error)
  }
}

function refusal(error: unknown): Answer {
  const { message, code, problems } = error as Error & { code?: string; problems?: unknown }
  return { status: 422, body: { code, message, ...(problems === undefined ? {} : { problems }) } }
}

function write(response: ServerResponse, answer: Answer, headOnly: boolean): void {
  const text =
    typeof answer.body === 'string'
      ? redactor.text(answer.body)
      : `${JSON.stringify(redactor.value(answer.body), null, 2)}\n`
  response.writeHead(answer.status, {
    'Content-Type': answer.type ?? 'application/json; charset=utf-8',
    'Content-Length': Buffer.byteLength(text),
    'Cache-Control': 'no-store'
  })
  response.end(headOnly ? undefined : text)
}
