import { join } from 'node:path'
import t from 'tap'
import { startTestVault } from '../fault-backend.ts'
import { chaos } from './chaos.ts'
import { credentials } from './credentials.ts'

await chaos(
  t,
  "a type of vault of one's own",
  async () => {
    const vault = await startTestVault()
    return {
      type: 'http',
      port: vault.port,
      env: { POSTERN_VAULT_BACKENDS: join(import.meta.dirname, '../fault-backend.ts') },
      requestsPerRead: 2,
      settings: proxy => ({ url: proxy.url }),
      put: (resource, pair) => vault.put(resource, pair),
      resource: scenario => `pair-${scenario}`,
      expire() {
        // This store knows no tokens.
      },
      [Symbol.asyncDispose]: () => vault.close()
    }
  },
  credentials
)
