import { createHash } from 'node:crypto'
import { chmod, mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { awsBackend } from '../../../../src/vault/backends/aws.ts'
import { until } from '../../../harness.ts'
import {
  CONTAINER_TOKEN,
  type FakeAws,
  OWNER,
  ROLE,
  SSO_TOKEN,
  startFakeAws,
  WEB_IDENTITY_TOKEN
} from '../../aws-server.ts'

/** The SDK reads the environment of the process: nothing of the machine's own may show through. */
const home = t.testdir()
for (const name of Object.keys(process.env)) if (name.startsWith('AWS_')) delete process.env[name]
process.env.HOME = home

/** Opens a vault in an environment of its own, and reads a secret with it. */
async function read(
  t: Test,
  aws: FakeAws,
  env: Readonly<Record<string, string>>,
  config: Readonly<Record<string, string>> = {}
) {
  Object.assign(process.env, env)
  t.teardown(() => {
    for (const name of Object.keys(env)) delete process.env[name]
  })
  process.env.HOME = env.HOME ?? home
  const warnings: string[] = []
  const backend = await awsBackend.open(
    { endpoint_url: aws.url, ...config },
    { env: process.env, log: { info() {}, warn: (_, message) => void warnings.push(message) } }
  )
  t.teardown(() => backend.close!())
  return {
    backend,
    warnings,
    fetch: () => backend.fetch('db', undefined, AbortSignal.timeout(10_000))
  }
}

async function start(t: Test): Promise<FakeAws> {
  const aws = await startFakeAws()
  t.teardown(() => aws.close())
  aws.secrets.put('db', 'one')
  return aws
}

const REGION = { AWS_REGION: 'eu-central-1', AWS_EC2_METADATA_DISABLED: 'true' }

await t.test('environment', async t => {
  const aws = await start(t)
  const { fetch, backend } = await read(t, aws, {
    ...REGION,
    AWS_ACCESS_KEY_ID: OWNER.id,
    AWS_SECRET_ACCESS_KEY: OWNER.secret
  })
  t.match(await fetch(), { value: 'one' })
  t.same(backend.health!(), {}, 'they do not end')
})

await t.test('profile, with its region, a role over a source profile', async t => {
  const aws = await start(t)
  const dir = t.testdir({
    config: `[profile gateway]
region = eu-west-1
role_arn = ${ROLE}
source_profile = base
`,
    credentials: `[base]
aws_access_key_id = ${OWNER.id}
aws_secret_access_key = ${OWNER.secret}
`
  })
  const { fetch } = await read(t, aws, {
    AWS_PROFILE: 'gateway',
    AWS_CONFIG_FILE: join(dir, 'config'),
    AWS_SHARED_CREDENTIALS_FILE: join(dir, 'credentials'),
    AWS_ENDPOINT_URL_STS: aws.url
  })
  t.match(await fetch(), { value: 'one' })
  t.equal(aws.count('AssumeRole'), 1)
  t.match(aws.requests.at(-1)!.headers.authorization, /\/eu-west-1\/secretsmanager\//)
})

await t.test('process', async t => {
  const aws = await start(t)
  const dir = t.testdir({
    helper: `#!/bin/sh
echo '{"Version":1,"AccessKeyId":"${OWNER.id}","SecretAccessKey":"${OWNER.secret}"}'
`
  })
  const helper = join(dir, 'helper')
  await chmod(helper, 0o755)
  await writeFile(join(dir, 'config'), `[default]\ncredential_process = ${helper}\n`)
  const { fetch } = await read(t, aws, { ...REGION, AWS_CONFIG_FILE: join(dir, 'config') })
  t.match(await fetch(), { value: 'one' })
})

await t.test('single sign-on', async t => {
  const aws = await start(t)
  const dir = t.testdir({
    config: `[default]
sso_session = company
sso_account_id = 123456789012
sso_role_name = gateway
[sso-session company]
sso_region = eu-central-1
sso_start_url = https://company.awsapps.example/start
`
  })
  const cache = join(dir, '.aws/sso/cache')
  await mkdir(cache, { recursive: true })
  await writeFile(
    join(cache, `${createHash('sha1').update('company').digest('hex')}.json`),
    JSON.stringify({
      accessToken: SSO_TOKEN,
      expiresAt: new Date(Date.now() + 3600_000).toISOString()
    })
  )
  const { fetch } = await read(t, aws, {
    ...REGION,
    HOME: dir,
    AWS_CONFIG_FILE: join(dir, 'config'),
    AWS_ENDPOINT_URL_SSO: aws.url
  })
  t.match(await fetch(), { value: 'one' })
  t.equal(aws.count('/federation/credentials'), 1)
})

await t.test('web identity, as in Kubernetes (IRSA)', async t => {
  const aws = await start(t)
  const dir = t.testdir({ token: WEB_IDENTITY_TOKEN, wrong: 'canary' })
  const env = {
    ...REGION,
    AWS_ROLE_ARN: ROLE,
    AWS_WEB_IDENTITY_TOKEN_FILE: join(dir, 'token'),
    AWS_ENDPOINT_URL_STS: aws.url
  }
  const { fetch, backend } = await read(t, aws, env)
  t.match(await fetch(), { value: 'one' })
  t.ok(backend.health!().tokenExpiresAt! > Date.now() + 3000_000, 'it is known when they end')
  const refused = await read(t, aws, { ...env, AWS_WEB_IDENTITY_TOKEN_FILE: join(dir, 'wrong') })
  const error = await refused.fetch().catch(error => error)
  t.equal(error.code, 'POSTERN_VAULT_DENIED')
  t.match(error.message, /web identity token is not valid/)
  t.notMatch(error.message, /canary/)
})

await t.test('container, as in ECS and EKS Pod Identity', async t => {
  const aws = await start(t)
  const dir = t.testdir({ token: CONTAINER_TOKEN })
  const { fetch } = await read(t, aws, {
    ...REGION,
    AWS_CONTAINER_CREDENTIALS_FULL_URI: `${aws.url}/container-credentials`,
    AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE: join(dir, 'token')
  })
  t.match(await fetch(), { value: 'one' })
})

await t.test('instance metadata, version 2, taken anew before they end', async t => {
  const aws = await start(t)
  aws.life = 400
  const { fetch } = await read(t, aws, {
    AWS_REGION: 'eu-central-1',
    AWS_EC2_METADATA_SERVICE_ENDPOINT: aws.url
  })
  t.match(await fetch(), { value: 'one' })
  t.match(await fetch(), { value: 'one' })
  t.equal(aws.count('/latest/api/token'), 1, 'the credentials are kept')
  t.equal(aws.count('/latest/meta-data/iam/security-credentials/gateway'), 1)
})

await t.test('credentials near their end are replaced', async t => {
  const aws = await start(t)
  aws.life = 60
  const { fetch } = await read(t, aws, {
    AWS_REGION: 'eu-central-1',
    AWS_EC2_METADATA_SERVICE_ENDPOINT: aws.url
  })
  t.match(await fetch(), { value: 'one' })
  aws.life = 3600
  await until(async () => {
    t.match(await fetch(), { value: 'one' })
    return aws.count('/latest/api/token') > 1
  }, 'new credentials')
})

await t.test('a role on top, at an STS of its own', async t => {
  const aws = await start(t)
  const keys = { access_key_id: OWNER.id, secret_access_key: OWNER.secret }
  const role = { ...keys, assume_role_arn: ROLE, sts_endpoint_url: aws.url, external_id: 'x1' }
  const { fetch, backend } = await read(t, aws, REGION, { ...role, role_session_name: 'kong' })
  t.match(await fetch(), { value: 'one' })
  t.match(await fetch(), { value: 'one' })
  t.equal(aws.count('AssumeRole'), 1, 'the session is kept')
  const form = aws.requests.find(({ body }) => body.includes('AssumeRole'))!.body
  t.match(form, /RoleSessionName=kong/)
  t.match(form, /ExternalId=x1/)
  t.type(backend.health!().tokenExpiresAt, 'number')
  t.notMatch(aws.requests.at(-1)!.headers.authorization, OWNER.id)
  aws.denied.add('AssumeRole')
  const refused = await read(t, aws, REGION, role)
  await t.rejects(refused.fetch(), {
    code: 'POSTERN_VAULT_DENIED',
    message: /the role may not be assumed/
  })
})

await t.test(
  'static keys of the vault come before the environment, with a session token',
  async t => {
    const aws = await start(t)
    aws.keys.set('ASIATEMPORARY0000000', { secret: 's', sessionToken: 'the-session' })
    const env = { ...REGION, AWS_ACCESS_KEY_ID: OWNER.id, AWS_SECRET_ACCESS_KEY: OWNER.secret }
    const { fetch } = await read(t, aws, env, {
      access_key_id: 'ASIATEMPORARY0000000',
      secret_access_key: 's',
      session_token: 'the-session'
    })
    t.match(await fetch(), { value: 'one' })
    t.match(aws.requests[0]!.headers.authorization, /ASIATEMPORARY0000000/)
  }
)

await t.test('without any credentials the vault is unreachable, and reads do not hang', async t => {
  const aws = await start(t)
  const { fetch } = await read(t, aws, REGION)
  await t.rejects(fetch(), {
    code: 'POSTERN_VAULT_UNREACHABLE',
    message: /no credentials were found/
  })
  await aws.fault('black-hole')
  const slow = await read(t, aws, {
    AWS_REGION: 'eu-central-1',
    AWS_EC2_METADATA_SERVICE_ENDPOINT: 'http://192.0.2.1'
  })
  const aborter = new AbortController()
  const fetching = slow.backend.fetch('db', undefined, aborter.signal)
  aborter.abort()
  await t.rejects(fetching, { code: 'POSTERN_VAULT_UNREACHABLE', message: /no answer in time/ })
})

await t.test('what the SDK warns of goes to the log', async t => {
  const aws = await start(t)
  const dir = t.testdir({
    credentials: `[gateway]
aws_access_key_id = ${OWNER.id}
aws_secret_access_key = ${OWNER.secret}
`
  })
  const { fetch, warnings } = await read(t, aws, {
    ...REGION,
    AWS_PROFILE: 'gateway',
    AWS_SHARED_CREDENTIALS_FILE: join(dir, 'credentials'),
    AWS_ACCESS_KEY_ID: OWNER.id,
    AWS_SECRET_ACCESS_KEY: OWNER.secret
  })
  t.match(await fetch(), { value: 'one' })
  t.match(warnings.join(), /Multiple credential sources/)
})

await t.test('credentials that ended before their time are replaced, once for all', async t => {
  const aws = await start(t)
  const config = {
    access_key_id: OWNER.id,
    secret_access_key: OWNER.secret,
    region: 'eu-central-1'
  }
  const { fetch } = await read(t, aws, REGION, {
    ...config,
    assume_role_arn: ROLE,
    sts_endpoint_url: aws.url
  })
  t.match(await fetch(), { value: 'one' })
  for (const key of aws.keys.values()) if (key.sessionToken !== undefined) key.expiresAt = 1
  for (const fetched of await Promise.all([fetch(), fetch(), fetch()])) {
    t.match(fetched, { value: 'one' })
  }
  t.equal(aws.count('AssumeRole'), 2)
  const fixed = await read(t, aws, REGION, config)
  aws.keys.clear()
  await t.rejects(fixed.fetch(), { code: 'POSTERN_VAULT_DENIED' }, 'those of the settings are not')
})
