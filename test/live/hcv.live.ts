import t from 'tap'
import type { Fetched } from '../../src/vault/backend.ts'
import { certificateFor } from '../certificates.ts'
import { until } from '../harness.ts'
import { startFaultProxy } from '../vault/fault-proxy.ts'
import { type FaultyServer, hcvContract } from '../vault/hcv/contract.ts'
import { example } from '../vault/hcv/example.ts'
import { appRole, hcvScenarios, opener, type SetUpDatabase } from '../vault/hcv/scenarios.ts'
import { type HcvServer, pathOf, REFUSALS } from '../vault/hcv-server.ts'
import { startLastingOpenBao, startOpenBao } from './openbao.ts'
import { startPostgres } from './postgres.ts'
import { missing } from './server.ts'

/** The database engine on a real PostgreSQL, where there is one. */
const onPostgres: SetUpDatabase = async (t, server, { ttl, maxTtl }) => {
  const postgres = await startPostgres()
  t.teardown(() => postgres[Symbol.asyncDispose]())
  await server.call('POST', 'sys/mounts/database', { type: 'database' })
  await server.call('POST', 'database/config/main', {
    plugin_name: 'postgresql-database-plugin',
    allowed_roles: ['app'],
    connection_url: `postgresql://{{username}}:{{password}}@127.0.0.1:${postgres.port}/postgres?sslmode=disable`,
    username: 'postgres',
    password: postgres.password
  })
  await server.call('POST', 'database/roles/app', {
    db_name: 'main',
    default_ttl: `${ttl}s`,
    max_ttl: `${maxTtl}s`,
    creation_statements: [
      "CREATE ROLE \"{{name}}\" WITH LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'"
    ]
  })
}

/** A real server whose answers can be made to fail. */
async function behindFaults(server: HcvServer): Promise<FaultyServer> {
  let affected: RegExp | undefined
  const proxy = await startFaultProxy(server.url, {
    refusals: REFUSALS,
    affects: ({ url }) => affected?.test(pathOf(url)) !== false
  })
  return {
    port: proxy.port,
    url: proxy.url,
    get connections() {
      return proxy.connections
    },
    call: (method, path, body, headers) => server.call(method, path, body, headers),
    fault(kind, path) {
      affected = path
      return proxy.fault(kind)
    },
    async [Symbol.asyncDispose]() {
      await proxy.close()
      await server[Symbol.asyncDispose]()
    }
  }
}

await t.test('a real OpenBao', { skip: missing('bao') }, async t => {
  await hcvContract(t, async () => behindFaults(await startOpenBao()))
  await hcvScenarios(t, startOpenBao, missing('initdb') || onPostgres)
})

await t.test('a real OpenBao over TLS: cert', { skip: missing('bao') }, async t => {
  const tls = await certificateFor('127.0.0.1')
  const client = await certificateFor('gateway')
  const stranger = await certificateFor('stranger')
  await using bao = await startLastingOpenBao({ tls })
  await bao.call('POST', 'secret/data/app', { data: { a: '1' } })
  await bao.call('PUT', 'sys/policies/acl/gateway', {
    policy: 'path "secret/*" { capabilities = ["read"] }'
  })
  await bao.call('POST', 'sys/auth/cert', { type: 'cert' })
  await bao.call('POST', 'auth/cert/certs/gateway', {
    certificate: client.cert,
    token_policies: ['gateway'],
    token_ttl: '3s'
  })
  const { open } = opener(t)
  const settings = example('cert', {
    port: bao.port,
    protocol: 'https',
    ssl_ca: tls.cert,
    cert_auth_cert: client.cert,
    cert_auth_cert_key: client.key
  })
  const vault = await open(settings)
  t.strictSame((await vault.fetch('app'))?.value, { a: '1' })
  const first = vault.backend.health!().tokenExpiresAt!
  await until(() => vault.backend.health!().tokenExpiresAt! > first + 1000, 'it is renewed')
  const other = { cert_auth_cert: stranger.cert, cert_auth_cert_key: stranger.key }
  for (const wrong of [other, { cert_auth_role_name: 'unknown' }]) {
    await t.rejects((await open({ ...settings, ...wrong })).fetch('app'), {
      code: 'POSTERN_VAULT_DENIED',
      message: /client certificate was not accepted/
    })
  }
})

await t.test(
  'a cluster: standbys serve, redirect and take over',
  { skip: missing('bao') },
  async t => {
    await using leader = await startLastingOpenBao()
    await using standby = await startLastingOpenBao({ joins: leader })
    const { open } = opener(t)
    const settings = { kv: 'v2', token: leader.token }
    const put = (server: HcvServer, n: number) =>
      server.call('POST', 'secret/data/app', { data: { n } })
    const numberIn = async (vault: { fetch(name: string): Promise<Fetched | undefined> }) =>
      ((await vault.fetch('app'))?.value as { n: number } | undefined)?.n

    await put(leader, 1)
    const direct = await open({ ...settings, port: standby.port })
    await until(async () => (await numberIn(direct)) === 1, 'the standby gives what the leader has')
    await put(leader, 2)
    await until(async () => (await numberIn(direct)) === 2, 'and what is new')

    // A standby of OpenBao reads by itself; what writes, such as a login, it forwards or redirects.
    const proxy = await startFaultProxy(standby.url, {
      headers: { 'x-vault-no-request-forwarding': 'true' }
    })
    t.teardown(() => proxy.close())
    const byRole = { ...(await appRole(leader)).settings, port: proxy.port }
    const redirected = await open({ ...byRole, redirect_hosts: `127.0.0.1:${leader.port}` })
    await until(async () => (await numberIn(redirected).catch(() => 0)) === 2, 'it is redirected')
    const stranger = await open(byRole)
    await t.rejects(stranger.fetch('app'), {
      code: 'POSTERN_VAULT_UNREACHABLE',
      message: new RegExp(`redirects to 127.0.0.1:${leader.port}; list that in redirect_hosts`)
    })

    await leader.call('POST', 'sys/step-down')
    await until(() => put(standby, 3).catch(() => false), 'the cluster has a leader again', 60_000)
    for (const server of [leader, standby]) {
      const vault = await open({ ...settings, port: server.port })
      await until(async () => (await numberIn(vault).catch(() => 0)) === 3, 'either serves', 60_000)
    }
  }
)
