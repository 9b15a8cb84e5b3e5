import { LRUCache } from 'lru-cache'
import { InvalidReference } from '../errors.ts'

/** A parsed `{vault://vault/resource/key?query#version}`. */
export interface Reference {
  /** As authored, with its braces; names the reference in maps, logs and messages. */
  readonly text: string
  /** A vault's prefix, or a type for the default vault of that type. */
  readonly vault: string
  /** What the vault is asked for. */
  readonly resource: string
  /** Member of the JSON object the resource holds; undefined takes the whole. */
  readonly key: string | undefined
  /** JSON pointer into the resource (RFC 6901); it takes the key's place. */
  readonly pointer: string | undefined
  /** Stands when the vault holds nothing there. */
  readonly fallback: string | undefined
  /** Version id, stage, alias or number; undefined is the current one. */
  readonly version: string | undefined
  /** Settings of the vault overridden for this reference, as text. */
  readonly overrides: Readonly<Record<string, string>>
}

/** Text with references in it, in order. */
export type Template = readonly (string | Reference)[]

/**
 * What was parsed, by its text: every rotation asks for the same references again, in each thread,
 * and parsing them was the largest part of its work. Bounded, since files come and go.
 */
const references = new LRUCache<string, Reference>({ max: 4096 })
const templates = new LRUCache<string, Template>({ max: 4096 })

const OPENING = '{vault://'
/** What people write who mean a reference. */
const NEAR_MISS = /\{\s*vault\s*:/i
const ANY_OPENING = /\{\s*vault\s*:/gi
const NO_OVERRIDES: Reference['overrides'] = Object.freeze({})
const FULL_FORM = '{vault://VAULT/RESOURCE/KEY}'

function invalid(text: string, what: string, write: string): Error {
  return new InvalidReference(`${text}: ${what}; write ${write}`)
}

/** Percent-decodes once, as bytes of UTF-8; escapes that are none stay, and so does `+`. */
function decode(text: string): string {
  if (!text.includes('%')) return text
  return text.replace(/(?:%[0-9a-f]{2})+/gi, escapes => {
    const bytes = Buffer.from(escapes.replaceAll('%', ''), 'hex')
    return bytes.toString('utf8')
  })
}

/** The numeric fragment in its shortest form; undefined when it is no number. */
function fragmentVersion(fragment: string): string | undefined {
  if (!/^-?(?:0x[0-9a-f]+|\d+(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+)$/i.test(fragment)) return undefined
  const negative = fragment.startsWith('-')
  const number = Number(negative ? fragment.slice(1) : fragment)
  return Number.isFinite(number) ? String(negative ? -number : number) : undefined
}

function parseQuery(text: string, query: string): Map<string, string> {
  const fields = new Map<string, string>()
  for (const part of query.split('&')) {
    if (part === '') continue
    const equals = part.indexOf('=')
    const name = decode(equals === -1 ? part : part.slice(0, equals))
    if (fields.has(name)) throw invalid(text, `"${name}" is given twice`, 'it once')
    fields.set(name, equals === -1 ? 'true' : decode(part.slice(equals + 1)))
  }
  return fields
}

/**
 * Parses one reference. Throws POSTERN_REFERENCE_INVALID, saying what is wrong and what to write.
 * It ends at its first `}`; a brace, a space or a control character in a name is written as its
 * escape.
 */
export function parseReference(text: string): Reference {
  let reference = references.get(text)
  if (reference === undefined) {
    reference = parse(text)
    references.set(text, reference)
  }
  return reference
}

function parse(text: string): Reference {
  if (!text.startsWith(OPENING) || !text.endsWith('}')) {
    throw invalid(text, 'not a reference', FULL_FORM)
  }
  const inner = text.slice(OPENING.length, -1)
  const odd = /[\s{}\p{Cc}]/u.exec(inner)
  if (odd !== null) {
    const escaped = encodeURIComponent(odd[0])
    throw invalid(text, 'spaces and braces cannot stand in a reference', `${escaped} for it`)
  }
  const hash = inner.indexOf('#')
  const fragment = hash === -1 ? undefined : inner.slice(hash + 1)
  const beforeFragment = hash === -1 ? inner : inner.slice(0, hash)
  const slash = beforeFragment.indexOf('/')
  const mark = beforeFragment.indexOf('?')
  const hasPath = slash !== -1 && (mark === -1 || slash < mark)
  const authority = hasPath
    ? beforeFragment.slice(0, slash)
    : beforeFragment.slice(0, mark === -1 ? undefined : mark)
  const vault = vaultName(authority)
  if (vault === '') throw invalid(text, 'reference url is missing host', FULL_FORM)
  if (!hasPath) throw invalid(text, 'reference url is missing path', `{vault://${vault}/RESOURCE}`)
  const rest = beforeFragment.slice(slash)
  const question = rest.indexOf('?')
  const query = question === -1 ? '' : rest.slice(question + 1)
  // RFC 3986 §3.3 lets a path carry parameters; the format drops them.
  const path = (question === -1 ? rest : rest.slice(0, question)).split(';')[0]!
  if (path === '/' || path === '')
    throw invalid(text, 'reference url has empty path', `{vault://${vault}/RESOURCE}`)
  const version = fragment === undefined ? undefined : fragmentVersion(fragment)
  if (fragment !== undefined && version === undefined) {
    throw invalid(
      text,
      'reference url has invalid version',
      'a number after #, or ?version=ID before it'
    )
  }
  const segments = path
    .split('/')
    .filter(segment => segment !== '')
    .map(decode)
  if (segments.length === 0)
    throw invalid(text, 'reference url has invalid path', `{vault://${vault}/RESOURCE}`)
  const fields = parseQuery(text, query)
  return assemble(text, vault, segments, path.endsWith('/'), version, fields)
}

function vaultName(authority: string): string {
  const host = authority.slice(authority.lastIndexOf('@') + 1)
  if (host.startsWith('[')) return host.slice(1, host.includes(']') ? host.indexOf(']') : undefined)
  const colon = host.indexOf(':')
  return colon === -1 ? host : host.slice(0, colon)
}

function assemble(
  text: string,
  vault: string,
  segments: readonly string[],
  wholePath: boolean,
  fragment: string | undefined,
  fields: Map<string, string>
): Reference {
  const pointer = fields.get('pointer')
  const fallback = fields.get('default')
  const named = fields.get('version')
  if (pointer !== undefined && pointer !== '' && !pointer.startsWith('/')) {
    throw invalid(text, 'a JSON pointer starts with a slash', `pointer=/${pointer}`)
  }
  if (named !== undefined && fragment !== undefined) {
    throw invalid(text, 'the version is given twice', 'either ?version= or #')
  }
  if (named === '') throw invalid(text, 'the version is empty', 'its id after version=')
  for (const name of ['pointer', 'default', 'version']) fields.delete(name)
  const whole = wholePath || segments.length === 1 || pointer !== undefined
  return Object.freeze({
    text,
    vault,
    resource: (whole ? segments : segments.slice(0, -1)).join('/'),
    key: whole ? undefined : segments.at(-1),
    pointer,
    fallback,
    version: named ?? fragment,
    overrides: fields.size === 0 ? NO_OVERRIDES : Object.freeze(Object.fromEntries(fields))
  })
}

/** Whether text holds a reference, or something its author may have taken for one. */
export function looksLikeReference(text: string): boolean {
  return NEAR_MISS.test(text) || text.trimStart().startsWith('vault://')
}

/**
 * Parses text that may hold references; undefined when it holds none. Throws
 * POSTERN_REFERENCE_INVALID for a malformed one and for near misses, which would otherwise be used
 * as if they were the secret.
 */
export function parseTemplate(text: string): Template | undefined {
  const known = templates.get(text)
  if (known !== undefined) return known
  const template = takeApart(text)
  // Text without references may be a secret itself, and is not kept.
  if (template !== undefined) templates.set(text, template)
  return template
}

function takeApart(text: string): Template | undefined {
  if (text.trimStart().startsWith('vault://')) {
    throw invalid(text, 'a reference stands in braces', `{${text.trim()}}`)
  }
  const parts: (string | Reference)[] = []
  let from = 0
  ANY_OPENING.lastIndex = 0
  for (let found = ANY_OPENING.exec(text); found !== null; found = ANY_OPENING.exec(text)) {
    const start = found.index
    if (!text.startsWith(OPENING, start)) {
      throw invalid(
        text.slice(start, start + 40),
        'this is no reference but looks like one',
        `it as ${FULL_FORM}, in lower case and without spaces`
      )
    }
    const end = text.indexOf('}', start)
    if (end === -1)
      throw invalid(
        text.slice(start),
        'the closing brace is missing',
        `${text.slice(start).trim()}}`
      )
    const before = text[start - 1]
    if ((before === '$' || before === '{') && start > 0) {
      throw invalid(
        text.slice(start - 1, end + 1),
        'a reference starts with one brace',
        text.slice(start, end + 1)
      )
    }
    if (start > from) parts.push(text.slice(from, start))
    parts.push(parseReference(text.slice(start, end + 1)))
    from = end + 1
    ANY_OPENING.lastIndex = from
  }
  if (parts.length === 0) return undefined
  if (from < text.length) parts.push(text.slice(from))
  const only = parts.filter(part => typeof part !== 'string' || part.trim() !== '')
  if (only.length === 1 && parts.length > 1) {
    throw invalid(text, 'spaces around a reference would become part of the value', text.trim())
  }
  return Object.freeze(parts)
}

/**
 * The text to quote when a YAML value is what an unquoted reference reads as: a map with the
 * reference for its only key and no value. Undefined for everything else.
 */
export function unquotedReference(value: unknown): string | undefined {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return undefined
  const entries = Object.entries(value)
  if (entries.length !== 1) return undefined
  const [key, inner] = entries[0]!
  return inner === null && /^vault:\/\//i.test(key) ? `"{${key}}"` : undefined
}
