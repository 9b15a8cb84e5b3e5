import type { IncomingHttpHeaders } from 'node:http'
import type { Static, TSchema } from 'typebox'
import type {
  Acl,
  BasicAuthCredential,
  Consumer,
  KeyAuthCredential,
  Route,
  Service
} from '../schema/entities.ts'

/** What the client sent, after framing checks and path normalisation; never changed by plugins. */
export interface ClientRequest {
  readonly method: string
  readonly scheme: 'http' | 'https'
  /** `1.0`, `1.1` or `2.0`. */
  readonly httpVersion: string
  /** The Host without its port, as received. */
  readonly host: string
  /** The port the client addressed: that of the Host header, else the listener's; 0 on a Unix socket. */
  readonly port: number
  /** Normalised path without the query (RFC 3986 §6.2.2), the one routing decided on. */
  readonly path: string
  /** The raw request target including the query, as received. */
  readonly target: string
  /** The raw query without `?`; undefined when the target has none. */
  readonly query: string | undefined
  /** Lower-case names; repeated fields joined by node's rules. */
  readonly headers: IncomingHttpHeaders
  /** Name, value, name, value, … as received. */
  readonly rawHeaders: readonly string[]
  /** The client's address after trusted-proxy processing. */
  readonly clientIp: string
  /** The address of the direct peer. */
  readonly remoteAddress: string
  /** Undefined on a plain connection. */
  readonly tls:
    | {
        readonly version: string
        readonly cipher: string
        readonly sni?: string
        /** Of the client's certificate: `SUCCESS`, `NONE` or `FAILED:reason`. */
        readonly clientVerify: string
      }
    | undefined
  /** Captures of a regex route path: `1`, `2`, … and names; undefined when there are none. */
  readonly captures: Readonly<Record<string, string>> | undefined
}

/**
 * The request as it will go to the upstream. Header edits are an overlay over the client's headers
 * that is applied after hop-by-hop removal, so a client's `Connection` can never strip them
 * (RFC 9110 §7.6.1).
 */
export interface UpstreamRequest {
  /** Path sent upstream; computed from route and service before the access phase. */
  path: string
  /** Raw query without `?`; undefined sends none. */
  query: string | undefined
  /** Replaces the client's body; undefined streams the client's own. */
  body: Buffer | undefined
  /** The value that would be sent now: the overlay's, else the client's. */
  header(name: string): string | undefined
  setHeader(name: string, value: string): void
  removeHeader(name: string): void
}

/** The response as it will go to the client. Usable in every phase; edits win over the upstream's. */
export interface ClientResponse {
  /** 0 until a response exists. */
  status: number
  /** The value that would be sent now, by case-insensitive name. */
  header(name: string): string | readonly string[] | undefined
  setHeader(name: string, value: string): void
  /** Adds a further field of this name (`Set-Cookie`). */
  appendHeader(name: string, value: string): void
  removeHeader(name: string): void
}

/** What a request was authenticated by: one of the file's, or one that only a plugin knows. */
export interface Credential {
  readonly id: string
  readonly consumer: { readonly id: string }
}

/** Consumers and their credentials as of the request's snapshot, with credential values resolved. */
export interface Directory {
  /** By id, else by username. */
  consumer(idOrUsername: string): Consumer | undefined
  /** By the key's value; the look-up compares digests, so timing tells nothing about stored keys. */
  keyAuth(key: string): KeyAuthCredential | undefined
  /** By its name; one that it had before within its grace, unless another has it now. */
  basicAuth(username: string): BasicAuthCredential | undefined
  /**
   * Whether this name and password are the credential's: the current, or within their grace the
   * previous, and never halves that were not in force together. False for no credential, after the
   * same work; constant-time.
   */
  passwordHolds(
    credential: BasicAuthCredential | undefined,
    username: string,
    password: string
  ): boolean
  /** Credential of the file, of any kind, by its id. */
  credential(id: string): Credential | undefined
  /** The ACL groups of a consumer; empty when it has none. */
  groups(consumerId: string): readonly string[]
}

/** One request and its response: all that a plugin may read and change. */
export interface Exchange {
  /** 32 lower-case hex characters; the request id of logs, error bodies and `X-Postern-Request-Id`. */
  readonly id: string
  /** Unix milliseconds. */
  readonly startedAt: number
  readonly request: ClientRequest
  readonly upstream: UpstreamRequest
  readonly response: ClientResponse
  /** Undefined until routing, and after it when no route matched. */
  readonly route: Route | undefined
  readonly service: Service | undefined
  readonly directory: Directory
  readonly consumer: Consumer | undefined
  readonly credential: Credential | undefined
  /** Groups an authentication plugin established; undefined when none did. */
  readonly groups: readonly string[] | undefined
  /** True once {@link exit} or {@link error} was called: no lower-priority access hook runs. */
  readonly ended: boolean
  /** What an instance's hooks leave for its later phases, under a key of their own. */
  readonly notes: Map<object, unknown>
  /** Extra keys of the log record (`correlation_id`, …); none that it has anyway. */
  readonly logFields: Record<string, unknown>

  /**
   * Marks the request authenticated and sets or clears the upstream headers of an authenticated
   * consumer: `X-Consumer-ID`, `-Custom-ID`, `-Username`, `X-Credential-Identifier`,
   * `X-Anonymous-Consumer`. `credential` undefined means the anonymous consumer.
   */
  authenticate(
    consumer: Consumer | undefined,
    credential: Credential | undefined,
    identifier?: string,
    groups?: readonly string[]
  ): void
  /** Answers with exactly this; objects become compact JSON, undefined an empty body. */
  exit(status: number, body?: string | Buffer | object, headers?: Record<string, string>): void
  /** Answers with the error body negotiated by `Accept`; the status's own text when no message is given. */
  error(status: number, message?: string, headers?: Record<string, string>): void
  /**
   * The whole request body, buffered; the same bytes then go upstream.
   * Rejects with POSTERN_BODY_TOO_LARGE when it is longer than `limit` bytes.
   */
  body(limit?: number): Promise<Buffer>
  /** The log record of this exchange (docs/plugins.md) as JSON; only for the log phase. */
  record(): string
}

export interface Logger {
  debug(fields: object, message: string): void
  info(fields: object, message: string): void
  warn(fields: object, message: string): void
  error(fields: object, message: string): void
}

/** Key-value storage of the node, shared by its data-plane threads (memory, or Redis when set). */
export interface Store {
  /** Undefined when absent or expired. */
  get(key: string): Promise<string | undefined>
  /** `ttl` in seconds. */
  set(key: string, value: string, ttl: number): Promise<void>
  /** Lets an entry live for `ttl` seconds from now; nothing when it is absent. */
  expire(key: string, ttl: number): Promise<void>
  delete(key: string): Promise<void>
}

/** Which requests an instance applies to, and who it is. Undefined parts are unscoped. */
export interface InstanceScope {
  readonly id: string
  readonly instanceName: string | undefined
  readonly routeId: string | undefined
  readonly serviceId: string | undefined
  readonly consumerId: string | undefined
}

/** What an instance gets besides its configuration. */
export interface Context<Config = unknown> {
  readonly scope: InstanceScope
  readonly log: Logger
  /**
   * State that outlives a rotation or reload: the value kept under this name by any instance of the
   * plugin in this thread, created when there is none. Its `close` runs when the last instance that
   * asked for it has closed.
   */
  keep<T extends { close?(): void | Promise<void> }>(name: string, create: () => T): T
  /** Memory shared by all threads of the node, zeroed at start; there when the plugin declares `sharedBytes`. */
  readonly shared: SharedArrayBuffer | undefined
  readonly store: Store
  /**
   * Re-reads this instance's references now (single flight, rate limited) and gives the configuration
   * in force afterwards; undefined when nothing changed.
   */
  refresh(): Promise<Config | undefined>
}

/** The phases of a request, in order. A hook that returns no promise costs no microtask. */
export interface Hooks {
  /** Before routing; global instances only. */
  rewrite?(exchange: Exchange): void | Promise<void>
  /** After routing, before the upstream is called. */
  access?(exchange: Exchange): void | Promise<void>
  /** The response's status and headers are known, nothing is sent yet. */
  response?(exchange: Exchange): void | Promise<void>
  /** After the last byte; nothing done here reaches the client. */
  log?(exchange: Exchange): void
  /** After the last request that pinned these hooks; flush and release. */
  close?(): void | Promise<void>
}

/** A complaint about an instance's authored configuration; `path` is relative to `config`. */
export interface Complaint {
  readonly path: string
  readonly message: string
  readonly fix: string
}

export interface Plugin<S extends TSchema = TSchema> {
  readonly name: string
  /** Higher runs earlier, in every phase. */
  readonly priority: number
  readonly schema: S
  /** False for plugins that cannot be scoped to a consumer. Default true. */
  readonly consumerScope?: boolean
  /** Bytes of memory shared by all threads, allocated once per node. */
  readonly sharedBytes?: number
  /** Deprecated field names translated before validation; gives a new object. */
  translate?(config: Record<string, unknown>): Record<string, unknown>
  /** Rules across fields, on the validated configuration (references still as text). */
  // biome-ignore lint/suspicious/noExplicitAny: the schema has validated it, and each plugin knows its own
  check?(config: Record<string, any>): readonly Complaint[]
  /** Called at load and again at every rotation of a secret it uses; throwing keeps the old hooks. */
  setup(config: Static<S>, context: Context<Static<S>>): Hooks | Promise<Hooks>
}

/** Types a plugin by its own schema; gives it back unchanged. */
export function definePlugin<const S extends TSchema>(plugin: Plugin<S>): Plugin<S> {
  return plugin
}

export type { Acl, BasicAuthCredential, Consumer, KeyAuthCredential, Route, Service }
