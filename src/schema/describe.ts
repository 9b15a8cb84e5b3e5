import { formats } from './formats.ts'
import { isRecord } from './walk.ts'

const DATA_KEYWORDS = new Set(['enum', 'const', 'default', 'examples'])

/**
 * A schema for people and tools: JSON Schema 2020-12 in which `referenceable` marks the fields that
 * take references, and formats of the gateway's own are described in words.
 */
export function describeSchema(schema: object): object {
  const described = describePart(schema) as object
  return { $schema: 'https://json-schema.org/draft/2020-12/schema', ...described }
}

function describePart(part: unknown): unknown {
  if (Array.isArray(part)) return part.map(describePart)
  if (!isRecord(part)) return part
  return Object.fromEntries(
    Object.entries(part).flatMap(([key, value]) => describeMember(part, key, value))
  )
}

function describeMember(
  part: Record<string, unknown>,
  key: string,
  value: unknown
): [string, unknown][] {
  if (DATA_KEYWORDS.has(key)) return [[key, value]]
  if (key === 'properties' && isRecord(value)) {
    // A property may be named like a keyword.
    const entries = Object.entries(value).map(([name, member]) => [name, describePart(member)])
    return [[key, Object.fromEntries(entries)]]
  }
  if (key === 'format' && typeof value === 'string' && value.startsWith('postern-')) {
    return part.description === undefined
      ? [['description', formats[value]?.description ?? value]]
      : []
  }
  return [[key, describePart(value)]]
}
