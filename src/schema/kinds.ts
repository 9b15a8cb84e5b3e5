import type { TSchema } from 'typebox'
import {
  AclSchema,
  BasicAuthCredentialSchema,
  CaCertificateSchema,
  CertificateSchema,
  ConsumerSchema,
  KeyAuthCredentialSchema,
  PluginEntitySchema,
  RouteSchema,
  ServiceSchema,
  SniSchema,
  TargetSchema,
  UpstreamSchema,
  VaultSchema
} from './entities.ts'

/** What the loader knows about one kind of entity. */
export interface Kind {
  /** Its plural, the name of its array in the file. */
  readonly name: string
  readonly schema: TSchema
  /** The field other entities name it by. */
  readonly key?: string
  /** Fields whose value no other entity of the kind has. */
  readonly unique: readonly string[]
  /** Foreign fields and the kinds they name; an entity nests under each of these kinds. */
  readonly foreign: Readonly<Record<string, string>>
}

/** Every kind this release serves; a kind stands after those its id depends on. */
export const kinds: readonly Kind[] = [
  { name: 'vaults', schema: VaultSchema, key: 'prefix', unique: ['prefix'], foreign: {} },
  { name: 'certificates', schema: CertificateSchema, unique: [], foreign: {} },
  { name: 'ca_certificates', schema: CaCertificateSchema, unique: ['cert'], foreign: {} },
  {
    name: 'services',
    schema: ServiceSchema,
    key: 'name',
    unique: ['name'],
    foreign: { client_certificate: 'certificates' }
  },
  {
    name: 'routes',
    schema: RouteSchema,
    key: 'name',
    unique: ['name'],
    foreign: { service: 'services' }
  },
  {
    name: 'consumers',
    schema: ConsumerSchema,
    key: 'username',
    unique: ['username', 'custom_id'],
    foreign: {}
  },
  {
    name: 'upstreams',
    schema: UpstreamSchema,
    key: 'name',
    unique: ['name'],
    foreign: { client_certificate: 'certificates' }
  },
  {
    name: 'targets',
    schema: TargetSchema,
    key: 'target',
    unique: [],
    foreign: { upstream: 'upstreams' }
  },
  {
    name: 'snis',
    schema: SniSchema,
    key: 'name',
    unique: ['name'],
    foreign: { certificate: 'certificates' }
  },
  {
    name: 'keyauth_credentials',
    schema: KeyAuthCredentialSchema,
    key: 'key',
    unique: ['key'],
    foreign: { consumer: 'consumers' }
  },
  {
    name: 'basicauth_credentials',
    schema: BasicAuthCredentialSchema,
    key: 'username',
    unique: ['username'],
    foreign: { consumer: 'consumers' }
  },
  { name: 'acls', schema: AclSchema, unique: [], foreign: { consumer: 'consumers' } },
  {
    name: 'plugins',
    schema: PluginEntitySchema,
    key: 'instance_name',
    unique: ['instance_name'],
    foreign: { service: 'services', route: 'routes', consumer: 'consumers' }
  }
]

export const kindsByName: ReadonlyMap<string, Kind> = new Map(kinds.map(kind => [kind.name, kind]))

/** The foreign field by which entities of `child` belong to `parent` when nested there. */
export function nestingField(parent: Kind, child: Kind): string | undefined {
  return Object.keys(child.foreign).find(field => child.foreign[field] === parent.name)
}

/** Kinds the file format has and this release does not serve: told once each, otherwise ignored. */
export const unservedKinds: ReadonlySet<string> = new Set([
  'keys',
  'key_sets',
  'filter_chains',
  'workspaces',
  'parameters',
  'licenses',
  'clustering_data_planes',
  'consumer_groups',
  'consumer_group_consumers',
  'consumer_group_plugins',
  'groups',
  'partials',
  'plugins_partials',
  'cloned_plugins',
  'custom_plugins',
  'event_hooks',
  'hmacauth_credentials',
  'jwt_secrets',
  'oauth2_credentials',
  'oauth2_tokens',
  'oauth2_authorization_codes',
  'mtls_auth_credentials',
  'keyauth_enc_credentials',
  'header_cert_auth_credentials',
  'acme_storage',
  'sessions',
  'degraphql_routes',
  'graphql_ratelimiting_advanced_cost_decoration',
  'document_objects',
  'files',
  'admins',
  'rbac_roles',
  'rbac_role_endpoints',
  'rbac_role_entities',
  'rbac_users',
  'service_packages',
  'service_versions'
])

/** Root keys that other tools write and a gateway has no use for. */
export const toolKeys: ReadonlySet<string> = new Set([
  '_comment',
  '_ignore',
  '_info',
  '_konnect',
  '_workspace',
  '_plugin_configs'
])

/** Fields of Kong's paid or other flavours: ignoring them would change what a file means. */
export const unservedFields: Readonly<Record<string, readonly string[]>> = {
  plugins: ['consumer_group', 'ordering', 'partials', 'condition'],
  routes: ['expression', 'priority']
}

/** Plugin names that are right for the format but may not be part of a release. */
export const knownPlugins: ReadonlySet<string> = new Set(
  `acl acme ai-azure-content-safety ai-mcp-proxy ai-prompt-compressor ai-prompt-decorator ai-prompt-guard
  ai-prompt-template ai-proxy ai-proxy-advanced ai-rag-injector ai-rate-limiting-advanced
  ai-request-transformer ai-response-transformer ai-sanitizer ai-semantic-cache
  ai-semantic-prompt-guard app-dynamics aws-lambda azure-functions basic-auth bot-detection canary
  confluent confluent-consume correlation-id cors datadog datakit degraphql exit-transformer file-log
  forward-proxy graphql-proxy-cache-advanced graphql-rate-limiting-advanced grpc-gateway grpc-web
  header-cert-auth hmac-auth http-log injection-protection ip-restriction jq json-threat-protection
  jwe-decrypt jwt jwt-signer kafka-consume kafka-log kafka-upstream key-auth key-auth-enc
  konnect-application-auth ldap-auth ldap-auth-advanced loggly mocking mtls-auth oas-validation oauth2
  oauth2-introspection opa openid-connect opentelemetry post-function pre-function prometheus
  proxy-cache proxy-cache-advanced rate-limiting rate-limiting-advanced redirect request-callout
  request-size-limiting request-termination request-transformer request-transformer-advanced
  request-validator response-ratelimiting response-transformer response-transformer-advanced
  route-by-header route-transformer-advanced saml service-protection session solace-consume solace-log
  solace-upstream standard-webhooks statsd statsd-advanced syslog tcp-log tls-handshake-modifier
  tls-metadata-headers udp-log upstream-oauth upstream-timeout vault-auth websocket-size-limit
  websocket-validator xml-threat-protection zipkin`.split(/\s+/)
)
