import { SecretAbsent, SecretMalformed } from '../errors.ts'
import type { Fetched } from './backend.ts'

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })
/** JSON of texts that were looked into, for as long as the read they came from is held. */
const parsed = new WeakMap<Fetched, unknown>()

/**
 * Takes a reference's part out of what was read: the member `key`, what the JSON `pointer` leads to
 * (RFC 6901), or the whole. Throws POSTERN_VAULT_MALFORMED, or POSTERN_VAULT_ABSENT when the member
 * does not exist. Messages name members, never values.
 */
export function extract(
  fetched: Fetched,
  text: string,
  key: string | undefined,
  pointer: string | undefined,
  base64: boolean
): string {
  let value: unknown = fetched.value
  if (key !== undefined || pointer !== undefined) {
    const root = jsonOf(fetched, text)
    value = key === undefined ? follow(root, pointer!, text) : member(root, key, text)
  } else if (typeof value !== 'string') {
    value = JSON.stringify(value)
  }
  if (typeof value === 'number' || typeof value === 'boolean') value = String(value)
  if (typeof value !== 'string') {
    throw new SecretMalformed(
      text,
      `it is ${value === null ? 'null' : Array.isArray(value) ? 'a list' : 'an object'}, not text`
    )
  }
  return base64 ? decodeBase64(value, text) : value
}

function jsonOf(fetched: Fetched, text: string): unknown {
  if (typeof fetched.value !== 'string') return fetched.value
  if (parsed.has(fetched)) return parsed.get(fetched)
  let root: unknown
  try {
    root = JSON.parse(fetched.value)
  } catch {
    throw new SecretMalformed(text, 'it is not JSON, so it has no members')
  }
  parsed.set(fetched, root)
  return root
}

function member(root: unknown, key: string, text: string): unknown {
  if (typeof root !== 'object' || root === null || Array.isArray(root)) {
    throw new SecretMalformed(text, 'it is no JSON object, so it has no members')
  }
  if (!Object.hasOwn(root, key))
    throw new SecretAbsent(`${text} (the JSON object has no member "${key}")`)
  return (root as Record<string, unknown>)[key]
}

/** RFC 6901: `~1` is a slash and `~0` a tilde. */
function follow(root: unknown, pointer: string, text: string): unknown {
  let value = root
  for (const token of pointer.split('/').slice(1)) {
    const name = token.replaceAll('~1', '/').replaceAll('~0', '~')
    // Of a list's members RFC 6901 §4 knows its elements alone.
    const known = !Array.isArray(value) || /^(0|[1-9]\d*)$/.test(name)
    if (typeof value !== 'object' || value === null || !known || !Object.hasOwn(value, name)) {
      throw new SecretAbsent(`${text} (the JSON pointer ${pointer} leads nowhere)`)
    }
    value = (value as Record<string, unknown>)[name]
  }
  return value
}

function decodeBase64(value: string, text: string): string {
  const compact = value.replace(/\s/g, '')
  if (!/^[A-Za-z0-9+/_-]*={0,2}$/.test(compact) || compact.length % 4 === 1) {
    throw new SecretMalformed(text, 'it is not base64')
  }
  try {
    return utf8.decode(Buffer.from(compact, 'base64'))
  } catch {
    throw new SecretMalformed(text, 'what its base64 stands for is no text')
  }
}
