import type { Static } from 'typebox'
import * as Type from 'typebox'
import { Name, oneOf, Path, Tags, Uuid } from './fields.ts'
import { HealthChecksSchema } from './healthchecks.ts'
import { referenceable } from './referenceable.ts'

const protocolNames = [
  'http',
  'https',
  'grpc',
  'grpcs',
  'tcp',
  'tls',
  'udp',
  'tls_passthrough',
  'ws',
  'wss'
] as const

/** A foreign key of a normalised entity. */
const Foreign = Type.Object({ id: Uuid })

const HeaderName = Type.String({ minLength: 1, format: 'postern-header-name' })
const strict = { additionalProperties: false } as const
const common = {
  id: Uuid,
  tags: Type.Optional(Tags),
  created_at: Type.Optional(Type.Number()),
  updated_at: Type.Optional(Type.Number())
}

export const ServiceSchema = Type.Object(
  {
    ...common,
    name: Type.Optional(Name),
    protocol: oneOf(protocolNames, { default: 'http' }),
    host: Type.String({ minLength: 1, format: 'postern-host' }),
    port: Type.Integer({ minimum: 0, maximum: 65535, default: 80 }),
    path: Type.Optional(Path),
    retries: Type.Integer({ minimum: 0, maximum: 32767, default: 5 }),
    connect_timeout: Type.Integer({ minimum: 1, maximum: 2147483646, default: 60000 }),
    write_timeout: Type.Integer({ minimum: 1, maximum: 2147483646, default: 60000 }),
    read_timeout: Type.Integer({ minimum: 1, maximum: 2147483646, default: 60000 }),
    enabled: Type.Boolean({ default: true }),
    tls_verify: Type.Optional(Type.Boolean()),
    tls_verify_depth: Type.Optional(Type.Integer({ minimum: 0, maximum: 64 })),
    tls_sans: Type.Optional(
      Type.Object(
        {
          dnsnames: Type.Optional(Type.Array(Type.String())),
          uris: Type.Optional(Type.Array(Type.String()))
        },
        strict
      )
    ),
    ca_certificates: Type.Optional(Type.Array(Uuid)),
    client_certificate: Type.Optional(Foreign)
  },
  strict
)

export const RouteSchema = Type.Object(
  {
    ...common,
    name: Type.Optional(Name),
    service: Type.Optional(Foreign),
    protocols: Type.Array(oneOf(protocolNames), {
      minItems: 1,
      uniqueItems: true,
      default: ['http', 'https']
    }),
    methods: Type.Optional(Type.Array(Type.String({ pattern: '^[A-Z]+$' }), { uniqueItems: true })),
    hosts: Type.Optional(Type.Array(Type.String({ minLength: 1, format: 'postern-route-host' }))),
    paths: Type.Optional(Type.Array(Type.String({ format: 'postern-route-path' }))),
    headers: Type.Optional(
      Type.Record(
        Type.String({ pattern: "^[!#$%&'*+\\-.^_`|~0-9A-Za-z]+$" }),
        Type.Array(Type.String(), { minItems: 1 }),
        strict
      )
    ),
    snis: Type.Optional(Type.Array(Type.String({ minLength: 1, format: 'postern-sni' }))),
    sources: Type.Optional(Type.Array(Type.Unknown())),
    destinations: Type.Optional(Type.Array(Type.Unknown())),
    regex_priority: Type.Integer({ default: 0, minimum: 0, maximum: 4294967295 }),
    /** Default true; false for grpc and grpcs. */
    strip_path: Type.Boolean({ default: true }),
    path_handling: oneOf(['v0', 'v1'], { default: 'v0' }),
    preserve_host: Type.Boolean({ default: false }),
    https_redirect_status_code: oneOf([426, 301, 302, 307, 308], { default: 426 }),
    request_buffering: Type.Boolean({ default: true }),
    response_buffering: Type.Boolean({ default: true })
  },
  strict
)

export const ConsumerSchema = Type.Object(
  {
    ...common,
    username: Type.Optional(Type.String({ minLength: 1 })),
    custom_id: Type.Optional(Type.String({ minLength: 1 }))
  },
  strict
)

export const KeyAuthCredentialSchema = Type.Object(
  {
    ...common,
    consumer: Foreign,
    key: referenceable(Type.String({ minLength: 1 })),
    ttl: Type.Optional(Type.Integer({ minimum: 0 }))
  },
  strict
)

export const BasicAuthCredentialSchema = Type.Object(
  {
    ...common,
    consumer: Foreign,
    username: referenceable(Type.String({ minLength: 1 })),
    password: referenceable(Type.String())
  },
  strict
)

export const AclSchema = Type.Object(
  { ...common, consumer: Foreign, group: Type.String({ minLength: 1 }) },
  strict
)

export const PluginEntitySchema = Type.Object(
  {
    ...common,
    name: Type.String({ minLength: 1 }),
    instance_name: Type.Optional(Name),
    config: Type.Record(Type.String(), Type.Unknown(), { default: {} }),
    enabled: Type.Boolean({ default: true }),
    protocols: Type.Optional(Type.Array(oneOf(protocolNames), { minItems: 1, uniqueItems: true })),
    service: Type.Optional(Foreign),
    route: Type.Optional(Foreign),
    consumer: Type.Optional(Foreign)
  },
  strict
)

export const UpstreamSchema = Type.Object(
  {
    ...common,
    name: Type.String({ minLength: 1, format: 'postern-upstream-name' }),
    algorithm: oneOf(
      ['round-robin', 'consistent-hashing', 'least-connections', 'latency', 'sticky-sessions'],
      {
        default: 'round-robin'
      }
    ),
    slots: Type.Integer({ minimum: 10, maximum: 65536, default: 10000 }),
    hash_on: oneOf(
      ['none', 'consumer', 'ip', 'header', 'cookie', 'path', 'query_arg', 'uri_capture'],
      {
        default: 'none'
      }
    ),
    hash_fallback: oneOf(
      ['none', 'consumer', 'ip', 'header', 'cookie', 'path', 'query_arg', 'uri_capture'],
      {
        default: 'none'
      }
    ),
    hash_on_header: Type.Optional(HeaderName),
    hash_fallback_header: Type.Optional(HeaderName),
    hash_on_cookie: Type.Optional(Type.String({ minLength: 1 })),
    hash_on_cookie_path: Type.String({ format: 'postern-path', default: '/' }),
    hash_on_query_arg: Type.Optional(Type.String({ minLength: 1 })),
    hash_fallback_query_arg: Type.Optional(Type.String({ minLength: 1 })),
    hash_on_uri_capture: Type.Optional(Type.String({ minLength: 1 })),
    hash_fallback_uri_capture: Type.Optional(Type.String({ minLength: 1 })),
    sticky_sessions_cookie: Type.Optional(Type.String({ minLength: 1 })),
    sticky_sessions_cookie_path: Type.Optional(Path),
    host_header: Type.Optional(Type.String({ minLength: 1, format: 'postern-host-port' })),
    use_srv_name: Type.Boolean({ default: false }),
    client_certificate: Type.Optional(Foreign),
    healthchecks: HealthChecksSchema
  },
  strict
)

export const TargetSchema = Type.Object(
  {
    ...common,
    /** `host:port`; the port is 8000 when the file gives none. */
    target: Type.String({ minLength: 1, format: 'postern-target' }),
    weight: Type.Integer({ minimum: 0, maximum: 65535, default: 100 }),
    upstream: Foreign,
    failover: Type.Optional(Type.Boolean({ default: false }))
  },
  strict
)

export const VaultSchema = Type.Object(
  {
    ...common,
    prefix: Type.String({ pattern: '^[a-z][a-z0-9-]*[a-z0-9]$' }),
    name: Type.String({ minLength: 1 }),
    description: Type.Optional(Type.String()),
    config: Type.Record(Type.String(), Type.Unknown(), { default: {} })
  },
  strict
)

export const CertificateSchema = Type.Object(
  {
    ...common,
    cert: referenceable(Type.String({ format: 'postern-certificate' })),
    key: referenceable(Type.String({ format: 'postern-private-key' })),
    cert_alt: Type.Optional(referenceable(Type.String({ format: 'postern-certificate' }))),
    key_alt: Type.Optional(referenceable(Type.String({ format: 'postern-private-key' })))
  },
  strict
)

export const SniSchema = Type.Object(
  { ...common, name: Type.String({ minLength: 1, format: 'postern-sni' }), certificate: Foreign },
  strict
)

export const CaCertificateSchema = Type.Object(
  {
    ...common,
    cert: referenceable(Type.String({ format: 'postern-ca-certificate' })),
    cert_digest: Type.Optional(Type.String())
  },
  strict
)

export type Service = Readonly<Static<typeof ServiceSchema>>
export type Route = Readonly<Static<typeof RouteSchema>>
export type Consumer = Readonly<Static<typeof ConsumerSchema>>
export type KeyAuthCredential = Readonly<Static<typeof KeyAuthCredentialSchema>>
export type BasicAuthCredential = Readonly<Static<typeof BasicAuthCredentialSchema>>
export type Acl = Readonly<Static<typeof AclSchema>>
export type PluginEntity = Readonly<Static<typeof PluginEntitySchema>>
export type Upstream = Readonly<Static<typeof UpstreamSchema>>
export type HealthChecks = Upstream['healthchecks']
export type Target = Readonly<Static<typeof TargetSchema>>
export type VaultEntity = Readonly<Static<typeof VaultSchema>>
export type Certificate = Readonly<Static<typeof CertificateSchema>>
export type Sni = Readonly<Static<typeof SniSchema>>
export type CaCertificate = Readonly<Static<typeof CaCertificateSchema>>
