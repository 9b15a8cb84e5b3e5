import { randomUUID } from 'node:crypto'
import * as Type from 'typebox'
import { definePlugin, type Exchange } from './plugin.ts'

type Generate = (exchange: Exchange) => string

/** Makes ids of one kind; counters are per thread, as the format's are per process. */
const GENERATORS: Readonly<Record<string, () => Generate>> = {
  uuid: () => () => randomUUID(),
  'uuid#counter': () => {
    const base = randomUUID()
    let count = 0
    return () => `${base}#${++count}`
  },
  tracker: () => {
    let count = 0
    return ({ request, startedAt }) =>
      `${request.remoteAddress}-${request.port}-${process.pid}-${++count}-1-${(startedAt / 1000).toFixed(3)}`
  }
}

/** Gives each request an id towards the upstream, and back when asked to. */
export default definePlugin({
  name: 'correlation-id',
  priority: 100001,
  schema: Type.Object(
    {
      echo_downstream: Type.Boolean({ default: false }),
      generator: Type.Unsafe<'uuid' | 'uuid#counter' | 'tracker'>({
        enum: ['uuid', 'uuid#counter', 'tracker'],
        default: 'uuid#counter'
      }),
      header_name: Type.String({ pattern: '^[A-Za-z0-9_-]+$', default: 'Kong-Request-ID' })
    },
    { additionalProperties: false }
  ),
  setup(config) {
    const generate = GENERATORS[config.generator]!()
    const name = config.header_name
    const lower = name.toLowerCase()

    const idOf = (exchange: Exchange): string => {
      const standing = exchange.logFields.correlation_id
      if (typeof standing === 'string') return standing
      const given = exchange.request.headers[lower]
      const id = typeof given === 'string' && given !== '' ? given : generate(exchange)
      exchange.logFields.correlation_id = id
      return id
    }

    return {
      access(exchange) {
        exchange.upstream.setHeader(name, idOf(exchange))
      },
      response(exchange) {
        if (config.echo_downstream) exchange.response.setHeader(name, idOf(exchange))
      }
    }
  }
})
