import type { OutgoingHttpHeaders } from 'node:http'
import { VaultDenied, VaultUnreachable } from '../../../errors.ts'
import { Transport } from '../transport.ts'
import { failureOf, isCoded } from './failure.ts'

/** A request to someone who vouches for the gateway: an identity provider, a metadata service. */
export interface Inquiry {
  /** Who is asked, for messages: `the metadata service`. */
  readonly whom: string
  readonly method?: string
  readonly url: string
  readonly headers?: OutgoingHttpHeaders
  readonly body?: string
  /** Names the proxies; metadata services are asked without. */
  readonly env?: Readonly<Record<string, string | undefined>>
  readonly signal: AbortSignal
}

/** Asks once and gives the text of a 2xx answer. Throws VaultDenied for 400 to 403, else VaultUnreachable. */
export async function inquire(inquiry: Inquiry): Promise<string> {
  const { whom, method = 'GET', url, headers = {}, body, env, signal } = inquiry
  const transport = new Transport({}, env)
  try {
    const answer = await transport.send({ method, url: new URL(url), headers, body, signal })
    if (answer.status >= 200 && answer.status <= 299) return answer.body
    const Refusal = answer.status >= 400 && answer.status <= 403 ? VaultDenied : VaultUnreachable
    throw new Refusal('a login', `${whom} answered ${answer.status}`)
  } catch (error) {
    if (isCoded(error)) throw error
    throw new VaultUnreachable('a login', `${whom} cannot be asked: ${failureOf(error)}`)
  } finally {
    transport.close()
  }
}

/** The same for a JSON answer; gives one member that must be text. */
export async function inquireFor(member: string, inquiry: Inquiry): Promise<string> {
  const value = parsed(await inquire(inquiry), inquiry.whom)[member]
  if (typeof value === 'string' && value !== '') return value
  throw new VaultUnreachable('a login', `the answer of ${inquiry.whom} holds no ${member}`)
}

/** A JSON object. Throws VaultUnreachable for anything else, without quoting it. */
export function parsed(text: string, whom: string): Readonly<Record<string, unknown>> {
  try {
    const value: unknown = JSON.parse(text)
    if (typeof value === 'object' && value !== null) return value as Record<string, unknown>
  } catch {
    // Told below: what V8 says would quote the answer.
  }
  throw new VaultUnreachable('a login', `the answer of ${whom} is no JSON object`)
}
