import type { TSchema } from 'typebox'
import type { Config, Entities, ReferenceUse } from './config.ts'
import type { Problem } from './errors.ts'
import type { Plugin } from './plugins/plugin.ts'
import { checkKeyPair } from './schema/certificates.ts'
import type { PluginEntity } from './schema/entities.ts'
import { kindsByName } from './schema/kinds.ts'
import { plainFields, validateResolved } from './schema/referenceable.ts'
import { parseTemplate } from './vault/reference.ts'

/**
 * What resolved values break of the fields that refer to them, each with its place. `uses` are those
 * to check: all, or those a rotation touches. `lookup` gives the value of a reference as authored,
 * undefined when it has none; fields without a value are skipped. No text holds a value.
 */
export function validateUses(
  config: Config,
  plugins: readonly Plugin[],
  uses: readonly ReferenceUse[],
  lookup: (reference: string) => { readonly value: string } | undefined
): readonly Problem[] {
  const problems: Problem[] = []
  const schemas = new Map(plugins.map(plugin => [plugin.name, plugin.schema]))
  const byEntity = Map.groupBy(uses, use => `${use.kind} ${use.id}`)
  const all = Map.groupBy(config.uses, use => `${use.kind} ${use.id}`)
  const entityOf = entityIndex(config)
  for (const [key, concerned] of byEntity) {
    const { kind, id } = concerned[0]!
    // Certificate and key are checked together, whichever of them changed.
    const checked = kind === 'certificates' ? all.get(key)! : concerned
    const unresolved = (all.get(key) ?? []).filter(use =>
      use.references.some(text => lookup(text) === undefined)
    )
    const missing = new Set(unresolved.map(use => use.pointer))
    const entity = entityOf(kind, id)
    if (entity === undefined) continue
    const [schema, value, base] = resolvedPart(kind, entity, schemas)
    if (schema === undefined) continue
    const plain = plainFields(schema, value, template => substitute(template, lookup))
    const violations = [...validateResolved(schema, plain)]
    if (kind === 'certificates' && violations.length === 0 && missing.size === 0) {
      violations.push(...checkKeyPair(plain as Record<string, unknown>))
    }
    for (const use of checked) {
      if (missing.has(use.pointer)) continue
      for (const found of violations) {
        if (base + found.path !== use.pointer) continue
        const { message, fix } = found
        const reference = use.references.join(' ')
        problems.push({
          code: 'POSTERN_CONFIG_RESOLVED',
          message,
          fix,
          place: use.place,
          reference
        })
      }
    }
  }
  return problems
}

/** Finds entities by kind and id; each kind is gone through once, however many are asked for. */
function entityIndex(config: Config) {
  const byKind = new Map<ReferenceUse['kind'], Map<string, Config[ReferenceUse['kind']][number]>>()
  return (kind: ReferenceUse['kind'], id: string) => {
    let entities = byKind.get(kind)
    if (entities === undefined) {
      entities = new Map(config[kind].map(entity => [entity.id, entity]))
      byKind.set(kind, entities)
    }
    return entities.get(id)
  }
}

/** {@link validateUses} of every reference of a configuration. */
export function resolveConfig(
  config: Config,
  plugins: readonly Plugin[],
  lookup: (reference: string) => { readonly value: string } | undefined
): readonly Problem[] {
  return validateUses(config, plugins, config.uses, lookup)
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

function substitute(
  template: string,
  lookup: (reference: string) => { readonly value: string } | undefined
): string {
  const parts = parseTemplate(template) ?? [template]
  return parts
    .map(part => (typeof part === 'string' ? part : (lookup(part.text)?.value ?? '')))
    .join('')
}
