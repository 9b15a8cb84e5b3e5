import type { TSchema } from 'typebox'
import { VaultMisconfigured } from '../errors.ts'
import type { VaultEntity } from '../schema/entities.ts'
import { nearest, validatePlain } from '../schema/validator.ts'
import { vaultConfigSchema } from '../schema/vault-config.ts'
import type { BackendType } from './backend.ts'
import type { Freshness } from './cache.ts'
import { looksLikeReference, parseTemplate, type Reference } from './reference.ts'

/** A vault as it was set up: by an entity of the file, or a default vault by the environment. */
export interface Definition {
  /** A prefix, or the type's name. */
  readonly name: string
  readonly type: BackendType
  /** As authored: texts may hold references. */
  readonly config: Readonly<Record<string, unknown>>
}

/** The vaults of one configuration by the names references use. */
export type Definitions = ReadonlyMap<string, Definition>

/** What is wrong with a reference, and what to write. */
export interface Complaint {
  readonly message: string
  readonly fix: string
  /** It lacks in the environment: the file that holds the reference is all right. */
  readonly environment?: true
}

/** Settings every vault has besides those of its type. */
const POLICY_FIELDS = [
  'ttl',
  'neg_ttl',
  'resurrect_ttl',
  'base64_decode',
  'on_denied',
  'timeout',
  'grace'
] as const
const SECONDS: ReadonlySet<string> = new Set([
  'ttl',
  'neg_ttl',
  'resurrect_ttl',
  'timeout',
  'grace'
])
const DEFAULT_NEG_TTL = 60
const DEFAULT_RESURRECT_TTL = 1e8
/** Longest time-out of a read, in seconds. */
const MAX_TIMEOUT = 300

/** How a reference's value is kept and read. */
export interface Policy {
  readonly freshness: Freshness
  readonly base64: boolean
  /** Seconds its previous value still verifies; undefined is the gateway's setting. */
  readonly grace: number | undefined
}

/** The default vault of every type, and those of the file. */
export function define(
  types: readonly BackendType[],
  defaults: Readonly<Record<string, Readonly<Record<string, string>>>>,
  entities: readonly VaultEntity[]
): Definitions {
  const definitions = new Map<string, Definition>()
  for (const type of types) {
    definitions.set(type.name, { name: type.name, type, config: defaults[type.name] ?? {} })
  }
  for (const { prefix, name, config } of entities) {
    const type = types.find(candidate => candidate.name === name)
    if (type !== undefined) definitions.set(prefix, { name: prefix, type, config })
  }
  return definitions
}

/** A vault's settings as one reference wants them, the layer's own apart from those of its type. */
export function settingsFor(
  definition: Definition,
  reference: Reference
): {
  readonly policy: Readonly<Record<string, unknown>>
  readonly own: Readonly<Record<string, unknown>>
} {
  const policy: Record<string, unknown> = {}
  const own: Record<string, unknown> = {}
  for (const [name, value] of Object.entries({ ...definition.config, ...reference.overrides })) {
    if ((POLICY_FIELDS as readonly string[]).includes(name)) policy[name] = value
    // An empty override takes a setting away.
    else if (value !== '') own[name] = value
  }
  return { policy, own }
}

/** The references in a vault's settings, those in lists too. Throws POSTERN_REFERENCE_INVALID. */
export function referencesIn(settings: Readonly<Record<string, unknown>>): readonly Reference[] {
  return Object.values(settings)
    .flat()
    .flatMap(value => (templateOf(value) ?? []).filter(part => typeof part !== 'string'))
}

/** Settings with their references replaced; `value` gives what one stands for, or throws. */
export function settle(
  settings: Readonly<Record<string, unknown>>,
  value: (reference: Reference, setting: string) => string
): Readonly<Record<string, unknown>> {
  const settled = (authored: unknown, name: string): unknown =>
    templateOf(authored)
      ?.map(part => (typeof part === 'string' ? part : value(part, name)))
      .join('') ?? authored
  return Object.fromEntries(
    Object.entries(settings).map(([name, authored]) => [
      name,
      Array.isArray(authored) ? authored.map(item => settled(item, name)) : settled(authored, name)
    ])
  )
}

/** The parts of a text with references in it; undefined for any other value. */
function templateOf(value: unknown): ReturnType<typeof parseTemplate> {
  return typeof value === 'string' && looksLikeReference(value) ? parseTemplate(value) : undefined
}

/**
 * Settled settings of a type as its schema wants them. Throws POSTERN_VAULT_SETTINGS when they do
 * not fit it; no text holds a value.
 */
export function typed(
  settings: Readonly<Record<string, unknown>>,
  schema: TSchema
): Readonly<Record<string, unknown>> {
  const properties = propertiesOf(schema)
  const config = Object.fromEntries(
    Object.entries(settings).map(([name, value]) => [name, coerce(value, properties[name]?.type)])
  )
  const [violation] = validatePlain(schema, config)
  if (violation !== undefined) {
    const { segments, message, fix } = violation
    throw new VaultMisconfigured(`${segments.join('.') || 'they'}: ${message}`, fix)
  }
  return config
}

/**
 * What is wrong with the text of one setting of a type, as far as that setting alone can tell;
 * undefined for one with references, whose value is not known yet.
 */
export function checkSetting(
  schema: TSchema,
  field: string,
  text: string
): { readonly message: string; readonly fix: string } | undefined {
  if (templateOf(text) !== undefined) return undefined
  const forms = formsOf(vaultConfigSchema(schema), field)
  const complaints = forms.map(form => {
    const { type } = form as { readonly type?: string }
    return validatePlain(form, coerce(text, type))[0]
  })
  if (complaints.includes(undefined)) return undefined
  // Variables hold text, so quotes are no question.
  const { message, fix } = complaints[0]!
  return { message, fix: fix.replace(' without quotes', '') }
}

/** The schemas a property has in the forms of a type's settings. */
function formsOf(schema: TSchema, field: string): readonly TSchema[] {
  const { properties, anyOf = [] } = schema as {
    readonly properties?: Readonly<Record<string, TSchema | undefined>>
    readonly anyOf?: readonly TSchema[]
  }
  const own = properties?.[field]
  return [...(own === undefined ? [] : [own]), ...anyOf.flatMap(form => formsOf(form, field))]
}

function coerce(value: unknown, type: string | undefined): unknown {
  if (typeof value !== 'string') return value
  switch (type) {
    case 'integer':
    case 'number':
      return /^-?\d+(\.\d+)?$/.test(value.trim()) ? Number(value) : value
    case 'boolean':
      return { true: true, on: true, false: false, off: false }[value.trim().toLowerCase()] ?? value
    case 'array':
      return value
        .split(',')
        .map(item => item.trim())
        .filter(item => item !== '')
    default:
      return value
  }
}

/** Reads the layer's own settings, settled. `timeout` is the default one. Throws POSTERN_VAULT_SETTINGS. */
export function policyOf(settings: Readonly<Record<string, unknown>>, timeout: number): Policy {
  const seconds = (name: string): number | undefined => {
    const value = settings[name]
    if (value === undefined || value === '') return undefined
    const number = Number(value)
    if (!(number >= 0)) throw new VaultMisconfigured(`${name} is no time`, 'Give it in seconds')
    return number
  }
  const ttl = seconds('ttl') ?? 0
  return {
    freshness: {
      ttl,
      negTtl: seconds('neg_ttl') ?? (ttl > 0 ? Math.min(ttl, DEFAULT_NEG_TTL) : DEFAULT_NEG_TTL),
      resurrectTtl: seconds('resurrect_ttl') ?? DEFAULT_RESURRECT_TTL,
      failOnDenied: settings.on_denied === 'fail',
      timeout: Math.min(seconds('timeout') || timeout, MAX_TIMEOUT)
    },
    base64: coerce(settings.base64_decode, 'boolean') === true,
    grace: seconds('grace')
  }
}

type Properties = Readonly<Record<string, { readonly type?: string } | undefined>>

/** Every property a type's settings may have, those of alternatives too. */
function propertiesOf(schema: TSchema): Properties {
  const { properties, anyOf, allOf } = schema as {
    properties?: Properties
    anyOf?: readonly TSchema[]
    allOf?: readonly TSchema[]
  }
  return Object.assign({}, ...[...(anyOf ?? []), ...(allOf ?? [])].map(propertiesOf), properties)
}

/** What is wrong with a reference as far as can be told without asking a vault. */
export function checkReference(
  reference: Reference,
  definitions: Definitions
): Complaint | undefined {
  const definition = definitions.get(reference.vault)
  if (definition === undefined) {
    const names = [...definitions.keys()]
    const near = nearest(reference.vault, names)
    return {
      message: `there is no vault "${reference.vault}"`,
      fix:
        near !== undefined
          ? `Did you mean "${near}"?`
          : `Use one of ${names.join(', ')}, or declare it under vaults.`
    }
  }
  return (
    checkOverrides(reference, definition) ??
    checkRequired(reference, definition) ??
    checkCircle(definition, definitions, [])
  )
}

function checkOverrides(reference: Reference, { type }: Definition): Complaint | undefined {
  const own = Object.keys(propertiesOf(type.schema))
  for (const [name, value] of Object.entries(reference.overrides)) {
    if (type.protectedFields.includes(name)) {
      return {
        message: `"${name}" decides where this vault is or who asks it, so a reference may not change it`,
        fix: 'Declare another vault under vaults for it.'
      }
    }
    const known = [...own, ...POLICY_FIELDS, 'pointer', 'default', 'version']
    if (!known.includes(name)) {
      const near = nearest(name, known)
      return {
        message: `there is no query name "${name}"`,
        fix: near !== undefined ? `Did you mean "${near}"?` : `Use one of ${known.join(', ')}.`
      }
    }
    if (SECONDS.has(name) && !/^\d+(\.\d+)?$/.test(value))
      return { message: `"${name}" takes seconds`, fix: `Write ${name}=60.` }
    if (name === 'base64_decode' && value !== 'true' && value !== 'false')
      return { message: '"base64_decode" is true or false', fix: 'Write base64_decode=true.' }
    if (name === 'on_denied' && value !== 'keep' && value !== 'fail')
      return { message: '"on_denied" is keep or fail', fix: 'Write on_denied=fail.' }
  }
  return undefined
}

function checkRequired(reference: Reference, definition: Definition): Complaint | undefined {
  const { type, config, name } = definition
  const required = (type.schema as { required?: readonly string[] }).required ?? []
  const missing = required.filter(
    field => (reference.overrides[field] ?? config[field] ?? '') === ''
  )
  if (missing.length === 0) return undefined
  const message = `the vault "${name}" lacks its setting ${missing.join(', ')}`
  return name === type.name
    ? {
        message,
        fix: `Set ${missing.map(field => variableOf(type.name, field)).join(' and ')}.`,
        environment: true
      }
    : { message, fix: `Write it under the vault's config.` }
}

function variableOf(type: string, field: string): string {
  return `POSTERN_VAULT_${type.replaceAll('-', '_')}_${field}`.toUpperCase()
}

/** Vaults that take their own settings from vaults must end at one that does not. */
function checkCircle(
  definition: Definition,
  definitions: Definitions,
  path: readonly string[]
): Complaint | undefined {
  const here = [...path, definition.name]
  if (path.includes(definition.name)) {
    return {
      message: `vaults take their settings from each other in a circle: ${here.join(' → ')}`,
      fix: 'Let one of them have its own, or take them from env or fs.'
    }
  }
  for (const { vault } of templatesOf(definition)) {
    const next = definitions.get(vault)
    const complaint = next === undefined ? undefined : checkCircle(next, definitions, here)
    if (complaint !== undefined) return complaint
  }
  return undefined
}

/** A malformed reference in a vault's settings is told where it stands. */
function templatesOf({ config }: Definition): readonly Reference[] {
  try {
    return referencesIn(config)
  } catch {
    return []
  }
}
