import t from 'tap'
import { appRole } from '../hcv/scenarios.ts'
import { pathOf, startFakeVault } from '../hcv-server.ts'
import { chaos } from './chaos.ts'
import { credentials } from './credentials.ts'

await chaos(
  t,
  'hcv',
  async () => {
    const vault = await startFakeVault()
    const { settings } = await appRole(vault)
    return {
      type: 'hcv',
      port: vault.port,
      proxy: { affects: ({ url }) => !pathOf(url).startsWith('auth/approle/') },
      requestsPerRead: 8,
      settings: proxy => ({ ...settings, port: proxy.port }),
      put: (resource, data) => vault.call('POST', `secret/data/${resource}`, { data }),
      resource: scenario => `pair-${scenario}`,
      expire: () => vault.tokens.revokeAll(),
      [Symbol.asyncDispose]: () => vault[Symbol.asyncDispose]()
    }
  },
  credentials
)
