import { isRecord } from '../schema/walk.ts'
import { findParameter, type ParameterValues, removeParameter } from './parameters.ts'

/** How a kind of request body holds named top-level fields. */
export interface BodyFormat {
  /** The field's values in order; none when it is absent or the body is not well formed. */
  find(body: Buffer, name: string): ParameterValues
  /** Whether the field is there with any value but null. */
  has(body: Buffer, name: string): boolean
  /** The body without the field, everything else byte for byte. */
  remove(body: Buffer, name: string): Buffer
}

const FORM: BodyFormat = {
  find: (body, name) => findParameter(body.toString(), name),
  has: (body, name) => findParameter(body.toString(), name).length > 0,
  remove: (body, name) =>
    Buffer.from(removeParameter(body.toString('latin1'), name) ?? '', 'latin1')
}

const JSON_OBJECT: BodyFormat = {
  find(body, name) {
    const value = memberOf(body, name)
    const values = Array.isArray(value) ? value : [value]
    return values.filter(item => typeof item === 'string')
  },
  has: (body, name) => (memberOf(body, name) ?? null) !== null,
  remove: removeMember
}

/** A member of a JSON object's text; undefined when it has none or is no such text. */
function memberOf(body: Buffer, name: string): unknown {
  try {
    const document: unknown = JSON.parse(body.toString())
    return isRecord(document) && Object.hasOwn(document, name) ? document[name] : undefined
  } catch {
    return undefined
  }
}

/** The format of a body by its Content-Type; undefined for kinds without fields. */
export function bodyFormat(contentType: string | undefined): BodyFormat | undefined {
  if (contentType === undefined) return undefined
  const semicolon = contentType.indexOf(';')
  const type = (semicolon === -1 ? contentType : contentType.slice(0, semicolon))
    .trim()
    .toLowerCase()
  if (type === 'application/x-www-form-urlencoded') return FORM
  if (type === 'application/json') return JSON_OBJECT
  if (type !== 'multipart/form-data') return undefined
  const boundary = parameterOf(contentType, BOUNDARY)
  return boundary === undefined ? undefined : multipart(boundary)
}

// RFC 9110 §5.6.6: a parameter's value is a token or a quoted-string.
const BOUNDARY = /;\s*boundary=(?:"((?:[^"\\]|\\.)*)"|([^\s;"]+))/i
const NAME = /;\s*name=(?:"((?:[^"\\]|\\.)*)"|([^\s;"]+))/i

/** The value that such a pattern finds, unquoted. */
function parameterOf(value: string, pattern: RegExp): string | undefined {
  const found = pattern.exec(value)
  return found === null ? undefined : (found[1]?.replaceAll(/\\(.)/g, '$1') ?? found[2])
}

/** One part of a multipart body: its form name and the offsets of the whole part and its content. */
interface Part {
  readonly name: string | undefined
  /** From its delimiter line up to the next delimiter. */
  readonly start: number
  readonly end: number
  readonly content: string
}

function multipart(boundary: string): BodyFormat {
  const named = (body: Buffer, name: string): readonly Part[] =>
    (partsOf(body, boundary) ?? []).filter(part => part.name === name)
  return {
    find: (body, name) =>
      named(body, name).map(part => Buffer.from(part.content, 'latin1').toString()),
    has: (body, name) => named(body, name).length > 0,
    remove(body, name) {
      const removed = named(body, name)
      const kept: Buffer[] = []
      let from = 0
      for (const part of removed) {
        kept.push(body.subarray(from, part.start))
        from = part.end
      }
      return Buffer.concat([...kept, body.subarray(from)])
    }
  }
}

/** The parts of a multipart body (RFC 2046 §5.1.1); undefined when its closing delimiter is missing. */
function partsOf(body: Buffer, boundary: string): readonly Part[] | undefined {
  const text = body.toString('latin1')
  const delimiter = `--${boundary}`
  const parts: Part[] = []
  let start = text.startsWith(delimiter) ? 0 : text.indexOf(`\r\n${delimiter}`) + 2
  if (start === 1) return undefined
  for (;;) {
    if (text.startsWith('--', start + delimiter.length)) return parts
    const headersFrom = text.indexOf('\r\n', start)
    const next = headersFrom === -1 ? -1 : text.indexOf(`\r\n${delimiter}`, headersFrom)
    if (next === -1) return undefined
    const part = text.slice(headersFrom, next)
    const blank = part.indexOf('\r\n\r\n')
    parts.push({
      name: formName(blank === -1 ? '' : part.slice(0, blank)),
      start,
      end: next + 2,
      content: blank === -1 ? '' : part.slice(blank + 4)
    })
    start = next + 2
  }
}

/** The `name` of a part's Content-Disposition (RFC 7578 §4.2). */
function formName(headers: string): string | undefined {
  const disposition = /\r\ncontent-disposition:([^\r\n]*)/i.exec(headers)?.[1]
  const name = disposition === undefined ? undefined : parameterOf(disposition, NAME)
  return name === undefined ? undefined : Buffer.from(name, 'latin1').toString()
}

/** A JSON object's text without one member; numbers and spacing elsewhere stay as written. */
function removeMember(body: Buffer, name: string): Buffer {
  const text = body.toString('latin1')
  const open = text.indexOf('{')
  const close = text.lastIndexOf('}')
  const kept = membersOf(text, open + 1, close).filter(([start, end]) => {
    const quoted = text.slice(start, end).trimStart()
    const label = quoted.slice(0, stringEnd(quoted, 0))
    return JSON.parse(Buffer.from(label, 'latin1').toString()) !== name
  })
  const members = kept.map(([start, end]) => text.slice(start, end)).join(',')
  return Buffer.from(text.slice(0, open + 1) + members + text.slice(close), 'latin1')
}

/** The extents of an object's members between its commas; the text is known to be well-formed JSON. */
function membersOf(text: string, from: number, to: number): readonly (readonly [number, number])[] {
  const members: [number, number][] = []
  let depth = 0
  let start = from
  for (let i = from; i < to; i++) {
    const character = text[i]
    if (character === '"') i = stringEnd(text, i) - 1
    else if (character === '{' || character === '[') depth++
    else if (character === '}' || character === ']') depth--
    else if (character === ',' && depth === 0) {
      members.push([start, i])
      start = i + 1
    }
  }
  if (text.slice(start, to).trim() !== '') members.push([start, to])
  return members
}

/** The offset after the string literal that begins at `from`. */
function stringEnd(text: string, from: number): number {
  let i = from + 1
  while (text[i] !== '"') i += text[i] === '\\' ? 2 : 1
  return i + 1
}
