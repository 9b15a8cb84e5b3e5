import { SecretMalformed } from '../../errors.ts'
import type { BackendType } from '../backend.ts'
import { protectedFields, secretsSchema } from './azure/settings.ts'
import { importSdk, openKeyVault } from './azure/vault.ts'

/**
 * Secrets from Azure Key Vault. Its parts are in azure/: the settings, the credential they name, the
 * vault that is asked, how its requests are carried, and what errors mean.
 */
export const azureBackend: BackendType = {
  name: 'azure',
  schema: secretsSchema,
  protectedFields,
  load: importSdk,
  async open(config, environment) {
    const vault = await openKeyVault(config, environment)
    return {
      async fetch(resource, version, signal) {
        const secret = await vault.read(resource, version, signal)
        if (secret === undefined) return undefined
        const { value, properties } = secret
        if (value === undefined) throw new SecretMalformed(resource, 'this version holds nothing')
        return properties.version === undefined ? { value } : { value, version: properties.version }
      },
      health: () => vault.health(),
      close: () => vault.close()
    }
  }
}
