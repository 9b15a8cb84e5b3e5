import type { BackendType } from '../backend.ts'
import { awsBackend } from './aws.ts'
import { azureBackend } from './azure.ts'
import { azureCertsBackend } from './azure-certs.ts'
import { conjurBackend } from './conjur.ts'
import { envBackend } from './env.ts'
import { fsBackend } from './fs.ts'
import { gcpBackend } from './gcp.ts'
import { hcvBackend } from './hcv.ts'

/** Every type of vault this release includes; `environment` is what the env vault reads. */
export function builtInBackends(
  environment: Readonly<Record<string, string | undefined>>
): readonly BackendType[] {
  return [
    envBackend(environment),
    fsBackend,
    hcvBackend,
    awsBackend,
    gcpBackend,
    azureBackend,
    azureCertsBackend,
    conjurBackend
  ]
}

/** The same, over the environment of this process. */
export const backendTypes: readonly BackendType[] = builtInBackends(process.env)
