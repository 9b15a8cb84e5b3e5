import { type Static, Type } from 'typebox'
import { VaultMisconfigured } from '../../../errors.ts'

const PROJECT = '^[a-z0-9][a-z0-9:.-]*[a-z0-9]$'
const LOCATION = '^[a-z]+(-[a-z]+)*-?[a-z]*[0-9]*$'
const ORDERS = ['adc', 'legacy'] as const

const connection = {
  location: Type.Optional(
    Type.String({
      pattern: LOCATION,
      examples: ['europe-west3'],
      description: 'Where regional secrets are kept. Default: the secrets are global.'
    })
  ),
  endpoint_url: Type.Optional(
    Type.String({
      pattern: '^https?://[^\\s/]+/?$',
      examples: ['https://secretmanager.internal'],
      description: 'Another endpoint of the API.'
    })
  )
}
const identity = {
  service_account: Type.Optional(
    Type.String({
      minLength: 1,
      description: 'JSON of credentials, of a service account say. Default `GCP_SERVICE_ACCOUNT`.'
    })
  ),
  auth_method_order: Type.Optional(
    Type.Unsafe<(typeof ORDERS)[number]>({
      type: 'string',
      enum: [...ORDERS],
      description:
        '`adc`: the JSON, then application default credentials. `legacy`: the metadata server, then the JSON. Default `GCP_AUTH_METHOD_ORDER`, else `adc`.'
    })
  )
}

/** The settings of a vault of type gcp, by Kong's names where Kong has them. */
export const gcpSchema = Type.Object(
  {
    project_id: Type.String({
      pattern: PROJECT,
      examples: ['my-project-123'],
      description: 'Id or number of the project.'
    }),
    ...connection,
    ...identity
  },
  { additionalProperties: false }
)

/** What a reference may not override: who asks, and where. Another project is asked as the same. */
export const protectedFields: readonly string[] = [
  ...Object.keys(connection),
  ...Object.keys(identity)
]

export interface GcpSettings extends Static<typeof gcpSchema> {
  readonly auth_method_order: (typeof ORDERS)[number]
}

/** Fills in what comes from the environment. Throws VaultMisconfigured for what cannot be. */
export function settingsOf(
  config: Readonly<Record<string, unknown>>,
  env: Readonly<Record<string, string | undefined>>
): GcpSettings {
  const given = config as Static<typeof gcpSchema>
  if (!new RegExp(PROJECT).test(given.project_id)) {
    throw new VaultMisconfigured(
      'project_id is no id of a project',
      'Set it to one like my-project-123'
    )
  }
  if (given.location !== undefined && !new RegExp(LOCATION).test(given.location)) {
    throw new VaultMisconfigured('location is no location', 'Set it to one like europe-west3')
  }
  const order = given.auth_method_order ?? env.GCP_AUTH_METHOD_ORDER?.trim() ?? 'adc'
  if (!isOrder(order)) {
    throw new VaultMisconfigured(
      'auth_method_order (GCP_AUTH_METHOD_ORDER) is neither adc nor legacy',
      'Set it to one of them'
    )
  }
  const account = given.service_account ?? env.GCP_SERVICE_ACCOUNT
  return {
    ...given,
    auth_method_order: order,
    ...(account === undefined ? {} : { service_account: account })
  }
}

function isOrder(order: string): order is (typeof ORDERS)[number] {
  return (ORDERS as readonly string[]).includes(order)
}
