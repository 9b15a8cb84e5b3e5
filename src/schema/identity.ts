import { hash } from 'node:crypto'

/** Namespace under which every entity id is derived; the same as Kong's, so ids carry over. */
const ROOT = 'fd02801f-0957-4a15-a55a-c8d9606f30b5'

/** A name-based UUID with SHA-1 (RFC 9562 §5.5). */
export function uuid5(namespace: string, name: string): string {
  return uuidIn(bytesOf(namespace), name)
}

const bytesOf = (uuid: string): Buffer => Buffer.from(uuid.replaceAll('-', ''), 'hex')

function uuidIn(namespace: Buffer, name: string): string {
  const bytes = hash('sha1', Buffer.concat([namespace, Buffer.from(name)]), 'buffer')
  bytes[6] = (bytes[6]! & 0x0f) | 0x50
  bytes[8] = (bytes[8]! & 0x3f) | 0x80
  const hex = bytes.toString('hex', 0, 16)
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`
}

const namespaces = new Map<string, Buffer>()

/** The id of an entity that gives none: stable across loads as long as its key is. */
export function entityId(kind: string, key: string): string {
  let namespace = namespaces.get(kind)
  if (namespace === undefined) {
    namespace = bytesOf(uuid5(ROOT, kind))
    namespaces.set(kind, namespace)
  }
  return uuidIn(namespace, key)
}

/** JSON with sorted member names, so that equal values give equal text. */
export function canonicalJson(value: unknown): string {
  return JSON.stringify(value, (_, part: unknown) =>
    typeof part === 'object' && part !== null && !Array.isArray(part)
      ? Object.fromEntries(Object.entries(part).sort(([a], [b]) => (a < b ? -1 : 1)))
      : part
  )
}
