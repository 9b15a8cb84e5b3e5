import {
  SecretAbsent,
  SecretMalformed,
  VaultDenied,
  VaultThrottled,
  VaultUnreachable
} from '../../../errors.ts'
import { networkFailure, plainName } from '../network-failure.ts'
import { retryAfter } from '../retry-after.ts'

/** What an error of the SDK may hold besides its name. */
interface ServiceError {
  readonly name: string
  readonly message?: string
  readonly $fault?: 'client' | 'server'
  readonly $metadata?: { readonly httpStatusCode?: number; readonly clockSkewCorrected?: boolean }
  readonly $response?: { readonly headers?: Readonly<Record<string, string>> }
}

/** Refusals of the identity or of what it may do, by type; Secrets Manager and STS have these. */
const DENIED: Readonly<Record<string, string>> = {
  AccessDenied: 'the role may not be assumed',
  AccessDeniedException: 'the policies of the identity, the secret or its key do not allow it',
  DecryptionFailure: 'its KMS key is disabled or may not be used',
  ExpiredToken: 'the credentials have expired',
  ExpiredTokenException: 'the credentials have expired',
  IDPRejectedClaim: 'the web identity token was rejected',
  IncompleteSignature: 'the credentials are not well-formed',
  IncompleteSignatureException: 'the credentials are not well-formed',
  InvalidClientTokenId: 'there is no such access key',
  InvalidIdentityToken: 'the web identity token is not valid',
  InvalidIdentityTokenException: 'the web identity token is not valid',
  InvalidSignatureException: 'the secret access key is wrong, or the clock is',
  MissingAuthenticationTokenException: 'there were no credentials',
  NotAuthorized: 'the identity lacks the permission',
  OptInRequired: 'the account has no access to the service or region',
  SignatureDoesNotMatch: 'the secret access key is wrong, or the clock is',
  UnauthorizedException: 'the single sign-on session is not valid; sign in again',
  UnrecognizedClientException: 'there is no such access key, or its session token is wrong'
}

const THROTTLED = new Set([
  'BandwidthLimitExceeded',
  'LimitExceededException',
  'PriorRequestNotComplete',
  'ProvisionedThroughputExceededException',
  'RequestLimitExceeded',
  'RequestThrottled',
  'RequestThrottledException',
  'SlowDown',
  'ThrottledException',
  'Throttling',
  'ThrottlingException',
  'TooManyRequestsException',
  'TransactionInProgressException'
])

/** The request as such: a name or version that cannot be. */
const MALFORMED: Readonly<Record<string, string>> = {
  InvalidParameterException: 'AWS does not take this name or version',
  ValidationException: 'AWS does not take this name or version',
  ValidationError: 'AWS does not take these settings'
}

/** Nothing has this name, or nothing this version or stage. */
export function isAbsent(error: unknown): boolean {
  return (error as ServiceError).name === 'ResourceNotFoundException'
}

/** Whether the request was signed by a wrong clock, which the SDK has noticed and now makes up for. */
export function isSkewed(error: unknown): boolean {
  return (error as ServiceError).$metadata?.clockSkewCorrected === true
}

/** What AWS calls credentials that are no longer, or not yet, known to it. */
const ENDED = new Set([
  'ExpiredToken',
  'ExpiredTokenException',
  'InvalidClientTokenId',
  'UnrecognizedClientException'
])

/** Whether the credentials were refused as such: others may be taken. */
export function hasEnded(error: unknown): boolean {
  return ENDED.has((error as ServiceError).name)
}

/**
 * An error of the SDK as one of the coded ones. Told by the type that AWS gives, never by the status:
 * AWS answers 400 to nearly everything, and what stands in for it answers otherwise.
 */
export function classify(error: unknown, resource: string): Error {
  const { code } = error as { code?: unknown }
  if (typeof code === 'string' && code.startsWith('POSTERN_')) return error as Error
  const { name, message, $metadata, $response } = error as ServiceError
  const denied = DENIED[name]
  if (denied !== undefined) return new VaultDenied(resource, `${denied} (${who(message)}${name})`)
  if (THROTTLED.has(name)) {
    return new VaultThrottled(resource, `AWS asks to slow down (${name})`, pauseOf($response))
  }
  const malformed = MALFORMED[name]
  if (malformed !== undefined) return new SecretMalformed(resource, `${malformed} (${name})`)
  // Of the reasons that AWS documents for this type, a read has only this one.
  if (name === 'InvalidRequestException') {
    return new SecretAbsent(`${resource} (it is scheduled for deletion)`)
  }
  if (name === 'CredentialsProviderError' || name === 'TokenProviderError') {
    return new VaultUnreachable(resource, 'no credentials were found or could be taken out')
  }
  const status = $metadata?.httpStatusCode
  if (status === undefined) return new VaultUnreachable(resource, networkFailure(error))
  return new VaultUnreachable(resource, `it answered ${status} (${plainName(name) ?? 'no type'})`)
}

/** Of a refusal's text only the identity is passed on, which has a form of its own. */
function who(message: string | undefined): string {
  const arn = /\barn:aws[a-z-]*:(?:iam|sts)::\d{12}:[\w+=,.@/-]{1,512}/.exec(message ?? '')?.[0]
  return arn === undefined ? '' : `${arn}, `
}

function pauseOf(response: ServiceError['$response']): number | undefined {
  const { headers } = response ?? {}
  return retryAfter(headers?.['retry-after'], headers?.date)
}
