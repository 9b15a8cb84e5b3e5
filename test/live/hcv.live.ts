import t from 'tap'
import { hcvContract } from '../vault/hcv/contract.ts'
import { hcvScenarios, type SetUpDatabase } from '../vault/hcv/scenarios.ts'
import { behindFaults } from './fault-proxy.ts'
import { startOpenBao } from './openbao.ts'
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

await t.test('a real OpenBao', { skip: missing('bao') }, async t => {
  await hcvContract(t, async () => behindFaults(await startOpenBao()))
  await hcvScenarios(t, startOpenBao, missing('initdb') || onPostgres)
})
