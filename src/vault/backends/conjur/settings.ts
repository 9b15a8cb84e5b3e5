import { type Static, type TSchema, Type } from 'typebox'
import { VaultMisconfigured } from '../../../errors.ts'
import { requireIf } from '../require-if.ts'

const text = (description: string) => Type.Optional(Type.String({ minLength: 1, description }))

const shape = Type.Object(
  {
    endpoint_url: Type.String({
      pattern: '^https?://[^\\s/]\\S*$',
      examples: ['https://conjur.internal'],
      description: 'Address of the server.'
    }),
    account: Type.String({ minLength: 1, description: 'The organisation account.' }),
    auth_method: Type.Optional(
      Type.Unsafe<'api_key' | 'jwt'>({
        enum: ['api_key', 'jwt'],
        description: 'How the gateway proves who it is. Default `api_key`.'
      })
    ),
    login: text(
      'A user, or a host as `host/BotApp/gateway`. With jwt it may be left to the token.'
    ),
    api_key: text('With `api_key`.'),
    service_id: text('The authn-jwt service, with `jwt`.'),
    jwt: text('The token itself, with `jwt`.'),
    jwt_file: text('A file with the token, read at each login.'),
    ca_cert: text('The authority of the server: PEM text, or the path of a PEM file.'),
    ssl_verify: Type.Optional(
      Type.Boolean({ description: 'Whether the server’s certificate is verified. Default true.' })
    )
  },
  { additionalProperties: false }
)

const byKey = { properties: { auth_method: { const: 'api_key' } } }
const byToken = {
  properties: { auth_method: { const: 'jwt' } },
  required: ['auth_method']
}

/** The settings of a vault of type conjur, by Kong's names where Kong has them. */
export const conjurSchema: TSchema = {
  ...shape,
  allOf: [
    requireIf(byKey, 'login'),
    requireIf(byKey, 'api_key'),
    requireIf(byToken, 'service_id'),
    requireIf({ ...byToken, not: { required: ['jwt'] } }, 'jwt_file', ['jwt'])
  ]
} as unknown as TSchema

/** Everything says who asks, or where. */
export const protectedFields: readonly string[] = Object.keys(shape.properties)

export type ConjurSettings = Static<typeof shape>

/** Throws VaultMisconfigured for settings no login could be made with. */
export function settingsOf(config: Readonly<Record<string, unknown>>): ConjurSettings {
  const settings = config as ConjurSettings
  if (settings.auth_method === 'jwt') {
    if (settings.service_id === undefined) {
      throw new VaultMisconfigured(
        'jwt needs service_id',
        'Set it to the id of the authn-jwt service'
      )
    }
    if (settings.jwt === undefined && settings.jwt_file === undefined) {
      throw new VaultMisconfigured('jwt needs a token', 'Set jwt_file, or jwt')
    }
  } else if (settings.login === undefined || settings.api_key === undefined) {
    throw new VaultMisconfigured('api_key needs login and api_key', 'Set both')
  }
  return settings
}
