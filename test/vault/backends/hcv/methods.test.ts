import t from 'tap'
import { certificateFor } from '../../../certificates.ts'
import { startUpstream, type TestUpstream } from '../../../harness.ts'
import { example } from '../../hcv/example.ts'
import { folder, jwtKey, opener } from '../../hcv/scenarios.ts'
import { type FakeVault, startFakeVault } from '../../hcv-server.ts'

// Approle, userpass, jwt and kubernetes are in test/vault/hcv/scenarios.ts, for real servers too.

const POLICY = 'path "secret/*" { capabilities = ["read"] }'

async function withRole(
  type: string,
  config: object,
  role: object,
  options = {}
): Promise<FakeVault> {
  const vault = await startFakeVault(options)
  await vault.call('POST', 'secret/data/app', { data: { a: '1' } })
  await vault.call('PUT', 'sys/policies/acl/gateway', { policy: POLICY })
  await vault.call('POST', `sys/auth/${type}`, { type })
  await vault.call('POST', `auth/${type}/config`, config)
  await vault.call('POST', `auth/${type}/role/gateway`, { token_policies: ['gateway'], ...role })
  return vault
}

const READ = { a: '1' }

/** A metadata service that answers these paths, by their beginning, and 404 else. */
function startMetadata(
  answers: Readonly<
    Record<string, (url: URL, headers: Record<string, unknown>) => string | undefined>
  >
): Promise<TestUpstream> {
  return startUpstream(({ method, url, headers }, response) => {
    const target = new URL(url, 'http://metadata')
    const key = Object.keys(answers).find(path => `${method} ${target.pathname}` === path)
    const body = key === undefined ? undefined : answers[key]!(target, headers)
    response.writeHead(body === undefined ? 404 : 200).end(body ?? 'nothing here')
  })
}

await t.test('cert', async t => {
  const tls = await certificateFor('127.0.0.1')
  const client = await certificateFor('gateway')
  const stranger = await certificateFor('stranger')
  await using vault = await withRole(
    'cert',
    {},
    { certificate: client.cert },
    {
      tls: { ...tls, clients: client.cert }
    }
  )
  const { open } = opener(t)
  const settings = example('cert', {
    port: vault.port,
    protocol: 'https',
    ssl_ca: tls.cert,
    cert_auth_cert: client.cert,
    cert_auth_cert_key: client.key
  })
  t.strictSame((await (await open(settings)).fetch('app'))?.value, READ)
  const { cert_auth_role_name: _, ...unnamed } = settings
  t.strictSame((await (await open(unnamed)).fetch('app'))?.value, READ)
  const other = { cert_auth_cert: stranger.cert, cert_auth_cert_key: stranger.key }
  for (const wrong of [other, { cert_auth_role_name: 'unknown' }]) {
    await t.rejects((await open({ ...settings, ...wrong })).fetch('app'), {
      code: 'POSTERN_VAULT_DENIED',
      message: /client certificate was not accepted/
    })
  }
  await t.rejects(open({ ...settings, protocol: 'http' }), { code: 'POSTERN_VAULT_SETTINGS' })
})

await t.test('gcp_gce', async t => {
  const google = jwtKey()
  await using vault = await withRole('gcp', { keys: [google.publicPem] }, { type: 'gce' })
  await using metadata = await startMetadata({
    'GET /computeMetadata/v1/instance/service-accounts/default/identity': (url, headers) =>
      headers['metadata-flavor'] === 'Google' && url.searchParams.get('format') === 'full'
        ? google.sign({ aud: url.searchParams.get('audience') })
        : undefined
  })
  const { open } = opener(t, { GCE_METADATA_HOST: `127.0.0.1:${metadata.port}` })
  const settings = example('gcp-gce', { port: vault.port })
  t.strictSame((await (await open(settings)).fetch('app'))?.value, READ)
  const elsewhere = await open({ ...settings, gcp_login_path: '/v1/auth/elsewhere/login' })
  await t.rejects(elsewhere.fetch('app'), {
    code: 'POSTERN_VAULT_DENIED',
    message: /a path without an auth method looks the same/
  })
})

await t.test('gcp_iam', async t => {
  const google = jwtKey()
  const account = 'gateway@project.iam.gserviceaccount.com'
  await using vault = await withRole(
    'gcp',
    { keys: [google.publicPem] },
    { type: 'iam', bound_service_accounts: [account] }
  )
  await using iam = await startUpstream(({ url, headers, body }, response) => {
    const path = `/v1/projects/-/serviceAccounts/${encodeURIComponent(account)}:signJwt`
    const good = url === path && headers.authorization === 'Bearer google-token'
    const { payload } = JSON.parse(body)
    response.writeHead(good ? 200 : 403, { 'content-type': 'application/json' })
    response.end(JSON.stringify(good ? { signedJwt: google.sign(JSON.parse(payload)) } : {}))
  })
  await using tokens = await startUpstream((_, response) => {
    response.writeHead(200, { 'content-type': 'application/json' })
    response.end(
      JSON.stringify({
        access_token: 'google-token',
        expires_in: 3600,
        token_type: 'Bearer',
        issued_token_type: 'urn:ietf:params:oauth:token-type:access_token'
      })
    )
  })
  // A federated identity: its subject token comes from one URL and is exchanged at another.
  const identity = {
    type: 'external_account',
    audience:
      '//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/p',
    subject_token_type: 'urn:ietf:params:oauth:token-type:jwt',
    token_url: `${tokens.url}/v1/token`,
    credential_source: { url: tokens.url }
  }
  const env = {
    GCP_SERVICE_ACCOUNT: JSON.stringify(identity),
    CLOUDSDK_API_ENDPOINT_OVERRIDES_IAMCREDENTIALS: `${iam.url}/`
  }
  const settings = example('gcp-iam', { port: vault.port })
  t.strictSame((await (await opener(t, env).open(settings)).fetch('app'))?.value, READ)
  const other = { ...settings, gcp_service_account: 'other@project.iam.gserviceaccount.com' }
  await t.rejects((await opener(t, env).open(other)).fetch('app'), {
    code: 'POSTERN_VAULT_DENIED',
    message: /IAM credentials API answered 403/
  })
  const broken = { ...env, GCP_SERVICE_ACCOUNT: '{"type": "canary' }
  const error = await (await opener(t, broken).open(settings)).fetch('app').catch(error => error)
  t.match(error, { code: 'POSTERN_VAULT_UNREACHABLE', message: /no JSON object/ })
  t.notMatch(error.message, /canary/)
  const unusable = { ...env, GCP_SERVICE_ACCOUNT: JSON.stringify({ type: 'canary' }) }
  const told = await (await opener(t, unusable).open(settings)).fetch('app').catch(error => error)
  t.match(told, { code: 'POSTERN_VAULT_UNREACHABLE', message: /gives no access token/ })
  t.notMatch(told.message, /canary/)
})

await t.test('azure', async t => {
  const entra = jwtKey()
  const resource = 'api://vault'
  await using vault = await withRole(
    'azure',
    { keys: [entra.publicPem], resource },
    { bound_subscription_ids: ['s-1'] }
  )
  let subscriptionId: string | undefined = 's-1'
  await using metadata = await startMetadata({
    'GET /metadata/identity/oauth2/token': (url, headers) =>
      headers.metadata === 'true'
        ? JSON.stringify({ access_token: entra.sign({ aud: url.searchParams.get('resource') }) })
        : undefined,
    'GET /metadata/instance': (_, headers) =>
      headers.metadata === 'true'
        ? JSON.stringify({ compute: { subscriptionId, resourceGroupName: 'g', name: 'vm' } })
        : undefined
  })
  const { open } = opener(t, { AZURE_INSTANCE_METADATA_HOST: metadata.url })
  const settings = example('azure', { port: vault.port })
  t.strictSame((await (await open(settings)).fetch('app'))?.value, READ)
  t.match(vault.seen.find(({ path }) => path === 'auth/azure/login')?.body, {
    role: 'gateway',
    subscription_id: 's-1',
    resource_group_name: 'g',
    vm_name: 'vm'
  })
  const { azure_resource: _, ...standard } = settings
  await t.rejects((await open(standard)).fetch('app'), { code: 'POSTERN_VAULT_DENIED' })
  subscriptionId = undefined
  const elsewhere = await opener(t, { AZURE_INSTANCE_METADATA_HOST: metadata.url }).open(settings)
  await t.rejects(elsewhere.fetch('app'), { code: 'POSTERN_VAULT_DENIED' })
  const nowhere = await opener(t, { AZURE_INSTANCE_METADATA_HOST: `${metadata.url}/x` }).open(
    settings
  )
  await t.rejects(nowhere.fetch('app'), { message: /instance metadata service answered 404/ })
})

await t.test('aws_ec2', async t => {
  await using vault = await withRole('aws', { pkcs7: 'MIIAdocument' }, { auth_type: 'ec2' })
  await using metadata = await startMetadata({
    'PUT /latest/api/token': (_, headers) =>
      headers['x-aws-ec2-metadata-token-ttl-seconds'] === undefined ? undefined : 'session',
    'GET /latest/dynamic/instance-identity/pkcs7': (_, headers) =>
      headers['x-aws-ec2-metadata-token'] === 'session' ? 'MIIA\ndocument' : undefined
  })
  const { open } = opener(t, { AWS_EC2_METADATA_SERVICE_ENDPOINT: metadata.url })
  const settings = example('aws-ec2', { port: vault.port, aws_auth_nonce: 'nonce-1' })
  t.strictSame((await (await open(settings)).fetch('app'))?.value, READ)
  const other = await open({ ...settings, aws_auth_nonce: 'nonce-2' })
  await t.rejects(other.fetch('app'), { code: 'POSTERN_VAULT_DENIED' })
})

await t.test('aws_iam: own keys, the default chain, an assumed role', async t => {
  const keys = { AKIDOWN: 'own-secret', AKIDCHAIN: 'chain-secret', ASIAROLE: 'role-secret' }
  await using vault = await withRole(
    'aws',
    { keys, server_id: 'vault.internal' },
    { auth_type: 'iam' }
  )
  const settings = example('aws-iam', { port: vault.port })
  const own: Readonly<Record<string, unknown>> = {
    ...settings,
    aws_access_key_id: 'AKIDOWN',
    aws_secret_access_key: 'own-secret'
  }
  const { open } = opener(t)
  const urlOf = () => {
    const { body } = vault.seen.findLast(({ path }) => path === 'auth/aws/login')!
    return Buffer.from(body.iam_request_url, 'base64').toString()
  }
  t.strictSame((await (await open(own)).fetch('app'))?.value, READ)
  t.equal(urlOf(), 'https://sts.eu-central-1.amazonaws.com/')
  for (const [aws_auth_region, host] of [
    ['us-east-1', 'sts.amazonaws.com'],
    ['cn-north-1', 'sts.cn-north-1.amazonaws.com.cn']
  ]) {
    t.strictSame((await (await open({ ...own, aws_auth_region })).fetch('app'))?.value, READ)
    t.equal(urlOf(), `https://${host}/`)
  }
  const wrong = await open({ ...own, aws_secret_access_key: 'wrong' })
  await t.rejects(wrong.fetch('app'), { code: 'POSTERN_VAULT_DENIED' })
  const { aws_iam_server_id: _, ...unbound } = own
  await t.rejects((await open(unbound)).fetch('app'), { code: 'POSTERN_VAULT_DENIED' })

  const variables = { AWS_ACCESS_KEY_ID: 'AKIDCHAIN', AWS_SECRET_ACCESS_KEY: 'chain-secret' }
  Object.assign(process.env, variables)
  t.teardown(() => {
    for (const name of Object.keys(variables)) delete process.env[name]
  })
  t.strictSame((await (await open(settings)).fetch('app'))?.value, READ)

  let session = 'postern'
  await using sts = await startUpstream(({ body, headers }, response) => {
    const form = new URLSearchParams(body)
    const good =
      form.get('RoleArn') === 'arn:aws:iam::1:role/vault' &&
      form.get('RoleSessionName') === session &&
      headers.authorization!.includes('AKIDOWN')
    response.writeHead(good ? 200 : 403, { 'content-type': 'text/xml' }).end(
      good
        ? `<AssumeRoleResponse><AssumeRoleResult><Credentials><AccessKeyId>ASIAROLE</AccessKeyId>
<SecretAccessKey>role-secret</SecretAccessKey><SessionToken>canary-token</SessionToken>
<Expiration>2037-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>`
        : '<ErrorResponse><Error><Code>AccessDenied</Code></Error></ErrorResponse>'
    )
  })
  const assuming = {
    ...own,
    aws_sts_endpoint_url: sts.url,
    aws_assume_role_arn: 'arn:aws:iam::1:role/vault'
  }
  t.strictSame((await (await open(assuming)).fetch('app'))?.value, READ)
  session = 'gateway-7'
  const named = await open({ ...assuming, aws_role_session_name: session })
  t.strictSame((await named.fetch('app'))?.value, READ)
  const refused = await open({ ...assuming, aws_assume_role_arn: 'arn:aws:iam::1:role/other' })
  await t.rejects(refused.fetch('app'), {
    code: 'POSTERN_VAULT_DENIED',
    message: /the role may not be assumed/
  })
})

await t.test('each method logs in where it is mounted', async t => {
  const tls = await certificateFor('127.0.0.1')
  const client = await certificateFor('gateway')
  await using plain = await startFakeVault()
  await using secure = await startFakeVault({ tls: { ...tls, clients: client.cert } })
  await using metadata = await startUpstream((_, response) => {
    response.end(JSON.stringify({ access_token: 'canary', compute: {} }))
  })
  const { file } = await folder(t)
  const token = await file('token', 'canary')
  const { open } = opener(t, {
    AZURE_INSTANCE_METADATA_HOST: metadata.url,
    GCE_METADATA_HOST: `127.0.0.1:${metadata.port}`
  })
  const cases: readonly (readonly [string, Readonly<Record<string, unknown>>])[] = [
    [
      'auth/corp/cluster/login',
      { kube_auth_path: '/corp/cluster/', kube_role: 'r', kube_api_token_file: token }
    ],
    [
      'auth/corp/roles/login',
      { approle_auth_path: 'corp/roles', approle_role_id: 'r', approle_secret_id: 's' }
    ],
    [
      'auth/corp/cert/login',
      {
        cert_auth_path: '/corp/cert',
        cert_auth_cert: client.cert,
        cert_auth_cert_key: client.key,
        protocol: 'https',
        ssl_ca: tls.cert
      }
    ],
    ['auth/corp/jwt/login', { jwt_auth_path: 'corp/jwt/', jwt_role: 'r', jwt_token_file: token }],
    [
      'auth/corp/people/login/a%2Fb',
      { userpass_auth_path: 'corp/people', userpass_username: 'a/b', userpass_password: 'p' }
    ],
    ['auth/corp/gcp/login', { gcp_login_path: '/v1/auth/corp/gcp/login', gcp_auth_role: 'r' }],
    [
      'auth/corp/azure/login',
      { azure_login_path: '/v1/auth/corp/azure/login', azure_auth_role: 'r' }
    ],
    [
      'auth/corp/aws/login',
      {
        aws_login_path: '/v1/auth/corp/aws/login',
        aws_auth_role: 'r',
        aws_auth_region: 'eu-central-1',
        aws_access_key_id: 'canary',
        aws_secret_access_key: 'canary'
      }
    ]
  ]
  const methods = [
    'kubernetes',
    'approle',
    'cert',
    'jwt',
    'userpass',
    'gcp_gce',
    'azure',
    'aws_iam'
  ]
  for (const [i, [path, settings]] of cases.entries()) {
    const vault = settings.protocol === 'https' ? secure : plain
    const { fetch } = await open({ port: vault.port, auth_method: methods[i], ...settings })
    await t.rejects(fetch('app'), { code: 'POSTERN_VAULT_DENIED' }, methods[i]!)
    t.equal(vault.seen.at(-1)?.path, path)
  }
})
