import { type Static, type TSchema, Type } from 'typebox'
import { VaultMisconfigured } from '../../../errors.ts'

const METHODS = [
  'client_secret',
  'client_certificate',
  'workload_identity',
  'managed_identity'
] as const

const TENANT = '^[A-Za-z0-9.-]+$'

const text = (description: string) => Type.Optional(Type.String({ pattern: '\\S', description }))

const fields = {
  vault_uri: Type.String({
    pattern: '^https://[^\\s/]\\S*$',
    examples: ['https://my-vault.vault.azure.net'],
    description: 'Where the vault is, `https://my-vault.vault.azure.net` say.'
  }),
  credentials_prefix: Type.Optional(
    Type.String({
      pattern: '^[A-Za-z_][A-Za-z0-9_]*$',
      examples: ['AZURE'],
      description:
        'How the names of the variables begin that this identity is read from. Default `AZURE`.'
    })
  ),
  auth_method: Type.Optional(
    Type.Unsafe<(typeof METHODS)[number]>({
      type: 'string',
      enum: [...METHODS],
      description:
        'Default: the first of them that has what it needs; a managed identity needs nothing.'
    })
  ),
  tenant_id: Type.Optional(
    Type.String({
      pattern: TENANT,
      examples: ['11111111-2222-3333-4444-555555555555'],
      description: 'Default `<PREFIX>_TENANT_ID`.'
    })
  ),
  client_id: text('Of the application or the managed identity. Default `<PREFIX>_CLIENT_ID`.'),
  client_secret: text('Default `<PREFIX>_CLIENT_SECRET`.'),
  client_certificate: text(
    'Certificate and key as PEM, or the path of such a file. Default `<PREFIX>_CLIENT_CERTIFICATE_PATH`.'
  ),
  client_certificate_password: text('Of its key. Default `<PREFIX>_CLIENT_CERTIFICATE_PASSWORD`.'),
  federated_token_file: text('The token of the workload. Default `<PREFIX>_FEDERATED_TOKEN_FILE`.'),
  authority_host: Type.Optional(
    Type.String({
      pattern: '^https://[^\\s/]\\S*$',
      examples: ['https://login.microsoftonline.com'],
      description:
        'Where identities are proved. Default `<PREFIX>_AUTHORITY_HOST`, else `https://login.microsoftonline.com`.'
    })
  )
}

/** The settings of a vault of type azure-certs, by Kong's names where Kong has them. */
export const certificatesSchema: TSchema = Type.Object(fields, { additionalProperties: false })

/** Those of a vault of type azure. */
export const secretsSchema: TSchema = Type.Object(
  {
    ...fields,
    location: text('Taken for files of other gateways; the address says where the vault is.'),
    type: Type.Optional(
      Type.Unsafe<'secrets'>({
        type: 'string',
        enum: ['secrets'],
        description:
          'Taken for files of other gateways. Certificates have a vault type of their own.'
      })
    )
  },
  { additionalProperties: false }
)

/** All of them say who asks, and where. */
export const protectedFields: readonly string[] = [...Object.keys(fields), 'location', 'type']

const shape = Type.Object(fields)
type Given = Static<typeof shape>
type Method = (typeof METHODS)[number]

/** Settings with what the environment adds; the method and what it needs are there. */
export interface AzureSettings extends Omit<Given, 'credentials_prefix'> {
  readonly auth_method: Method
}

type Names = readonly (keyof Given)[]

/** What each method cannot do without. */
const NEEDS: Readonly<Record<Method, Names>> = {
  client_secret: ['tenant_id', 'client_id', 'client_secret'],
  client_certificate: ['tenant_id', 'client_id', 'client_certificate'],
  workload_identity: ['tenant_id', 'client_id', 'federated_token_file'],
  managed_identity: []
}

const VARIABLES = {
  tenant_id: 'TENANT_ID',
  client_id: 'CLIENT_ID',
  client_secret: 'CLIENT_SECRET',
  client_certificate: 'CLIENT_CERTIFICATE_PATH',
  client_certificate_password: 'CLIENT_CERTIFICATE_PASSWORD',
  federated_token_file: 'FEDERATED_TOKEN_FILE',
  authority_host: 'AUTHORITY_HOST'
} as const satisfies Partial<Record<keyof Given, string>>

/**
 * Fills in what comes from the environment and chooses the method, by what is configured alone: nothing
 * is asked to find out. Throws VaultMisconfigured when a method lacks what it needs.
 */
export function settingsOf(
  config: Readonly<Record<string, unknown>>,
  env: Readonly<Record<string, string | undefined>>
): AzureSettings {
  const given = config as Given
  const { credentials_prefix: prefix = 'AZURE', ...own } = given
  if (!/^https:\/\/[^/]/.test(own.vault_uri)) {
    throw new VaultMisconfigured('vault_uri is no https URL', 'Set it to the address of the vault')
  }
  const known: Given = { ...own }
  for (const [name, variable] of Object.entries(VARIABLES)) {
    const value = env[`${prefix}_${variable}`]
    if (value !== undefined && value !== '') {
      Object.assign(known, { [name]: (own as Record<string, unknown>)[name] ?? value })
    }
  }
  if (known.tenant_id !== undefined && !new RegExp(TENANT).test(known.tenant_id)) {
    throw new VaultMisconfigured(
      `tenant_id (${prefix}_TENANT_ID) is neither an id nor a domain`,
      'Set it to that of the directory'
    )
  }
  const has = (name: keyof Given): boolean => known[name] !== undefined
  const method = given.auth_method ?? METHODS.find(each => NEEDS[each].every(has))!
  const lacking = NEEDS[method].filter(name => !has(name))
  if (lacking.length > 0) {
    const variables = lacking.map(name => `${prefix}_${VARIABLES[name as keyof typeof VARIABLES]}`)
    throw new VaultMisconfigured(
      `auth_method ${method} lacks ${lacking.join(', ')}`,
      `Set it, or ${variables.join(', ')}`
    )
  }
  return { ...known, auth_method: method }
}
