import type { TSchema } from 'typebox'
import type { Config, Entities, ReferenceUse } from './config.ts'
import type { Problem } from './errors.ts'
import type { Plugin } from './plugins/plugin.ts'
import { checkKeyPair } from './schema/certificates.ts'
import type { PluginEntity } from './schema/entities.ts'
import { kindsByName } from './schema/kinds.ts'
import { plainFields, validateResolved } from './schema/referenceable.ts'
import type { EntityUses, UseIndex } from './uses.ts'
import { parseTemplate } from './vault/reference.ts'

/** The value of a reference as authored; undefined when it has none. */
export type Lookup = (reference: string) => { readonly value: string } | undefined

/**
 * What resolved values break of the fields of one entity that refer to them, each with its place.
 * Fields without a value are skipped. `concerns` tells which references matter; all when left out.
 * No text holds a value.
 */
export function validateEntity(
  config: Config,
  schemas: ReadonlyMap<string, TSchema>,
  { kind, index, all }: EntityUses,
  lookup: Lookup,
  concerns: (reference: string) => boolean = () => true
): readonly Problem[] {
  const [schema, value, base] = resolvedPart(kind, config[kind][index]!, schemas)
  if (schema === undefined) return []
  const plain = plainFields(schema, value, template => substitute(template, lookup))
  const violations = [...validateResolved(schema, plain)]
  const isMissing = (use: ReferenceUse): boolean =>
    use.references.some(text => lookup(text) === undefined)
  if (kind === 'certificates' && violations.length === 0 && !all.some(isMissing)) {
    violations.push(...checkKeyPair(plain as Record<string, unknown>))
  }
  if (violations.length === 0) return []
  // Certificate and key are checked together, whichever of them changed.
  return all
    .filter(use => kind === 'certificates' || use.references.some(concerns))
    .filter(use => !isMissing(use))
    .flatMap(({ pointer, place, references }) =>
      violations
        .filter(({ path }) => base + path === pointer)
        .map(({ message, fix }) => ({
          code: 'POSTERN_CONFIG_RESOLVED',
          message,
          fix,
          place,
          reference: references.join(' ')
        }))
    )
}

/** Schemas of plugins' configurations by their names. */
export function schemasOf(plugins: readonly Plugin[]): ReadonlyMap<string, TSchema> {
  return new Map(plugins.map(plugin => [plugin.name, plugin.schema]))
}

/** {@link validateEntity} of every entity with references, or of those that use `changed` ones. */
export function validateUses(
  index: UseIndex,
  plugins: readonly Plugin[],
  lookup: Lookup,
  changed?: ReadonlySet<string>
): readonly Problem[] {
  const schemas = schemasOf(plugins)
  const concerns = changed === undefined ? undefined : (text: string) => changed.has(text)
  return index
    .entities(changed)
    .flatMap(entity => validateEntity(index.config, schemas, entity, lookup, concerns))
}

function resolvedPart(
  kind: keyof Entities,
  entity: Entities[keyof Entities][number],
  schemas: ReadonlyMap<string, TSchema>
): readonly [schema: TSchema | undefined, value: unknown, base: string] {
  if (kind === 'plugins') {
    const plugin = entity as PluginEntity
    return [schemas.get(plugin.name), plugin.config, '/config']
  }
  // What a vault's settings must be, its own type knows when it is opened.
  if (kind === 'vaults') return [undefined, undefined, '']
  return [kindsByName.get(kind)?.schema, entity, '']
}

function substitute(template: string, lookup: Lookup): string {
  // Nearly always the field is one reference and nothing else.
  const whole = lookup(template)
  if (whole !== undefined) return whole.value
  const parts = parseTemplate(template) ?? [template]
  return parts
    .map(part => (typeof part === 'string' ? part : (lookup(part.text)?.value ?? '')))
    .join('')
}
