import { generateKeyPairSync, sign } from 'node:crypto'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Test } from 'tap'
import type { Backend, Fetched } from '../../../src/vault/backend.ts'
import { hcvBackend } from '../../../src/vault/backends/hcv.ts'
import { certificateFor } from '../../certificates.ts'
import { startUpstream, until } from '../../harness.ts'
import type { HcvServer } from '../hcv-server.ts'
import { example } from './example.ts'

const POLICY = 'path "secret/*" { capabilities = ["read"] }'

/** Opens vaults of type hcv for a test and closes them when it ends. */
export function opener(t: Test, env: Readonly<Record<string, string>> = {}) {
  const warnings: string[] = []
  const log = {
    info() {},
    warn(fields: object, message: string) {
      warnings.push(`${message} ${JSON.stringify(fields)}`)
    }
  }
  const environment = { env, log }
  return {
    warnings,
    async open(config: Readonly<Record<string, unknown>>): Promise<TestVault> {
      const backend = await hcvBackend.open(config, environment)
      let closed: Promise<void> | undefined
      const close = () => (closed ??= Promise.resolve(backend.close?.()))
      t.teardown(close)
      return {
        backend,
        close,
        fetch: (resource, version) => backend.fetch(resource, version, AbortSignal.timeout(10_000)),
        probe: (resource, version) => backend.probe!(resource, version, AbortSignal.timeout(10_000))
      }
    }
  }
}

export interface TestVault {
  readonly backend: Backend
  fetch(resource: string, version?: string): Promise<Fetched | undefined>
  probe(resource: string, version?: string): Promise<string | undefined>
  close(): Promise<void>
}

/** A folder with files of a test. */
export async function folder(t: Test) {
  const path = await mkdtemp(join(tmpdir(), 'postern-hcv-'))
  t.teardown(() => rm(path, { recursive: true, force: true }))
  return {
    async file(name: string, text: string): Promise<string> {
      await writeFile(join(path, name), text)
      return join(path, name)
    }
  }
}

/** A key that signs JWTs, and its public half as PEM. */
export function jwtKey() {
  const { privateKey, publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
  const part = (value: object) => Buffer.from(JSON.stringify(value)).toString('base64url')
  return {
    publicPem: publicKey.export({ type: 'spki', format: 'pem' }).toString(),
    sign(claims: object): string {
      const now = Math.floor(Date.now() / 1000)
      const text = `${part({ alg: 'ES256', typ: 'JWT' })}.${part({ iat: now, exp: now + 300, ...claims })}`
      const key = { key: privateKey, dsaEncoding: 'ieee-p1363' as const }
      return `${text}.${sign('sha256', Buffer.from(text), key).toString('base64url')}`
    }
  }
}

/** Roles of the AppRole method, and the settings that log in as one. */
export async function appRole(server: HcvServer, terms: object = {}, name = 'gateway') {
  await server.call('PUT', 'sys/policies/acl/gateway', { policy: POLICY })
  await server.call('POST', 'sys/auth/approle', { type: 'approle' }).catch(() => {})
  await server.call('POST', `auth/approle/role/${name}`, { token_policies: ['gateway'], ...terms })
  const roleId = (await server.call('GET', `auth/approle/role/${name}/role-id`)).data.role_id
  const secretId = async (headers: Record<string, string> = {}) => {
    const answer = await server.call('POST', `auth/approle/role/${name}/secret-id`, {}, headers)
    return answer.wrap_info?.token ?? answer.data.secret_id
  }
  return {
    secretId,
    settings: {
      port: server.port,
      kv: 'v2',
      auth_method: 'approle',
      approle_role_id: roleId,
      approle_secret_id: await secretId()
    }
  }
}

/** Starts a server of the kind under test with this folder for what it keeps. */
export type Start = () => Promise<HcvServer>
/** Sets a role up whose credentials have this life, in seconds, at `database/creds/app`. */
export type SetUpDatabase = (
  t: Test,
  server: HcvServer,
  life: { readonly ttl: number; readonly maxTtl: number }
) => Promise<void>

/** What holds of every server of this API: run against the fake and against real ones. */
export async function hcvScenarios(t: Test, start: Start, setUpDatabase: SetUpDatabase | string) {
  await t.test('key-value v2: versions, metadata, deletion', async t => {
    await using server = await start()
    const vault = await opener(t).open({ port: server.port, token: 'root', kv: 'v2' })
    t.equal(await vault.fetch('team/app'), undefined)
    t.equal(await vault.probe('team/app'), undefined)
    await server.call('POST', 'secret/data/team/app', { data: { user: 'ada', port: 5432 } })
    const first = await vault.fetch('team/app')
    t.strictSame(first?.value, { user: 'ada', port: 5432 })
    t.match(first?.version, /^1@/)
    t.equal(first?.ttl, undefined)
    t.equal(await vault.probe('team/app'), first?.version)
    await server.call('POST', 'secret/data/team/app', { data: { user: 'eve' } })
    t.strictSame((await vault.fetch('team/app'))?.value, { user: 'eve' })
    t.match(await vault.probe('team/app'), /^2@/)
    t.strictSame((await vault.fetch('team/app', '1'))?.value, { user: 'ada', port: 5432 })
    t.equal(await vault.probe('team/app', '1'), first?.version)
    t.equal(await vault.fetch('team/app', '7'), undefined)
    t.equal(await vault.probe('team/app', '7'), undefined)
    await t.rejects(vault.fetch('team/app', 'AWSCURRENT'), { code: 'POSTERN_VAULT_MALFORMED' })
    await server.call('DELETE', 'secret/data/team/app')
    t.equal(await vault.fetch('team/app'), undefined, 'deleted')
    t.equal(await vault.probe('team/app'), undefined)
    await server.call('POST', 'secret/undelete/team/app', { versions: [2] })
    t.strictSame((await vault.fetch('team/app'))?.value, { user: 'eve' })
    await server.call('POST', 'secret/destroy/team/app', { versions: [2] })
    t.equal(await vault.fetch('team/app'), undefined, 'destroyed')
    t.equal(await vault.probe('team/app'), undefined)
    await server.call('DELETE', 'secret/metadata/team/app')
    await server.call('POST', 'secret/data/team/app', { data: { user: 'new' } })
    const anew = await vault.fetch('team/app')
    t.match(anew?.version, /^1@/)
    t.not(anew?.version, first?.version, 'a secret made anew is not taken for the old one')
    t.equal(await vault.probe('team/app'), anew?.version)
  })

  await t.test('a version that deletes itself is there until the vault says so', async t => {
    await using server = await start()
    const vault = await opener(t).open({ port: server.port, token: 'root', kv: 'v2' })
    await server.call('POST', 'secret/metadata/app', { delete_version_after: '3s' })
    await server.call('POST', 'secret/data/app', { data: { user: 'ada' } })
    const { version } = (await vault.fetch('app'))!
    t.equal(await vault.probe('app'), version)
    await until(async () => (await vault.probe('app')) === undefined, 'the version to be deleted')
  })

  await t.test('key-value v1', async t => {
    await using server = await start()
    await server.call('POST', 'sys/mounts/team/kv', { type: 'kv' })
    const vault = await opener(t).open({ port: server.port, token: 'root', mount: '/team/kv/' })
    t.equal(await vault.fetch('app'), undefined)
    await server.call('POST', 'team/kv/app', { user: 'ada', nested: { port: 1 } })
    t.strictSame(await vault.fetch('app'), { value: { user: 'ada', nested: { port: 1 } } })
    await server.call('POST', 'team/kv/a%20b%3Fc%23d', { odd: 'name' })
    t.strictSame((await vault.fetch('a b?c#d'))?.value, { odd: 'name' })
    await t.rejects(vault.fetch('app', '1'), { code: 'POSTERN_VAULT_MALFORMED' })
    for (const resource of ['../../sys/health', 'a/../../auth/token/lookup-self', '.']) {
      await t.rejects(vault.fetch(resource), { code: 'POSTERN_VAULT_DENIED' }, resource)
    }
  })

  await t.test(
    'a wrong mount, engine version or namespace is told, not taken for absence',
    async t => {
      await using server = await start()
      const { open } = opener(t)
      const settings = { port: server.port, token: 'root' }
      const failures: readonly (readonly [object, RegExp, string])[] = [
        [{ mount: 'nowhere' }, /nothing is mounted/, 'POSTERN_VAULT_MALFORMED'],
        [{ kv: 'v1' }, /set kv to v2/, 'POSTERN_VAULT_MALFORMED'],
        [{ kv: 'v2', namespace: 'nowhere' }, /no such namespace/, 'POSTERN_VAULT_SETTINGS']
      ]
      for (const [wrong, message, code] of failures) {
        const vault = await open({ ...settings, ...wrong })
        await t.rejects(vault.fetch('app'), { code, message })
      }
    }
  )

  await t.test('namespaces', async t => {
    await using server = await start()
    await server.call('POST', 'sys/namespaces/team')
    const inTeam = { 'x-vault-namespace': 'team' }
    await server.call(
      'POST',
      'sys/mounts/secret',
      { type: 'kv', options: { version: '2' } },
      inTeam
    )
    await server.call('POST', 'secret/data/app', { data: { of: 'team' } }, inTeam)
    await server.call('POST', 'secret/data/app', { data: { of: 'root' } })
    const { open } = opener(t)
    const settings = { port: server.port, token: 'root', kv: 'v2' }
    t.strictSame((await (await open(settings)).fetch('app'))?.value, { of: 'root' })
    const vault = await open({ ...settings, namespace: 'team' })
    t.strictSame((await vault.fetch('app'))?.value, { of: 'team' })
  })

  await t.test('what policies refuse is denied, and metadata is not needed', async t => {
    await using server = await start()
    await server.call('PUT', 'sys/policies/acl/data', {
      policy: 'path "secret/data/open/*" { capabilities = ["read"] }'
    })
    const { auth } = await server.call('POST', 'auth/token/create', { policies: ['data'] })
    const settings = { port: server.port, token: auth.client_token, kv: 'v2' }
    const vault = await opener(t).open(settings)
    await server.call('POST', 'secret/data/open/app', { data: { a: '1' } })
    await server.call('POST', 'secret/data/closed', { data: { a: '1' } })
    await t.rejects(vault.fetch('closed'), { code: 'POSTERN_VAULT_DENIED' })
    const version = await vault.probe('open/app')
    t.match(version, /^1@/)
    t.equal((await vault.fetch('open/app'))?.version, version)
    t.equal(await vault.probe('open/app'), version)
    const wrong = await opener(t).open({ ...settings, token: 'wrong' })
    await t.rejects(wrong.fetch('open/app'), { code: 'POSTERN_VAULT_DENIED' })
  })

  await t.test('approle', async t => {
    await using server = await start()
    await server.call('POST', 'secret/data/app', { data: { a: '1' } })
    const { settings, secretId } = await appRole(server)
    const { open } = opener(t)
    t.strictSame((await (await open(settings)).fetch('app'))?.value, { a: '1' })
    const { file } = await folder(t)
    const { approle_secret_id: _, ...rest } = settings
    const vault = await open({
      ...rest,
      approle_secret_id_file: await file('secret-id', 'not yet\n'),
      approle_auth_path: '/approle/'
    })
    await t.rejects(vault.fetch('app'), {
      code: 'POSTERN_VAULT_DENIED',
      message: /role id or secret id/
    })
    await file('secret-id', `${await secretId()}\n`)
    t.ok(await until(() => vault.fetch('app').catch(() => false), 'the new secret id is read'))
    const missing = await open({ ...rest, approle_secret_id_file: '/nowhere/secret-id' })
    await t.rejects(missing.fetch('app'), {
      code: 'POSTERN_VAULT_UNREACHABLE',
      message: /\/nowhere\/secret-id/
    })
  })

  await t.test('approle with a wrapped secret id, which is unwrapped once', async t => {
    await using server = await start()
    await server.call('POST', 'secret/data/app', { data: { a: '1' } })
    await server.call('POST', 'sys/mounts/other', { type: 'kv', options: { version: '2' } })
    const { settings, secretId } = await appRole(server, { token_num_uses: 2 })
    const { open } = opener(t)
    const { file } = await folder(t)
    const wrapped = example('approle', {
      port: server.port,
      approle_role_id: settings.approle_role_id,
      approle_secret_id_file: await file('secret-id', await secretId({ 'x-vault-wrap-ttl': '60s' }))
    })
    const vault = await open(wrapped)
    // Two mounts share the login, and each token dies after two uses: many logins, one unwrapping.
    const other = await open({ ...wrapped, mount: 'other' })
    await t.rejects(other.fetch('app'), { code: 'POSTERN_VAULT_DENIED' })
    for (let i = 0; i < 5; i++) t.strictSame((await vault.fetch('app'))?.value, { a: '1' })
    const late = await opener(t).open(wrapped)
    await t.rejects(late.fetch('app'), { code: 'POSTERN_VAULT_DENIED', message: /used up/ })
    const foreign = await server.call('GET', 'secret/data/app', undefined, {
      'x-vault-wrap-ttl': '60s'
    })
    const misled = await open({
      ...wrapped,
      approle_secret_id_file: await file('foreign', foreign.wrap_info.token)
    })
    await t.rejects(misled.fetch('app'), { code: 'POSTERN_VAULT_DENIED', message: /not made for/ })
  })

  await t.test('userpass', async t => {
    await using server = await start()
    await server.call('POST', 'secret/data/app', { data: { a: '1' } })
    await server.call('PUT', 'sys/policies/acl/gateway', { policy: POLICY })
    await server.call('POST', 'sys/auth/people', { type: 'userpass' })
    await server.call('POST', 'auth/people/users/ada', {
      password: 'correct horse',
      token_policies: ['gateway']
    })
    const settings = example('userpass', {
      port: server.port,
      userpass_password: 'correct horse'
    })
    const { open } = opener(t)
    t.strictSame((await (await open(settings)).fetch('app'))?.value, { a: '1' })
    const wrong = await open({ ...settings, userpass_password: 'battery staple' })
    await t.rejects(wrong.fetch('app'), {
      code: 'POSTERN_VAULT_DENIED',
      message: /password is wrong/
    })
  })

  await t.test('jwt, from an identity provider or a file', async t => {
    await using server = await start()
    await server.call('POST', 'secret/data/app', { data: { a: '1' } })
    await server.call('PUT', 'sys/policies/acl/gateway', { policy: POLICY })
    const key = jwtKey()
    await server.call('POST', 'sys/auth/jwt', { type: 'jwt' })
    await server.call('POST', 'auth/jwt/config', { jwt_validation_pubkeys: [key.publicPem] })
    await server.call('POST', 'auth/jwt/role/gateway', {
      role_type: 'jwt',
      user_claim: 'sub',
      bound_audiences: ['vault'],
      token_policies: ['gateway']
    })
    await using provider = await startUpstream(({ body, headers }, response) => {
      const form = new URLSearchParams(body)
      const [id, secret] = Buffer.from(headers.authorization!.slice(6), 'base64')
        .toString()
        .split(':')
        .map(part => new URLSearchParams(`p=${part}`).get('p'))
      const known =
        form.get('grant_type') === 'client_credentials' && id === 'gate' && secret === 's:cret'
      response.writeHead(known ? 200 : 401, { 'content-type': 'application/json' })
      const access_token = key.sign({ sub: id, aud: form.getAll('audience') })
      response.end(JSON.stringify(known ? { access_token, token_type: 'bearer' } : {}))
    })
    const settings = example('jwt', {
      port: server.port,
      oauth2_token_endpoint: `${provider.url}/token`,
      oauth2_client_secret: 's:cret',
      oauth2_audiences: 'other, vault'
    })
    const { open } = opener(t)
    t.strictSame((await (await open(settings)).fetch('app'))?.value, { a: '1' })
    const { jwt_role: _, ...rest } = settings
    const named = { ...rest, auth_method: 'oauth2', oauth2_role_name: 'gateway' }
    t.strictSame((await (await open(named)).fetch('app'))?.value, { a: '1' })
    const refused = await open({ ...settings, oauth2_client_secret: 'wrong' })
    await t.rejects(refused.fetch('app'), { message: /identity provider answered 401/ })
    const elsewhere = await open({ ...settings, oauth2_audiences: 'other' })
    await t.rejects(elsewhere.fetch('app'), { code: 'POSTERN_VAULT_DENIED', message: /JWT/ })
    const unknown = await open({ ...settings, jwt_role: 'nobody' })
    await t.rejects(unknown.fetch('app'), { message: /no such role/ })
    const { file } = await folder(t)
    const byFile = await open({
      port: server.port,
      kv: 'v2',
      auth_method: 'jwt',
      jwt_role: 'gateway',
      jwt_token_file: await file('jwt', key.sign({ sub: 'workload', aud: 'vault' }))
    })
    t.strictSame((await byFile.fetch('app'))?.value, { a: '1' })
  })

  await t.test('kubernetes', async t => {
    await using server = await start()
    await server.call('POST', 'secret/data/app', { data: { a: '1' } })
    await server.call('PUT', 'sys/policies/acl/gateway', { policy: POLICY })
    const key = jwtKey()
    const audiences = ['https://kubernetes.default.svc']
    const account = { namespace: 'web', serviceaccount: { name: 'postern', uid: 'u-1' } }
    const jwt = key.sign({
      iss: 'https://kubernetes.default.svc',
      sub: 'system:serviceaccount:web:postern',
      aud: audiences,
      'kubernetes.io': account
    })
    await using cluster = await startUpstream(({ body }, response) => {
      const { spec } = JSON.parse(body)
      const user = { username: 'system:serviceaccount:web:postern', uid: 'u-1' }
      response.writeHead(201, { 'content-type': 'application/json' }).end(
        JSON.stringify({
          apiVersion: 'authentication.k8s.io/v1',
          kind: 'TokenReview',
          spec,
          status:
            spec.token === jwt ? { authenticated: true, user, audiences } : { authenticated: false }
        })
      )
    })
    await server.call('POST', 'sys/auth/cluster', { type: 'kubernetes' })
    await server.call('POST', 'auth/cluster/config', {
      kubernetes_host: cluster.url,
      kubernetes_ca_cert: (await certificateFor('cluster')).cert,
      token_reviewer_jwt: key.sign({ sub: 'reviewer' }),
      disable_local_ca_jwt: true
    })
    await server.call('POST', 'auth/cluster/role/gateway', {
      bound_service_account_names: ['postern'],
      bound_service_account_namespaces: ['web'],
      token_policies: ['gateway']
    })
    const { file } = await folder(t)
    const { open } = opener(t)
    const settings = example('kubernetes', {
      port: server.port,
      kube_api_token_file: await file('token', jwt)
    })
    t.strictSame((await (await open(settings)).fetch('app'))?.value, { a: '1' })
    const foreign = key.sign({ sub: 'system:serviceaccount:web:other', 'kubernetes.io': account })
    const other = await open({ ...settings, kube_api_token_file: await file('other', foreign) })
    await t.rejects(other.fetch('app'), { code: 'POSTERN_VAULT_DENIED' })
  })

  // These wait for lives to pass, side by side.
  t.jobs = 4
  const buffered = true
  const renewal = t.test(
    'a token is renewed, and followed by another at its max_ttl',
    { buffered },
    async t => {
      await using server = await start()
      await server.call('POST', 'secret/data/app', { data: { a: '1' } })
      const { settings } = await appRole(server, { token_ttl: '3s', token_max_ttl: '5s' })
      const { open, warnings } = opener(t)
      const vault = await open(settings)
      await vault.fetch('app')
      // The first token cannot live longer than this.
      const end = Date.now() + 5000
      do {
        t.strictSame((await vault.fetch('app'))?.value, { a: '1' })
        await new Promise(resolve => setTimeout(resolve, 250))
      } while (Date.now() < end + 4000)
      t.ok(vault.backend.health!().tokenExpiresAt! > end, 'another token followed')
      t.strictSame(warnings, [])
    }
  )

  const death = t.test(
    'a token that is found dead is followed by another',
    { buffered },
    async t => {
      await using server = await start()
      await server.call('POST', 'secret/data/app', { data: { a: '1' } })
      const { settings } = await appRole(server, { token_num_uses: 2 })
      const vault = await opener(t).open(settings)
      for (let i = 0; i < 6; i++) t.strictSame((await vault.fetch('app'))?.value, { a: '1' })
      await t.rejects(vault.fetch('../sys/mounts'), { code: 'POSTERN_VAULT_DENIED' })
    }
  )

  const sudden = t.test(
    'a token without the default policy is told dead from refused',
    { buffered },
    async t => {
      await using server = await start()
      await server.call('POST', 'secret/data/app', { data: { a: '1' } })
      const { settings } = await appRole(server, {
        token_no_default_policy: true,
        secret_id_num_uses: 2
      })
      await server.call('PUT', 'sys/policies/acl/gateway', {
        policy: 'path "secret/data/app" { capabilities = ["read"] }'
      })
      const { fetch } = await opener(t).open(settings)
      for (let i = 0; i < 2; i++) {
        t.ok(await fetch('app'))
        await t.rejects(fetch('other'), {
          code: 'POSTERN_VAULT_DENIED',
          message: /read secret|other/
        })
        await server.call('POST', 'sys/leases/revoke-prefix/auth/approle')
      }
      await t.rejects(fetch('app'), { message: /a login/ }, 'there were but two logins')
    }
  )

  const given = t.test(
    'a given token is renewed; when it ends, the vault denies',
    { buffered },
    async t => {
      await using server = await start()
      await server.call('POST', 'secret/data/app', { data: { a: '1' } })
      const make = async (terms: object) =>
        (await server.call('POST', 'auth/token/create', terms)).auth.client_token
      const { open, warnings } = opener(t)
      const settings = { port: server.port, kv: 'v2' }
      const renewed = await open({ ...settings, token: await make({ ttl: '8s' }) })
      const ends = await open({ ...settings, token: await make({ ttl: '5s', renewable: false }) })
      await renewed.fetch('app')
      await ends.fetch('app')
      const first = renewed.backend.health!().tokenExpiresAt!
      const fixed = ends.backend.health!().tokenExpiresAt!
      t.ok(fixed <= Date.now() + 5000)
      await until(() => renewed.backend.health!().tokenExpiresAt! > first + 1000, 'it is renewed')
      await until(() => Date.now() > first + 500, 'the first life is over')
      t.strictSame((await renewed.fetch('app'))?.value, { a: '1' })
      await t.rejects(ends.fetch('app'), { code: 'POSTERN_VAULT_DENIED' })
      t.ok(Math.abs(ends.backend.health!().tokenExpiresAt! - fixed) < 100)
      t.match(warnings, [/give the vault a new one/])
      const { file } = await folder(t)
      const sink = await file('token', await make({ ttl: '5s', renewable: false }))
      const followed = await open({ ...settings, token_file: sink })
      await followed.fetch('app')
      await file('token', await make({ ttl: '1h' }))
      await until(
        () => followed.backend.health!().tokenExpiresAt! > Date.now() + 60_000,
        'the agent’s new token is read'
      )
      t.strictSame((await followed.fetch('app'))?.value, { a: '1' })
    }
  )

  const skip = typeof setUpDatabase === 'string' ? setUpDatabase : false
  const leases = t.test(
    'leases are renewed, followed by others, and told to the cache',
    { buffered, skip },
    async t => {
      await using server = await start()
      await (setUpDatabase as SetUpDatabase)(t, server, { ttl: 6, maxTtl: 10 })
      const vault = await opener(t).open({ port: server.port, token: 'root', mount: 'database' })
      const first = await vault.fetch('creds/app')
      t.equal(first?.ttl, 4, 'two thirds of the lease')
      const again = await vault.fetch('creds/app')
      t.not(userOf(again), userOf(first), 'who asks before its time is not given the same again')
      t.not(again?.version, first?.version)
      await pass(again?.ttl)
      const renewed = await vault.fetch('creds/app')
      t.equal(userOf(renewed), userOf(again), 'in its time it is renewed')
      t.equal(renewed?.version, again?.version)
      t.ok(renewed?.ttl === 4 || renewed?.ttl === 3, 'less where the answer took its time')
      await pass(renewed?.ttl)
      const next = await vault.fetch('creds/app')
      t.not(userOf(next), userOf(renewed), 'near its max_ttl another is taken out')
      const unknown = vault.fetch('creds/unknown')
      await t.rejects(unknown, { code: 'POSTERN_VAULT_DENIED', message: /no such role/ })
    }
  )

  await Promise.all([renewal, death, sudden, given, leases])
}

function userOf(fetched: Fetched | undefined): unknown {
  return (fetched?.value as Record<string, unknown> | undefined)?.username
}

function pass(seconds = 0): Promise<void> {
  return new Promise(resolve => setTimeout(resolve, seconds * 1000))
}
