import type { Consumer, Context, Credential, Exchange } from './plugin.ts'

/** The part of an authentication plugin's configuration that all of them share. */
export interface AuthenticationConfig {
  /** Id or username of the consumer that requests without valid credentials are taken for. */
  readonly anonymous?: string
  /** Whether `OPTIONS` requests must authenticate; default true. */
  readonly run_on_preflight?: boolean
}

/** Why a request was not authenticated: the message of its 401. */
export type Rejection = string

/** What presenting credentials came to. */
export interface Authenticated {
  readonly consumer: Consumer
  readonly credential: Credential
  /** Goes upstream as `X-Credential-Identifier`. */
  readonly identifier: string
}

/**
 * Whether the plugin has nothing to do: a preflight it lets pass, or, with an anonymous consumer
 * configured (so that any one plugin of several suffices), a request authenticated already.
 */
export function isExempt(exchange: Exchange, config: AuthenticationConfig): boolean {
  if (config.run_on_preflight === false && exchange.request.method === 'OPTIONS') return true
  return config.anonymous !== undefined && exchange.credential !== undefined
}

/** Lets the request on as the consumer found, or as anonymous where that is configured, or answers 401. */
export function conclude(
  exchange: Exchange,
  result: Authenticated | Rejection,
  config: AuthenticationConfig,
  challenge: Readonly<Record<string, string>>,
  log: Context['log']
): void {
  if (typeof result !== 'string') {
    exchange.authenticate(result.consumer, result.credential, result.identifier)
    return
  }
  const { anonymous } = config
  if (anonymous === undefined) {
    exchange.error(401, result, challenge)
    return
  }
  const consumer = exchange.directory.consumer(anonymous)
  if (consumer === undefined) {
    log.error(
      { request_id: exchange.id, anonymous },
      `anonymous consumer ${anonymous} is configured but doesn't exist`
    )
    exchange.error(500)
    return
  }
  exchange.authenticate(consumer, undefined)
}

/** The `WWW-Authenticate` field of a scheme (RFC 9110 §11.6.1), its realm as a quoted-string. */
export function challengeOf(scheme: string, realm: string | undefined): Record<string, string> {
  if (realm === undefined) return { 'WWW-Authenticate': scheme }
  const quoted = realm.replaceAll(/["\\]/g, String.raw`\$&`)
  return { 'WWW-Authenticate': `${scheme} realm="${quoted}"` }
}
