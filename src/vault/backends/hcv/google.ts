import { VaultUnreachable } from '../../../errors.ts'
import { fetchOver } from '../fetch-over.ts'
import { refusal } from '../gcp/credentials.ts'
import { Transport } from '../transport.ts'
import { type LoginContext, type LoginRequest, loginPath } from './login.ts'
import { inquire, inquireFor, parsed } from './third-party.ts'

const LOGIN_PATH = '/v1/auth/gcp/login'
const METADATA_HOST = 'metadata.google.internal'
const SCOPE = 'https://www.googleapis.com/auth/cloud-platform'

/** Logs in as this Compute Engine instance, which its metadata server vouches for. */
export async function gceLogin({ settings, env, signal }: LoginContext): Promise<LoginRequest> {
  const host = env.GCE_METADATA_HOST ?? METADATA_HOST
  const audience = encodeURIComponent(`http://vault/${settings.gcp_auth_role}`)
  const jwt = await inquire({
    whom: 'the metadata server',
    url: `http://${host}/computeMetadata/v1/instance/service-accounts/default/identity?audience=${audience}&format=full`,
    headers: { 'metadata-flavor': 'Google' },
    signal
  })
  return request({ settings }, jwt.trim())
}

/** Logs in as a service account, in whose name the IAM credentials API signs a JWT. */
export async function googleIamLogin(context: LoginContext): Promise<LoginRequest> {
  const { settings, env, signal } = context
  const account = settings.gcp_service_account!
  const now = Math.floor(Date.now() / 1000)
  const { token, domain } = await accessToken(context)
  // The variable is that of the gcloud command.
  const endpoint =
    env.CLOUDSDK_API_ENDPOINT_OVERRIDES_IAMCREDENTIALS ?? `https://iamcredentials.${domain}/`
  const jwt = await inquireFor('signedJwt', {
    whom: 'the IAM credentials API',
    method: 'POST',
    url: new URL(`v1/projects/-/serviceAccounts/${encodeURIComponent(account)}:signJwt`, endpoint)
      .href,
    headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' },
    body: JSON.stringify({
      payload: JSON.stringify({
        sub: account,
        aud: `vault/${settings.gcp_auth_role}`,
        iat: now,
        exp: now + settings.gcp_jwt_exp!
      })
    }),
    env,
    signal
  })
  return request(context, jwt)
}

function request({ settings }: Pick<LoginContext, 'settings'>, jwt: string): LoginRequest {
  return {
    path: loginPath(settings.gcp_login_path ?? LOGIN_PATH),
    body: { role: settings.gcp_auth_role, jwt }
  }
}

/** What gets access tokens of Google. */
export function importGoogleAuth(): Promise<typeof import('google-auth-library')> {
  return import('google-auth-library')
}

/** Of the service account in `GCP_SERVICE_ACCOUNT`, else of the application default credentials. */
async function accessToken({
  env,
  signal
}: LoginContext): Promise<{ readonly token: string; readonly domain: string }> {
  const { GoogleAuth } = await importGoogleAuth()
  const json = env.GCP_SERVICE_ACCOUNT
  const transport = new Transport({}, env)
  signal.addEventListener('abort', () => transport.close(), { once: true })
  const auth = new GoogleAuth({
    scopes: SCOPE,
    clientOptions: { transporterOptions: { fetchImplementation: fetchOver(transport) } },
    ...(json === undefined ? {} : { credentials: parsed(json, 'GCP_SERVICE_ACCOUNT') })
  })
  try {
    const token = await auth.getAccessToken()
    if (typeof token !== 'string') throw new Error('none was given')
    return { token, domain: await auth.getUniverseDomain() }
  } catch (error) {
    const { code, name, response } = error as Error & { code?: string; response?: unknown }
    if (response !== undefined) throw refusal(error)
    // The library's messages may quote what it was given.
    throw new VaultUnreachable('a login', `Google gives no access token (${code ?? name})`)
  } finally {
    transport.close()
  }
}
