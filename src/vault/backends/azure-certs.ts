import { SecretMalformed } from '../../errors.ts'
import type { BackendType } from '../backend.ts'
import { certificateAndKey, importForge } from './azure/certificate.ts'
import { certificatesSchema, protectedFields } from './azure/settings.ts'
import { importSdk, openKeyVault } from './azure/vault.ts'

/**
 * Certificates of Azure Key Vault: each is a resource with the members `cert`, the chain with its leaf
 * first, and `key`, both PEM. A certificate comes with its key as the secret of the same name.
 */
export const azureCertsBackend: BackendType = {
  name: 'azure-certs',
  schema: certificatesSchema,
  protectedFields,
  load: () => Promise.all([importSdk(), importForge()]),
  async open(config, environment) {
    const vault = await openKeyVault(config, environment)
    return {
      async fetch(resource, version, signal) {
        const secret = await vault.read(resource, version, signal)
        if (secret === undefined) return undefined
        const { value, properties } = secret
        if (value === undefined) throw new SecretMalformed(resource, 'this version holds nothing')
        const pair = await certificateAndKey(value, properties.contentType, resource)
        return properties.version === undefined
          ? { value: pair }
          : { value: pair, version: properties.version }
      },
      health: () => vault.health(),
      close: () => vault.close()
    }
  }
}
