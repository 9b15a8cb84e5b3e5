import { createHash } from 'node:crypto'

/** Namespace under which every entity id is derived; the same as Kong's, so ids carry over. */
const ROOT = 'fd02801f-0957-4a15-a55a-c8d9606f30b5'

/** A name-based UUID with SHA-1 (RFC 9562 §5.5). */
export function uuid5(namespace: string, name: string): string {
  const bytes = createHash('sha1')
    .update(Buffer.from(namespace.replaceAll('-', ''), 'hex'))
    .update(name)
    .digest()
    .subarray(0, 16)
  bytes[6] = (bytes[6]! & 0x0f) | 0x50
  bytes[8] = (bytes[8]! & 0x3f) | 0x80
  return bytes.toString('hex').replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5')
}

/** The id of an entity that gives none: stable across loads as long as its key is. */
export function entityId(kind: string, key: string): string {
  return uuid5(uuid5(ROOT, kind), key)
}

/** JSON with sorted member names, so that equal values give equal text. */
export function canonicalJson(value: unknown): string {
  return JSON.stringify(value, (_, part: unknown) =>
    typeof part === 'object' && part !== null && !Array.isArray(part)
      ? Object.fromEntries(Object.entries(part).sort(([a], [b]) => (a < b ? -1 : 1)))
      : part
  )
}
