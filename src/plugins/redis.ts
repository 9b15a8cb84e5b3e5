import { hash } from 'node:crypto'
import type { Static } from 'typebox'
import * as Type from 'typebox'
import { type Authored, referenceable } from '../schema/referenceable.ts'
import type { Complaint, Context } from './plugin.ts'
import {
  RedisConnection,
  type RedisOptions,
  type RedisScript,
  type Reply
} from './redis-connection.ts'
import { RedisRetry } from './redis-retry.ts'

const MAX_TIMEOUT = 2 ** 31 - 2
const DEFAULT_TIMEOUT = 2000

/** The `redis` block of plugins that keep something there. */
export const RedisSchema = Type.Object(
  {
    host: Type.Optional(referenceable(Type.String({ minLength: 1, format: 'postern-host' }))),
    port: referenceable(Type.Integer({ minimum: 0, maximum: 65535, default: 6379 })),
    username: Type.Optional(referenceable(Type.String())),
    password: Type.Optional(referenceable(Type.String())),
    database: Type.Integer({ minimum: 0, default: 0 }),
    ssl: Type.Boolean({ default: false }),
    ssl_verify: Type.Boolean({ default: true }),
    server_name: Type.Optional(referenceable(Type.String({ minLength: 1 }))),
    /** Milliseconds, for connecting and for each command. */
    timeout: Type.Integer({ minimum: 0, maximum: MAX_TIMEOUT, default: DEFAULT_TIMEOUT }),
    /** Accepted and without effect, like the next: a thread has one connection for all requests. */
    keepalive_pool_size: Type.Optional(Type.Integer({ minimum: 1, maximum: MAX_TIMEOUT })),
    keepalive_backlog: Type.Optional(Type.Integer({ minimum: 0, maximum: MAX_TIMEOUT })),
    cloud_authentication: Type.Optional(Type.Unknown())
  },
  { additionalProperties: false, default: {} }
)

/** The block with its references resolved. */
export type RedisConfig = Static<typeof RedisSchema>

const DEPRECATED = [
  'host',
  'port',
  'username',
  'password',
  'ssl',
  'ssl_verify',
  'server_name',
  'timeout',
  'database'
]

/**
 * Moves the deprecated `redis_host`, `redis_port`, … into `redis`. One that contradicts its
 * successor stays, and is reported as the unknown field it is.
 */
export function translateRedis(config: Record<string, unknown>): Record<string, unknown> {
  const translated = { ...config }
  const redis = { ...(config.redis as Record<string, unknown> | null | undefined) }
  for (const name of DEPRECATED) {
    const old = `redis_${name}`
    const value = config[old]
    if (!(old in config)) continue
    if (value !== null && (redis[name] ?? value) !== value) continue
    delete translated[old]
    if (value !== null) redis[name] = value
  }
  if (config.redis !== undefined || Object.keys(redis).length > 0) translated.redis = redis
  return translated
}

/** What is wrong with the block of a plugin that is to use Redis. */
export function checkRedis(redis: Authored<RedisConfig>): readonly Complaint[] {
  const complaints: Complaint[] = []
  if (redis.host === undefined) {
    complaints.push({
      path: '/redis/host',
      message: 'required field missing',
      fix: 'Write the host name or address of the Redis server'
    })
  }
  if (redis.cloud_authentication !== undefined) {
    complaints.push({
      path: '/redis/cloud_authentication',
      message: 'cloud authentication is not supported',
      fix: 'Leave it out, and write username and password'
    })
  }
  return complaints
}

/** How to reach the server of a block whose `host` is there. */
export function redisOptions(config: RedisConfig): RedisOptions {
  return {
    host: config.host?.reveal() ?? '',
    port: config.port,
    username: config.username?.reveal(),
    password: config.password?.reveal(),
    database: config.database,
    tls: config.ssl
      ? { verify: config.ssl_verify, serverName: config.server_name?.reveal() }
      : undefined,
    timeout: config.timeout === 0 ? DEFAULT_TIMEOUT : config.timeout
  }
}

type RedisContext = Pick<Context<{ readonly redis: RedisConfig }>, 'keep' | 'log' | 'refresh'>

/**
 * What a plugin instance reaches Redis by. Instances of a thread with equal options share a
 * connection, and it survives their reload. When the server refuses the credentials, the
 * instance's references are read again once, and what was refused is repeated with what they give.
 */
export class RedisAccess {
  readonly #context: RedisContext
  readonly #connection: RedisConnection
  readonly #retry: RedisRetry<RedisConnection>

  constructor(config: RedisConfig, context: RedisContext) {
    this.#context = context
    this.#connection = this.#connectionFor(config)
    this.#retry = new RedisRetry(async () => {
      const renewed = await context.refresh()
      return renewed === undefined ? undefined : this.#connectionFor(renewed.redis)
    })
  }

  /** Runs a script; rejects like {@link RedisConnection}. */
  script(script: RedisScript, keys: readonly string[], values: readonly string[]): Promise<Reply> {
    return this.#retry.run(this.#connection, connection => connection.script(script, keys, values))
  }

  /** Keeps it from reading references again; what it kept is released with the instance. */
  close(): void {
    this.#retry.close()
  }

  #connectionFor(config: RedisConfig): RedisConnection {
    const options = redisOptions(config)
    // Equal for equal options, and tells nothing about the password.
    const name = `redis:${hash('sha256', JSON.stringify(options))}`
    return this.#context.keep(name, () => new RedisConnection(options, this.#context.log))
  }
}
