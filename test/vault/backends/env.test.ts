import t from 'tap'
import { envBackend } from '../../../src/vault/backends/env.ts'
import { backendContract, withoutFaults } from '../backend-contract.ts'

await backendContract(t, 'env', async () => {
  const environment: Record<string, string> = {}
  const variable = (resource: string): string =>
    `CONTRACT_${resource}`.replaceAll('-', '_').toUpperCase()
  return {
    type: envBackend(environment),
    config: { prefix: 'contract_' },
    async put(resource, value) {
      environment[variable(resource)] = typeof value === 'string' ? value : JSON.stringify(value)
      return undefined
    },
    async remove(resource) {
      delete environment[variable(resource)]
    },
    resource: name => name,
    fault() {},
    async close() {},
    skip: {
      ...withoutFaults('an environment is memory of the process: reading it cannot fail'),
      'aborted before': 'a read of an environment takes no time'
    }
  }
})

await t.test('names, previous values and the list of what may be read', async t => {
  const environment = { DB_WORD: 'now', DB_WORD_PREVIOUS: 'before', SECRET: 's', APP_X: 'x' }
  const lent = { env: {}, log: { info() {}, warn() {} } }
  const signal = AbortSignal.timeout(60_000)
  const open = (config: object) => envBackend(environment).open(config as never, lent)
  const vault = await open({})
  t.same(await vault.fetch('db-word', undefined, signal), { value: 'now' })
  t.same(await vault.fetch('db-word', '2', signal), { value: 'before' })
  t.same(await vault.fetch('db-word', '1', signal), { value: 'now' })
  await t.rejects(vault.fetch('app-y', '2', signal), {
    code: 'POSTERN_VAULT_ABSENT',
    message: 'Nothing is stored at APP_Y_PREVIOUS (no such variable is set)'
  })
  const limited = await open({ allow: ['db_*', 'APP_X'] })
  t.same(await limited.fetch('db-word', undefined, signal), { value: 'now' })
  t.same(await limited.fetch('app_x', undefined, signal), { value: 'x' })
  for (const name of ['secret', 'my-db-word', 'app-xy'])
    await t.rejects(limited.fetch(name, undefined, signal), { code: 'POSTERN_VAULT_DENIED' }, name)
})
