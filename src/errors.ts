import createError from '@fastify/error'

/** Where in a configuration something stands: 1-based line and column, and the field's path. */
export interface Place {
  readonly file: string
  readonly line: number
  readonly column: number
  /** `services[2].plugins[0].config.redis.port`; empty for the document itself. */
  readonly path: string
}

/** One finding about a configuration: what is wrong, where, and what to write instead. */
export interface Problem {
  readonly code: string
  readonly message: string
  /** What to do about it, as one sentence. */
  readonly fix: string
  readonly place: Place
  /** The reference concerned, as authored (never its value). */
  readonly reference?: string
}

/** `file:line:column path: message (fix) [CODE]`, the one-line form of a problem. */
export function formatProblem(problem: Problem): string {
  const { file, line, column, path } = problem.place
  const at = `${file}:${line}:${column}`
  const where = path === '' ? at : `${at} ${path}`
  return `${where}: ${problem.message}. ${problem.fix} [${problem.code}]`
}

/** Thrown with every problem of a configuration at once; `problems` is never empty. */
export class ConfigError extends Error {
  readonly code = 'POSTERN_CONFIG_INVALID'
  readonly problems: readonly Problem[]

  constructor(problems: readonly Problem[]) {
    super(
      `${problems.length} problem${problems.length === 1 ? '' : 's'} in the configuration:\n` +
        problems.map(problem => `  ${formatProblem(problem)}`).join('\n')
    )
    this.name = 'ConfigError'
    this.problems = problems
  }
}

// Every coded error of the gateway, one line each; docs/errors.md explains each of them.
export const InvalidReference = createError<[string]>('POSTERN_REFERENCE_INVALID', '%s')
export const SecretAbsent = createError<[string]>('POSTERN_VAULT_ABSENT', 'Nothing is stored at %s')
export const VaultDenied = createError<[string, string]>(
  'POSTERN_VAULT_DENIED',
  'The vault refused to give %s: %s'
)
export const VaultUnreachable = createError<[string, string]>(
  'POSTERN_VAULT_UNREACHABLE',
  'The vault could not be asked for %s: %s'
)
export const VaultThrottled = createThrottled()
export const SecretMalformed = createError<[string, string]>(
  'POSTERN_VAULT_MALFORMED',
  'What the vault holds at %s cannot be used: %s'
)
export const VaultMisconfigured = createError<[string, string]>(
  'POSTERN_VAULT_SETTINGS',
  'The settings of a vault cannot be used: %s. %s'
)
export const PluginSetupFailed = createError<[string, string]>(
  'POSTERN_PLUGIN_SETUP',
  'The plugin %s does not take its configuration: %s'
)
export const KnownGoodRefused = createError<[string, string]>(
  'POSTERN_VAULT_CACHE_REFUSED',
  'The last known good values in %s are not used: %s'
)
export const LogEndpointInvalid = createError<[string]>(
  'POSTERN_LOG_ENDPOINT',
  'The log endpoint cannot be used: %s'
)
export const LogDenied = createError<[string, number]>(
  'POSTERN_LOG_DENIED',
  '%s answered %s: the credentials were refused'
)
export const LogRefused = createError<[string, number]>('POSTERN_LOG_REFUSED', '%s answered %s')
export const BodyTooLarge = createError<[number]>(
  'POSTERN_BODY_TOO_LARGE',
  'The request body is longer than %s bytes',
  413
)
export const BodyAborted = createError(
  'POSTERN_BODY_ABORTED',
  'The client ended the connection within its request',
  400
)
export const BodyTimeout = createError(
  'POSTERN_BODY_TIMEOUT',
  'The client sent no more of the request body in time',
  408
)
export const TrailersTooMany = createError<[number]>(
  'POSTERN_TRAILERS_TOO_MANY',
  'The request has more than %s trailers',
  400
)
export const UpstreamTrailers = createError<[number]>(
  'POSTERN_UPSTREAM_TRAILERS',
  'The response of the upstream has more than %s trailers',
  502
)
export const UpgradeRefused = createError<[string]>(
  'POSTERN_UPSTREAM_UPGRADE',
  'The upstream switches protocols in a way the client did not ask for: %s',
  502
)
export const WriteTimeout = createError(
  'POSTERN_WRITE_TIMEOUT',
  'The upstream took no more of the request body in time',
  504
)

export const SecretUnavailable = createError<[string]>(
  'POSTERN_SECRET_UNAVAILABLE',
  '%s has no value now',
  503
)
/** What clients are told where this is why they get no answer. */
export const SECRET_UNAVAILABLE_TEXT =
  'A secret this service needs is not available (POSTERN_SECRET_UNAVAILABLE)'
export const CertificateUnavailable = createError<[string]>(
  'POSTERN_CERTIFICATE_UNAVAILABLE',
  'The certificate for %s has no value now'
)
export const WebhookRefused = createError<[string]>(
  'POSTERN_WEBHOOK_REFUSED',
  'A delivery was refused: %s',
  401
)
export const WebhookMalformed = createError<[string]>(
  'POSTERN_WEBHOOK_MALFORMED',
  'A delivery cannot be read: %s',
  400
)
export const WebhookKeysUnavailable = createError<[string, string]>(
  'POSTERN_WEBHOOK_KEYS',
  'The keys of %s cannot be read: %s',
  503
)
export const StatusHostRefused = createError<[string]>(
  'POSTERN_STATUS_HOST',
  'The status API is not called %s. Use its IP address, or name it in POSTERN_STATUS_HOSTS.',
  421
)
export const SessionTooLarge = createError<[number]>(
  'POSTERN_SESSION_TOO_LARGE',
  'A session of %s characters does not fit into its cookies'
)
export const RedisAway = createError<[string, string]>(
  'POSTERN_REDIS_AWAY',
  'Redis at %s does not answer: %s'
)
export const RedisDenied = createError<[string, string]>(
  'POSTERN_REDIS_DENIED',
  'Redis at %s refused the credentials: %s'
)

/** The vault asks to be asked less: every read of this vault waits, those of others do not. */
function createThrottled() {
  const Throttled = createError<[string, string]>(
    'POSTERN_VAULT_THROTTLED',
    'The vault is asked too often for %s: %s'
  )
  return class VaultThrottled extends Throttled {
    /** Seconds to wait; undefined when the vault does not say. */
    readonly retryAfter: number | undefined

    constructor(resource: string, detail: string, retryAfter?: number) {
      super(resource, detail)
      this.retryAfter = retryAfter
    }
  }
}

/** Every code a problem of a configuration may have, with its meaning. */
export const problemCodes = {
  POSTERN_CONFIG_UNREADABLE: 'The file does not exist or cannot be read.',
  POSTERN_CONFIG_SYNTAX: 'The text is not well-formed YAML or JSON.',
  POSTERN_CONFIG_LIMIT: 'The text nests too deeply, or its aliases expand to too many values.',
  POSTERN_CONFIG_UNKNOWN_FIELD: 'A map has a key that nothing reads.',
  POSTERN_CONFIG_REQUIRED: 'A field that must be there is missing or null.',
  POSTERN_CONFIG_INVALID_VALUE:
    'A value has the wrong type, range or form, or contradicts another field.',
  POSTERN_CONFIG_DUPLICATE: 'Two keys of a map, or two entities, claim the same name.',
  POSTERN_CONFIG_DANGLING: 'A field names an entity that the file does not have.',
  POSTERN_CONFIG_REFERENCE:
    'A vault reference is malformed, unquoted, unknown to its vault, or stands where none may.',
  POSTERN_CONFIG_UNKNOWN_PLUGIN: 'There is no plugin of this name.',
  POSTERN_CONFIG_UNSUPPORTED:
    'The file format has this, and ignoring it would change what the file means.',
  POSTERN_CONFIG_NOT_SERVED: 'Warning: the file format has this, and this release ignores it.',
  POSTERN_CONFIG_UNUSED: 'Warning: a field has no effect, since another one says the same.',
  POSTERN_CONFIG_RESOLVED: 'A resolved value does not fit the field that refers to it.',
  POSTERN_SETTING_INVALID: 'An environment variable has a value it cannot have.',
  POSTERN_SETTING_UNKNOWN: 'An environment variable begins with POSTERN_ and is no setting.',
  POSTERN_SETTING_UNSUPPORTED: 'Warning: variables of other gateways that have no meaning here.',
  POSTERN_SETTING_UNSET:
    'Warning of an offline check: a vault that is referred to lacks a setting in this environment.',
  POSTERN_SETTING_UNUSED: 'Warning: a variable, or a part of its value, has no effect.'
} as const
