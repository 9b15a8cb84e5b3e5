import { verify } from 'node:crypto'
import { WebhookRefused } from '../errors.ts'
import type { KeySet } from './keys.ts'
import { member } from './source.ts'

/** Seconds that clocks may differ. */
const SKEW = 60

/** Claims of a token whose signature, issuer, audience and times are right. */
export interface Claims {
  readonly email?: unknown
  readonly email_verified?: unknown
  readonly appid?: unknown
  readonly azp?: unknown
}

/** The token of an `Authorization: Bearer` header. Throws POSTERN_WEBHOOK_REFUSED when there is none. */
export function bearer(authorization: string | undefined): string {
  const [, token] = /^Bearer ([\w-]+\.[\w-]+\.[\w-]+)$/i.exec(authorization ?? '') ?? []
  if (token === undefined) throw new WebhookRefused('it carries no bearer token')
  return token
}

/**
 * Verifies a JSON Web Token (RFC 7519) signed with RS256, whatever algorithm its header asks for.
 * Rejects with POSTERN_WEBHOOK_REFUSED when anything about it is not right.
 */
export async function verifyToken(
  token: string,
  keys: KeySet,
  expected: { readonly issuers: readonly string[]; readonly audience: string },
  now: () => number = Date.now
): Promise<Claims> {
  const [head = '', payload = '', signature = ''] = token.split('.')
  const header = decode(head)
  const kid = member(header, 'kid')
  if (member(header, 'alg') !== 'RS256' || typeof kid !== 'string')
    throw new WebhookRefused('the token is not signed with RS256')
  const key = await keys.find(kid)
  const signed = Buffer.from(`${head}.${payload}`)
  if (key === undefined || !verify('RSA-SHA256', signed, key, Buffer.from(signature, 'base64url')))
    throw new WebhookRefused('the signature of the token does not fit')
  const claims = decode(payload)
  const time = now() / 1000
  const { exp, nbf = 0, iss, aud } = claims as Readonly<Record<string, unknown>>
  if (typeof exp !== 'number' || exp + SKEW < time)
    throw new WebhookRefused('the token has expired')
  if (typeof nbf !== 'number' || nbf - SKEW > time)
    throw new WebhookRefused('the token is not valid yet')
  if (!expected.issuers.includes(iss as string))
    throw new WebhookRefused('the token is of another issuer')
  if (aud !== expected.audience && !(Array.isArray(aud) && aud.includes(expected.audience)))
    throw new WebhookRefused('the token is for another audience')
  return claims
}

function decode(part: string): object {
  try {
    const value: unknown = JSON.parse(Buffer.from(part, 'base64url').toString('utf8'))
    if (typeof value === 'object' && value !== null) return value
  } catch {
    // Told below.
  }
  throw new WebhookRefused('the token is not a JSON Web Token')
}
