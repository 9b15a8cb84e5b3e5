import type { TSchema } from 'typebox'
import type { Config, Entities } from './config.ts'
import { type PackedRoutes, packRoutes } from './proxy/packed-routes.ts'
import { compileRoutes, type RouteTable } from './proxy/route-table.ts'
import type { WatchedConfig } from './proxy/upstream-control.ts'
import { redactor } from './redaction.ts'
import {
  type CaCertificate,
  CaCertificateSchema,
  type Certificate,
  CertificateSchema
} from './schema/entities.ts'
import { type ResolvedField, resolveFields } from './schema/referenceable.ts'
import { parseTemplate } from './vault/reference.ts'

/** What a reference stands for now: its value, or why there is none; see `Secret` for the members. */
export type SecretState =
  | { readonly value: string; readonly previous?: string; readonly since: number }
  | { readonly failure: string }

/** Every reference of a configuration, by its text, with its state. */
export type Secrets = ReadonlyMap<string, SecretState>

/**
 * Secrets as they cross threads, one row of each column for a reference: cloning so many small
 * objects would cost five times as much.
 */
export interface SecretColumns {
  readonly references: readonly string[]
  /** Undefined where there is none, which `failures` tells of. */
  readonly values: readonly (string | undefined)[]
  readonly previous: readonly (string | undefined)[]
  readonly since: readonly number[]
  /** Why a reference has no value. */
  readonly failures: ReadonlyMap<string, string>
}

/** Secrets as columns. */
export function toColumns(secrets: Secrets): SecretColumns {
  const states = [...secrets.values()].map(state => ('failure' in state ? undefined : state))
  const failures = new Map<string, string>()
  for (const [text, state] of secrets) if ('failure' in state) failures.set(text, state.failure)
  return {
    references: [...secrets.keys()],
    values: states.map(state => state?.value),
    previous: states.map(state => state?.previous),
    since: states.map(state => state?.since ?? 0),
    failures
  }
}

/** The opposite of {@link toColumns}. */
export function fromColumns(columns: SecretColumns): Map<string, SecretState> {
  const secrets = new Map<string, SecretState>()
  for (const [row, text] of columns.references.entries()) {
    const value = columns.values[row]
    const previous = columns.previous[row]
    const since = columns.since[row]!
    if (value === undefined) secrets.set(text, { failure: columns.failures.get(text)! })
    else secrets.set(text, previous === undefined ? { value, since } : { value, previous, since })
  }
  return secrets
}

/** Where the states of references are looked up. */
export type SecretLookup = Pick<Secrets, 'get'>

/** Has this thread mask these values, the previous ones too, in whatever it writes about itself. */
export function maskSecrets(secrets: Secrets): void {
  for (const [text, state] of secrets) redactor.hold(text, valuesOf(state))
}

/** The values a state holds: the current one, and the previous one while there is one. */
export function valuesOf(state: SecretState | undefined): readonly string[] {
  if (state === undefined || 'failure' in state) return []
  return state.previous === undefined ? [state.value] : [state.value, state.previous]
}

/** What TLS with clients takes from settings that change while the listeners are open; PEM texts. */
export interface ListenerTls {
  /** The certificate for names that none of the file covers; empty when no listener speaks TLS. */
  readonly cert: string
  readonly key: string
  /** Authorities of client certificates; undefined when clients are asked for none. */
  readonly clientCa: string | undefined
}

/** What data-plane threads need of a configuration: its entities, references as text. */
export interface ServedConfig extends Omit<Entities, 'vaults' | 'routes'> {
  readonly routing: { readonly table: RouteTable; readonly routes: PackedRoutes }
  readonly transform: boolean
  /** `file:line:column` of the plugin entities with references, by their ids. */
  readonly places: ReadonlyMap<string, string>
}

/** Makes what data-plane threads need of a configuration; its routes are compiled once for all of them. */
export async function servedConfig(config: Config): Promise<ServedConfig> {
  const { file: _, text: _text, warnings: _warnings, vaults: _vaults, ...rest } = config
  const { uses, routes, ...served } = rest
  const places = new Map<string, string>()
  for (const { kind, id, place } of uses) {
    if (kind === 'plugins' && !places.has(id))
      places.set(id, `${place.file}:${place.line}:${place.column}`)
  }
  const services = new Map(config.services.map(service => [service.id, service]))
  const routing = {
    table: await compileRoutes(routes, services),
    routes: await packRoutes(routes)
  }
  return { ...served, places, routing }
}

/** A configuration with its resolved secrets: what a data-plane thread serves from. */
export interface Generation {
  readonly config: ServedConfig
  readonly secrets: Secrets
  readonly tls: ListenerTls
}

/** A reference has no value, so what it belongs to cannot work. */
export class MissingSecret extends Error {}

/** Secrets to look up, with some that stand over those of the same names. */
export function overlay(secrets: SecretLookup, over: SecretLookup): SecretLookup {
  return { get: text => over.get(text) ?? secrets.get(text) }
}

/**
 * An entity with its references resolved; undefined when one of them has no value.
 */
export function resolveEntity<T>(
  schema: TSchema,
  entity: object,
  secrets: SecretLookup
): T | undefined {
  try {
    return resolveFields(schema, entity, template => resolveTemplate(template, secrets)) as T
  } catch (error) {
    if (error instanceof MissingSecret) return undefined
    throw error
  }
}

/**
 * The text of a referenceable field with its references replaced, and the same with their previous
 * values where there are any. Resolved values are never looked into for further references. Throws
 * MissingSecret, which tells why the first reference without a value has none.
 */
export function resolveTemplate(template: string, secrets: SecretLookup): ResolvedField {
  // Nearly always the field is one reference and nothing else.
  const whole = secrets.get(template)
  if (whole !== undefined && 'value' in whole) return whole
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
      throw new MissingSecret(state?.failure ?? 'never resolved')
    value += state.value
    previous += state.previous ?? state.value
    if (state.previous !== undefined) rotated = true
    since = Math.max(since, state.since)
  }
  return rotated ? { value, previous, since } : { value, since }
}

/** What the control thread watches of a generation's upstreams. */
export function watchedConfig(config: Config, secrets: SecretLookup): WatchedConfig {
  const { services, upstreams, targets, certificates, ca_certificates } = config
  return {
    services,
    upstreams,
    targets,
    certificates: certificates
      .map(entity => resolveEntity<Certificate>(CertificateSchema, entity, secrets))
      .filter(certificate => certificate !== undefined),
    ca_certificates: ca_certificates
      .map(entity => resolveEntity<CaCertificate>(CaCertificateSchema, entity, secrets))
      .filter(authority => authority !== undefined)
  }
}
