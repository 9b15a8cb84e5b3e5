import type { Problem } from '../errors.ts'
import { canonicalJson, entityId } from './identity.ts'
import { kinds } from './kinds.ts'
import type { Row } from './row.ts'
import { nearest } from './validator.ts'
import { isRecord } from './walk.ts'

/** Stands for a foreign entity that does not exist, so that the rest can still be checked. */
const NO_ID = '00000000-0000-0000-0000-000000000000'

/** An entity with its id and its foreign fields as `{ id }`; all else as authored. */
export interface Linked {
  readonly row: Row
  readonly id: string
  readonly entity: Readonly<Record<string, unknown>>
}

export interface Links {
  readonly linked: readonly Linked[]
  readonly problems: readonly Problem[]
}

interface Index {
  readonly byKey: ReadonlyMap<string, Row>
  readonly byId: ReadonlyMap<string, Row>
}

/** Gives every entity its id and resolves what entities name each other by. */
export function linkRows(rows: readonly Row[]): Links {
  const linker = new Linker(rows)
  return { linked: linker.link(), problems: linker.problems }
}

class Linker {
  readonly problems: Problem[] = []
  readonly #byKind: ReadonlyMap<string, readonly Row[]>
  readonly #index: ReadonlyMap<string, Index>
  readonly #ids = new Map<Row, string>()
  readonly #anonymous = new Map<string, number>()

  constructor(rows: readonly Row[]) {
    this.#byKind = Map.groupBy(rows, row => row.kind.name)
    this.#index = new Map(
      kinds.map(kind => [kind.name, indexRows(this.#byKind.get(kind.name) ?? [])] as const)
    )
  }

  link(): readonly Linked[] {
    const linked: Linked[] = []
    for (const kind of kinds) {
      for (const row of this.#byKind.get(kind.name) ?? []) linked.push(this.#linkRow(row))
    }
    this.#checkUnique(linked)
    return linked
  }

  #linkRow(row: Row): Linked {
    const { kind } = row
    const entity: Record<string, unknown> = { ...row.fields }
    for (const [field, target] of Object.entries(kind.foreign)) {
      delete entity[field]
      const foreign = this.#foreign(row, field, target)
      if (foreign !== undefined) entity[field] = { id: foreign }
    }
    if (Array.isArray(entity.ca_certificates)) {
      entity.ca_certificates = entity.ca_certificates.map((value: unknown, index) =>
        typeof value === 'string'
          ? this.#lookUp(row, 'ca_certificates', ['ca_certificates', index], value)
          : value
      )
    }
    const authored = row.fields.id
    const id = typeof authored === 'string' ? authored : this.#derivedId(row, entity)
    this.#ids.set(row, id)
    // An id of another type stays, for the schema to refuse.
    entity.id = authored === undefined || authored === null ? id : authored
    return { row, id, entity }
  }

  #foreign(row: Row, field: string, target: string): string | undefined {
    const value = row.fields[field]
    if (row.parent?.field === field) {
      if (value !== undefined && value !== null) {
        this.#add(row, [field], 'POSTERN_CONFIG_INVALID_VALUE', 'value must be null', {
          fix: `Remove ${field}: nesting sets it`
        })
      }
      return this.#ids.get(row.parent.row)
    }
    if (value === undefined || value === null) return undefined
    const name = isRecord(value) ? (value.id ?? value.name ?? value.username) : value
    if (typeof name === 'string') return this.#lookUp(row, target, [field], name)
    this.#add(row, [field], 'POSTERN_CONFIG_INVALID_VALUE', 'expected a name or an id', {
      fix: `Write ${field}: NAME`
    })
    return NO_ID
  }

  #lookUp(row: Row, target: string, segments: (string | number)[], name: string): string {
    const { byKey, byId } = this.#index.get(target)!
    const found = byKey.get(name) ?? byId.get(name)
    if (found !== undefined) return this.#ids.get(found) ?? NO_ID
    const derived = [...(this.#byKind.get(target) ?? [])].find(
      other => this.#ids.get(other) === name
    )
    if (derived !== undefined) return name
    const close = nearest(name, byKey.keys())
    const message = `invalid reference '${segments[0]}: ${name}' (no such entry in '${target}')`
    const fix =
      close === undefined ? `Name one of the ${target} of this file` : `Did you mean ${close}?`
    this.#add(row, segments, 'POSTERN_CONFIG_DANGLING', message, { fix })
    return NO_ID
  }

  #add(
    row: Row,
    segments: readonly (string | number)[],
    code: string,
    message: string,
    { fix }: { fix: string }
  ): void {
    this.problems.push({ code, message, fix, place: row.place(segments) })
  }

  /** Kong's rules for ids, and for what has no key the content, where Kong takes a random one. */
  #derivedId(row: Row, entity: Readonly<Record<string, unknown>>): string {
    const { kind } = row
    const idOf = (field: string) => (entity[field] as { id?: string } | undefined)?.id ?? ''
    const text = (field: string) => (typeof entity[field] === 'string' ? entity[field] : undefined)
    const key = kind.key === undefined ? undefined : text(kind.key)
    switch (kind.name) {
      case 'plugins':
        return entityId(
          'plugins',
          ['plugins', '*', text('name'), idOf('route'), idOf('service'), idOf('consumer')].join(':')
        )
      case 'acls':
        return entityId('acls', `acls:*:${idOf('consumer')}:${text('group') ?? ''}`)
      case 'vaults':
      case 'basicauth_credentials':
        return entityId(kind.name, `${kind.name}:*:${key ?? ''}`)
      case 'targets':
        return entityId('targets', `${key ?? ''}:${idOf('upstream')}:*`)
      case 'keyauth_credentials':
        // By position, not by key: an id stands in logs, and must tell nothing about a secret.
        return entityId(kind.name, this.#numbered(`${kind.name}:*:${idOf('consumer')}`))
      case 'certificates':
      case 'ca_certificates':
        return entityId(kind.name, this.#numbered(canonicalJson({ cert: entity.cert })))
      default:
        return entityId(kind.name, key ?? this.#numbered(canonicalJson(entity)))
    }
  }

  /** The text, made different from equal texts before it. */
  #numbered(text: string): string {
    const ordinal = this.#anonymous.get(text) ?? 0
    this.#anonymous.set(text, ordinal + 1)
    return ordinal === 0 ? text : `${text}:${ordinal}`
  }

  #checkUnique(linked: readonly Linked[]): void {
    const seen = new Map<string, Row>()
    const claim = (row: Row, field: string, value: string, shown: string) => {
      const claimed = `${row.kind.name}\n${field}\n${value}`
      const other = seen.get(claimed)
      if (other === undefined) {
        seen.set(claimed, row)
        return true
      }
      const { line, column } = other.place(row.fields[field] === undefined ? [] : [field])
      const message = `uniqueness violation: '${row.kind.name}' entity with ${field} set to ${shown} already declared`
      this.#add(
        row,
        row.fields[field] === undefined ? [] : [field],
        'POSTERN_CONFIG_DUPLICATE',
        message,
        {
          fix: `Change one of them; the other stands at line ${line}, column ${column}`
        }
      )
      return false
    }
    for (const { row, id, entity } of linked) {
      let fresh = true
      for (const field of row.kind.unique) {
        const value = entity[field]
        if (typeof value !== 'string') continue
        const secret = field === 'key' || field === 'cert'
        fresh = claim(row, field, value, secret ? 'the same value' : `'${value}'`) && fresh
      }
      fresh = this.#claimCombination(row, entity, claim) && fresh
      if (fresh) claim(row, 'id', id, `'${id}'`)
    }
  }

  #claimCombination(
    row: Row,
    entity: Readonly<Record<string, unknown>>,
    claim: (row: Row, field: string, value: string, shown: string) => boolean
  ): boolean {
    const combinations: Readonly<Record<string, readonly string[]>> = {
      plugins: ['name', 'route', 'service', 'consumer'],
      targets: ['target', 'upstream'],
      acls: ['group', 'consumer']
    }
    const fields = combinations[row.kind.name]
    if (fields === undefined || typeof entity[fields[0]!] !== 'string') return true
    const scope = fields.slice(1).filter(field => entity[field] !== undefined)
    const shown = `'${String(entity[fields[0]!])}'${scope.length > 0 ? ` for the same ${scope.join(' and ')}` : ''}`
    return claim(row, fields[0]!, canonicalJson(fields.map(field => entity[field])), shown)
  }
}

function indexRows(rows: readonly Row[]): Index {
  const byKey = new Map<string, Row>()
  const byId = new Map<string, Row>()
  for (const row of rows) {
    const key = row.kind.key === undefined ? undefined : row.fields[row.kind.key]
    if (typeof key === 'string' && !byKey.has(key)) byKey.set(key, row)
    if (typeof row.fields.id === 'string' && !byId.has(row.fields.id)) byId.set(row.fields.id, row)
  }
  return { byKey, byId }
}
