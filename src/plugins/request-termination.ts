import { hostname } from 'node:os'
import * as Type from 'typebox'
import { type Complaint, definePlugin, type Exchange } from './plugin.ts'

/** What the plugin itself says to a status. */
const MESSAGES: Readonly<Record<number, string>> = {
  401: 'Unauthorized',
  404: 'Not found',
  405: 'Method not allowed',
  500: 'An unexpected error occurred',
  502: 'Bad Gateway',
  503: 'Service unavailable'
}

/** Statuses that get the gateway's own error body when the plugin says nothing. */
const CORE_ERRORS = new Set([400, 404, 405, 408, 411, 412, 413, 414, 417, 500, 502, 503, 504])

function hasArgument(query: string | undefined, name: string): boolean {
  return query !== undefined && new URLSearchParams(query).has(name)
}

/** Answers by itself, always or when a trigger is there. */
export default definePlugin({
  name: 'request-termination',
  priority: 2,
  schema: Type.Object(
    {
      body: Type.Optional(Type.String()),
      content_type: Type.Optional(Type.String()),
      echo: Type.Boolean({ default: false }),
      message: Type.Optional(Type.String()),
      status_code: Type.Integer({ minimum: 100, maximum: 599, default: 503 }),
      trigger: Type.Optional(Type.String({ pattern: '^[A-Za-z0-9_-]+$' }))
    },
    { additionalProperties: false }
  ),
  check(config) {
    const complaints: Complaint[] = []
    const given = (name: string): boolean => config[name] !== undefined
    if (given('message') && (given('content_type') || given('body'))) {
      complaints.push({
        path: 'message',
        message: 'message cannot be used with content_type or body',
        fix: 'Write either message, or body with content_type.'
      })
    }
    if (given('content_type') && !given('body')) {
      complaints.push({
        path: 'content_type',
        message: 'content_type requires a body',
        fix: 'Write the body too.'
      })
    }
    if (config.echo && (given('content_type') || given('body'))) {
      complaints.push({
        path: 'echo',
        message: 'echo cannot be used with content_type and body',
        fix: 'Take out echo, or body and content_type.'
      })
    }
    return complaints
  },
  setup(config) {
    const { status_code: status, body, content_type: contentType, trigger } = config
    const message = config.message ?? MESSAGES[status]
    const headers = contentType === undefined ? undefined : { 'Content-Type': contentType }
    const lowerTrigger = trigger?.toLowerCase()

    async function echo(exchange: Exchange): Promise<void> {
      const { request, route, service } = exchange
      const raw = (await exchange.body()).toString('utf8')
      exchange.exit(status, {
        message: message ?? '',
        kong: { node_id: exchange.id, worker_pid: process.pid, hostname: hostname() },
        request: {
          scheme: request.scheme,
          host: request.host,
          port: request.port,
          headers: request.headers,
          query: Object.fromEntries(new URLSearchParams(request.query ?? '')),
          body: raw,
          raw_body: raw,
          method: request.method,
          path: request.path,
          uri_captures: request.captures
        },
        matched_route: route,
        matched_service: service
      })
    }

    return {
      access(exchange): void | Promise<void> {
        if (
          trigger !== undefined &&
          exchange.request.headers[lowerTrigger!] === undefined &&
          !hasArgument(exchange.request.query, trigger)
        ) {
          return
        }
        if (config.echo) return echo(exchange)
        if (body !== undefined) exchange.exit(status, body, headers)
        else if (message !== undefined) exchange.exit(status, { message })
        else if (CORE_ERRORS.has(status)) exchange.error(status)
        else exchange.exit(status)
      }
    }
  }
})
