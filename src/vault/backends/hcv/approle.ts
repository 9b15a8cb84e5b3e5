import { VaultDenied } from '../../../errors.ts'
import { authPath, type LoginContext, type LoginMethod, textOfFile } from './login.ts'
import { trimSlashes } from './settings.ts'

/**
 * Logs in with role id and secret id. A wrapped secret id is unwrapped once: the wrapping token works
 * a single time, so the secret id is kept until another wrapping token is given.
 */
export function approleLogin(): LoginMethod {
  let unwrapped: { readonly from: string; readonly secretId: string } | undefined
  return async context => {
    const { settings } = context
    const given =
      settings.approle_secret_id?.trim() ??
      (await textOfFile(settings.approle_secret_id_file!, 'approle_secret_id_file'))
    if (settings.approle_response_wrapping === true && unwrapped?.from !== given) {
      unwrapped = { from: given, secretId: await unwrap(given, context) }
    }
    return {
      path: authPath(settings.approle_auth_path ?? 'approle'),
      body: {
        role_id: settings.approle_role_id,
        secret_id: settings.approle_response_wrapping === true ? unwrapped!.secretId : given
      }
    }
  }
}

async function unwrap(token: string, context: LoginContext): Promise<string> {
  const { client, settings, signal } = context
  // A token that wraps anything but a secret id of this auth method was put there by someone else.
  const { data: origin } = await client.call({
    method: 'POST',
    path: 'sys/wrapping/lookup',
    body: { token },
    signal
  })
  const path = String((origin as { creation_path?: unknown } | undefined)?.creation_path ?? '')
  const mount = `auth/${trimSlashes(settings.approle_auth_path ?? 'approle')}/`
  if (!path.includes(mount)) {
    throw new VaultDenied('a login', 'the wrapping token was not made for a secret id of this role')
  }
  const { data } = await client.call({
    method: 'POST',
    path: 'sys/wrapping/unwrap',
    token,
    body: {},
    signal
  })
  const secretId = (data as { secret_id?: unknown } | undefined)?.secret_id
  if (typeof secretId === 'string') return secretId
  throw new VaultDenied('a login', 'what the wrapping token wraps holds no secret id')
}
