import { randomBytes } from 'node:crypto'
import { globSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { generate } from 'selfsigned'
import { parse } from 'yaml'
import { branches, isRecord, REFERENCEABLE } from '../src/schema/walk.ts'

type Schema = Readonly<Record<string, unknown>>
type Json = Readonly<Record<string, unknown>>

/** A field that takes references: member names, `*` for any name, `[]` for an item of a list. */
export interface Leaf {
  readonly path: readonly string[]
  readonly schema: Schema
}

/** Every referenceable field below a schema. */
export function leavesOf(schema: object, path: readonly string[] = []): readonly Leaf[] {
  const found = new Map<string, Leaf>()
  for (const branch of branches(schema as Schema)) {
    if (branch[REFERENCEABLE] === true) found.set(path.join('.'), { path, schema: branch })
    const members: [string, unknown][] = [
      ...Object.entries(isRecord(branch.properties) ? branch.properties : {}),
      ...Object.values(isRecord(branch.patternProperties) ? branch.patternProperties : {}).map(
        (member): [string, unknown] => ['*', member]
      ),
      ['*', branch.additionalProperties],
      ['[]', branch.items]
    ]
    for (const [name, member] of members) {
      if (!isRecord(member)) continue
      for (const leaf of leavesOf(member, [...path, name])) found.set(leaf.path.join('.'), leaf)
    }
  }
  return [...found.values()]
}

/** A value that no output may show. */
export interface Canary {
  /** What the field gets. */
  readonly value: string
  /** The part of it that is looked for: no part of the value may be shown either. */
  readonly core: string
}

const core = (): string => randomBytes(8).toString('hex')

/** The longest line of a PEM text: no part of it may be shown either. */
export const lineOf = (pem: string): string =>
  pem.split('\n').reduce((longest, line) => (line.length > longest.length ? line : longest))

/** A certificate of its own that may also sign, and its key. */
export async function pairOf(keyType: 'ec' | 'rsa'): Promise<{ cert: Canary; key: Canary }> {
  const attributes = [{ name: 'commonName', value: `${core()}.example` }]
  const { cert, private: key } = await generate(attributes, {
    ...(keyType === 'ec' ? { keyType, curve: 'P-256' as const } : { keyType, keySize: 2048 }),
    algorithm: 'sha256',
    extensions: [{ name: 'basicConstraints', cA: true, critical: true }]
  })
  return { cert: { value: cert, core: lineOf(cert) }, key: { value: key, core: lineOf(key) } }
}

/** What a text field may hold, each with a part that is unlike anything else. */
export async function canaries(): Promise<readonly Canary[]> {
  const [text, url, host] = [core(), core(), core()]
  const pair = await pairOf('ec')
  return [
    { value: `canary-${text}`, core: text },
    { value: `http://user:${url}@127.0.0.1:9/${url}?token=${url}`, core: url },
    { value: `canary-${host}.invalid`, core: host },
    pair.cert,
    pair.key,
    keyCanary()
  ]
}

/** A key of 32 bytes in base64. */
function keyCanary(): Canary {
  const value = randomBytes(32).toString('base64')
  return { value, core: value.slice(0, 24) }
}

/** Values that fit no field with a form, and break what only a set-up can tell. */
export function misfits(): readonly Canary[] {
  const [scheme, pem, odd] = [core(), core(), core()]
  return [
    { value: `ftp://127.0.0.1:9/${scheme}`, core: scheme },
    {
      value: `-----BEGIN CERTIFICATE-----\n${pem}\n-----END CERTIFICATE-----\n`,
      core: pem
    },
    { value: `line one ${odd}\nline two ${odd}\u0007`, core: odd }
  ]
}

/** A value as short as passwords people choose; it is masked by the field it stands in. */
export function shortCanary(): Canary {
  const value = `~${randomBytes(3).toString('hex')}`
  return { value, core: value }
}

/** A copy of a value with one member set; `*` becomes a name no other member has, `[]` the only item. */
export function withMember(value: unknown, path: readonly string[], member: unknown): unknown {
  const [name, ...rest] = path
  if (name === undefined) return member
  if (name === '[]') return [withMember(undefined, rest, member)]
  const key = name === '*' ? 'X-Canary' : name
  const before = isRecord(value) ? value : {}
  return { ...before, [key]: withMember(before[key], rest, member) }
}

/** Every configuration of a plugin that the examples show. */
export function exampleConfigs(plugin: string): readonly Json[] {
  const root = join(import.meta.dirname, '../config')
  const found: Json[] = []
  const visit = (part: unknown): void => {
    if (Array.isArray(part)) for (const item of part) visit(item)
    if (!isRecord(part)) return
    if (part.name === plugin && part.paths === undefined && part.url === undefined)
      found.push(isRecord(part.config) ? part.config : {})
    for (const member of Object.values(part)) visit(member)
  }
  for (const file of globSync('**/*.yaml', { cwd: root }).toSorted()) {
    visit(parse(readFileSync(join(root, file), 'utf8')))
  }
  return found
}

/** A configuration whose references are replaced by literals, by the name of their field. */
export function withLiterals(
  value: unknown,
  literal: (name: string) => unknown,
  name = ''
): unknown {
  if (typeof value === 'string') return value.includes('{vault://') ? literal(name) : value
  if (Array.isArray(value)) return value.map(item => withLiterals(item, literal, name))
  if (!isRecord(value)) return value
  return Object.fromEntries(
    Object.entries(value).map(([key, member]) => [key, withLiterals(member, literal, key)])
  )
}
