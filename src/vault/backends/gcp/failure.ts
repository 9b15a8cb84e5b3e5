import {
  SecretAbsent,
  SecretMalformed,
  VaultDenied,
  VaultThrottled,
  VaultUnreachable
} from '../../../errors.ts'
import { networkFailure, plainName } from '../network-failure.ts'
import { retryAfter } from '../retry-after.ts'

/** An answer that is none of 2xx. What it says is judged here and not passed on. */
export class AnswerError extends Error {
  readonly httpStatus: number
  /** As in google.rpc.Code, NOT_FOUND say; undefined when it is no answer of the API. */
  readonly status: string | undefined
  /** Of its ErrorInfo: SERVICE_DISABLED say. */
  readonly reason: string | undefined
  /** Of a version that cannot be read. */
  readonly state: 'DISABLED' | 'DESTROYED' | undefined
  /** Seconds. */
  readonly retryAfter: number | undefined

  constructor(httpStatus: number, body: string, pause: string | null, date: string | null) {
    super(`it answered ${httpStatus}`)
    this.name = 'AnswerError'
    this.httpStatus = httpStatus
    const { status, message, details } = errorOf(body)
    this.status = plainName(status)
    this.reason = plainName(details?.map(({ reason }) => reason).find(Boolean))
    this.state = /\b(DISABLED|DESTROYED)\b/.exec(message ?? '')?.[1] as AnswerError['state']
    const delay = details?.map(({ retryDelay }) => retryDelay).find(Boolean)
    this.retryAfter = retryAfter(pause ?? delay?.replace(/s$/, ''), date)
  }
}

interface ApiError {
  readonly status?: string
  readonly message?: string
  /** Of several kinds: an ErrorInfo has a reason, a RetryInfo a delay such as `7s`. */
  readonly details?: readonly { readonly reason?: string; readonly retryDelay?: string }[]
}

function errorOf(body: string): ApiError {
  try {
    return (JSON.parse(body) as { error?: ApiError }).error ?? {}
  } catch {
    return {}
  }
}

const REASONS: Readonly<Record<string, string>> = {
  SERVICE_DISABLED: 'the Secret Manager API is not enabled in the project',
  BILLING_DISABLED: 'the project has no billing account',
  ACCESS_TOKEN_SCOPE_INSUFFICIENT: 'the instance’s access scopes leave out cloud-platform',
  CONSUMER_INVALID: 'there is no such project, or the identity may not use it'
}

/** Whether nothing has this name, or nothing this version. */
export function isAbsent(error: unknown): boolean {
  return error instanceof AnswerError && error.status === 'NOT_FOUND'
}

/** Whether the access token was refused. */
export function isUnauthenticated(error: unknown): boolean {
  return error instanceof AnswerError && error.status === 'UNAUTHENTICATED'
}

/** Any failure of a call as one of the coded errors; those pass through. */
export function classify(error: unknown, resource: string): Error {
  const { code } = error as { code?: unknown }
  if (typeof code === 'string' && code.startsWith('POSTERN_')) return error as Error
  if (!(error instanceof AnswerError)) return new VaultUnreachable(resource, networkFailure(error))
  const { httpStatus, status, reason, state, retryAfter } = error
  switch (status) {
    case 'PERMISSION_DENIED':
      return new VaultDenied(
        resource,
        REASONS[reason ?? ''] ??
          `the identity lacks the permission, or there is no such secret (${reason ?? status})`
      )
    case 'UNAUTHENTICATED':
      return new VaultDenied(resource, `the access token is not accepted (${reason ?? status})`)
    case 'FAILED_PRECONDITION':
      return state === 'DESTROYED'
        ? new SecretAbsent(`${resource} (this version was destroyed)`)
        : new VaultDenied(
            resource,
            state === 'DISABLED'
              ? 'this version is disabled'
              : `it cannot be given as it is, its key may be disabled (${reason ?? status})`
          )
    case 'INVALID_ARGUMENT':
      return new SecretMalformed(resource, 'Google does not take this name or version')
    case 'RESOURCE_EXHAUSTED':
      return new VaultThrottled(resource, 'a quota of the project is used up', retryAfter)
    case undefined:
      return new VaultUnreachable(
        resource,
        `it answered ${httpStatus}, and not as Secret Manager does`
      )
    default:
      return new VaultUnreachable(resource, `it answered ${httpStatus} (${status})`)
  }
}
