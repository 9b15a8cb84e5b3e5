import { Type } from 'typebox'
import { Agent } from 'undici'
import { referenceable } from '../schema/referenceable.ts'
import { checkCustomFields, compileCustomFields, withCustomFields } from './custom-fields.ts'
import { type Complaint, type Context, definePlugin } from './plugin.ts'
import { Queue, QueueSchema } from './queue.ts'

const FORBIDDEN = ['host', 'content-length', 'content-type']
/** Bytes of a log server's answer that an error message quotes at most. */
const QUOTED = 200

/** The `http_endpoint` of a file may be a reference; then nothing of it is known before it resolves. */
function hasUserInfo(endpoint: unknown): boolean {
  return typeof endpoint === 'string' && !endpoint.includes('{vault://') && URL.parse(endpoint)?.username !== ''
    && URL.parse(endpoint) !== null
}

/** Sends a record of each request to an HTTP endpoint. */
export default definePlugin({
  name: 'http-log',
  priority: 12,
  schema: Type.Object(
    {
      http_endpoint: referenceable(Type.String({ format: 'uri' })),
      method: Type.Unsafe<'POST' | 'PUT' | 'PATCH'>({ enum: ['POST', 'PUT', 'PATCH'], default: 'POST' }),
      content_type: Type.Unsafe<string>({
        enum: ['application/json', 'application/json; charset=utf-8'],
        default: 'application/json'
      }),
      timeout: Type.Number({ default: 10000, minimum: 1, description: 'Milliseconds.' }),
      keepalive: Type.Number({ default: 60000, minimum: 1, description: 'Milliseconds.' }),
      ssl_verify: Type.Boolean({ default: true }),
      headers: Type.Optional(Type.Record(Type.String(), referenceable(Type.String()))),
      custom_fields_by_lua: Type.Optional(Type.Record(Type.String(), Type.String())),
      queue: QueueSchema
    },
    { additionalProperties: false }
  ),
  translate(config) {
    const { queue_size: size, flush_timeout: flush, retry_count: _ignored, ...rest } = config
    if (size === undefined && flush === undefined) return rest
    const queue = { ...(rest.queue as object | undefined) } as Record<string, unknown>
    // The old names count only where they say something else than their old defaults.
    if (size !== undefined && size !== 1) queue.max_batch_size ??= size
    if (flush !== undefined && flush !== 2) queue.max_coalescing_delay ??= flush
    return { ...rest, queue }
  },
  check(config) {
    const complaints: Complaint[] = [...checkCustomFields(config.custom_fields_by_lua)]
    for (const name of Object.keys(config.headers ?? {})) {
      if (FORBIDDEN.includes(name.toLowerCase())) {
        complaints.push({ path: `headers.${name}`, message: `cannot contain '${name}' header`, fix: 'Take it out: the plugin sets it.' })
      } else if (name.toLowerCase() === 'authorization' && hasUserInfo(config.http_endpoint)) {
        complaints.push({
          path: `headers.${name}`,
          message: "specifying both an 'Authorization' header and user info in 'http_endpoint' is not allowed",
          fix: 'Take one of them out.'
        })
      }
    }
    return complaints
  },
  setup(config, context) {
    const url = new URL(config.http_endpoint.reveal())
    const headers: Record<string, string> = { ...revealed(config.headers), 'Content-Type': config.content_type }
    if (url.username !== '') {
      if (Object.keys(headers).some(name => name.toLowerCase() === 'authorization')) {
        throw new Error("both an 'Authorization' header and user info in 'http_endpoint' are given")
      }
      const userInfo = `${decodeURIComponent(url.username)}:${decodeURIComponent(url.password)}`
      headers.Authorization = `Basic ${Buffer.from(userInfo).toString('base64')}`
    }
    const fields = compileCustomFields(config.custom_fields_by_lua)
    const where = url.host
    const agent = new Agent({
      keepAliveTimeout: config.keepalive,
      headersTimeout: config.timeout,
      bodyTimeout: config.timeout,
      connect: { timeout: config.timeout, rejectUnauthorized: config.ssl_verify }
    })

    /** Sends once; gives the status and the beginning of the answer. */
    const post = async (batch: readonly string[]): Promise<void> => {
      const single = config.queue.max_batch_size === 1 && batch.length === 1
      let status: number
      let answer = ''
      try {
        const response = await agent.request({
          origin: url.origin,
          path: url.pathname,
          method: config.method,
          headers,
          body: single ? batch[0]! : `[${batch.join(',')}]`
        })
        status = response.statusCode
        if (status < 300) {
          await response.body.dump()
          return
        }
        answer = (await response.body.text()).slice(0, QUOTED)
      } catch (error) {
        throw new Error(`failed request to ${where}: ${(error as { code?: string }).code ?? (error as Error).message}`)
      }
      throw Object.assign(new Error(`request to ${where} returned status code ${status} and body ${quoteSafely(answer, headers)}`), { status })
    }

    const send = async (batch: readonly string[]): Promise<void> => {
      try {
        await post(batch)
      } catch (error) {
        const { status } = error as { status?: number }
        // A refused secret may just have been rotated. Where it was, the queue's repetition is
        // already sent with the new one.
        if (status === 401 || status === 403) await context.refresh()
        throw error
      }
    }

    const queue = context.keep(`queue:${context.scope.id}`, () => new Queue(config.queue, send, context.log))
    queue.configure(config.queue, send, context.log)
    return {
      log(exchange) {
        queue.add(JSON.stringify(withCustomFields(exchange.record(), fields, exchange)))
      },
      // What the queue has under way with this agent is let finish; the queue itself lives on with
      // the next instance.
      close: () => closeLater(agent, context)
    }
  }
})

function revealed(headers: Readonly<Record<string, { reveal(): string }>> | undefined): Record<string, string> {
  return Object.fromEntries(Object.entries(headers ?? {}).map(([name, value]) => [name, value.reveal()]))
}

/** An answer that repeats one of our own header values must not bring it into a log. */
function quoteSafely(answer: string, headers: Readonly<Record<string, string>>): string {
  const leaks = Object.entries(headers).some(([name, value]) => name !== 'Content-Type' && value !== '' && answer.includes(value))
  return leaks ? '(not shown: it repeats a secret)' : JSON.stringify(answer)
}

async function closeLater(agent: Agent, { log }: Pick<Context, 'log'>): Promise<void> {
  await agent.close().catch(error => log.warn({ err: error }, 'http-log connections did not close'))
}
