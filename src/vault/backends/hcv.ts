import type { BackendType } from '../backend.ts'
import { hcvSchema, protectedFields, settingsOf } from './hcv/settings.ts'

const importOpening = () => import('./hcv/open.ts')

/**
 * Secrets from HashiCorp Vault or OpenBao: key-value engines of both versions, and whatever else
 * answers a GET, dynamic credentials on lease among it. Its parts are in hcv/: the connection
 * (client, transport), the token (session), who logs in how (login, methods and a file for each
 * that takes more), what is read (engines, leases).
 */
export const hcvBackend: BackendType = {
  name: 'hcv',
  schema: hcvSchema,
  protectedFields,
  load: async ({ auth_method: method }) => (await importOpening()).importFor(String(method)),
  async open(config, environment) {
    const settings = settingsOf(config)
    const { openVault } = await importOpening()
    return openVault(settings, environment)
  }
}
