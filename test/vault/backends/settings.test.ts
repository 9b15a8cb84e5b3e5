import t from 'tap'
import { validateAuthored } from '../../../src/schema/validator.ts'
import { vaultConfigSchema } from '../../../src/schema/vault-config.ts'
import { backendTypes } from '../../../src/vault/backends/index.ts'

/** What a file is told about a vault's settings without asking anyone: field, message and fix. */
function complaints(name: string, config: object): readonly string[] {
  const type = backendTypes.find(each => each.name === name)!
  return validateAuthored(vaultConfigSchema(type.schema), config).map(
    ({ segments, message, fix }) => `${segments.join('.')}: ${message}. ${fix}`
  )
}

await t.test('what settings need of each other is known without asking a vault', async t => {
  const conjur = { endpoint_url: 'https://conjur.internal', account: 'acme' }
  const cert = { auth_method: 'cert', cert_auth_cert: 'c', cert_auth_cert_key: 'k' }
  for (const [type, config, expected] of [
    ['aws', { access_key_id: 'a' }, [/^secret_access_key: required/]],
    ['aws', { secret_access_key: 'a' }, [/^access_key_id: required/]],
    ['aws', { session_token: 'a' }, [/^access_key_id: required/]],
    ['aws', { access_key_id: 'a', secret_access_key: '{vault://env/s}', session_token: 's' }, []],
    ['conjur', conjur, [/^login: required/, /^api_key: required/]],
    ['conjur', { ...conjur, login: 'l', api_key: '{vault://env/k}' }, []],
    [
      'conjur',
      { ...conjur, auth_method: 'jwt' },
      [/^service_id: required/, /^jwt_file: required.* jwt will do, too/]
    ],
    ['conjur', { ...conjur, auth_method: 'jwt', service_id: 's', jwt: 'j' }, []],
    ['hcv', cert, [/^protocol: required/]],
    ['hcv', { ...cert, protocol: 'http' }, [/^protocol: expected one of: https/]],
    ['hcv', { ...cert, protocol: '{vault://env/p}' }, []],
    [
      'hcv',
      { auth_method: 'approle', approle_role_id: 'r' },
      [/^approle_secret_id: .* approle_secret_id_file will do, too/]
    ]
  ] as const) {
    const told = complaints(type, config)
    t.equal(told.length, expected.length, `${type} ${JSON.stringify(config)}: ${told.join('; ')}`)
    for (const [i, pattern] of expected.entries()) t.match(told[i], pattern)
  }
})

await t.test('hosts of every form', async t => {
  for (const host of ['vault', 'vault.internal', 'vault_1', '127.0.0.1', '::1', 'fe80::a:1'])
    t.same(complaints('hcv', { token: 't', host }), [], host)
})

await t.test('a text of the wrong form is told with one of the right form', async t => {
  for (const [type, field, text, told] of [
    ['aws', 'region', 'nowhere', 'eu-central-1'],
    ['aws', 'endpoint_url', 'secretsmanager.internal', 'https://'],
    ['gcp', 'project_id', 'My Project', 'my-project-123'],
    ['gcp', 'location', 'EUROPE', 'europe-west3'],
    ['azure', 'vault_uri', 'https://', 'https://my-vault.vault.azure.net'],
    ['conjur', 'endpoint_url', 'conjur', 'https://conjur.internal'],
    ['hcv', 'oauth2_token_endpoint', 'idp', 'https://login.internal/oauth2/token'],
    ['hcv', 'host', 'https://vault.internal', 'vault.internal'],
    ['hcv', 'host', '127.0.0.1:8200', 'vault.internal'],
    ['aws', 'endpoint_url', 'https://bad host', 'https://'],
    ['azure', 'tenant_id', 'not a tenant', '11111111-'],
    ['hcv', 'token', ' ', 'It is blank']
  ] as const) {
    const complaint = complaints(type, { [field]: text }).find(each => each.startsWith(field))
    t.match(complaint ?? 'none', told)
  }
})
