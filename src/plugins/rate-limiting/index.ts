import type { Static } from 'typebox'
import * as Type from 'typebox'
import { oneOf } from '../../schema/fields.ts'
import type { Authored } from '../../schema/referenceable.ts'
import { type Complaint, type Context, definePlugin, type Exchange, type Hooks } from '../plugin.ts'
import { checkRedis, RedisAccess, RedisSchema, translateRedis } from '../redis.ts'
import { BufferedCounters, BufferedPolicy } from './buffered-counters.ts'
import { CounterTable, MAX_LIMIT, tableBytes } from './counter-table.ts'
import { identifyBy } from './identifier.ts'
import { limitsOf, type Policy, tell, type Verdict } from './limits.ts'
import { LocalPolicy } from './local.ts'
import { periods } from './periods.ts'
import { RedisPolicy } from './redis-counters.ts'

const LimitSchema = Type.Optional(Type.Number({ exclusiveMinimum: 0 }))

const schema = Type.Object(
  {
    second: LimitSchema,
    minute: LimitSchema,
    hour: LimitSchema,
    day: LimitSchema,
    month: LimitSchema,
    year: LimitSchema,
    limit_by: oneOf(
      ['consumer', 'credential', 'ip', 'service', 'header', 'path', 'consumer-group'],
      { default: 'consumer' }
    ),
    header_name: Type.Optional(Type.String({ minLength: 1, format: 'postern-header-name' })),
    path: Type.Optional(Type.String({ format: 'postern-path' })),
    policy: oneOf(['local', 'redis', 'cluster'], { default: 'local' }),
    /** Seconds between synchronisations with Redis; -1 asks it at each request. */
    sync_rate: Type.Number({ default: -1 }),
    fault_tolerant: Type.Boolean({ default: true }),
    hide_client_headers: Type.Boolean({ default: false }),
    error_code: Type.Integer({ minimum: 200, maximum: 999, default: 429 }),
    error_message: Type.String({ default: 'API rate limit exceeded' }),
    redis: RedisSchema
  },
  { additionalProperties: false }
)

type Config = Static<typeof schema>

/** Identities that each period has room for. */
const SLOTS = 2 ** 17
/** Stands for a part of the scope that is not there. */
const UNSCOPED = '00000000-0000-0000-0000-000000000000'
/** Least time between two lines about the same trouble, in milliseconds. */
const REPORT_PAUSE = 10_000

/** Limits how many requests a client may make per period. */
export default definePlugin({
  name: 'rate-limiting',
  priority: 910,
  schema,
  sharedBytes: tableBytes(SLOTS),
  translate: translateRedis,
  check,
  setup(config, context) {
    const limits = limitsOf(config)
    const identify = identifyBy(config)
    const policy = policyOf(config, context)
    const report = createReport(context)
    const hidden = config.hide_client_headers
    const { error_code: status, error_message: message, fault_tolerant: tolerant } = config

    const conclude = (exchange: Exchange, verdict: Verdict, now: number): void => {
      if (!hidden) tell(exchange, limits, verdict, now)
      if (!verdict.passes) exchange.error(status, message)
    }
    const hooks: Hooks = {
      access(exchange) {
        const now = Date.now()
        const verdict = policy.take(identify(exchange), now)
        if (!(verdict instanceof Promise)) return conclude(exchange, verdict, now)
        return verdict.then(
          known => conclude(exchange, known, now),
          error => {
            report(error, exchange)
            if (!tolerant) exchange.error(500)
          }
        )
      }
    }
    return policy.close === undefined ? hooks : { ...hooks, close: () => policy.close!() }
  }
})

function policyOf(config: Config, context: Context<Config>): Policy {
  const limits = limitsOf(config)
  const { routeId = UNSCOPED, serviceId = UNSCOPED } = context.scope
  const prefix = `ratelimit:${routeId}:${serviceId}:`
  if (config.policy === 'local') {
    const table = context.keep('counters', () => new CounterTable(context.shared!))
    return new LocalPolicy(limits, prefix, table, context.log)
  }
  if (config.sync_rate === -1) {
    return new RedisPolicy(limits, prefix, new RedisAccess(config.redis, context))
  }
  const { host, port, database } = config.redis
  const name = `counters:${host?.reveal()}:${port}/${database}:${config.sync_rate}`
  // Kept before the connection and so released before it, when there is something to send still.
  const counters = context.keep(
    name,
    () => new BufferedCounters(config.sync_rate * 1000, context.log)
  )
  return new BufferedPolicy(limits, prefix, counters, new RedisAccess(config.redis, context))
}

/** Says at most once in a while that counters are out of reach, and of how many requests. */
function createReport({ log, scope }: Context<Config>): (error: Error, exchange: Exchange) => void {
  let next = 0
  let unsaid = 0
  return (error, exchange) => {
    unsaid++
    const now = performance.now()
    if (now < next) return
    log.error(
      {
        plugin: 'rate-limiting',
        instance: scope.instanceName ?? scope.id,
        request_id: exchange.id,
        requests: unsaid,
        code: (error as NodeJS.ErrnoException).code
      },
      `failed to get usage: ${error.message}`
    )
    next = now + REPORT_PAUSE
    unsaid = 0
  }
}

function check(config: Authored<Config>): readonly Complaint[] {
  return [...checkLimits(config), ...checkLimitBy(config), ...checkPolicy(config)]
}

function checkLimits(config: Authored<Config>): readonly Complaint[] {
  const given = periods.filter(({ name }) => config[name] !== undefined)
  if (given.length === 0) {
    const names = periods.map(({ name }) => `'config.${name}'`).join(', ')
    return [
      {
        path: '',
        message: `at least one of these fields must be non-empty: ${names}`,
        fix: 'Write a limit, such as minute: 60'
      }
    ]
  }
  const complaints: Complaint[] = []
  for (const [i, { name }] of given.entries()) {
    const limit = config[name]!
    for (const shorter of given.slice(0, i)) {
      const least = config[shorter.name]!
      if (limit >= least) continue
      complaints.push({
        path: `/${name}`,
        message: `The limit for ${name}(${decimal(limit)}) cannot be lower than the limit for ${shorter.name}(${decimal(least)})`,
        fix: 'Raise the one or lower the other'
      })
    }
    if (config.policy === 'local' && limit > MAX_LIMIT) {
      complaints.push({
        path: `/${name}`,
        message: `policy local counts up to ${MAX_LIMIT}`,
        fix: 'Write a lower limit, or policy: redis'
      })
    }
  }
  return complaints
}

function decimal(limit: number): string {
  return Number.isInteger(limit) ? limit.toFixed(1) : String(limit)
}

function checkLimitBy({ limit_by, header_name, path }: Authored<Config>): readonly Complaint[] {
  if (limit_by === 'consumer-group') {
    return [
      {
        path: '/limit_by',
        message: 'consumer groups are not supported',
        fix: 'Write consumer, credential, ip, service, header or path'
      }
    ]
  }
  const missing = { message: 'required field missing', fix: `limit_by: ${limit_by} needs it` }
  if (limit_by === 'header' && header_name === undefined) {
    return [{ path: '/header_name', ...missing }]
  }
  if (limit_by === 'path' && path === undefined) return [{ path: '/path', ...missing }]
  return []
}

function checkPolicy({ policy, sync_rate, redis }: Authored<Config>): readonly Complaint[] {
  const complaints: Complaint[] = []
  if (policy === 'cluster') {
    complaints.push({
      path: '/policy',
      message: 'policy cluster counts in a database, and a gateway configured by a file has none',
      fix: 'Write policy: redis to count for all nodes together, or local'
    })
  }
  if (sync_rate !== -1 && sync_rate < 0.02) {
    complaints.push({
      path: '/sync_rate',
      message: 'sync_rate must be greater than 0.02, or -1 to disable',
      fix: 'Write -1, or seconds from 0.02 on'
    })
  } else if (sync_rate !== -1 && policy !== 'redis') {
    complaints.push({
      path: '/sync_rate',
      message: 'sync_rate can only be used with the redis policy',
      fix: 'Leave it out, or write policy: redis'
    })
  }
  return policy === 'redis' ? [...complaints, ...checkRedis(redis)] : complaints
}
