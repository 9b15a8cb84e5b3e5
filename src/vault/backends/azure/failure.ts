import {
  SecretMalformed,
  VaultDenied,
  VaultMisconfigured,
  VaultThrottled,
  VaultUnreachable
} from '../../../errors.ts'
import { networkFailure, plainName } from '../network-failure.ts'
import { retryAfter } from '../retry-after.ts'
import type { TransportAnswer } from '../transport.ts'

/** An answer of a vault that is none of 2xx. What it says is judged here and not passed on. */
export class AnswerError extends Error {
  readonly status: number
  /** `Forbidden` say; undefined when it is no answer of a vault. */
  readonly code: string | undefined
  /** What is behind it: `SecretDisabled` say. */
  readonly innerCode: string | undefined
  /** Seconds. */
  readonly retryAfter: number | undefined

  constructor(status: number, body: string, headers: TransportAnswer['headers']) {
    super(`it answered ${status}`)
    this.name = 'AnswerError'
    this.status = status
    const error = errorOf(body)
    this.code = plainName(error.code)
    this.innerCode = plainName(error.innererror?.code)
    this.retryAfter = retryAfter(headers['retry-after'], headers.date)
  }
}

interface ServiceError {
  readonly code?: string
  readonly innererror?: { readonly code?: string }
}

function errorOf(body: string): ServiceError {
  try {
    return (JSON.parse(body) as { error?: ServiceError }).error ?? {}
  } catch {
    return {}
  }
}

/** Reasons of a 403, which alone tell that a secret is disabled from that it may not be read. */
const FORBIDDEN: Readonly<Record<string, string>> = {
  SecretDisabled: 'it is disabled',
  AccessDenied: 'the identity lacks the permission to get secrets',
  ForbiddenByPolicy: 'the access policies do not let the identity get secrets',
  ForbiddenByRbac: 'no role lets the identity get secrets',
  ForbiddenByFirewall: 'the firewall of the vault does not let this address in',
  ForbiddenByConnection: 'the vault takes connections by its private endpoint alone'
}

/** Nothing has this name, or nothing this version. */
export function isAbsent(error: unknown): boolean {
  return error instanceof AnswerError && error.status === 404 && error.code === 'SecretNotFound'
}

/** Whether the access token was refused. */
export function isUnauthorized(error: unknown): boolean {
  return (error as { statusCode?: unknown }).statusCode === 401
}

/** Any failure of a call as one of the coded errors; those pass through. */
export function classify(error: unknown, resource: string): Error {
  const { code, path } = error as { code?: unknown; path?: unknown }
  if (typeof code === 'string' && code.startsWith('POSTERN_')) return error as Error
  if (isUnauthorized(error)) {
    return new VaultDenied(resource, 'the access token is not accepted (401)')
  }
  if (typeof path === 'string') {
    return new VaultMisconfigured(`${path} cannot be read (${code})`, 'Mount it, or name another')
  }
  if (isIdentityFailure(error)) return identityFailure(error, resource)
  if (!(error instanceof AnswerError)) return new VaultUnreachable(resource, networkFailure(error))
  const reason = error.innerCode ?? error.code
  switch (error.status) {
    case 403:
      if (error.code === undefined) break
      return new VaultDenied(
        resource,
        `${FORBIDDEN[reason ?? ''] ?? 'the identity may not'} (${reason})`
      )
    case 429:
      return new VaultThrottled(resource, 'the vault is asked too often (429)', error.retryAfter)
    case 400:
      if (error.code === undefined) break
      return new SecretMalformed(resource, `Azure does not take this name or version (${reason})`)
  }
  return new VaultUnreachable(
    resource,
    `it answered ${error.status}${reason === undefined ? ', and not as a vault does' : ` (${reason})`}`
  )
}

/** Names of the errors that mean: no token. */
const IDENTITY_ERRORS = new Set([
  'AuthenticationError',
  'AuthenticationRequiredError',
  'AuthError',
  'ClientAuthError',
  'ClientConfigurationError',
  'CredentialUnavailableError',
  'ServerError'
])

/** What the codes of Entra ID mean that people meet. */
const ENTRA: Readonly<Record<string, string>> = {
  AADSTS700016: 'there is no such application in the tenant',
  AADSTS700024: 'the federated token or assertion has expired',
  AADSTS70021: 'no federated credential of the application fits the token',
  AADSTS700211: 'no federated credential of the application fits the issuer of the token',
  AADSTS700213: 'no federated credential of the application fits the subject of the token',
  AADSTS700027: 'the certificate is not registered with the application',
  AADSTS7000215: 'the client secret is wrong',
  AADSTS7000222: 'the client secret has expired',
  AADSTS90002: 'there is no such tenant',
  AADSTS900023: 'there is no such tenant'
}

/** Whether no token could be had. */
export function isIdentityFailure(error: unknown): boolean {
  return IDENTITY_ERRORS.has((error as Error).name)
}

/** An answer of the identity service that tells of its own trouble; undefined for any other. */
export function identityTrouble({
  status,
  body,
  headers
}: TransportAnswer): AnswerError | undefined {
  if (status !== 429 && status < 500) return undefined
  return new AnswerError(status, body, headers)
}

/** The same as a coded error: whatever AADSTS code came with it, nothing was refused. */
export function troubleOf({ status, retryAfter }: AnswerError, resource: string): Error {
  return status === 429
    ? new VaultThrottled(resource, 'the identity service is asked too often (429)', retryAfter)
    : new VaultUnreachable(resource, `the identity service gives no token, it answered ${status}`)
}

function identityFailure(error: unknown, resource: string): Error {
  const { message = '' } = error as Error
  const code = /\bAADSTS\d{1,9}\b/.exec(message)?.[0]
  if (code !== undefined) {
    return new VaultDenied(
      resource,
      `Entra ID gives no token: ${ENTRA[code] ?? 'the credentials are refused'} (${code})`
    )
  }
  return new VaultUnreachable(resource, `no token can be had: ${reasonOf(error)}`)
}

/** The error underneath, in words of ours. */
function reasonOf(error: unknown): string {
  let cause = error
  while (cause instanceof Error && cause.cause !== undefined) cause = cause.cause
  if (cause === error) return 'the identity service cannot be asked, or gave none'
  return networkFailure(cause)
}
