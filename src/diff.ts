import type { Config, Entities } from './config.ts'
import type { Plugin } from './plugins/plugin.ts'
import { pathText, type Segments } from './schema/document.ts'
import { kinds, kindsByName } from './schema/kinds.ts'
import { isRecord, isReferenceable, memberSchemas } from './schema/walk.ts'
import { looksLikeReference } from './vault/reference.ts'

/** One field whose effective value differs; undefined where it is not set. */
export interface FieldChange {
  readonly path: string
  readonly old: unknown
  readonly new: unknown
}

/** One entity that came, went or changed. */
export interface EntityChange {
  readonly kind: string
  /** The name people know it by; its id when it has none. */
  readonly name: string
  readonly change: 'added' | 'removed' | 'changed'
  /** Of changed entities. */
  readonly fields: readonly FieldChange[]
}

/** What replacing one configuration by another changes. */
export interface ConfigDiff {
  readonly equal: boolean
  readonly entities: readonly EntityChange[]
  /** References that only one of the two has. */
  readonly references: { readonly added: readonly string[]; readonly removed: readonly string[] }
}

type Entity = Readonly<Record<string, unknown>> & { readonly id: string }
type Schema = Readonly<Record<string, unknown>>

/** Fields without an effect on what is served. */
const WITHOUT_EFFECT = new Set(['id', 'tags', 'created_at', 'updated_at', 'description'])
/** Settings of a vault whose literal value is a secret; what kind each is, its type does not say. */
const SENSITIVE = /pass|secret|token|key|credential|cert|jwt|json/i
/** Stands for a literal value in a field that takes references, so that none is shown. */
const LITERAL = '[literal]'
const OTHER_LITERAL = '[another literal]'

/**
 * Compares what two configurations serve: defaults filled in, entities paired by kind and name, ids
 * and tags aside. References are shown; literal values of fields that take references are not.
 */
export function diffConfigs(old: Config, next: Config, plugins: readonly Plugin[]): ConfigDiff {
  const schemas = new Map(plugins.map(plugin => [plugin.name, plugin.schema as unknown as Schema]))
  const entities = kinds.flatMap(({ name }) =>
    diffKind(name as keyof Entities, labelled(old, name), labelled(next, name), schemas)
  )
  if (old.transform !== next.transform) {
    const field = { path: '_transform', old: old.transform, new: next.transform }
    entities.push({ kind: 'document', name: '', change: 'changed', fields: [field] })
  }
  const before = referencesOf(old)
  const after = referencesOf(next)
  const references = {
    added: [...after].filter(text => !before.has(text)),
    removed: [...before].filter(text => !after.has(text))
  }
  return { equal: entities.length === 0, entities, references }
}

function referencesOf({ uses }: Config): ReadonlySet<string> {
  return new Set(uses.flatMap(({ references }) => references))
}

/** The entities of a kind by the name that pairs them, foreign ids replaced by names. */
function labelled(config: Config, kind: string): ReadonlyMap<string, Entity> {
  const entities = config[kind as keyof Entities] as readonly unknown[] as readonly Entity[]
  return new Map(
    entities.map(entity => {
      const named = withNames(config, kind, entity)
      return [labelOf(kind, named), named]
    })
  )
}

function withNames(config: Config, kind: string, entity: Entity): Entity {
  const foreign = kindsByName.get(kind)!.foreign
  const named: Record<string, unknown> = { ...entity }
  for (const [field, target] of Object.entries(foreign)) {
    if (isRecord(entity[field])) named[field] = nameOf(config, target, String(entity[field].id))
  }
  if (Array.isArray(entity.ca_certificates)) {
    named.ca_certificates = entity.ca_certificates.map(id =>
      nameOf(config, 'ca_certificates', String(id))
    )
  }
  return named as Entity
}

function nameOf(config: Config, kind: string, id: string): string {
  const entities = config[kind as keyof Entities] as readonly unknown[] as readonly Entity[]
  const found = entities.find(entity => entity.id === id)
  return found === undefined ? id : labelOf(kind, found)
}

function labelOf(kind: string, entity: Entity): string {
  if (kind === 'plugins') {
    const scope = ['route', 'service', 'consumer']
      .filter(field => entity[field] !== undefined)
      .map(field => `${field} ${entity[field]}`)
    return `${entity.name} (${scope.length === 0 ? 'global' : scope.join(', ')})`
  }
  if (kind === 'targets') return `${entity.target} of ${entity.upstream}`
  if (kind === 'acls') return `${entity.group} of ${entity.consumer}`
  const key = kindsByName.get(kind)!.key
  const schema = kindsByName.get(kind)!.schema as Schema
  // The key of a credential may be a secret.
  const shown = key !== undefined && !isReferenceable(memberSchemas([schema], key))
  if (shown && typeof entity[key] === 'string') return entity[key]
  // An id alone says nothing to who wrote none.
  const owner = [entity.consumer, entity.service].find(name => typeof name === 'string')
  return owner === undefined ? entity.id : `${entity.id} of ${owner}`
}

function diffKind(
  kind: keyof Entities,
  old: ReadonlyMap<string, Entity>,
  next: ReadonlyMap<string, Entity>,
  plugins: ReadonlyMap<string, Schema>
): EntityChange[] {
  const changes: EntityChange[] = []
  for (const name of new Set([...old.keys(), ...next.keys()])) {
    const before = old.get(name)
    const after = next.get(name)
    if (before === undefined) changes.push({ kind, name, change: 'added', fields: [] })
    else if (after === undefined) changes.push({ kind, name, change: 'removed', fields: [] })
    else {
      const fields = diffEntity(kind, before, after, plugins)
      if (fields.length > 0) changes.push({ kind, name, change: 'changed', fields })
    }
  }
  return changes
}

function diffEntity(
  kind: keyof Entities,
  before: Entity,
  after: Entity,
  plugins: ReadonlyMap<string, Schema>
): readonly FieldChange[] {
  const schema = kindsByName.get(kind)!.schema as Schema
  const fields: FieldChange[] = []
  const visit = (schemas: readonly Schema[], a: unknown, b: unknown, path: Segments): void => {
    if (isRecord(a) && isRecord(b)) {
      for (const key of new Set([...Object.keys(a), ...Object.keys(b)])) {
        if (path.length === 0 && WITHOUT_EFFECT.has(key)) continue
        const below =
          kind === 'plugins' && path.length === 0 && key === 'config'
            ? [plugins.get(String(after.name)) ?? {}]
            : memberSchemas(schemas, key)
        visit(below, a[key], b[key], [...path, key])
      }
      return
    }
    if (JSON.stringify(a) === JSON.stringify(b)) return
    const shownOld = masked(kind, schemas, a, path, LITERAL)
    const shownNew = masked(kind, schemas, b, path, shownOld === LITERAL ? OTHER_LITERAL : LITERAL)
    fields.push({ path: pathText(path), old: shownOld, new: shownNew })
  }
  visit([schema], before, after, [])
  return fields
}

function takesSecret(kind: string, schemas: readonly Schema[], path: Segments): boolean {
  if (kind === 'vaults') return path[0] === 'config' && SENSITIVE.test(path.join('.'))
  return isReferenceable(schemas)
}

/** A value as it may be seen: a text in a field that takes references only if it is one. */
function masked(
  kind: string,
  schemas: readonly Schema[],
  value: unknown,
  path: Segments,
  mask: string
): unknown {
  if (Array.isArray(value))
    return value.map((item, index) =>
      masked(kind, memberSchemas(schemas, index), item, [...path, index], mask)
    )
  if (isRecord(value))
    return Object.fromEntries(
      Object.entries(value).map(([key, member]) => [
        key,
        masked(kind, memberSchemas(schemas, key), member, [...path, key], mask)
      ])
    )
  if (typeof value !== 'string' || !takesSecret(kind, schemas, path)) return value
  return looksLikeReference(value) ? onlyReferences(value) : mask
}

/** Text around references may be half of a secret. */
function onlyReferences(text: string): string {
  const references = text.match(/\{vault:\/\/[^}]*\}/g) ?? []
  const [only] = references
  return references.length === 1 && only === text ? text : `…${references.join('…')}…`
}
