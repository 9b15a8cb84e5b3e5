import type { Config, ReferenceUse } from './config.ts'
import type { WatchedConfig } from './proxy/upstream-control.ts'
import { redactor } from './redaction.ts'
import { type Certificate, CertificateSchema } from './schema/entities.ts'
import { type ResolvedField, resolveFields } from './schema/referenceable.ts'
import { parseTemplate } from './vault/reference.ts'

/** What a reference stands for now: its value, or why there is none; see `Secret` for the members. */
export type SecretState =
  | { readonly value: string; readonly previous?: string; readonly since: number }
  | { readonly failure: string }

/** Every reference of a configuration, by its text, with its state. Crosses threads as plain data. */
export type Secrets = ReadonlyMap<string, SecretState>

/** Has this thread mask these values, the previous ones too, in whatever it writes about itself. */
export function maskSecrets(secrets: Secrets): void {
  for (const [text, state] of secrets) {
    if ('failure' in state) redactor.hold(text, [])
    else redactor.hold(text, [state.value, state.previous ?? ''])
  }
}

/** What TLS with clients takes from settings that change while the listeners are open; PEM texts. */
export interface ListenerTls {
  /** The certificate for names that none of the file covers; empty when no listener speaks TLS. */
  readonly cert: string
  readonly key: string
  /** Authorities of client certificates; undefined when clients are asked for none. */
  readonly clientCa: string | undefined
}

/** A configuration with its resolved secrets: what a data-plane thread serves from. */
export interface Generation {
  readonly config: Config
  readonly secrets: Secrets
  readonly tls: ListenerTls
}

/** A reference of this use has no value, so what it belongs to cannot work. */
class MissingSecret extends Error {}

/** The entities whose references all have a value, resolved; the others are left out. */
export function resolvable<T>(
  entities: readonly object[],
  schema: Parameters<typeof resolveFields>[0],
  uses: ReadonlyMap<string, readonly ReferenceUse[]>,
  secrets: Secrets
): readonly T[] {
  return entities
    .filter(entity => missingReason(uses.get((entity as { id: string }).id), secrets) === undefined)
    .map(
      entity => resolveFields(schema, entity, template => resolveTemplate(template, secrets)) as T
    )
}

/** Why the first of these references without a value has none; undefined when all have one. */
export function missingReason(
  uses: readonly ReferenceUse[] | undefined,
  secrets: Secrets
): string | undefined {
  for (const use of uses ?? []) {
    for (const reference of use.references) {
      const state = secrets.get(reference)
      if (state === undefined || 'failure' in state) return state?.failure ?? 'never resolved'
    }
  }
  return undefined
}

/**
 * The text of a referenceable field with its references replaced, and the same with their previous
 * values where there are any. Resolved values are never looked into for further references.
 */
export function resolveTemplate(template: string, secrets: Secrets): ResolvedField {
  const parts = parseTemplate(template)
  if (parts === undefined) return { value: template }
  let value = ''
  let previous = ''
  let rotated = false
  let since = 0
  for (const part of parts) {
    if (typeof part === 'string') {
      value += part
      previous += part
      continue
    }
    const state = secrets.get(part.text)
    if (state === undefined || 'failure' in state)
      throw new MissingSecret(`no value for ${part.text}`)
    value += state.value
    previous += state.previous ?? state.value
    if (state.previous !== undefined) rotated = true
    since = Math.max(since, state.since)
  }
  return rotated ? { value, previous, since } : { value, since }
}

/** What the control thread watches of a generation's upstreams. */
export function watchedConfig(config: Config, secrets: Secrets): WatchedConfig {
  const { services, upstreams, targets, certificates } = config
  const uses = Map.groupBy(config.uses, use => use.id)
  return {
    services,
    upstreams,
    targets,
    certificates: resolvable<Certificate>(certificates, CertificateSchema, uses, secrets)
  }
}
