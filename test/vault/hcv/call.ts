import type { X509Certificate } from 'node:crypto'
import type { TokenEntry } from './tokens.ts'

// biome-ignore lint/suspicious/noExplicitAny: bodies of any shape
export type Body = Record<string, any>

/** One request as engines see it. */
export interface Call {
  readonly method: string
  /** Below the mount. */
  readonly path: string
  readonly query: URLSearchParams
  readonly headers: Readonly<Record<string, string | string[] | undefined>>
  readonly body: Body
  readonly namespace: string
  /** Undefined on paths that need none. */
  readonly token: TokenEntry | undefined
  /** The client's certificate, where it showed one. */
  readonly peer: X509Certificate | undefined
}

/** What an engine answers: members of the envelope that every answer of the server has. */
export interface Reply {
  readonly status?: number
  readonly data?: object | null
  readonly auth?: object
  readonly lease_id?: string
  readonly lease_duration?: number
  readonly renewable?: boolean
  readonly warnings?: readonly string[]
}

/** A mounted engine or auth method. */
export interface Engine {
  handle(call: Call): Reply | Promise<Reply>
}

/** An answer `{"errors": […]}`. */
export class Refusal extends Error {
  readonly status: number
  readonly errors: readonly string[]

  constructor(status: number, ...errors: readonly string[]) {
    super(errors.join('; '))
    this.status = status
    this.errors = errors
  }
}

export const NO_CONTENT: Reply = { status: 204 }

/** Seconds of a duration as the API takes it: 90, "90", "90s", "1h". */
export function seconds(duration: unknown): number | undefined {
  const match = /^(\d+)([smh]?)$/.exec(String(duration ?? ''))
  if (match === null) return undefined
  return Number(match[1]) * { '': 1, s: 1, m: 60, h: 3600 }[match[2] as '' | 's' | 'm' | 'h']
}

/** The members of a role that say what its tokens are like. */
export function termsOf(role: Body) {
  return {
    policies: role.token_policies ?? [],
    bare: role.token_no_default_policy === true,
    ...(role.token_ttl === undefined ? {} : { ttl: seconds(role.token_ttl)! }),
    ...(role.token_max_ttl === undefined ? {} : { maxTtl: seconds(role.token_max_ttl)! }),
    ...(role.token_num_uses === undefined ? {} : { uses: Number(role.token_num_uses) })
  }
}
