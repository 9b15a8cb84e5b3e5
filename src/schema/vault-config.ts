import type { TSchema } from 'typebox'
import * as Type from 'typebox'
import { isRecord } from './walk.ts'

/** Settings that every vault takes besides those of its type. Times in seconds. */
const common = {
  ttl: Type.Optional(Type.Number({ minimum: 0 })),
  neg_ttl: Type.Optional(Type.Number({ minimum: 0 })),
  resurrect_ttl: Type.Optional(Type.Number({ minimum: 0 })),
  base64_decode: Type.Optional(Type.Boolean()),
  timeout: Type.Optional(Type.Number({ exclusiveMinimum: 0, maximum: 300 })),
  grace: Type.Optional(Type.Number({ minimum: 0 })),
  on_denied: Type.Optional(Type.Unsafe<'keep' | 'fail'>({ enum: ['keep', 'fail'] }))
}

const merged = new WeakMap<TSchema, TSchema>()

/** The schema of `vaults[].config` for a type: its own settings and the common ones, all referenceable. */
export function vaultConfigSchema(type: TSchema): TSchema {
  const known = merged.get(type)
  if (known !== undefined) return known
  const forms = (type as { anyOf?: readonly TSchema[] }).anyOf
  if (forms !== undefined) return Type.Union(forms.map(vaultConfigSchema))
  const own = (type as { properties?: object }).properties ?? {}
  const properties = Object.fromEntries(
    Object.entries({ ...common, ...own }).map(([name, schema]) => [name, markReferenceable(schema)])
  )
  const schema = { ...type, properties, additionalProperties: false } as unknown as TSchema
  merged.set(type, schema)
  return schema
}

function markReferenceable(schema: unknown): unknown {
  if (!isRecord(schema)) return schema
  if (isRecord(schema.items)) return { ...schema, items: markReferenceable(schema.items) }
  return schema.type === 'object' ? schema : { ...schema, referenceable: true }
}

/** Names that vault references use for a type, so that no prefix may take them. */
export function vaultTypeNames(
  types: readonly { readonly name: string }[] = []
): ReadonlySet<string> {
  const builtIn = ['env', 'fs', 'hcv', 'aws', 'gcp', 'azure', 'conjur', 'konnect', 'azure-certs']
  return new Set([...builtIn, ...types.map(type => type.name)])
}
