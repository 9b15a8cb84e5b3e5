import type { BackendEnvironment } from '../../backend.ts'
import { approleLogin } from './approle.ts'
import { ec2Login, iamLogin } from './aws.ts'
import { azureLogin } from './azure.ts'
import type { VaultClient } from './client.ts'
import { VaultAnswerError } from './failure.ts'
import { gceLogin, googleIamLogin } from './google.ts'
import { authPath, type Login, type LoginMethod, textOfFile } from './login.ts'
import { providerToken } from './oauth2.ts'
import type { HcvSettings } from './settings.ts'

const SERVICE_ACCOUNT_TOKEN = '/run/secrets/kubernetes.io/serviceaccount/token'

/** The methods that log in; each call makes one for one vault. */
const methods: Readonly<Record<Exclude<HcvSettings['auth_method'], 'token'>, () => LoginMethod>> = {
  kubernetes: () => async context => {
    const { kube_role, kube_auth_path, kube_api_token_file } = context.settings
    return {
      path: authPath(kube_auth_path ?? 'kubernetes'),
      body: {
        role: kube_role,
        jwt: await textOfFile(kube_api_token_file ?? SERVICE_ACCOUNT_TOKEN, 'kube_api_token_file')
      }
    }
  },
  approle: approleLogin,
  cert: () => context => {
    const { cert_auth_path, cert_auth_role_name: name } = context.settings
    return {
      path: authPath(cert_auth_path ?? 'cert'),
      body: name === undefined ? {} : { name }
    }
  },
  jwt: () => async context => {
    const { jwt_auth_path, jwt_role, oauth2_role_name, jwt_token_file } = context.settings
    return {
      path: authPath(jwt_auth_path ?? 'jwt'),
      body: {
        role: jwt_role ?? oauth2_role_name,
        jwt:
          jwt_token_file === undefined
            ? await providerToken(context)
            : await textOfFile(jwt_token_file, 'jwt_token_file')
      }
    }
  },
  gcp_iam: () => googleIamLogin,
  gcp_gce: () => gceLogin,
  azure: () => azureLogin,
  aws_ec2: () => ec2Login,
  aws_iam: () => iamLogin,
  userpass: () => context => {
    const { userpass_auth_path, userpass_username, userpass_password } = context.settings
    return {
      path: `${authPath(userpass_auth_path ?? 'userpass')}/${encodeURIComponent(userpass_username!)}`,
      body: { password: userpass_password }
    }
  }
}

/** How a vault with these settings is logged into. */
export function createLogin(settings: HcvSettings, environment: BackendEnvironment): Login {
  const { auth_method: method } = settings
  if (method === 'token') return tokenLogin(settings)
  const requestOf = methods[method]()
  return {
    method,
    repeatable: true,
    revocable: true,
    async perform(client, signal) {
      const { path, body } = await requestOf({ settings, env: environment.env, client, signal })
      return client.call({ method: 'POST', path, body, signal })
    }
  }
}

/** A token that was given: asked for its life, which is unknown where it may not ask. */
function tokenLogin({ token, token_file }: HcvSettings): Login {
  return {
    method: 'token',
    repeatable: token === undefined,
    revocable: false,
    async perform(client, signal) {
      const value = token ?? (await textOfFile(token_file!, 'token_file'))
      const { ttl, renewable } = await lifeOf(value, client, signal)
      return { auth: { client_token: value, lease_duration: ttl, renewable } }
    }
  }
}

interface Life {
  readonly ttl: number
  readonly renewable: boolean
}

async function lifeOf(token: string, client: VaultClient, signal: AbortSignal): Promise<Life> {
  try {
    const { data } = await client.call({
      method: 'GET',
      path: 'auth/token/lookup-self',
      token,
      signal
    })
    const { ttl, renewable } = data as Partial<Life>
    return { ttl: Number(ttl ?? 0), renewable: renewable === true }
  } catch (error) {
    if (!(error instanceof VaultAnswerError) || error.status !== 403) throw error
    return { ttl: 0, renewable: false }
  }
}
