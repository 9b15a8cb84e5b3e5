import { createHash, timingSafeEqual } from 'node:crypto'
import type { IncomingHttpHeaders, IncomingMessage, ServerResponse } from 'node:http'
import { WebhookMalformed } from '../errors.ts'

/** Where the webhooks are, before the name of their source. */
export const WEBHOOK_PATH = '/vaults/webhooks/'

/** The webhooks by which vaults tell of new versions. */
export interface Webhooks {
  /** Answers a request of a path below {@link WEBHOOK_PATH}. */
  serve(request: IncomingMessage, response: ServerResponse): void
  /** Answers these paths on an address of their own. Rejects when it cannot be bound. */
  listen(host: string, port: number): Promise<{ readonly port: number; close(): Promise<void> }>
}

/** One request to a webhook, its body read whole. */
export interface Delivery {
  readonly method: string
  readonly headers: IncomingHttpHeaders
  readonly query: URLSearchParams
  readonly body: Buffer
}

/** A secret that may have changed. */
export interface Changed {
  /** Types of the vaults that may hold it; undefined where `vault` tells one. */
  readonly types?: readonly string[]
  /** Prefix of the one vault that holds it. */
  readonly vault?: string
  /** What references may name it by, in any case of letters; undefined means all of the vault. */
  readonly names?: readonly string[]
}

/** What a genuine delivery says. */
export interface Receipt {
  readonly changed: readonly Changed[]
  /** The sender's name of the event: a repetition has no effect. */
  readonly id?: string
  /** An answer the protocol asks for, instead of 202. */
  readonly answer?: {
    readonly status: number
    readonly headers?: Readonly<Record<string, string>>
    readonly body?: object
  }
}

/** One kind of sender. */
export interface Source {
  /**
   * Tells whether a delivery is genuine, and what it says. Throws POSTERN_WEBHOOK_REFUSED when it is
   * not, POSTERN_WEBHOOK_MALFORMED when it cannot be read.
   */
  receive(delivery: Delivery): Receipt | Promise<Receipt>
}

/** A secret setting in force, and the one before while its grace lasts. */
export interface LiveSecret {
  readonly value: string
  readonly previous?: string
}

/** Whether this is the secret or the one before. Takes the same time for every text. */
export function isSecret(presented: string | undefined, secret: LiveSecret): boolean {
  if (presented === undefined) return false
  const digest = sha256(presented)
  const current = timingSafeEqual(digest, sha256(secret.value))
  const previous = timingSafeEqual(digest, sha256(secret.previous ?? secret.value))
  return current || previous
}

const sha256 = (text: string): Buffer => createHash('sha256').update(text).digest()

/** The body as JSON. */
export function parseBody(body: Buffer): unknown {
  try {
    return JSON.parse(body.toString('utf8'))
  } catch {
    throw new WebhookMalformed('its body is not JSON')
  }
}

/** A member of something that may be an object; undefined when it is none. */
export function member(value: unknown, ...names: readonly string[]): unknown {
  let found = value
  for (const name of names) {
    if (typeof found !== 'object' || found === null || !Object.hasOwn(found, name)) return undefined
    found = (found as Readonly<Record<string, unknown>>)[name]
  }
  return found
}

/** The texts among these values. */
export function texts(...values: readonly unknown[]): string[] {
  return values.filter(value => typeof value === 'string')
}

/** A header of which there is one. */
export function header(headers: IncomingHttpHeaders, name: string): string | undefined {
  const value = headers[name]
  return typeof value === 'string' ? value : undefined
}
