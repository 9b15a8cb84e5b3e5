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
