import t from 'tap'
import { backendContract } from './backend-contract.ts'
import { httpBackend, probingBackend, startTestVault } from './fault-backend.ts'

for (const type of [httpBackend, probingBackend]) {
  await backendContract(t, type.name, async () => {
    const vault = await startTestVault()
    return {
      type,
      config: { url: vault.url, token: 'the-token-of-this-vault' },
      secrets: ['the-token-of-this-vault'],
      put: async (resource, value) => vault.put(resource, value),
      remove: async resource => void vault.secrets.delete(resource),
      resource: name => name,
      fault: kind => vault.fault(kind),
      connections: () => vault.connections,
      close: () => vault.close()
    }
  })
}
