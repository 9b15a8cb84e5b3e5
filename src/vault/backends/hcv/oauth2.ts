import type { LoginContext } from './login.ts'
import { listOf } from './settings.ts'
import { inquireFor } from './third-party.ts'

/** A JWT from an identity provider by the client credentials grant (RFC 6749 §4.4). */
export function providerToken({ settings, env, signal }: LoginContext): Promise<string> {
  const form = new URLSearchParams({ grant_type: 'client_credentials' })
  for (const audience of listOf(settings.oauth2_audiences)) form.append('audience', audience)
  // RFC 6749 §2.3.1: id and secret are form-encoded before they become a Basic credential.
  const credential = [settings.oauth2_client_id!, settings.oauth2_client_secret!]
    .map(part => new URLSearchParams({ part }).toString().slice('part='.length))
    .join(':')
  return inquireFor('access_token', {
    whom: 'the identity provider',
    method: 'POST',
    url: settings.oauth2_token_endpoint!,
    headers: {
      authorization: `Basic ${Buffer.from(credential).toString('base64')}`,
      'content-type': 'application/x-www-form-urlencoded',
      accept: 'application/json'
    },
    body: form.toString(),
    env,
    signal
  })
}
