import { availableParallelism } from 'node:os'
import type { TSchema } from 'typebox'
import { ConfigError, type Place, type Problem } from './errors.ts'
import { type LogFormat, logLevels } from './log.ts'
import type { OwnHeaders } from './proxy/handler.ts'
import { deepFreeze } from './schema/freeze.ts'
import { nearest } from './schema/validator.ts'
import { vaultConfigSchema } from './schema/vault-config.ts'
import {
  accessLog,
  addressRanges,
  belongTogether,
  bytes,
  certificate,
  choice,
  cipherList,
  dnsOrder,
  fieldName,
  headerChoice,
  hostNames,
  key32,
  list,
  listeners,
  Misfit,
  misfitsIn,
  nameServers,
  type Parse,
  privateKey,
  redisUrl,
  seconds,
  secretText,
  secureUrl,
  statusListener,
  text,
  tlsVersions,
  toggle,
  upstreamHeaders,
  whole,
  workerCount
} from './setting-values.ts'
import type { BackendType } from './vault/backend.ts'
import { builtInBackends } from './vault/backends/index.ts'
import { checkSetting } from './vault/definitions.ts'
import { parseReference, parseTemplate } from './vault/reference.ts'

export { type Listener, trustedPeers } from './setting-values.ts'

/** The environment variables of a process. An empty value counts as unset. */
export type Environment = Readonly<Record<string, string | undefined>>

/** One setting: a row of the table in docs/operations.md. */
export interface Setting<T = unknown> {
  readonly variable: string
  /** Kong's variables of the same meaning. */
  readonly kong: readonly string[]
  /** As it would be written; undefined leaves the setting unset. */
  readonly default: string | undefined
  readonly parse: Parse<T>
  /** What it means, as one line. */
  readonly doc: string
  /** Its value is never shown. */
  readonly secret: boolean
  /** Text with references of its own: only a value that is one reference as a whole is replaced. */
  readonly verbatim: boolean
}

type Row<T> = {
  kong?: string | readonly string[]
  secret?: true
  verbatim?: true
  parse: Parse<T>
  doc: string
}

function setting<T>(variable: string, row: Row<T> & { default: string }): Setting<T>
function setting<T>(variable: string, row: Row<T>): Setting<T | undefined>
function setting<T>(variable: string, row: Row<T> & { default?: string }): Setting<T | undefined> {
  const { kong = [], secret = false, verbatim = false, parse, doc } = row
  return { variable, kong: [kong].flat(), default: row.default, parse, doc, secret, verbatim }
}

const MAX_BYTES = Number.MAX_SAFE_INTEGER

/** Every setting, by its name in {@link Settings}. */
export const settingsTable = {
  config: setting('POSTERN_CONFIG', {
    kong: 'KONG_DECLARATIVE_CONFIG',
    default: 'config/postern.yaml',
    parse: text,
    doc: 'Path of the configuration file.'
  }),
  configString: setting('POSTERN_CONFIG_STRING', {
    kong: 'KONG_DECLARATIVE_CONFIG_STRING',
    secret: true,
    verbatim: true,
    parse: text,
    doc: 'The configuration itself, instead of a file.'
  }),
  proxyListen: setting('POSTERN_PROXY_LISTEN', {
    kong: 'KONG_PROXY_LISTEN',
    default: '0.0.0.0:8000, 0.0.0.0:8443 http2 ssl',
    parse: listeners,
    doc: 'Addresses that serve traffic: host:port or unix:/path with the flags ssl, http2, proxy_protocol, backlog=N; or off.'
  }),
  statusListen: setting('POSTERN_STATUS_LISTEN', {
    kong: 'KONG_STATUS_LISTEN',
    default: '127.0.0.1:8007',
    parse: statusListener,
    doc: 'Address of the status API, or off. It can reload the configuration, so keep it private.'
  }),
  statusHosts: setting('POSTERN_STATUS_HOSTS', {
    default: '',
    parse: hostNames,
    doc: 'Names the status API may be called by besides IP addresses, localhost and that of its own address: comma-separated names, *.domain for all below it, or * for any.'
  }),
  workers: setting('POSTERN_WORKERS', {
    kong: 'KONG_NGINX_WORKER_PROCESSES',
    default: 'auto',
    parse: workerCount(availableParallelism()),
    doc: 'Threads that serve traffic; auto is one for each CPU.'
  }),
  logLevel: setting('POSTERN_LOG_LEVEL', {
    kong: 'KONG_LOG_LEVEL',
    default: 'info',
    parse: choice(logLevels),
    doc: 'Least level that is logged: trace, debug, info, warn, error, fatal, silent, or one of Kong.'
  }),
  logFormat: setting('POSTERN_LOG_FORMAT', {
    default: 'auto',
    parse: choice<LogFormat>({ auto: 'auto', json: 'json', pretty: 'pretty' }),
    doc: 'json, pretty, or auto: pretty on a terminal, JSON lines elsewhere.'
  }),
  accessLog: setting('POSTERN_PROXY_ACCESS_LOG', {
    kong: 'KONG_PROXY_ACCESS_LOG',
    default: 'off',
    parse: accessLog,
    doc: 'Whether each request is logged.'
  }),
  trustedIps: setting('POSTERN_TRUSTED_IPS', {
    kong: 'KONG_TRUSTED_IPS',
    default: '',
    parse: addressRanges,
    doc: 'Addresses and ranges of the proxies in front, whose X-Forwarded-* headers are believed; unix: is peers on Unix sockets.'
  }),
  realIpHeader: setting('POSTERN_REAL_IP_HEADER', {
    kong: 'KONG_REAL_IP_HEADER',
    default: 'X-Real-IP',
    parse: fieldName,
    doc: 'Header a trusted proxy names the client address in; proxy_protocol takes it from that protocol.'
  }),
  realIpRecursive: setting('POSTERN_REAL_IP_RECURSIVE', {
    kong: 'KONG_REAL_IP_RECURSIVE',
    default: 'off',
    parse: toggle,
    doc: 'Whether the client is the last address in that header that is not trusted, instead of the last.'
  }),
  sslCert: setting('POSTERN_SSL_CERT', {
    kong: 'KONG_SSL_CERT',
    parse: certificate,
    doc: 'Certificate for names no other one serves: path, PEM, or base64 of PEM. Self-signed at start when unset.'
  }),
  sslCertKey: setting('POSTERN_SSL_CERT_KEY', {
    kong: 'KONG_SSL_CERT_KEY',
    secret: true,
    parse: privateKey,
    doc: 'Its private key, written likewise.'
  }),
  sslProtocols: setting('POSTERN_SSL_PROTOCOLS', {
    kong: 'KONG_SSL_PROTOCOLS',
    default: 'TLSv1.2 TLSv1.3',
    parse: tlsVersions,
    doc: 'TLS versions spoken with clients.'
  }),
  sslCiphers: setting('POSTERN_SSL_CIPHERS', {
    kong: 'KONG_SSL_CIPHERS',
    parse: cipherList,
    doc: 'Ciphers spoken with clients, as OpenSSL lists them. Those of Node when unset.'
  }),
  sslVerifyClient: setting('POSTERN_SSL_VERIFY_CLIENT', {
    kong: ['KONG_NGINX_PROXY_SSL_VERIFY_CLIENT', 'KONG_NGINX_HTTP_SSL_VERIFY_CLIENT'],
    default: 'off',
    parse: choice<'off' | 'optional' | 'on'>({ off: 'off', optional: 'optional', on: 'on' }),
    doc: 'Client certificates: on answers 400 to TLS clients without a valid one, optional only asks and logs.'
  }),
  sslClientCertificate: setting('POSTERN_SSL_CLIENT_CERTIFICATE', {
    kong: ['KONG_NGINX_PROXY_SSL_CLIENT_CERTIFICATE', 'KONG_NGINX_HTTP_SSL_CLIENT_CERTIFICATE'],
    parse: certificate,
    doc: 'Authorities of client certificates: path, PEM, or base64 of PEM.'
  }),
  headers: setting('POSTERN_HEADERS', {
    kong: 'KONG_HEADERS',
    default: 'server_tokens, latency_tokens, X-Postern-Request-Id',
    parse: headerChoice,
    doc: 'Own response headers: server_tokens, latency_tokens, or names; or off.'
  }),
  headersUpstream: setting('POSTERN_HEADERS_UPSTREAM', {
    kong: 'KONG_HEADERS_UPSTREAM',
    default: 'X-Postern-Request-Id',
    parse: upstreamHeaders,
    doc: 'Own header sent upstream, or off.'
  }),
  headersNamespace: setting('POSTERN_HEADERS_NAMESPACE', {
    default: 'Postern',
    parse: choice({ Postern: 'X-Postern', Kong: 'X-Kong' }),
    doc: 'Postern gives X-Postern-* headers, Kong gives X-Kong-*.'
  }),
  vaultRotationInterval: setting('POSTERN_VAULT_ROTATION_INTERVAL', {
    default: '60',
    parse: seconds(1),
    doc: 'Seconds between two looks at which secrets are due.'
  }),
  vaultStart: setting('POSTERN_VAULT_START', {
    default: 'strict',
    parse: choice<'strict' | 'degraded'>({ strict: 'strict', degraded: 'degraded' }),
    doc: 'strict refuses to start without every secret; degraded answers 503 where one lacks.'
  }),
  vaultCacheFile: setting('POSTERN_VAULT_CACHE_FILE', {
    parse: text,
    doc: 'File that keeps the last known good secrets, encrypted, for a start while vaults give no answer.'
  }),
  vaultCacheKey: setting('POSTERN_VAULT_CACHE_KEY', {
    secret: true,
    parse: key32,
    doc: 'Its key: 32 bytes as hexadecimal or base64, or the path of a file that holds them.'
  }),
  vaultCacheMaxAge: setting('POSTERN_VAULT_CACHE_MAX_AGE', {
    default: '7d',
    parse: seconds(1),
    doc: 'Seconds since a vault last confirmed a secret, after which it is no longer taken from that file.'
  }),
  vaultBackends: setting('POSTERN_VAULT_BACKENDS', {
    default: '',
    parse: list,
    doc: 'Modules of own types of vaults, separated by commas: paths, or names of packages.'
  }),
  secretGrace: setting('POSTERN_SECRET_GRACE', {
    default: '3600',
    parse: seconds(0),
    doc: 'Seconds a rotated secret still verifies what was made with it.'
  }),
  fingerprintKey: setting('POSTERN_FINGERPRINT_KEY', {
    secret: true,
    parse: secretText(16),
    doc: 'Key of the fingerprints that tell secrets apart, at least 16 characters. Random for each output when unset.'
  }),
  webhookListen: setting('POSTERN_WEBHOOK_LISTEN', {
    default: 'off',
    parse: statusListener,
    doc: 'Address of its own for the webhooks of vaults; off serves them with the status API.'
  }),
  webhookSecret: setting('POSTERN_WEBHOOK_SECRET', {
    secret: true,
    parse: secretText(16),
    doc: 'Turns the generic webhook on: key of its HMAC, text or whsec_ and base64.'
  }),
  webhookAwsSecret: setting('POSTERN_WEBHOOK_AWS_SECRET', {
    secret: true,
    parse: secretText(16),
    doc: 'Turns the webhook of AWS EventBridge on: what its connection sends as X-Webhook-Secret.'
  }),
  webhookGcpAudience: setting('POSTERN_WEBHOOK_GCP_AUDIENCE', {
    parse: text,
    doc: 'Turns the webhook of Google Pub/Sub on: the audience of the push subscription.'
  }),
  webhookGcpAccount: setting('POSTERN_WEBHOOK_GCP_ACCOUNT', {
    parse: text,
    doc: 'Address of the service account that the push subscription authenticates as.'
  }),
  webhookGcpKeysUrl: setting('POSTERN_WEBHOOK_GCP_KEYS_URL', {
    default: 'https://www.googleapis.com/oauth2/v3/certs',
    parse: secureUrl,
    doc: "JSON Web Key Set of Google's tokens."
  }),
  webhookAzureSecret: setting('POSTERN_WEBHOOK_AZURE_SECRET', {
    secret: true,
    parse: secretText(16),
    doc: 'Turns the webhook of Azure Event Grid on: secret in the query or in X-Webhook-Secret.'
  }),
  webhookAzureAudience: setting('POSTERN_WEBHOOK_AZURE_AUDIENCE', {
    parse: text,
    doc: 'Turns it on with Entra ID: the application the event subscription asks a token for.'
  }),
  webhookAzureTenant: setting('POSTERN_WEBHOOK_AZURE_TENANT', {
    parse: text,
    doc: 'Tenant that issues those tokens.'
  }),
  webhookAzureClient: setting('POSTERN_WEBHOOK_AZURE_CLIENT', {
    default: '4962773b-9cdb-44cf-a8bf-237846a00ab7',
    parse: text,
    doc: 'Application they are issued to: Event Grid of the public cloud.'
  }),
  webhookAzureKeysUrl: setting('POSTERN_WEBHOOK_AZURE_KEYS_URL', {
    default: 'https://login.microsoftonline.com/common/discovery/keys',
    parse: secureUrl,
    doc: "JSON Web Key Set of Entra ID's tokens."
  }),
  sessionRedisUrl: setting('POSTERN_SESSION_REDIS_URL', {
    secret: true,
    parse: redisUrl,
    doc: 'Redis that keeps sessions of storage kong; memory when unset.'
  }),
  upstreamKeepalivePoolSize: setting('POSTERN_UPSTREAM_KEEPALIVE_POOL_SIZE', {
    kong: 'KONG_UPSTREAM_KEEPALIVE_POOL_SIZE',
    default: '512',
    parse: whole(1, 65_535),
    doc: 'Connections to one upstream address that each thread may hold.'
  }),
  upstreamKeepaliveIdleTimeout: setting('POSTERN_UPSTREAM_KEEPALIVE_IDLE_TIMEOUT', {
    kong: 'KONG_UPSTREAM_KEEPALIVE_IDLE_TIMEOUT',
    default: '60',
    parse: seconds(0.001),
    doc: 'Seconds an idle upstream connection is kept.'
  }),
  upstreamTlsVerify: setting('POSTERN_UPSTREAM_TLS_VERIFY', {
    kong: 'KONG_NGINX_PROXY_PROXY_SSL_VERIFY',
    default: 'on',
    parse: toggle,
    doc: 'Whether upstream certificates are verified where a service does not say; Kong has off.'
  }),
  upstreamHttp2: setting('POSTERN_UPSTREAM_HTTP2', {
    default: 'off',
    parse: toggle,
    doc: 'Whether HTTP/2 is offered to upstreams of protocol https; they choose.'
  }),
  dnsResolver: setting('POSTERN_DNS_RESOLVER', {
    kong: 'KONG_DNS_RESOLVER',
    parse: nameServers,
    doc: 'Name servers, comma-separated addresses with or without port; those of /etc/resolv.conf when unset.'
  }),
  dnsHostsFile: setting('POSTERN_DNS_HOSTSFILE', {
    kong: 'KONG_DNS_HOSTSFILE',
    default: '/etc/hosts',
    parse: text,
    doc: 'Hosts file, which is asked before DNS.'
  }),
  dnsOrder: setting('POSTERN_DNS_ORDER', {
    kong: 'KONG_DNS_ORDER',
    default: 'LAST,SRV,A,AAAA,CNAME',
    parse: dnsOrder,
    doc: 'Record types in the order they are tried. LAST, the type that led to addresses before, always comes first, and CNAME is always followed.'
  }),
  maxBodySize: setting('POSTERN_MAX_BODY_SIZE', {
    kong: ['KONG_NGINX_HTTP_CLIENT_MAX_BODY_SIZE', 'KONG_NGINX_PROXY_CLIENT_MAX_BODY_SIZE'],
    default: '0',
    parse: bytes(0, MAX_BYTES),
    doc: 'Bytes of a request body, above which the answer is 413; 0 is unlimited.'
  }),
  requestBuffer: setting('POSTERN_REQUEST_BUFFER_SIZE', {
    kong: ['KONG_NGINX_HTTP_CLIENT_BODY_BUFFER_SIZE', 'KONG_NGINX_PROXY_CLIENT_BODY_BUFFER_SIZE'],
    default: '1m',
    parse: bytes(0, 1024 ** 3),
    doc: 'Bytes of a request body that are held before the upstream is asked, where a route has request_buffering; what follows streams. A thread holds 32 times as many in all; 0 holds none.'
  }),
  maxBufferedBody: setting('POSTERN_MAX_BUFFERED_BODY', {
    default: '1m',
    parse: bytes(0, 1024 ** 3),
    doc: 'Bytes of a request body a plugin may have buffered.'
  }),
  maxWebSocketMessage: setting('POSTERN_MAX_WEBSOCKET_MESSAGE', {
    default: '16m',
    parse: bytes(1024, 1024 ** 3),
    doc: 'Bytes of a WebSocket message, inflated, above which the connection is closed with 1009.'
  }),
  maxHeaderSize: setting('POSTERN_MAX_HEADER_SIZE', {
    default: '32k',
    parse: bytes(1024, 1024 ** 2),
    doc: 'Bytes of a request head, above which the answer is 400.'
  }),
  maxHeaders: setting('POSTERN_MAX_HEADERS', {
    default: '200',
    parse: whole(10, 1000),
    doc: 'Fields of a request head, and trailers of a request, above which the answer is 400. A response with more trailers is cut off.'
  }),
  maxUriSize: setting('POSTERN_MAX_URI_SIZE', {
    default: '8k',
    parse: bytes(128, 1024 ** 2),
    doc: 'Bytes of a request target, above which the answer is 414.'
  }),
  maxConnections: setting('POSTERN_MAX_CONNECTIONS', {
    kong: 'KONG_NGINX_EVENTS_WORKER_CONNECTIONS',
    default: '16384',
    parse: whole(1, 1_000_000),
    doc: 'Client connections to one listener that each thread holds; further ones are refused at once.'
  }),
  requestHeaderTimeout: setting('POSTERN_REQUEST_HEADER_TIMEOUT', {
    kong: 'KONG_NGINX_HTTP_CLIENT_HEADER_TIMEOUT',
    default: '60',
    parse: seconds(0.001),
    doc: 'Seconds for a whole request head to arrive.'
  }),
  requestBodyTimeout: setting('POSTERN_REQUEST_BODY_TIMEOUT', {
    kong: ['KONG_NGINX_HTTP_CLIENT_BODY_TIMEOUT', 'KONG_NGINX_PROXY_CLIENT_BODY_TIMEOUT'],
    default: '60',
    parse: seconds(0.001),
    doc: 'Seconds between two reads of a request body, after which the answer is 408.'
  }),
  sendTimeout: setting('POSTERN_SEND_TIMEOUT', {
    kong: ['KONG_NGINX_HTTP_SEND_TIMEOUT', 'KONG_NGINX_PROXY_SEND_TIMEOUT'],
    default: '60',
    parse: seconds(0.001),
    doc: 'Seconds a client may take nothing of its response, after which it is cut off.'
  }),
  clientKeepaliveRequests: setting('POSTERN_CLIENT_KEEPALIVE_REQUESTS', {
    kong: ['KONG_NGINX_HTTP_KEEPALIVE_REQUESTS', 'KONG_NGINX_PROXY_KEEPALIVE_REQUESTS'],
    default: '10000',
    parse: whole(1, 1_000_000_000),
    doc: 'Requests of one client connection, after which it is closed.'
  }),
  clientKeepaliveTimeout: setting('POSTERN_CLIENT_KEEPALIVE_TIMEOUT', {
    kong: 'KONG_NGINX_HTTP_KEEPALIVE_TIMEOUT',
    default: '75',
    parse: seconds(0.001),
    doc: 'Seconds an idle client connection is kept.'
  }),
  shutdownTimeout: setting('POSTERN_SHUTDOWN_TIMEOUT', {
    default: '30',
    parse: seconds(0),
    doc: 'Seconds requests in flight have to end after a stop.'
  }),
  shutdownDelay: setting('POSTERN_SHUTDOWN_DELAY', {
    default: '0',
    parse: seconds(0),
    doc: 'Seconds between being unready and closing the listeners, for load balancers to notice.'
  })
} as const satisfies Readonly<Record<string, Setting>>

type Table = typeof settingsTable
type Name = keyof Table
type Values = { readonly [K in Name]: Table[K] extends Setting<infer T> ? T : never }

/**
 * What the environment says, as plain frozen data that crosses threads; {@link settingsTable} tells
 * what each member means. Times are in seconds. It holds secrets: never log it.
 */
export type Settings = Omit<Values, 'headers' | 'headersUpstream' | 'headersNamespace'> & {
  readonly ownHeaders: OwnHeaders
}

/** A setting whose value holds references. */
export interface SettingReference {
  readonly name: string
  /** The value as authored. */
  readonly template: string
  /** Each reference in it, as authored including the braces. */
  readonly references: readonly string[]
  readonly place: Place
}

/** Settings of the default vaults: fields by type. A value may be a reference. */
export type VaultDefaults = Readonly<Record<string, Readonly<Record<string, string>>>>

/** An environment that was read but for the references in it. */
export interface Collected {
  /** Every type of vault there is. */
  readonly types: readonly BackendType[]
  readonly vaultDefaults: VaultDefaults
  readonly references: readonly SettingReference[]
  readonly warnings: readonly Problem[]
  /** Authored text and its variable, by the setting's name; unset ones are left out. */
  readonly authored: ReadonlyMap<string, Authored>
}

interface Authored {
  readonly variable: string
  readonly text: string
}

/** Kong's documents spell this field in two ways. */
const FIELD_SPELLINGS: Readonly<Record<string, readonly string[]>> = {
  base64_decode: ['base64_decode', 'decode_base64']
}

type VaultFields = ReadonlyMap<string, { readonly type: string; readonly field: string }>

/** The field each variable of a default vault sets, by its name after POSTERN_ or KONG_. */
function vaultFieldsOf(types: readonly BackendType[]): VaultFields {
  return new Map(
    types.flatMap(({ name: type, schema }) =>
      fieldsOf(vaultConfigSchema(schema)).flatMap(field =>
        (FIELD_SPELLINGS[field] ?? [field]).map(
          spelling =>
            [
              `VAULT_${type.replaceAll('-', '_')}_${spelling}`.toUpperCase(),
              { type, field }
            ] as const
        )
      )
    )
  )
}

/** Values of Kong's other settings that this gateway fulfils anyway. */
const FULFILLED: Readonly<Record<string, readonly string[]>> = {
  KONG_DATABASE: ['off'],
  KONG_ROLE: ['traditional'],
  KONG_ADMIN_LISTEN: ['off'],
  KONG_ADMIN_GUI_LISTEN: ['off'],
  KONG_STREAM_LISTEN: ['off'],
  KONG_ANONYMOUS_REPORTS: ['off'],
  KONG_NGINX_DAEMON: ['off'],
  KONG_PLUGINS: ['bundled'],
  KONG_VAULTS: ['bundled'],
  KONG_ROUTER_FLAVOR: ['traditional_compatible']
}

/** Variables Kubernetes and Docker links set for a service named postern or kong. */
const SERVICE_LINK =
  /_SERVICE_(HOST|PORT(_[A-Z0-9_]+)?)$|_PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?$/

/**
 * First step: reads every variable, and parses what holds no reference. Throws ConfigError with all
 * problems.
 */
export function collectSettings(
  env: Environment,
  types: readonly BackendType[] = builtInBackends(env)
): Collected {
  const vaultFields = vaultFieldsOf(types)
  const given = Object.keys(env).filter(name => env[name] !== undefined && env[name] !== '')
  const problems: Problem[] = []
  const warnings: Problem[] = []
  const authored = new Map<string, Authored>()
  const known = new Set<string>()
  for (const [name, row] of entriesOf(settingsTable)) {
    const variables = [row.variable, ...row.kong]
    for (const variable of variables) known.add(variable)
    const [first, ...others] = variables.filter(variable => given.includes(variable))
    if (first === undefined) continue
    authored.set(name, { variable: first, text: row.verbatim ? env[first]! : env[first]!.trim() })
    for (const other of others.filter(other => env[other] !== env[first])) {
      warnings.push(
        problem('UNUSED', other, `is not read, since ${first} is set`, `Unset ${other}.`)
      )
    }
  }
  const unsupported: string[] = []
  const vaultDefaults: Record<string, Record<string, string>> = {}
  // Kong's come first, so that the gateway's own variables win.
  for (const variable of given.filter(name => /^(POSTERN|KONG)_/.test(name)).sort()) {
    const vault = vaultFields.get(variable.replace(/^(POSTERN|KONG)_/, ''))
    if (known.has(variable) || FULFILLED[variable]?.includes(env[variable]!)) continue
    if (vault !== undefined) {
      const text = env[variable]!
      vaultDefaults[vault.type] = { ...vaultDefaults[vault.type], [vault.field]: text }
      attempt(variable, problems, () => checkVaultSetting(types, vault, text))
    } else if (SERVICE_LINK.test(variable)) continue
    else if (variable.startsWith('KONG_')) unsupported.push(variable)
    else problems.push(unknown(variable, vaultFields))
  }
  if (unsupported.length > 0) {
    warnings.push({
      ...problem(
        'UNSUPPORTED',
        unsupported[0]!,
        '',
        'Unset what is not needed; docs/operations.md lists the settings.'
      ),
      message: `${unsupported.join(', ')} ${unsupported.length === 1 ? 'has' : 'have'} no meaning here`
    })
  }
  const references: SettingReference[] = []
  const malformed = new Set<string>()
  for (const [name, { variable, text }] of authored) {
    if (tableRow(name).verbatim && !ONE_REFERENCE.test(text)) continue
    const found = attempt(variable, problems, () => referencesIn(text))
    if (found === undefined) malformed.add(name)
    if (found === undefined || found.length === 0) continue
    references.push({ name, template: text, references: found, place: placeOf(variable) })
  }
  const pending = new Set([...malformed, ...references.map(({ name }) => name)])
  const values = parseValues(authored, name => !pending.has(name), problems, warnings)
  checkTogether(authored, problems)
  checkPair(values, problems)
  checkClients(values, authored, problems, warnings)
  if (problems.length > 0) throw new ConfigError(problems)
  return { types, vaultDefaults, references, warnings, authored }
}

/** Throws what is wrong with a setting of a default vault, as far as it tells by itself. */
function checkVaultSetting(
  types: readonly BackendType[],
  { type, field }: { readonly type: string; readonly field: string },
  text: string
): void {
  const names = types.map(({ name }) => name)
  const other = referencesIn(text)
    .map(reference => parseReference(reference).vault)
    .find(vault => !names.includes(vault))
  if (other !== undefined) {
    throw new Misfit(
      `refers to a vault "${other}", which is no default vault`,
      `Use one of ${names.join(', ')}.`
    )
  }
  const { schema } = types.find(({ name }) => name === type)!
  const complaint = checkSetting(schema, field, text)
  if (complaint === undefined) return
  const { message, fix } = complaint
  throw new Misfit(`has a value it cannot have: ${message}`, /[.?]$/.test(fix) ? fix : `${fix}.`)
}

/**
 * Second step: parses all with the references replaced; `lookup` gives the value of a reference.
 * Throws ConfigError with all problems, an unresolved reference among them.
 */
export function parseSettings(
  collected: Collected,
  lookup: (reference: string) => string | undefined
): { readonly settings: Settings; readonly warnings: readonly Problem[] } {
  const problems: Problem[] = []
  const warnings: Problem[] = [...collected.warnings]
  const authored = new Map(collected.authored)
  for (const { name, template, place } of collected.references) {
    const text = attempt(place.path, problems, () => resolve(template, lookup))
    if (text === undefined) authored.delete(name)
    else authored.set(name, { variable: place.path, text })
  }
  const referring = new Set(collected.references.map(({ name }) => name))
  // What the first step has parsed is silent now: its warnings are in `collected`.
  const values = {
    ...parseValues(authored, name => !referring.has(name), problems, []),
    ...parseValues(authored, name => referring.has(name), problems, warnings, true)
  }
  // The first step has told what is wrong between those that refer to nothing.
  if (referring.has('sslCert') || referring.has('sslCertKey')) checkPair(values, problems)
  if (['sslVerifyClient', 'realIpHeader', 'proxyListen'].some(name => referring.has(name)))
    checkClients(values, authored, problems, warnings)
  if (problems.length > 0) throw new ConfigError(problems)
  const { headers, headersUpstream, headersNamespace, ...rest } = values as Values
  const ownHeaders = { ...headers, namespace: headersNamespace, upstreamRequestId: headersUpstream }
  return { settings: deepFreeze({ ...rest, ownHeaders }), warnings }
}

/**
 * One setting, before the others are parsed. Undefined when it is not set, or cannot be what it is:
 * then parseSettings tells.
 */
export function parseSetting<K extends Name>(
  collected: Collected,
  name: K,
  lookup: (reference: string) => string | undefined
): Values[K] | undefined {
  const row = settingsTable[name]
  const { variable, text } = collected.authored.get(name) ?? { variable: '', text: row.default }
  if (text === undefined) return undefined
  const referring = collected.references.some(reference => reference.name === name)
  return attempt(variable, [], () =>
    row.parse(referring ? resolve(text, lookup) : text, () => {})
  ) as Values[K] | undefined
}

/**
 * Where the configuration comes from, as far as the environment tells it without asking a vault.
 * Throws ConfigError when it stands in a vault itself.
 */
export function configSource(collected: Collected): Pick<Settings, 'config' | 'configString'> {
  const inVault = collected.references.filter(
    ({ name }) => name === 'config' || name === 'configString'
  )
  if (inVault.length > 0) {
    throw new ConfigError(
      inVault.map(({ place }) =>
        problem(
          'INVALID',
          place.path,
          'holds a reference, which is not resolved offline',
          'Name the file as an argument, or resolve it with --resolve.'
        )
      )
    )
  }
  return {
    config: collected.authored.get('config')?.text ?? settingsTable.config.default!,
    configString: collected.authored.get('configString')?.text
  }
}

const ONE_REFERENCE = /^\s*\{vault:\/\/[^}]*\}\s*$/

function tableRow(name: string): Setting {
  return settingsTable[name as Name]
}

function entriesOf(table: Table): readonly [string, Setting][] {
  return Object.entries(table)
}

function parseValues(
  authored: ReadonlyMap<string, Authored>,
  chosen: (name: string) => boolean,
  problems: Problem[],
  warnings: Problem[],
  resolved = false
): Partial<Values> {
  const values: Record<string, unknown> = {}
  for (const [name, row] of entriesOf(settingsTable)) {
    if (!chosen(name)) continue
    const { variable, text } = authored.get(name) ?? { variable: row.variable, text: row.default }
    const parse = (): unknown =>
      text === undefined
        ? undefined
        : row.parse(text, (message, fix) =>
            warnings.push(problem('UNUSED', variable, message, fix))
          )
    values[name] = attempt(variable, problems, resolved ? withheld(parse) : parse)
  }
  return values
}

/** A refusal that does not repeat the value, which came out of a vault. */
function withheld<T>(parse: () => T): () => T {
  return () => {
    try {
      return parse()
    } catch (error) {
      const fixes = new Set(misfitsIn(error).map(({ fix = 'Store another.' }) => fix))
      throw new AggregateError(
        [...fixes].map(fix => new Misfit('holds a reference whose value is refused', fix))
      )
    }
  }
}

/** Settings that mean nothing without another: who may sign must be told, not only for whom. */
const TOGETHER = [
  ['sslCert', 'sslCertKey'],
  ['vaultCacheFile', 'vaultCacheKey'],
  ['webhookGcpAudience', 'webhookGcpAccount'],
  ['webhookAzureAudience', 'webhookAzureTenant']
] as const satisfies readonly (readonly [Name, Name])[]

function checkTogether(authored: Collected['authored'], problems: Problem[]): void {
  for (const [one, other] of TOGETHER) {
    const there = authored.get(one) ?? authored.get(other)
    if (there === undefined || (authored.has(one) && authored.has(other))) continue
    const { variable } = settingsTable[authored.has(one) ? other : one]
    problems.push(
      problem('INVALID', variable, `is not set, but ${there.variable} is`, 'Set both or neither.')
    )
  }
}

function checkPair({ sslCert, sslCertKey }: Partial<Values>, problems: Problem[]): void {
  if (sslCert === undefined || sslCertKey === undefined || belongTogether(sslCert, sslCertKey))
    return
  problems.push(
    problem(
      'INVALID',
      settingsTable.sslCertKey.variable,
      `is not the key of ${settingsTable.sslCert.variable}`,
      'Give the key the certificate was made with.'
    )
  )
}

/** What settings of clients need of each other. */
function checkClients(
  values: Partial<Values>,
  authored: Collected['authored'],
  problems: Problem[],
  warnings: Problem[]
): void {
  const { sslVerifyClient, sslClientCertificate, realIpHeader, proxyListen } = settingsTable
  const asks = values.sslVerifyClient === 'on' || values.sslVerifyClient === 'optional'
  if (asks && !authored.has('sslClientCertificate')) {
    problems.push(
      problem(
        'INVALID',
        sslVerifyClient.variable,
        'asks for client certificates, but no authority is set',
        `Set ${sslClientCertificate.variable}.`
      )
    )
  }
  if (
    values.realIpHeader?.toLowerCase() === 'proxy_protocol' &&
    values.proxyListen?.every(({ proxyProtocol }) => !proxyProtocol)
  ) {
    warnings.push(
      problem(
        'UNUSED',
        realIpHeader.variable,
        'is proxy_protocol, but no listener has that flag',
        `Add proxy_protocol to an address of ${proxyListen.variable}.`
      )
    )
  }
}

function fieldsOf(schema: TSchema): readonly string[] {
  const { anyOf = [], properties = {} } = schema as {
    anyOf?: readonly TSchema[]
    properties?: object
  }
  return [...new Set([...Object.keys(properties), ...anyOf.flatMap(fieldsOf)])]
}

function referencesIn(template: string): readonly string[] {
  return (parseTemplate(template) ?? [])
    .filter(part => typeof part !== 'string')
    .map(({ text }) => text)
}

function resolve(template: string, lookup: (reference: string) => string | undefined): string {
  let resolved = ''
  for (const part of parseTemplate(template) ?? []) {
    const value = typeof part === 'string' ? part : lookup(part.text)
    if (value === undefined)
      throw new Misfit(
        'holds a reference that has no value',
        'Store the value, or correct the reference.'
      )
    resolved += value
  }
  return resolved.trimEnd()
}

/** What `read` gives; when it throws, problems of the variable, and undefined. */
function attempt<T>(variable: string, problems: Problem[], read: () => T): T | undefined {
  try {
    return read()
  } catch (error) {
    for (const { message: text, fix } of misfitsIn(error)) {
      // A malformed reference says what to write at its end.
      const [, message = text, form = '{vault://VAULT/RESOURCE/KEY}'] =
        /^(.*); write (.*)$/s.exec(text) ?? []
      problems.push(problem('INVALID', variable, message, fix ?? `Write ${form}.`))
    }
    return undefined
  }
}

function unknown(variable: string, vaultFields: VaultFields): Problem {
  const word = variable.slice('POSTERN_'.length)
  const types = [...new Set([...vaultFields.values()].map(({ type }) => type))]
  const beginOf = (type: string): string => `VAULT_${type.replaceAll('-', '_').toUpperCase()}_`
  // The longest first: azure-certs begins as azure does.
  const type = types
    .sort((one, other) => other.length - one.length)
    .find(each => word.startsWith(beginOf(each)))
  const begin = type === undefined ? '' : beginOf(type)
  const rows: readonly Setting[] = Object.values(settingsTable)
  const known = [...rows.map(row => row.variable.slice('POSTERN_'.length)), ...vaultFields.keys()]
  const rests = known.filter(name => name.startsWith(begin)).map(name => name.slice(begin.length))
  const near = nearest(word.slice(begin.length), rests)
  const hint =
    near !== undefined
      ? `Did you mean POSTERN_${begin}${near}?`
      : type !== undefined
        ? `\`postern schema vault ${type}\` shows the settings it has.`
        : 'docs/operations.md lists the settings.'
  return problem(
    'UNKNOWN',
    variable,
    'is not a setting',
    `${hint} Names that begin with POSTERN_ are kept for settings.`
  )
}

function problem(
  kind: 'INVALID' | 'UNKNOWN' | 'UNSUPPORTED' | 'UNUSED',
  variable: string,
  message: string,
  fix: string
): Problem {
  return {
    code: `POSTERN_SETTING_${kind}`,
    message: `${variable} ${message}`,
    fix,
    place: placeOf(variable)
  }
}

function placeOf(variable: string): Place {
  return { file: 'environment', line: 1, column: 1, path: variable }
}
