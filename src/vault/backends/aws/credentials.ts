import type { AwsCredentialIdentity, AwsCredentialIdentityProvider, Logger } from '@smithy/types'
import type { Handler } from './handler.ts'
import type { AwsSettings } from './settings.ts'

const SESSION_NAME = 'postern'
/** Milliseconds a metadata service may take: it is on this machine. */
const METADATA_TIMEOUT = 2000

/** Where the credentials come from, and when those in use end. */
export interface Credentials {
  readonly provider: AwsCredentialIdentityProvider
  /** Whether they were taken out, so that others can be. */
  readonly temporary: boolean
  /** Unix milliseconds; undefined when they do not end, or there are none yet. */
  readonly expiresAt: number | undefined
}

/** The SDK's sources of credentials. */
export function importCredentials(): Promise<typeof import('@aws-sdk/credential-providers')> {
  return import('@aws-sdk/credential-providers')
}

/**
 * Credentials by configuration: static keys, else the SDK's default chain (environment, SSO, profile,
 * process, web identity, container, instance); with a role to assume on top. Asks nothing yet.
 */
export async function createCredentials(
  settings: AwsSettings,
  region: string,
  requestHandler: Handler,
  logger: Logger
): Promise<Credentials> {
  const { fromNodeProviderChain, fromTemporaryCredentials } = await importCredentials()
  const clientConfig = { region, requestHandler, maxAttempts: 1, logger }
  const own = staticKeys(settings)
  const base =
    own === undefined
      ? fromNodeProviderChain({ clientConfig, logger, timeout: METADATA_TIMEOUT, maxRetries: 0 })
      : async () => own
  const provider =
    settings.assume_role_arn === undefined
      ? base
      : fromTemporaryCredentials({
          masterCredentials: base,
          params: {
            RoleArn: settings.assume_role_arn,
            RoleSessionName: settings.role_session_name ?? SESSION_NAME,
            ...(settings.external_id === undefined ? {} : { ExternalId: settings.external_id })
          },
          clientConfig: {
            ...clientConfig,
            ...(settings.sts_endpoint_url === undefined
              ? {}
              : { endpoint: settings.sts_endpoint_url })
          }
        })
  let expiresAt: number | undefined
  return {
    temporary: own === undefined || settings.assume_role_arn !== undefined,
    async provider(properties) {
      const credentials = await provider(properties)
      expiresAt = credentials.expiration?.getTime()
      return credentials
    },
    get expiresAt() {
      return expiresAt
    }
  }
}

function staticKeys(settings: AwsSettings): AwsCredentialIdentity | undefined {
  const { access_key_id: accessKeyId, secret_access_key: secretAccessKey } = settings
  if (accessKeyId === undefined || secretAccessKey === undefined) return undefined
  const { session_token: sessionToken } = settings
  return { accessKeyId, secretAccessKey, ...(sessionToken === undefined ? {} : { sessionToken }) }
}
