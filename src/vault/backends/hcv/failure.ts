import {
  SecretMalformed,
  VaultDenied,
  VaultMisconfigured,
  VaultThrottled,
  VaultUnreachable
} from '../../../errors.ts'
import { networkFailure } from '../network-failure.ts'

/** An answer of the vault that is none of 2xx. Its message is safe; `errors` may echo anything. */
export class VaultAnswerError extends Error {
  readonly status: number
  readonly errors: string
  /** Whether it is in the form of a vault: pages of proxies and of other servers are not. */
  readonly own: boolean
  /** Seconds, where the vault says. */
  readonly retryAfter: number | undefined

  constructor(status: number, body: string, retryAfter?: number) {
    const errors = body.slice(0, LONGEST)
    super(meaningOf(status, errors))
    this.name = 'VaultAnswerError'
    this.status = status
    this.errors = errors
    this.own = isOwn(body)
    this.retryAfter = retryAfter
  }
}

/** Characters of an answer in which a meaning is looked for. */
const LONGEST = 2000

/** Errors of a vault come in a list; a version that was deleted comes with its metadata. */
function isOwn(body: string): boolean {
  try {
    const { errors, data } = JSON.parse(body) as { errors?: unknown; data?: unknown }
    return Array.isArray(errors) || data !== undefined
  } catch {
    return false
  }
}

/** A 400 of a key-value engine that has just become one of version 2, for a moment. */
const UPGRADING = /Upgrading from non-versioned to versioned/i

/**
 * What the vault's own texts mean. They are never passed on: those of database engines hold connection
 * strings, those of logins may hold what was sent.
 */
const MEANINGS: readonly (readonly [RegExp, string])[] = [
  [/is sealed/i, 'it is sealed'],
  [UPGRADING, 'the key-value engine is being upgraded'],
  [/HTTP request to an HTTPS server/i, 'it speaks TLS; set protocol to https'],
  [/Invalid path for a versioned K\/V/i, 'the mount is a key-value engine v2; set kv to v2'],
  [/no handler for route|unsupported path/i, 'nothing is mounted at this path'],
  [/wrapping token is not valid/i, 'the wrapping token is used up or expired'],
  [
    /invalid role or secret ID|invalid role ID|invalid secret id/i,
    'the role id or secret id is wrong, used up or expired'
  ],
  [
    /unknown role|role .*(not|n't) (be )?f(ou|i)nd|invalid role name|could not load role/i,
    'there is no such role'
  ],
  [/invalid username or password/i, 'the user name or password is wrong'],
  [/invalid token|bad token|missing client token/i, 'the token is not valid'],
  [
    /error validating|error verifying|invalid (audience|issuer|subject)|claim/i,
    'the JWT was not accepted for this role'
  ],
  [/certificate/i, 'the client certificate was not accepted'],
  [/lease not found|lease is not renewable|invalid lease/i, 'the lease has ended'],
  [/standby/i, 'it is a standby that forwards nothing'],
  [/rate limit|quota/i, 'a quota is used up'],
  [/permission denied/i, 'permission denied'],
  [/namespace not found|no namespace/i, 'there is no such namespace']
]

function meaningOf(status: number, errors: string): string {
  const known = MEANINGS.find(([pattern]) => pattern.test(errors))
  return known === undefined ? `it answered ${status}` : `${known[1]} (${status})`
}

const NETWORK: Readonly<Record<string, string>> = {
  DEPTH_ZERO_SELF_SIGNED_CERT: 'its certificate is not trusted; set ssl_ca',
  SELF_SIGNED_CERT_IN_CHAIN: 'its certificate is not trusted; set ssl_ca',
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: 'its certificate is not trusted; set ssl_ca',
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: 'its certificate is not trusted; set ssl_ca',
  CERT_HAS_EXPIRED: 'its certificate has expired',
  ERR_TLS_CERT_ALTNAME_INVALID: 'its certificate is for another name; set ssl_server_name',
  EPROTO: 'it does not speak TLS, or not with this client; check protocol and port',
  ERR_INVALID_CHAR:
    'token or namespace hold a character that no header can have, such as a line break'
}

/** Any failure of a call as one of the coded errors the cache knows; those pass through. */
export function classify(error: unknown, subject: string): Error {
  if (error instanceof VaultAnswerError) return classifyAnswer(error, subject)
  return isCoded(error) ? error : new VaultUnreachable(subject, failureOf(error))
}

/** The same for a login: where no auth method is mounted, the vault says no more than to a wrong proof. */
export function classifyLogin(error: unknown, method: string): Error {
  const subject = `a login (${method})`
  // No secret is missing: this is another server, or another path.
  if (error instanceof VaultAnswerError && (error.status === 404 || error.status === 405)) {
    return new VaultMisconfigured(
      `nothing takes ${subject} there, ${error.message}`,
      'Check host, port, namespace and the path of the auth method'
    )
  }
  return error instanceof VaultAnswerError && /permission denied/i.test(error.errors)
    ? new VaultDenied(subject, `${error.message}; a path without an auth method looks the same`)
    : classify(error, subject)
}

/** Whether this is an error of src/errors.ts. */
export function isCoded(error: unknown): error is Error {
  const { code } = error as { code?: unknown }
  return typeof code === 'string' && code.startsWith('POSTERN_')
}

/** Why an exchange came to nothing, in words. */
export function failureOf(error: unknown): string {
  const { code, message, name } = error as NodeJS.ErrnoException
  // Those of signals, whose code is a number in web APIs.
  if (name === 'TimeoutError' || name === 'AbortError') return 'no answer in time'
  const told = NETWORK[code ?? '']
  if (told !== undefined) return `${told} (${code})`
  return code === undefined ? message : networkFailure(error)
}

function classifyAnswer(answer: VaultAnswerError, subject: string): Error {
  const { status, message, errors, own, retryAfter } = answer
  if (UPGRADING.test(errors)) return new VaultUnreachable(subject, message)
  if (status === 429) return new VaultThrottled(subject, message, retryAfter)
  if (!own) return new VaultUnreachable(subject, `${message}, and not as a vault does`)
  if (status === 400 || status === 401 || status === 403) return new VaultDenied(subject, message)
  if (status === 404 || status === 405) return new SecretMalformed(subject, message)
  return new VaultUnreachable(subject, message)
}
