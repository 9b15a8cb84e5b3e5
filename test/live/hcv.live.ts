import t from 'tap'
import { certificateFor } from '../certificates.ts'
import { until } from '../harness.ts'
import { startFaultProxy } from '../vault/fault-proxy.ts'
import { type FaultyServer, hcvContract } from '../vault/hcv/contract.ts'
import { example } from '../vault/hcv/example.ts'
import { hcvScenarios, opener, type SetUpDatabase } from '../vault/hcv/scenarios.ts'
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
