import type { Route } from '../schema/entities.ts'
import { compilePattern } from '../schema/patterns.ts'

/** What a route's conditions besides host, port and path look at. */
export interface ConditionsInput {
  readonly method: string
  /** Fields as received, flat: name, value, name, value, … */
  readonly rawHeaders: readonly string[]
  /** Server name of the TLS handshake; undefined when the connection is plain. */
  readonly sni: string | undefined
}

interface HeaderTest {
  readonly name: string
  readonly values: ReadonlySet<string>
  readonly patterns: readonly RegExp[]
}

/** Conditions of a route, compiled. */
export interface Conditions {
  readonly methods: ReadonlySet<string> | undefined
  readonly headers: readonly HeaderTest[]
  readonly snis: readonly ((sni: string) => boolean)[] | undefined
}

/** Whether a list is there and has members: an empty one stands for no condition. */
export function present(list: readonly unknown[] | undefined): list is readonly unknown[] {
  return list !== undefined && list.length > 0
}

/** Whether a route demands anything besides host, port and path. */
export function hasConditions({ methods, headers, snis }: Route): boolean {
  return present(methods) || present(snis) || Object.keys(headers ?? {}).length > 0
}

/** A header name as it is compared: in lower case, `-` for `_`, since the two count as equal. */
const comparable = (name: string): string => name.toLowerCase().replaceAll('_', '-')

/** Whether a field has this name, given as it is compared. */
export function isNamed(field: string, name: string): boolean {
  return field.length === name.length && comparable(field) === name
}

const isPattern = (value: string): boolean => value.startsWith('~*')

/** The first header of a route that must have one of some values, which so can be looked up. */
export function keyHeader({
  headers
}: Route): { readonly name: string; readonly values: ReadonlySet<string> } | undefined {
  for (const [name, values] of Object.entries(headers ?? {})) {
    if (values.some(isPattern)) continue
    return { name: comparable(name), values: new Set(values.map(value => value.toLowerCase())) }
  }
  return undefined
}

function headerTest(name: string, values: readonly string[]): HeaderTest {
  return {
    name: comparable(name),
    values: new Set(values.filter(value => !isPattern(value)).map(value => value.toLowerCase())),
    // Values are compared in lower case, and so is the pattern: `\D` reads as `\d`, as in the format.
    patterns: values
      .filter(isPattern)
      .map(value => compilePattern(value.slice(2).toLowerCase(), false))
  }
}

function sniTest(sni: string): (name: string) => boolean {
  const name = sni.endsWith('.') ? sni.slice(0, -1) : sni
  if (name.startsWith('*')) return candidate => candidate.endsWith(name.slice(1))
  if (name.endsWith('*')) return candidate => candidate.startsWith(name.slice(0, -1))
  return candidate => candidate === name
}

/** Compiles the conditions of a route. */
export function compileConditions({ methods, headers, snis }: Route): Conditions {
  return {
    methods: present(methods) ? new Set(methods) : undefined,
    headers: Object.entries(headers ?? {}).map(([name, values]) => headerTest(name, values)),
    snis: present(snis) ? snis.map(sni => sniTest(sni as string)) : undefined
  }
}

/** Whether any value of each header is one of those wanted; values of repeated fields count singly. */
function headersHold(tests: readonly HeaderTest[], rawHeaders: readonly string[]): boolean {
  for (const { name, values, patterns } of tests) {
    let found = false
    for (let i = 0; i < rawHeaders.length && !found; i += 2) {
      if (!isNamed(rawHeaders[i]!, name)) continue
      const value = rawHeaders[i + 1]!.toLowerCase()
      found = values.has(value) || patterns.some(pattern => pattern.test(value))
    }
    if (!found) return false
  }
  return true
}

/** Whether a request meets every condition. */
export function conditionsHold(
  { methods, headers, snis }: Conditions,
  input: ConditionsInput
): boolean {
  if (methods !== undefined && !methods.has(input.method)) return false
  if (headers.length > 0 && !headersHold(headers, input.rawHeaders)) return false
  if (snis === undefined || input.sni === undefined) return true
  const sni = input.sni.endsWith('.') ? input.sni.slice(0, -1) : input.sni
  return snis.some(test => test(sni))
}
