import type { SecretManagerServiceClient } from '@google-cloud/secret-manager'
import type { GcpSettings } from './settings.ts'

type ClientOptions = NonNullable<ConstructorParameters<typeof SecretManagerServiceClient>[0]>
/** Google's client has a copy of the library of its own. */
type Auth = NonNullable<ClientOptions['auth']>

/** A version as it was read. */
export interface AccessedVersion {
  /** `projects/…/secrets/…/versions/7`. */
  readonly name?: string | null
  readonly payload?: {
    readonly data?: Uint8Array | null
    readonly dataCrc32c?: number | string | object | null
  } | null
}

/** What is used of the API. */
export interface Api {
  accessSecretVersion(request: { name: string }, signal: AbortSignal): Promise<AccessedVersion>
}

interface Cancellable extends Promise<readonly [AccessedVersion]> {
  cancel(): void
}

/** Google's client. */
export function importClient(): Promise<typeof import('@google-cloud/secret-manager')> {
  return import('@google-cloud/secret-manager')
}

/**
 * Opens Google's client over REST: no gRPC channel is made, and requests are carried by `carry`,
 * which proves who asks. Asks nothing yet.
 */
export async function openApi(settings: GcpSettings, carry: typeof fetch): Promise<Api> {
  const { SecretManagerServiceClient } = await importClient()
  const { location, endpoint_url: endpoint } = settings
  const { hostname, port, protocol } = new URL(endpoint ?? 'https://unused')
  const client = new SecretManagerServiceClient({
    fallback: true,
    // All the client asks of it over REST: to carry requests and to have this member.
    auth: { fetch: carry, getRequestHeaders() {} } as unknown as Auth,
    ...(location === undefined
      ? {}
      : { apiEndpoint: `secretmanager.${location}.rep.googleapis.com` }),
    ...(endpoint === undefined
      ? {}
      : {
          apiEndpoint: hostname,
          port: Number(port) || (protocol === 'http:' ? 80 : 443),
          protocol: protocol.slice(0, -1)
        })
  })
  await client.initialize()
  return {
    async accessSecretVersion(request, signal) {
      // The call beneath the public method: that one would print what was answered where
      // GOOGLE_SDK_NODE_LOGGING is set, and cannot be cancelled.
      const answered = client.innerApiCalls.accessSecretVersion!(request, {
        retry: null
      }) as Cancellable
      const cancel = (): void => answered.cancel()
      signal.addEventListener('abort', cancel, { once: true })
      try {
        const [answer] = await answered
        return answer
      } finally {
        signal.removeEventListener('abort', cancel)
      }
    }
  }
}
