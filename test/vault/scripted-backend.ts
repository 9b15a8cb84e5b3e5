import { Type } from 'typebox'
import { SecretAbsent } from '../../src/errors.ts'
import type { Backend, BackendType, Fetched } from '../../src/vault/backend.ts'
import { parseReference, type Reference } from '../../src/vault/reference.ts'
import { createVaults, type Vaults, type VaultsOptions } from '../../src/vault/vaults.ts'

/** What a resource answers: a value, an absence, an error to throw, or what a function gives. */
export type Answer = Fetched | undefined | Error | (() => Promise<Fetched | undefined>)

/** A type of vault whose answers a test sets, and whose calls it counts. */
export interface Scripted {
  readonly type: BackendType
  readonly answers: Map<string, Answer>
  /** Every call, as `fetch NAME` or `probe NAME`. */
  readonly calls: string[]
  /** The settings of each opening. */
  readonly opened: Readonly<Record<string, unknown>>[]
  closed: number
  /** Calls under way, and the most there were at once. */
  underWay: number
  most: number
}

export function scriptedBackend(name = 'scripted', probing = false): Scripted {
  const script: Scripted = {
    answers: new Map(),
    calls: [],
    opened: [],
    closed: 0,
    underWay: 0,
    most: 0,
    type: {
      name,
      schema: Type.Object(
        {
          token: Type.Optional(Type.String({ pattern: '^t' })),
          port: Type.Optional(Type.Integer()),
          mount: Type.Optional(Type.String()),
          list: Type.Optional(Type.Array(Type.String()))
        },
        { additionalProperties: false }
      ),
      protectedFields: ['token'],
      open(config): Backend {
        script.opened.push(config)
        const ask = async (operation: string, resource: string) => {
          script.calls.push(`${operation} ${resource}`)
          script.most = Math.max(script.most, ++script.underWay)
          try {
            const answer = script.answers.get(resource)
            if (answer instanceof Error) throw answer
            return typeof answer === 'function' ? await answer() : await Promise.resolve(answer)
          } finally {
            script.underWay--
          }
        }
        return {
          fetch: resource => ask('fetch', resource),
          ...(probing
            ? { probe: async (resource: string) => (await ask('probe', resource))?.version }
            : {}),
          health: () => ({ tokenExpiresAt: 12 }),
          close() {
            script.closed++
          }
        }
      }
    }
  }
  return script
}

/** Vaults on a clock that only the test moves. */
export function vaultsOn(
  types: readonly BackendType[],
  options: Partial<VaultsOptions> = {}
): { readonly vaults: Vaults; pass(seconds: number): void; readonly now: () => number } {
  let now = 1_000_000
  const clock = (): number => now
  return {
    vaults: createVaults({
      backendTypes: types,
      defaults: {},
      now: clock,
      random: () => 0.5,
      ...options
    }),
    pass(seconds) {
      now += seconds * 1000
    },
    now: clock
  }
}

export const reference = (text: string): Reference => parseReference(`{vault://${text}}`)

/** An error that no backend of ours throws for an absence, but another may. */
export const nothing = (): Error => new SecretAbsent('it')
