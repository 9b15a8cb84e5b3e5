import { validateHeaderValue } from 'node:http'
import type { Socket } from 'node:net'
import type { Static } from 'typebox'
import * as Type from 'typebox'
import type { buildConnector, Pool } from 'undici'
import { LogDenied, LogEndpointInvalid, LogRefused } from '../errors.ts'
import { oneOf } from '../schema/fields.ts'
import { type Authored, referenceable } from '../schema/referenceable.ts'
import { isRecord } from '../schema/walk.ts'
import { CustomFieldsSchema, checkCustomFields, compileCustomFields } from './custom-fields.ts'
import { type Complaint, definePlugin, type Logger } from './plugin.ts'
import { Queue, type QueuedBytes, QueueSchema, type Sink } from './queue.ts'

const strict = { additionalProperties: false } as const

/** RFC 9110 §5.6.2: a token. */
const HEADER_NAME = "^[!#$%&'*+\\-.^_`|~0-9A-Za-z]+$"

const schema = Type.Object(
  {
    http_endpoint: referenceable(Type.String({ format: 'uri' })),
    method: oneOf(['POST', 'PUT', 'PATCH'], { default: 'POST' }),
    content_type: oneOf(['application/json', 'application/json; charset=utf-8'], {
      default: 'application/json'
    }),
    /** Milliseconds, for connecting, sending and reading each. */
    timeout: Type.Number({ minimum: 1, default: 10_000 }),
    /** Milliseconds an idle connection is kept. */
    keepalive: Type.Number({ minimum: 0, default: 60_000 }),
    ssl_verify: Type.Boolean({ default: true }),
    headers: Type.Optional(
      Type.Record(Type.String({ pattern: HEADER_NAME }), referenceable(Type.String()), strict)
    ),
    custom_fields_by_lua: Type.Optional(CustomFieldsSchema),
    queue: QueueSchema
  },
  strict
)

type Config = Static<typeof schema>

const OPENING = '['.charCodeAt(0)
const COMMA = ','.charCodeAt(0)
const CLOSING = ']'.charCodeAt(0)

/** Most bytes of an answer that are read before its connection is given up. */
const MAX_ANSWER = 128 * 1024
/** Most bytes of a request body whose memory is kept for the next. */
const MAX_SPARE = 4 * 1024 * 1024
/** Connections of a queue whose entries are delivered side by side. */
const MAX_CONNECTIONS = 64

/** Fields that the request itself decides about; a client cannot send the connection-specific ones. */
const FORBIDDEN: ReadonlyMap<string, string> = new Map(
  ['Host', 'Content-Length', 'Content-Type', 'Connection', 'Expect', 'Keep-Alive'].map(name => [
    name.toLowerCase(),
    name
  ])
)
  .set('transfer-encoding', 'Transfer-Encoding')
  .set('upgrade', 'Upgrade')

const BOTH_AUTHORIZATIONS =
  "specifying both an 'Authorization' header and user info in 'http_endpoint' is not allowed"

/** Sends the log record of every exchange to an HTTP endpoint. */
export default definePlugin({
  name: 'http-log',
  priority: 12,
  schema,
  translate,
  check,
  async setup(config, context) {
    const { log, scope } = context
    // The control thread has every plugin for its schema; what setup needs stays out of its memory.
    const { default: undici } = await import('undici')
    const edit = compileCustomFields(config.custom_fields_by_lua)
    const refresh = async (): Promise<boolean> => (await context.refresh()) !== undefined
    const sink = createSink(config, refresh, undici)
    const name = `http-log ${scope.instanceName ?? scope.id}`
    const queue = context.keep(`queue:${scope.id}`, () => new Queue(name, log))
    const detach = queue.attach(sink)
    return {
      log(exchange) {
        try {
          const record = exchange.record()
          queue.enqueue(
            edit === undefined ? record : JSON.stringify(edit(JSON.parse(record), exchange))
          )
        } catch (error) {
          reportUnwritten(log, exchange.id, error)
        }
      },
      close: detach
    }
  }
})

function reportUnwritten(log: Logger, requestId: string, error: unknown): void {
  log.error(
    { request_id: requestId, plugin: 'http-log' },
    `an exchange was not logged: ${error instanceof Error ? error.message : error}`
  )
}

/** Where records go, taken apart. */
interface Endpoint {
  readonly origin: string
  /** `host:port`, the part that may stand in log lines. */
  readonly peer: string
  readonly path: string
  readonly authorization: string | undefined
}

/** Delivers batches over kept connections; `refresh` re-reads the secrets and gives whether any changed. */
function createSink(
  config: Config,
  refresh: () => Promise<boolean>,
  undici: { readonly Pool: typeof Pool; readonly buildConnector: typeof buildConnector }
): Sink {
  const endpoint = parseEndpoint(config.http_endpoint.reveal())
  const headers = headersOf(config, endpoint)
  const { method, queue } = config
  const timeout = Math.ceil(config.timeout)
  const keepalive = Math.max(1, Math.ceil(config.keepalive))
  const bodies = new Bodies()
  const connect = undici.buildConnector({
    timeout,
    rejectUnauthorized: config.ssl_verify,
    allowH2: false
  })
  const pool = new undici.Pool(endpoint.origin, {
    connections: queue.concurrency_limit === 1 ? 1 : MAX_CONNECTIONS,
    connect(options, callback) {
      connect(options, (...outcome) => {
        // Of a connection that failed there is no socket, not even null.
        if (outcome[1] != null) bodies.watch(outcome[1])
        callback(...outcome)
      })
    },
    headersTimeout: timeout,
    bodyTimeout: timeout,
    keepAliveTimeout: keepalive,
    keepAliveMaxTimeout: keepalive
  })
  const single = queue.max_batch_size === 1

  return {
    config: queue,
    timeout: 3 * timeout,
    async send(entries, signal) {
      const body = bodies.of(entries, single)
      const answer = await pool.request({
        method,
        path: endpoint.path,
        headers,
        body,
        signal
      })
      // The status decides; what follows is read only so that the connection can be used again.
      await answer.body.dump({ limit: MAX_ANSWER })
      bodies.release(body)
      const { statusCode } = answer
      if (statusCode === 401 || statusCode === 403) throw new LogDenied(endpoint.peer, statusCode)
      if (statusCode >= 300) throw new LogRefused(endpoint.peer, statusCode)
    },
    async recover(error) {
      return error instanceof LogDenied && (await refresh())
    },
    close: () => pool.close()
  }
}

/**
 * Makes request bodies, in memory that is used again: in new memory each, thousands of records a second
 * made for ten major collections, a quarter of the thread's time.
 */
class Bodies {
  readonly #sockets = new Set<Socket>()
  #spare: Buffer | undefined = undefined

  /** Tells of a connection that bodies are written to. */
  watch(socket: Socket): void {
    this.#sockets.add(socket)
    socket.once('close', () => this.#sockets.delete(socket))
  }

  /** One entry as it is, or a JSON array of entries that are JSON. */
  of(entries: readonly QueuedBytes[], single: boolean): Buffer {
    // A bracket or a comma before each, and the last bracket.
    const length = entries.reduce((sum, { start, end }) => sum + end - start + 1, 1)
    const memory = this.#take(length)
    let at = 0
    for (const { memory: source, start, end } of entries) {
      if (single) return memory.subarray(0, source.copy(memory, 0, start, end))
      memory[at] = at === 0 ? OPENING : COMMA
      at += 1 + source.copy(memory, at + 1, start, end)
    }
    memory[at] = CLOSING
    return memory.subarray(0, length)
  }

  #take(length: number): Buffer {
    const spare = this.#spare
    if (spare === undefined || spare.length < length)
      return Buffer.allocUnsafeSlow(Math.ceil(length * 1.25))
    this.#spare = undefined
    return spare
  }

  /**
   * Keeps the memory of a body that was answered for the next. Whoever answers early may not have all of
   * it yet: memory that a connection still writes from is left to the collector.
   */
  release(body: Buffer): void {
    const memory = Buffer.from(body.buffer)
    if (memory.length > MAX_SPARE || memory.length < (this.#spare?.length ?? 0)) return
    for (const { writableLength } of this.#sockets) if (writableLength > 0) return
    this.#spare = memory
  }
}

/** Throws POSTERN_LOG_ENDPOINT, without the text, for what is no HTTP URL. */
function parseEndpoint(text: string): Endpoint {
  if (!URL.canParse(text)) throw new LogEndpointInvalid('it is not a URL')
  const url = new URL(text)
  const { protocol, origin, hostname, username, password } = url
  if (protocol !== 'http:' && protocol !== 'https:') {
    throw new LogEndpointInvalid('its scheme must be http or https')
  }
  const port = url.port === '' ? (protocol === 'https:' ? '443' : '80') : url.port
  const hasUser = username !== '' || password !== ''
  return {
    origin,
    peer: `${hostname}:${port}`,
    path: url.pathname + url.search,
    authorization: hasUser ? basic(username, password) : undefined
  }
}

function basic(username: string, password: string): string {
  const userPass = `${decode(username)}:${decode(password)}`
  return `Basic ${Buffer.from(userPass).toString('base64')}`
}

/** User info is percent-encoded (RFC 3986 §3.2.1); a stray percent sign is taken as it stands. */
function decode(text: string): string {
  try {
    return decodeURIComponent(text)
  } catch {
    return text
  }
}

function headersOf(config: Config, { authorization }: Endpoint): Record<string, string> {
  const headers: Record<string, string> = { 'Content-Type': config.content_type }
  if (authorization !== undefined) headers.Authorization = authorization
  for (const [name, value] of Object.entries(config.headers ?? {})) {
    if (authorization !== undefined && name.toLowerCase() === 'authorization') {
      throw new LogEndpointInvalid(BOTH_AUTHORIZATIONS)
    }
    const text = value.reveal()
    headers[name] = usable(name, text)
  }
  return headers
}

function usable(name: string, value: string): string {
  try {
    validateHeaderValue(name, value)
    return value
  } catch {
    throw new LogEndpointInvalid(`the value of its header ${name} has a forbidden character`)
  }
}

/** Deprecated queue fields become those of `queue` where they differ from their old defaults. */
function translate(config: Record<string, unknown>): Record<string, unknown> {
  const { queue_size, flush_timeout, retry_count, ...rest } = config
  const queue: Record<string, unknown> = {}
  if (isGiven(queue_size) && queue_size !== 1) queue.max_batch_size = queue_size
  if (isGiven(flush_timeout) && flush_timeout !== 2) queue.max_coalescing_delay = flush_timeout
  if (Object.keys(queue).length === 0) return rest
  return { ...rest, queue: { ...(isRecord(rest.queue) ? rest.queue : {}), ...queue } }
}

function isGiven(value: unknown): boolean {
  return value !== undefined && value !== null
}

function check(config: Authored<Config>): readonly Complaint[] {
  const complaints = [...checkCustomFields(config.custom_fields_by_lua, '/custom_fields_by_lua')]
  // A reference may hold what ends a URL's authority; what it stands for is checked at set-up.
  const endpoint = config.http_endpoint.replaceAll(/\{vault:\/\/[^}]*\}/g, 'x')
  if (endpoint.includes('://') && !/^https?:\/\//i.test(endpoint)) {
    complaints.push({
      path: '/http_endpoint',
      message: 'the scheme must be http or https',
      fix: 'Write http://… or https://…'
    })
  }
  const hasUser = /^https?:\/\/[^/?#]*@/i.test(endpoint)
  for (const name of Object.keys(config.headers ?? {})) {
    const path = `/headers/${name.replaceAll('~', '~0')}`
    const forbidden = FORBIDDEN.get(name.toLowerCase())
    if (forbidden !== undefined) {
      const message = `cannot contain '${forbidden}' header`
      complaints.push({ path, message, fix: 'Remove it; the request sets it itself' })
    }
    if (hasUser && name.toLowerCase() === 'authorization') {
      const fix = 'Keep either the header or the user info'
      complaints.push({ path, message: BOTH_AUTHORIZATIONS, fix })
    }
  }
  return complaints
}
