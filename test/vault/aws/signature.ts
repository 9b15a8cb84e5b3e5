import { createHash, createHmac } from 'node:crypto'
import type { ServiceRequest } from '../fault-server.ts'

/** What an access key stands for. */
export interface AccessKey {
  readonly secret: string
  readonly sessionToken?: string
  /** Unix milliseconds. */
  expiresAt?: number
}

/** Why a request was not accepted, as AWS names it; undefined when it was. */
export type Refusal =
  | 'MissingAuthenticationTokenException'
  | 'UnrecognizedClientException'
  | 'ExpiredTokenException'
  | 'InvalidSignatureException'
  | undefined

const CREDENTIAL =
  /^AWS4-HMAC-SHA256 Credential=([^/]+)\/((\d{8})\/([^/]+)\/([^/]+)\/aws4_request), SignedHeaders=([^,]+), Signature=([0-9a-f]{64})$/
/** Milliseconds a clock may be wrong. */
const TOLERANCE = 300_000

/**
 * Checks a signature as AWS does (Signature Version 4 of its general reference), for requests without
 * a query. `now` is the clock of the service.
 */
export function refusalOf(
  { method, url, headers, body }: ServiceRequest,
  keys: ReadonlyMap<string, AccessKey>,
  now: number
): Refusal {
  const match = CREDENTIAL.exec(headers.authorization ?? '')
  if (match === null) return 'MissingAuthenticationTokenException'
  const [, id, scope, day, region, service, signedHeaders, signature] = match as unknown as string[]
  const key = keys.get(id!)
  const token = headers['x-amz-security-token'] as string | undefined
  if (key === undefined || key.sessionToken !== token) return 'UnrecognizedClientException'
  if ((key.expiresAt ?? Number.POSITIVE_INFINITY) < now) return 'ExpiredTokenException'
  const time = headers['x-amz-date'] as string
  const canonical = [
    method,
    url,
    '',
    ...signedHeaders!.split(';').map(name => `${name}:${String(headers[name]).trim()}`),
    '',
    signedHeaders,
    sha256(body)
  ].join('\n')
  const signingKey = [day!, region!, service!, 'aws4_request'].reduce<string | Buffer>(
    (derived, part) => hmac(derived, part),
    `AWS4${key.secret}`
  )
  const expected = hmac(signingKey, ['AWS4-HMAC-SHA256', time, scope, sha256(canonical)].join('\n'))
  const signedAt = Date.parse(
    time.replace(/^(....)(..)(..)T(..)(..)(..)Z$/, '$1-$2-$3T$4:$5:$6.000Z')
  )
  const inTime = Math.abs(signedAt - now) < TOLERANCE
  return expected.toString('hex') === signature && inTime ? undefined : 'InvalidSignatureException'
}

function hmac(key: string | Buffer, text: string): Buffer {
  return createHmac('sha256', key).update(text).digest()
}

function sha256(text: string): string {
  return createHash('sha256').update(text).digest('hex')
}
