import { WebhookRefused } from '../errors.ts'
import type { KeySet } from './keys.ts'
import { header, member, parseBody, type Source, texts } from './source.ts'
import { bearer, verifyToken } from './token.ts'

const ISSUERS = ['https://accounts.google.com', 'accounts.google.com']

/**
 * Google Pub/Sub: a push subscription with authentication, on the topic that a secret notifies. The
 * token must be Google's, for this audience and of this service account.
 */
export function gcpSource(keys: KeySet, audience: string, account: string): Source {
  return {
    async receive({ headers, body }) {
      const token = bearer(header(headers, 'authorization'))
      const claims = await verifyToken(token, keys, { issuers: ISSUERS, audience })
      // Anybody can get a token of Google's for any audience: the account tells who asked for it.
      if (claims.email !== account || claims.email_verified !== true)
        throw new WebhookRefused('the token is of another service account')
      const message = member(parseBody(body), 'message')
      const [secret] = texts(member(message, 'attributes', 'secretId'))
      const [id] = texts(member(message, 'messageId'))
      // projects/P/secrets/NAME, and projects/P/locations/L/secrets/NAME
      const name = secret?.split('/').at(-1)
      return {
        changed: name === undefined ? [] : [{ types: ['gcp'], names: [name, secret!] }],
        ...(id === undefined ? {} : { id })
      }
    }
  }
}
