import { SecretMalformed } from '../../errors.ts'

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

/** A secret stored as bytes, as text. Throws SecretMalformed when it is none. */
export function textOf(bytes: Uint8Array, resource: string): string {
  try {
    return utf8.decode(bytes)
  } catch {
    throw new SecretMalformed(resource, 'its bytes are no UTF-8 text')
  }
}
