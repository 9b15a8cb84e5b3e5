import type { Complaint, Exchange } from './plugin.ts'

/** Gives the value of a field of the log record; undefined takes the field out. */
type Evaluate = (exchange: Exchange) => unknown

/** A field of the record and how its value is made. */
export interface CustomField {
  /** Path in the record: `request.headers.cookie` is three steps. */
  readonly path: readonly string[]
  readonly evaluate: Evaluate
}

type Getter = (exchange: Exchange, argument: string) => unknown

const GETTERS: Readonly<Record<string, Getter>> = {
  'kong.request.get_header': ({ request }, name) => request.headers[name.toLowerCase()],
  'kong.request.get_query_arg': ({ request }, name) =>
    new URLSearchParams(request.query ?? '').get(name) ?? undefined,
  'kong.request.get_method': ({ request }) => request.method,
  'kong.request.get_path': ({ request }) => request.path,
  'kong.request.get_host': ({ request }) => request.host,
  'kong.request.get_scheme': ({ request }) => request.scheme,
  'kong.response.get_header': ({ response }, name) => response.header(name),
  'kong.response.get_status': ({ response }) => response.status,
  'kong.client.get_ip': ({ request }) => request.remoteAddress,
  'kong.client.get_forwarded_ip': ({ request }) => request.clientIp
}

const RETURN = /^\s*return\s+([\s\S]*?)\s*;?\s*$/
const STRING = /^(?:"([^"\\]*)"|'([^'\\]*)')$/
const NUMBER = /^-?\d+(?:\.\d+)?$/
const CALL = /^([a-z_.]+)\(\s*(?:"([^"\\]*)"|'([^'\\]*)')?\s*\)$/

/** Compiles one chunk; undefined when it says more than this gateway understands. */
function compile(chunk: string): Evaluate | undefined {
  const expression = RETURN.exec(chunk)?.[1]
  if (expression === undefined) return undefined
  if (expression === 'nil') return () => undefined
  if (expression === 'true' || expression === 'false') return () => expression === 'true'
  if (NUMBER.test(expression)) return () => Number(expression)
  const string = STRING.exec(expression)
  if (string !== null) return () => string[1] ?? string[2]
  const call = CALL.exec(expression)
  const getter = call === null ? undefined : GETTERS[call[1]!]
  if (getter === undefined) return undefined
  const argument = call![2] ?? call![3] ?? ''
  return exchange => getter(exchange, argument)
}

/** What cannot be served of a `custom_fields_by_lua` map. */
export function checkCustomFields(fields: Readonly<Record<string, string>> | undefined): Complaint[] {
  return Object.entries(fields ?? {})
    .filter(([, chunk]) => compile(chunk) === undefined)
    .map(([name]) => ({
      path: `custom_fields_by_lua.${name}`,
      message: 'this Lua is not understood here, no Lua runs in this gateway',
      fix: `Write "return nil", a literal, or one of ${Object.keys(GETTERS).join(', ')}.`
    }))
}

/** Compiles a checked `custom_fields_by_lua` map; dots in names nest, `\.` is a dot. */
export function compileCustomFields(fields: Readonly<Record<string, string>> | undefined): readonly CustomField[] {
  return Object.entries(fields ?? {}).map(([name, chunk]) => ({
    path: name.split(/(?<!\\)\./).map(step => step.replaceAll('\\.', '.')),
    evaluate: compile(chunk)!
  }))
}

/** The record with the custom fields in it; the given one stays as it is. */
export function withCustomFields(
  record: Readonly<Record<string, unknown>>,
  fields: readonly CustomField[],
  exchange: Exchange
): Readonly<Record<string, unknown>> {
  let result = record
  for (const { path, evaluate } of fields) result = withField(result, path, evaluate(exchange))
  return result
}

function withField(
  target: Readonly<Record<string, unknown>>,
  path: readonly string[],
  value: unknown
): Readonly<Record<string, unknown>> {
  const [step = '', ...rest] = path
  const copy = { ...target }
  if (rest.length > 0) {
    const inner = copy[step]
    const isObject = typeof inner === 'object' && inner !== null && !Array.isArray(inner)
    if (!isObject && value === undefined) return target
    copy[step] = withField(isObject ? (inner as Record<string, unknown>) : {}, rest, value)
  } else if (value === undefined) {
    delete copy[step]
  } else {
    copy[step] = value
  }
  return copy
}
