import { type Static, type TSchema, Type } from 'typebox'
import { VaultMisconfigured } from '../../../errors.ts'
import { requireIf } from '../require-if.ts'

const BLANK_FREE = '\\S'
/** A name or an address of either version; neither scheme nor port, which have settings of their own. */
const HOST = '^([A-Za-z0-9._-]+|[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*)$'

const text = (description: string) => Type.Optional(Type.String({ minLength: 1, description }))
const named = (description: string) =>
  Type.Optional(Type.String({ pattern: BLANK_FREE, description }))
const choice = <const T extends string>(values: readonly T[], description: string) =>
  Type.Optional(Type.Unsafe<T>({ type: 'string', enum: [...values], description }))

/** Where the vault is and how its connection is trusted. */
const connection = {
  protocol: choice(['http', 'https'], 'Default `http`.'),
  host: Type.Optional(
    Type.String({
      pattern: HOST,
      examples: ['vault.internal'],
      description: 'Name or address. Default `127.0.0.1`.'
    })
  ),
  port: Type.Optional(Type.Integer({ minimum: 1, maximum: 65535, description: 'Default 8200.' })),
  namespace: text('Sent as `X-Vault-Namespace`.'),
  ssl_verify: Type.Optional(
    Type.Boolean({ description: 'Whether the certificate of the vault is checked. Default true.' })
  ),
  ssl_ca: named('Certificates to trust instead of the system’s: PEM, or the path of a PEM file.'),
  ssl_cert: named('Client certificate for mutual TLS: PEM, or the path of a PEM file.'),
  ssl_cert_key: named('Its key: PEM, or the path of a PEM file.'),
  ssl_server_name: text('The name the certificate must be for, where it is not `host`.'),
  redirect_hosts: text(
    'Hosts a standby may redirect to besides `host`: `name` or `name:port`, separated by commas.'
  )
}

/** What is read. */
const engine = {
  mount: text('Path of the secrets engine. Default `secret`.'),
  kv: choice(
    ['v1', 'v2'],
    'Version of the key-value engine. Default `v1`, which is also how other engines are read.'
  )
}

const METHODS = [
  'token',
  'kubernetes',
  'approle',
  'cert',
  'jwt',
  'oauth2',
  'gcp_iam',
  'gcp_gce',
  'azure',
  'aws_ec2',
  'aws_iam',
  'userpass'
] as const

/** Who asks: the settings of each auth method. */
const authentication = {
  auth_method: choice(METHODS, 'Default `token`. `oauth2` is another name of `jwt`.'),
  token: named('token: the token.'),
  token_file: named(
    'token: a file holding it (of an agent’s sink), read again when it is refused.'
  ),
  kube_role: named('kubernetes: the role.'),
  kube_auth_path: named('kubernetes: path of the auth method. Default `kubernetes`.'),
  kube_api_token_file: named(
    'kubernetes: file of the service account’s token. Default `/run/secrets/kubernetes.io/serviceaccount/token`.'
  ),
  approle_role_id: named('approle: the role id.'),
  approle_secret_id: named('approle: the secret id.'),
  approle_secret_id_file: named('approle: a file holding the secret id, read at each login.'),
  approle_auth_path: named('approle: path of the auth method. Default `approle`.'),
  approle_response_wrapping: Type.Optional(
    Type.Boolean({
      description: 'approle: whether the secret id is a wrapping token to unwrap. Default false.'
    })
  ),
  cert_auth_cert: named('cert: the client certificate: PEM, or the path of a PEM file.'),
  cert_auth_cert_key: named('cert: its key: PEM, or the path of a PEM file.'),
  cert_auth_role_name: named('cert: the role; without it the vault tries all that fit.'),
  cert_auth_path: named('cert: path of the auth method. Default `cert`.'),
  jwt_role: named('jwt: the role.'),
  oauth2_role_name: named('jwt: another name of `jwt_role`.'),
  jwt_auth_path: named('jwt: path of the auth method. Default `jwt`.'),
  jwt_token_file: named('jwt: a file holding the JWT, instead of asking an identity provider.'),
  oauth2_token_endpoint: Type.Optional(
    Type.String({
      pattern: '^https?://[^\\s/]\\S*$',
      examples: ['https://login.internal/oauth2/token'],
      description: 'jwt: token endpoint of the provider.'
    })
  ),
  oauth2_client_id: named('jwt: client id at the identity provider.'),
  oauth2_client_secret: named('jwt: client secret at the identity provider.'),
  oauth2_audiences: named('jwt: audiences to ask for, separated by commas.'),
  gcp_auth_role: named('gcp_iam, gcp_gce: the role.'),
  gcp_service_account: named('gcp_iam: e-mail of the service account that signs.'),
  gcp_jwt_exp: Type.Optional(
    Type.Integer({ minimum: 0, maximum: 900, description: 'gcp_iam: life of the JWT in seconds.' })
  ),
  gcp_login_path: named('gcp_iam, gcp_gce: default `/v1/auth/gcp/login`.'),
  azure_auth_role: named('azure: the role.'),
  azure_login_path: named('azure: default `/v1/auth/azure/login`.'),
  azure_resource: named(
    'azure: audience of the managed identity’s token. Default `https://management.azure.com/`.'
  ),
  aws_auth_role: named('aws_ec2, aws_iam: the role.'),
  aws_auth_nonce: named('aws_ec2: the nonce of this instance.'),
  aws_login_path: named('aws_ec2, aws_iam: default `/v1/auth/aws/login`.'),
  aws_auth_region: named('aws_iam: region of the STS that vouches.'),
  aws_access_key_id: named('aws_iam: with `aws_secret_access_key`, else the default chain.'),
  aws_secret_access_key: named('aws_iam: with `aws_access_key_id`.'),
  aws_sts_endpoint_url: Type.Optional(
    Type.String({
      pattern: '^https?://[^\\s/]\\S*$',
      examples: ['https://sts.eu-central-1.amazonaws.com'],
      description: 'aws_iam: another STS, to assume the role.'
    })
  ),
  aws_assume_role_arn: named('aws_iam: a role to assume first.'),
  aws_role_session_name: named('aws_iam: name of its session. Default `postern`.'),
  aws_iam_server_id: named('aws_iam: value of `X-Vault-AWS-IAM-Server-ID`, signed with the rest.'),
  userpass_username: named('userpass: the user.'),
  userpass_password: named('userpass: the password.'),
  userpass_auth_path: named('userpass: path of the auth method. Default `userpass`.')
}

const fields = { ...connection, ...engine, ...authentication }

/** A setting of a vault of type hcv. */
export type SettingName = keyof typeof fields
type Method = (typeof METHODS)[number]

/** What a method cannot do without: each entry is one setting, or several of which one will do. */
const NEEDS: Readonly<Record<Method, readonly (readonly SettingName[])[]>> = {
  token: [['token', 'token_file']],
  kubernetes: [['kube_role']],
  approle: [['approle_role_id'], ['approle_secret_id', 'approle_secret_id_file']],
  cert: [['cert_auth_cert'], ['cert_auth_cert_key']],
  jwt: [
    ['jwt_role', 'oauth2_role_name'],
    ['oauth2_token_endpoint', 'jwt_token_file'],
    ['oauth2_client_id', 'jwt_token_file'],
    ['oauth2_client_secret', 'jwt_token_file']
  ],
  oauth2: [
    ['oauth2_role_name', 'jwt_role'],
    ['oauth2_token_endpoint'],
    ['oauth2_client_id'],
    ['oauth2_client_secret']
  ],
  gcp_iam: [['gcp_auth_role'], ['gcp_service_account'], ['gcp_jwt_exp']],
  gcp_gce: [['gcp_auth_role']],
  azure: [['azure_auth_role']],
  aws_ec2: [['aws_auth_role'], ['aws_auth_nonce']],
  aws_iam: [['aws_auth_role'], ['aws_auth_region']],
  userpass: [['userpass_username'], ['userpass_password']]
}

/** Settings that come together. */
const PAIRS: readonly (readonly [SettingName, SettingName])[] = [
  ['aws_access_key_id', 'aws_secret_access_key'],
  ['aws_secret_access_key', 'aws_access_key_id'],
  ['ssl_cert', 'ssl_cert_key'],
  ['ssl_cert_key', 'ssl_cert']
]

/** What each method needs unless an alternative is there, and what comes together. */
function requirements(): readonly object[] {
  const needed = Object.entries(NEEDS).flatMap(([method, needs]) => {
    const chosen = {
      properties: { auth_method: { const: method } },
      ...(method === 'token' ? {} : { required: ['auth_method'] })
    }
    return needs.map(([setting, ...others]) => {
      const without = { not: { anyOf: others.map(name => ({ required: [name] })) } }
      return requireIf(others.length === 0 ? chosen : { ...chosen, ...without }, setting!, others)
    })
  })
  return [
    ...needed,
    ...PAIRS.map(([one, other]) => requireIf({ required: [one] }, other)),
    OVER_TLS
  ]
}

/** A client certificate is shown over TLS alone. */
const OVER_TLS = {
  if: { properties: { auth_method: { const: 'cert' } }, required: ['auth_method'] },
  // biome-ignore lint/suspicious/noThenProperty: a keyword of JSON Schema
  then: {
    properties: {
      protocol: {
        type: 'string',
        const: 'https',
        referenceable: true,
        description: 'https, since a certificate is shown over TLS alone'
      }
    },
    required: ['protocol']
  }
}

const shape = Type.Object(fields, { additionalProperties: false })

/** The settings of a vault of type hcv, by Kong's names where Kong has them. */
export const hcvSchema: TSchema = {
  ...shape,
  allOf: requirements()
} as unknown as TSchema

/** What a reference may not override: all but what is read with the same credential. */
export const protectedFields: readonly string[] = [
  ...Object.keys(connection),
  ...Object.keys(authentication)
]

type Optional = Static<typeof shape>

/** Settings with their defaults, lists and paths in one form. */
export interface HcvSettings extends Omit<Optional, 'redirect_hosts'> {
  readonly protocol: 'http' | 'https'
  readonly host: string
  readonly port: number
  readonly ssl_verify: boolean
  readonly mount: string
  readonly kv: 'v1' | 'v2'
  readonly auth_method: Exclude<Method, 'oauth2'>
  readonly redirect_hosts: readonly string[]
}

/** Mounts whose paths give out credentials or rule over the vault. */
const FORBIDDEN_MOUNT = /^(sys|auth|cubbyhole)(\/|$)/

/** Fills defaults in. Throws VaultMisconfigured for what a schema cannot tell. */
export function settingsOf(config: Readonly<Record<string, unknown>>): HcvSettings {
  const given = config as Optional
  const method = given.auth_method ?? 'token'
  const lacking = NEEDS[method].find(names => names.every(name => given[name] === undefined))
  if (lacking !== undefined) {
    throw new VaultMisconfigured(
      `auth_method ${method} needs ${lacking[0]}`,
      `Set ${lacking.join(' or ')}`
    )
  }
  const protocol = given.protocol ?? 'http'
  if (method === 'cert' && protocol !== 'https') {
    throw new VaultMisconfigured(
      'auth_method cert proves itself with a TLS certificate',
      'Set protocol to https'
    )
  }
  const mount = trimSlashes(given.mount ?? 'secret')
  if (FORBIDDEN_MOUNT.test(mount) || hasDotSegment(mount)) {
    throw new VaultMisconfigured(
      `the mount "${mount}" is not the path of a secrets engine`,
      'Set mount to a path that `vault secrets list` shows'
    )
  }
  return {
    ...given,
    protocol,
    host: given.host ?? '127.0.0.1',
    port: given.port ?? 8200,
    ssl_verify: given.ssl_verify ?? true,
    mount,
    kv: given.kv ?? 'v1',
    auth_method: method === 'oauth2' ? 'jwt' : method,
    redirect_hosts: listOf(given.redirect_hosts)
  }
}

/** The parts of a list written with commas. */
export function listOf(list: string | undefined): readonly string[] {
  return (list ?? '')
    .split(',')
    .map(part => part.trim())
    .filter(part => part !== '')
}

/** A path without slashes around it. */
export function trimSlashes(path: string): string {
  return path.replace(/^\/+|\/+$/g, '')
}

/** Whether a path would lead somewhere else once a URL is made of it. */
export function hasDotSegment(path: string): boolean {
  return path.split('/').some(segment => segment === '.' || segment === '..')
}
