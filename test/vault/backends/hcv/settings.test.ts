import t from 'tap'
import { validateAuthored } from '../../../../src/schema/validator.ts'
import { vaultConfigSchema } from '../../../../src/schema/vault-config.ts'
import { settingsOf } from '../../../../src/vault/backends/hcv/settings.ts'
import { hcvBackend } from '../../../../src/vault/backends/hcv.ts'

const schema = vaultConfigSchema(hcvBackend.schema)
const complaints = (config: object) =>
  validateAuthored(schema, config).map(
    ({ segments, message }) => `${segments.join('.')}: ${message}`
  )

await t.test(
  'what each auth method needs is told by check, and once more when a vault opens',
  async t => {
    const lacking: readonly (readonly [object, readonly string[]])[] = [
      [{}, ['token']],
      [{ auth_method: 'token' }, ['token']],
      [{ auth_method: 'kubernetes' }, ['kube_role']],
      [{ auth_method: 'approle' }, ['approle_role_id', 'approle_secret_id']],
      [{ auth_method: 'cert', protocol: 'https' }, ['cert_auth_cert', 'cert_auth_cert_key']],
      [
        { auth_method: 'jwt' },
        ['jwt_role', 'oauth2_token_endpoint', 'oauth2_client_id', 'oauth2_client_secret']
      ],
      [{ auth_method: 'jwt', jwt_token_file: '/t' }, ['jwt_role']],
      [
        { auth_method: 'oauth2', jwt_role: 'r' },
        ['oauth2_token_endpoint', 'oauth2_client_id', 'oauth2_client_secret']
      ],
      [{ auth_method: 'gcp_iam' }, ['gcp_auth_role', 'gcp_service_account', 'gcp_jwt_exp']],
      [{ auth_method: 'gcp_gce' }, ['gcp_auth_role']],
      [{ auth_method: 'azure' }, ['azure_auth_role']],
      [{ auth_method: 'aws_ec2' }, ['aws_auth_role', 'aws_auth_nonce']],
      [{ auth_method: 'aws_iam' }, ['aws_auth_role', 'aws_auth_region']],
      [{ auth_method: 'userpass' }, ['userpass_username', 'userpass_password']]
    ]
    for (const [config, names] of lacking) {
      t.strictSame(
        complaints(config),
        names.map(name => `${name}: required field missing`),
        JSON.stringify(config)
      )
      t.throws(() => settingsOf(config as Record<string, unknown>), {
        code: 'POSTERN_VAULT_SETTINGS',
        message: new RegExp(`needs ${names[0]}`)
      })
      const whole = { ...config, ...Object.fromEntries(names.map(name => [name, 'x'])) }
      t.doesNotThrow(() => settingsOf(whole), JSON.stringify(whole))
    }
  }
)

await t.test('other spellings, alternatives and pairs', async t => {
  t.strictSame(complaints({ token_file: '/run/token' }), [])
  t.strictSame(
    complaints({
      auth_method: 'oauth2',
      oauth2_role_name: 'r',
      oauth2_token_endpoint: 'https://idp/token',
      oauth2_client_id: 'i',
      oauth2_client_secret: 's'
    }),
    []
  )
  t.strictSame(
    complaints({ auth_method: 'approle', approle_role_id: 'r', approle_secret_id: ' ' }),
    ['approle_secret_id: invalid value']
  )
  t.strictSame(complaints({ token: 't', ssl_cert: 'c' }), ['ssl_cert_key: required field missing'])
  t.strictSame(complaints({ token: 't', aws_secret_access_key: 'c' }), [
    'aws_access_key_id: required field missing'
  ])
  t.match(complaints({ token: 't', kv: 'v3', port: 0 }), [/^port/, /^kv/])
  t.strictSame(complaints({ token: '{vault://env/t}', port: '{vault://env/p}', ttl: 60 }), [])
})

await t.test('defaults and forms', async t => {
  t.match(settingsOf({ token: 't' }), {
    protocol: 'http',
    host: '127.0.0.1',
    port: 8200,
    mount: 'secret',
    kv: 'v1',
    ssl_verify: true,
    auth_method: 'token',
    redirect_hosts: []
  })
  const { mount, redirect_hosts } = settingsOf({
    token: 't',
    mount: '/a/b/',
    redirect_hosts: 'one, two:8200,'
  })
  t.equal(mount, 'a/b')
  t.strictSame(redirect_hosts, ['one', 'two:8200'])
})

await t.test('a mount that gives out credentials is refused', async t => {
  for (const mount of ['sys', 'auth/token', '/auth/', 'cubbyhole', 'secret/../auth', '..']) {
    t.throws(() => settingsOf({ token: 't', mount }), { code: 'POSTERN_VAULT_SETTINGS' }, mount)
  }
  t.doesNotThrow(() => settingsOf({ token: 't', mount: 'system' }))
})

await t.test('a reference may choose what is read, not who asks where', async t => {
  const open = ['mount', 'kv']
  const { properties } = hcvBackend.schema as unknown as { properties: object }
  for (const name of Object.keys(properties)) {
    t.equal(hcvBackend.protectedFields.includes(name), !open.includes(name), name)
  }
})
