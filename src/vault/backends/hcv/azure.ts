import { type LoginContext, type LoginRequest, loginPath } from './login.ts'
import { inquire, inquireFor, parsed } from './third-party.ts'

const METADATA_HOST = 'http://169.254.169.254'
const TOKEN_API = '2018-02-01'
const INSTANCE_API = '2021-02-01'
const DEFAULT_RESOURCE = 'https://management.azure.com/'
const WHOM = 'the instance metadata service'

/** Logs in as the managed identity of this virtual machine. */
export async function azureLogin({ settings, env, signal }: LoginContext): Promise<LoginRequest> {
  const base = `${env.AZURE_INSTANCE_METADATA_HOST ?? METADATA_HOST}/metadata`
  const headers = { metadata: 'true' }
  const resource = encodeURIComponent(settings.azure_resource ?? DEFAULT_RESOURCE)
  const [jwt, instance] = await Promise.all([
    inquireFor('access_token', {
      whom: WHOM,
      url: `${base}/identity/oauth2/token?api-version=${TOKEN_API}&resource=${resource}`,
      headers,
      signal
    }),
    inquire({
      whom: WHOM,
      url: `${base}/instance?api-version=${INSTANCE_API}`,
      headers,
      signal
    })
  ])
  const compute = (parsed(instance, WHOM).compute ?? {}) as Readonly<Record<string, unknown>>
  return {
    path: loginPath(settings.azure_login_path ?? '/v1/auth/azure/login'),
    body: {
      role: settings.azure_auth_role,
      jwt,
      subscription_id: compute.subscriptionId,
      resource_group_name: compute.resourceGroupName,
      vm_name: compute.name,
      vmss_name: compute.vmScaleSetName
    }
  }
}
