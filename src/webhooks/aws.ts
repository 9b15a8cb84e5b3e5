import { WebhookMalformed, WebhookRefused } from '../errors.ts'
import {
  header,
  isSecret,
  type LiveSecret,
  member,
  parseBody,
  type Source,
  texts
} from './source.ts'

/** `arn:aws:secretsmanager:REGION:ACCOUNT:secret:NAME-XXXXXX` */
const ARN = /^arn:[^:]*:secretsmanager:[^:]*:[^:]*:secret:(.+)$/i
const SUFFIX = /-[A-Za-z0-9]{6}$/

/**
 * AWS EventBridge: an API destination whose connection sends the secret as `X-Webhook-Secret`. Any
 * event of Secrets Manager names its secret, by name or ARN.
 */
export function awsSource(secret: () => LiveSecret): Source {
  return {
    receive({ headers, body }) {
      if (!isSecret(header(headers, 'x-webhook-secret'), secret()))
        throw new WebhookRefused('X-Webhook-Secret is not the secret')
      const event = parseBody(body)
      if (member(event, 'source') !== 'aws.secretsmanager')
        throw new WebhookMalformed('it is no event of aws.secretsmanager')
      // CloudTrail writes the same member in several ways, depending on the call.
      const found = texts(
        member(event, 'detail', 'requestParameters', 'secretId'),
        member(event, 'detail', 'additionalEventData', 'SecretId'),
        member(event, 'detail', 'responseElements', 'arn'),
        member(event, 'detail', 'responseElements', 'aRN'),
        member(event, 'detail', 'responseElements', 'name')
      )
      const id = member(event, 'id')
      return {
        changed: found.length === 0 ? [] : [{ types: ['aws'], names: found.flatMap(namesOf) }],
        ...(typeof id === 'string' ? { id } : {})
      }
    }
  }
}

/** An ARN, its name as it stands there, and the name it was given before AWS put six characters behind. */
function namesOf(text: string): readonly string[] {
  const name = ARN.exec(text)?.[1]
  return name === undefined ? [text] : [text, name, name.replace(SUFFIX, '')]
}
