import * as Type from 'typebox'
import { isRecord } from '../schema/walk.ts'
import type { Complaint, Exchange } from './plugin.ts'

/** The `custom_fields_by_lua` block of log plugins: where in the record, and the chunk for the value. */
export const CustomFieldsSchema = Type.Record(Type.String({ minLength: 1 }), Type.String())

type Value = string | number | boolean | undefined
/** What a chunk gives for one exchange; undefined is Lua's nil. */
type Getter = (exchange: Exchange) => Value
type Record_ = Record<string, unknown>

/** Makes a changed copy of a log record; what it is given stays as it is. */
export type RecordEditor = (record: Record_, exchange: Exchange) => Record_

/** Functions without arguments that a chunk may return the result of. */
const GETTERS: Readonly<Record<string, Getter>> = {
  'kong.client.get_ip': ({ request }) => request.remoteAddress,
  'kong.client.get_forwarded_ip': ({ request }) => request.clientIp,
  'kong.request.get_scheme': ({ request }) => request.scheme,
  'kong.request.get_host': ({ request }) => request.host,
  'kong.request.get_port': ({ request }) => request.port,
  'kong.request.get_http_version': ({ request }) => Number(request.httpVersion),
  'kong.request.get_method': ({ request }) => request.method,
  'kong.request.get_path': ({ request }) => request.path,
  'kong.request.get_path_with_query': ({ request }) => request.target,
  'kong.request.get_raw_query': ({ request }) => request.query ?? '',
  'kong.response.get_status': ({ response }) => response.status
}

/** Functions of one name. */
const NAMED_GETTERS: Readonly<Record<string, (name: string) => Getter>> = {
  // As it went upstream: a credential that a plugin hid stays hidden.
  'kong.request.get_header': name => exchange => exchange.upstream.header(name),
  'kong.response.get_header': name => exchange => {
    const value = exchange.response.header(name)
    return typeof value === 'object' ? value[0] : value
  }
}

const RETURN = /^\s*return\b\s*(.*?)\s*;?\s*$/s
const NUMBER = /^-?(?:0[xX][0-9a-fA-F]{1,12}|\d{1,15}(?:\.\d{0,15})?(?:[eE][+-]?\d{1,3})?)$/
const CALL = /^([a-z_]+(?:\.[a-z_]+)+)\s*(?:\(\s*(.*?)\s*\)|(["'].*["']))$/s

/**
 * What a chunk returns, compiled; undefined when it is not of the supported subset: `return` of nil,
 * a literal, or a getter named above, with a literal argument.
 */
export function compileChunk(chunk: string): Getter | undefined {
  const expression = RETURN.exec(chunk)?.[1]
  if (expression === undefined) return undefined
  const literal = parseLiteral(expression)
  if (literal !== undefined) return () => literal.value
  const call = CALL.exec(expression)
  if (call === null) return undefined
  const [, name = '', argument = call[3] ?? ''] = call
  if (argument === '') return own(GETTERS, name)
  const text = parseLiteral(argument)?.value
  return typeof text === 'string' ? own(NAMED_GETTERS, name)?.(text) : undefined
}

function own<T>(table: Readonly<Record<string, T>>, key: string): T | undefined {
  return Object.hasOwn(table, key) ? table[key] : undefined
}

function parseLiteral(text: string): { readonly value: Value } | undefined {
  if (text === '' || text === 'nil') return { value: undefined }
  if (text === 'true' || text === 'false') return { value: text === 'true' }
  if (NUMBER.test(text)) {
    return { value: text.startsWith('-') ? -Number(text.slice(1)) : Number(text) }
  }
  const bracketed = /^\[\[\n?((?:(?!\]\]).)*)\]\]$/s.exec(text)
  if (bracketed !== null) return { value: bracketed[1] }
  const quoted = /^(["'])((?:[^\\\n"']|(?!\1)["']|\\.)*)\1$/s.exec(text)
  const value = quoted === null ? undefined : unescapeLua(quoted[2]!)
  return value === undefined ? undefined : { value }
}

const ESCAPES: Readonly<Record<string, string>> = {
  a: '\x07',
  b: '\b',
  f: '\f',
  n: '\n',
  r: '\r',
  t: '\t',
  v: '\v',
  '\\': '\\',
  '"': '"',
  "'": "'",
  '\n': '\n'
}

/** Lua's string escapes (Lua 5.1 §2.1, and LuaJIT's `\x`); undefined when one is unknown. */
function unescapeLua(text: string): string | undefined {
  let valid = true
  const plain = text.replaceAll(
    /\\(?:(\d{1,3})|x([0-9a-fA-F]{2})|(.))/gs,
    (_, decimal, hex, letter) => {
      if (letter !== undefined) {
        valid &&= Object.hasOwn(ESCAPES, letter)
        return ESCAPES[letter] ?? ''
      }
      const code = decimal === undefined ? Number.parseInt(hex, 16) : Number(decimal)
      // Above ASCII the escapes are bytes, of which text cannot be made one by one.
      valid &&= code < 128
      return String.fromCharCode(code)
    }
  )
  return valid ? plain : undefined
}

/** The names a key stands for: dots nest, `\.` is a dot within a name. */
export function splitKey(key: string): readonly string[] {
  return key.split(/(?<!\\)\./).map(name => name.replaceAll(String.raw`\.`, '.'))
}

/** What is wrong with a `custom_fields_by_lua` block that stands at `path`. */
export function checkCustomFields(
  fields: Readonly<Record<string, string>> | undefined,
  path: string
): readonly Complaint[] {
  const complaints: Complaint[] = []
  for (const [key, chunk] of Object.entries(fields ?? {})) {
    const at = `${path}/${key.replaceAll('~', '~0').replaceAll('/', '~1')}`
    if (splitKey(key).includes('')) {
      const message = 'a field name is empty'
      complaints.push({ path: at, message, fix: 'Write names separated by single dots' })
    }
    if (compileChunk(chunk) === undefined) {
      complaints.push({
        path: at,
        message: 'this Lua chunk is not supported',
        fix: `Write return with nil, a literal, or one of ${supported()}`
      })
    }
  }
  return complaints
}

function supported(): string {
  const named = Object.keys(NAMED_GETTERS).map(name => `${name}("name")`)
  return [...named, ...Object.keys(GETTERS).map(name => `${name}()`)].join(', ')
}

/**
 * Compiles a block that {@link checkCustomFields} accepts; undefined when there is nothing to do.
 * The editor throws when a key leads through a value that is not an object.
 */
export function compileCustomFields(
  fields: Readonly<Record<string, string>> | undefined
): RecordEditor | undefined {
  const edits = Object.entries(fields ?? {}).map(([key, chunk]) => ({
    key,
    names: splitKey(key),
    get: compileChunk(chunk)!
  }))
  if (edits.length === 0) return undefined
  return (record, exchange) => {
    let edited = record
    for (const { key, names, get } of edits) edited = edit(edited, names, 0, get(exchange), key)
    return edited
  }
}

function edit(
  target: Record_,
  names: readonly string[],
  at: number,
  value: Value,
  key: string
): Record_ {
  const name = names[at]!
  const member = Object.hasOwn(target, name) ? target[name] : undefined
  if (at === names.length - 1) {
    if (value !== undefined) return { ...target, [name]: value }
    const { [name]: _, ...rest } = target
    return rest
  }
  if (member === undefined) {
    return value === undefined ? target : { ...target, [name]: edit({}, names, at + 1, value, key) }
  }
  if (!isRecord(member)) throw new TypeError(`custom field ${key}: ${name} is not an object`)
  return { ...target, [name]: edit(member, names, at + 1, value, key) }
}
