import { isUtf8 } from 'node:buffer'
import type { Static } from 'typebox'
import * as Type from 'typebox'
import { oneOf } from '../schema/fields.ts'
import type { Authored } from '../schema/referenceable.ts'
import {
  type Authenticated,
  challengeOf,
  conclude,
  isExempt,
  type Rejection
} from './authentication.ts'
import { type Complaint, definePlugin, type Exchange } from './plugin.ts'

const strict = { additionalProperties: false } as const

const schema = Type.Object(
  {
    anonymous: Type.Optional(Type.String({ minLength: 1 })),
    hide_credentials: Type.Boolean({ default: false }),
    realm: Type.String({ default: 'service', pattern: String.raw`^[\t\x20-\x7e]*$` }),
    brute_force_protection: Type.Object(
      {
        strategy: oneOf(['off', 'memory', 'cluster', 'redis'], { default: 'off' }),
        redis: Type.Optional(Type.Record(Type.String(), Type.Unknown()))
      },
      { ...strict, default: {} }
    ),
    principals: Type.Optional(
      Type.Object(
        {
          enabled: Type.Boolean({ default: false }),
          directory: Type.String({ default: 'default' }),
          error_on_miss: Type.Boolean({ default: true })
        },
        strict
      )
    )
  },
  strict
)

// RFC 7617 §2: the scheme, case-insensitive, and a token68.
const BASIC = /^\s*basic\s+([A-Za-z0-9+/]+={0,2})\s*$/i

interface UserPass {
  readonly username: string
  readonly password: string
}

/** Authenticates consumers by the Basic scheme (RFC 7617). */
export default definePlugin({
  name: 'basic-auth',
  priority: 1100,
  consumerScope: false,
  schema,
  check,
  setup(config, { log }) {
    const challenge = challengeOf('Basic', config.realm)
    const hide = config.hide_credentials
    return {
      access(exchange) {
        if (isExempt(exchange, config)) return
        conclude(exchange, authenticate(exchange, hide), config, challenge, log)
      }
    }
  }
})

/** A user known from `Proxy-Authorization` is decided by it; else `Authorization` decides. */
function authenticate(exchange: Exchange, hide: boolean): Authenticated | Rejection {
  const { directory } = exchange
  let given = read(exchange, 'proxy-authorization', hide)
  let credential = given === undefined ? undefined : directory.basicAuth(given.username)
  if (credential === undefined) {
    given = read(exchange, 'authorization', hide)
    credential = given === undefined ? undefined : directory.basicAuth(given.username)
  }
  if (given === undefined) return 'Unauthorized'
  const { username, password } = given
  if (!directory.passwordHolds(credential, username, password) || credential === undefined) {
    return 'Unauthorized'
  }
  const consumer = directory.consumer(credential.consumer.id)
  if (consumer === undefined) return 'Unauthorized'
  return { consumer, credential, identifier: username }
}

function read(exchange: Exchange, name: string, hide: boolean): UserPass | undefined {
  const value = exchange.request.headers[name]
  if (typeof value !== 'string') return undefined
  if (hide) exchange.upstream.removeHeader(name)
  return parseBasic(value)
}

/**
 * The user-id and password of a Basic field value; undefined when it is not well formed. The
 * password may hold colons, the user-id none, and both are UTF-8 (RFC 7617 §2).
 */
export function parseBasic(value: string): UserPass | undefined {
  const token = BASIC.exec(value)?.[1]
  if (token === undefined) return undefined
  const bytes = Buffer.from(token, 'base64')
  if (!isUtf8(bytes)) return undefined
  const text = bytes.toString()
  const colon = text.indexOf(':')
  if (colon < 1) return undefined
  return { username: text.slice(0, colon), password: text.slice(colon + 1) }
}

function check(config: Authored<Static<typeof schema>>): readonly Complaint[] {
  const complaints: Complaint[] = []
  const { strategy } = config.brute_force_protection
  if (strategy !== 'off') {
    complaints.push({
      path: '/brute_force_protection/strategy',
      message: `brute force protection is not supported, only strategy off (not ${strategy})`,
      fix: 'Write off, and limit attempts with the rate-limiting plugin'
    })
  }
  if (config.principals?.enabled === true) {
    complaints.push({
      path: '/principals/enabled',
      message: 'principals are not supported',
      fix: 'Leave it out, and list the users as basicauth_credentials'
    })
  }
  return complaints
}
