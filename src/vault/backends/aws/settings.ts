import { type Static, type TSchema, Type } from 'typebox'
import { VaultMisconfigured } from '../../../errors.ts'
import { requireIf } from '../require-if.ts'

const text = (description: string) => Type.Optional(Type.String({ minLength: 1, description }))
const url = (description: string) =>
  Type.Optional(
    Type.String({
      pattern: '^https?://[^\\s/]\\S*$',
      examples: ['https://vpce.internal'],
      description
    })
  )

const REGION = '^[a-z]{2,8}(-[a-z]+)+-[0-9]{1,2}$'

const identity = {
  access_key_id: text(
    'With `secret_access_key`; without them the default chain finds credentials.'
  ),
  secret_access_key: text('With `access_key_id`.'),
  session_token: text('With temporary keys.'),
  assume_role_arn: text('A role to assume with the credentials found.'),
  role_session_name: text('Name of its session. Default `postern`.'),
  external_id: text('What the role’s trust policy asks of third parties.'),
  sts_endpoint_url: url('Another STS to assume the role at. Default: that of the region.')
}
const connection = {
  endpoint_url: url('Another endpoint, of a VPC say. Default: that of the region.')
}

const shape = Type.Object(
  {
    region: Type.Optional(
      Type.String({
        pattern: REGION,
        examples: ['eu-central-1'],
        description: 'Default `AWS_REGION`, `AWS_DEFAULT_REGION` or the region of the profile.'
      })
    ),
    ...connection,
    ...identity
  },
  { additionalProperties: false }
)

/** The settings of a vault of type aws, by Kong's names where Kong has them. */
export const awsSchema: TSchema = {
  ...shape,
  // Keys come in pairs; a session is that of a pair.
  allOf: [
    ['access_key_id', 'secret_access_key'],
    ['secret_access_key', 'access_key_id'],
    ['session_token', 'access_key_id']
  ].map(([given, needed]) => requireIf({ required: [given] }, needed!))
} as unknown as TSchema

/** What a reference may not override: who asks, and where. Another region is asked as the same. */
export const protectedFields: readonly string[] = [
  ...Object.keys(connection),
  ...Object.keys(identity)
]

export type AwsSettings = Static<typeof shape>

/** Throws VaultMisconfigured for what would be sent to AWS only to be refused there. */
export function settingsOf(config: Readonly<Record<string, unknown>>): AwsSettings {
  const settings = config as AwsSettings
  if (settings.region !== undefined && !new RegExp(REGION).test(settings.region)) {
    throw new VaultMisconfigured('region is no region of AWS', 'Set it to one like eu-central-1')
  }
  if ((settings.access_key_id === undefined) !== (settings.secret_access_key === undefined)) {
    throw new VaultMisconfigured(
      'access_key_id and secret_access_key come together',
      'Set both, or neither to use the default chain'
    )
  }
  return settings
}
