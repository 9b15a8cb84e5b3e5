import { WebhookRefused } from '../errors.ts'
import type { KeySet } from './keys.ts'
import {
  type Changed,
  type Delivery,
  header,
  isSecret,
  type LiveSecret,
  member,
  parseBody,
  type Receipt,
  type Source,
  texts
} from './source.ts'
import { bearer, verifyToken } from './token.ts'

/** How deliveries of Event Grid prove where they come from: either is enough. */
export interface AzureOptions {
  /** Undefined when no shared secret is set. */
  secret(): LiveSecret | undefined
  /** Undefined when tokens are not taken. */
  readonly token:
    | {
        readonly keys: KeySet
        readonly audience: string
        readonly tenant: string
        /** Application the token must be issued to. */
        readonly client: string
      }
    | undefined
}

const VALIDATION = 'Microsoft.EventGrid.SubscriptionValidationEvent'
const TYPES: Readonly<Record<string, readonly string[]>> = {
  secret: ['azure', 'azure-certs'],
  certificate: ['azure-certs', 'azure']
}

/**
 * Azure Event Grid: a subscription to the events of a Key Vault, in the schema of Event Grid or of
 * CloudEvents, with the handshake of each.
 */
export function azureSource(options: AzureOptions): Source {
  return {
    async receive(delivery) {
      await authenticate(delivery, options)
      if (delivery.method === 'OPTIONS') return greet(delivery)
      const parsed = parseBody(delivery.body)
      const events = Array.isArray(parsed) ? (parsed as unknown[]) : [parsed]
      const handshake = events.find(event => member(event, 'eventType') === VALIDATION)
      if (handshake !== undefined) {
        const code = member(handshake, 'data', 'validationCode')
        return { changed: [], answer: { status: 200, body: { validationResponse: code } } }
      }
      const [id] = texts(member(events[0], 'id'))
      return {
        changed: events.flatMap(changedBy),
        ...(id === undefined || events.length > 1 ? {} : { id })
      }
    }
  }
}

/** The handshake of CloudEvents' HTTP webhooks (§4). */
function greet({ headers }: Delivery): Receipt {
  const origin = header(headers, 'webhook-request-origin') ?? ''
  return {
    changed: [],
    answer: {
      status: 200,
      headers: { 'WebHook-Allowed-Origin': origin, 'WebHook-Allowed-Rate': '120', Allow: 'POST' }
    }
  }
}

function changedBy(event: unknown): readonly Changed[] {
  const [type = ''] = texts(member(event, 'eventType'), member(event, 'type'))
  const kind = /^Microsoft\.KeyVault\.(Secret|Certificate)/.exec(type)?.[1]?.toLowerCase()
  const names = texts(member(event, 'data', 'ObjectName'), member(event, 'subject'))
  return kind === undefined || names.length === 0 ? [] : [{ types: TYPES[kind]!, names }]
}

async function authenticate(delivery: Delivery, options: AzureOptions): Promise<void> {
  const { headers, query } = delivery
  const secret = options.secret()
  const presented = header(headers, 'x-webhook-secret') ?? query.get('secret') ?? undefined
  if (presented !== undefined && secret !== undefined) {
    if (isSecret(presented, secret)) return
    throw new WebhookRefused('the secret is not the one that is set')
  }
  if (options.token === undefined) throw new WebhookRefused('it carries no secret')
  const { keys, audience, tenant, client } = options.token
  const issuers = [
    `https://sts.windows.net/${tenant}/`,
    `https://login.microsoftonline.com/${tenant}/v2.0`
  ]
  const token = bearer(header(headers, 'authorization'))
  const claims = await verifyToken(token, keys, { issuers, audience })
  // `appid` in tokens of version 1, `azp` in those of version 2.
  if ((claims.appid ?? claims.azp) !== client)
    throw new WebhookRefused('the token was issued to another application')
}
