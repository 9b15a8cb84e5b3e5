import { createHmac, timingSafeEqual } from 'node:crypto'
import { WebhookMalformed, WebhookRefused } from '../errors.ts'
import { header, type LiveSecret, member, parseBody, type Source } from './source.ts'

/** Seconds that a delivery's time may differ from now. */
export const TOLERANCE = 300

/**
 * Any sender, by the Standard Webhooks specification: HMAC-SHA256 over `id.timestamp.body` in
 * `webhook-signature`, `{ "vault": …, "resource": … }` in the body; what is left out means all.
 */
export function genericSource(secret: () => LiveSecret, now: () => number = Date.now): Source {
  return {
    receive({ headers, body }) {
      const id = header(headers, 'webhook-id') ?? ''
      const timestamp = header(headers, 'webhook-timestamp') ?? ''
      const signatures = header(headers, 'webhook-signature') ?? ''
      if (!/^[\x21-\x7e]{1,256}$/.test(id) || !/^\d{1,12}$/.test(timestamp))
        throw new WebhookRefused('it lacks webhook-id or webhook-timestamp')
      const signed = Buffer.concat([Buffer.from(`${id}.${timestamp}.`), body])
      if (!isSigned(signed, signatures, secret())) throw new WebhookRefused('no signature fits')
      if (Math.abs(now() / 1000 - Number(timestamp)) > TOLERANCE)
        throw new WebhookRefused('it was signed too long ago, or the clocks differ')
      return { id, changed: [changedBy(body.length === 0 ? {} : parseBody(body))] }
    }
  }
}

/** Compares every signature with both keys, so that the time tells nothing of either. */
function isSigned(signed: Buffer, signatures: string, { value, previous }: LiveSecret): boolean {
  const expected = [value, previous ?? value].map(each =>
    createHmac('sha256', keyOf(each)).update(signed).digest()
  )
  let fits = false
  for (const each of signatures.split(' ').slice(0, 10)) {
    if (!each.startsWith('v1,')) continue
    const presented = Buffer.from(each.slice(3), 'base64')
    for (const digest of expected) {
      if (presented.length === digest.length && timingSafeEqual(presented, digest)) fits = true
    }
  }
  return fits
}

function keyOf(secret: string): Buffer {
  return secret.startsWith('whsec_')
    ? Buffer.from(secret.slice('whsec_'.length), 'base64')
    : Buffer.from(secret)
}

function changedBy(event: unknown): { readonly vault?: string; readonly names?: string[] } {
  const vault = member(event, 'vault')
  const resource = member(event, 'resource')
  if (vault !== undefined && typeof vault !== 'string')
    throw new WebhookMalformed('"vault" is not the prefix of a vault')
  if (resource !== undefined && (typeof resource !== 'string' || vault === undefined))
    throw new WebhookMalformed('"resource" is not the name of a secret of a "vault"')
  return {
    ...(vault === undefined ? {} : { vault }),
    ...(resource === undefined ? {} : { names: [resource] })
  }
}
