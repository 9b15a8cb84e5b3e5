import type { TSchema } from 'typebox'
import { ConfigError, type Place, type Problem } from './errors.ts'
import type { Plugin } from './plugins/plugin.ts'
import { type Segments, SourceDocument } from './schema/document.ts'
import type {
  Acl,
  BasicAuthCredential,
  CaCertificate,
  Certificate,
  Consumer,
  KeyAuthCredential,
  PluginEntity,
  Route,
  Service,
  Sni,
  Target,
  Upstream,
  VaultEntity
} from './schema/entities.ts'
import { deepFreeze } from './schema/freeze.ts'
import { kinds, knownPlugins, unservedFields } from './schema/kinds.ts'
import { type Linked, linkRows } from './schema/links.ts'
import type { Authored } from './schema/referenceable.ts'
import type { Row } from './schema/row.ts'
import { collectRows } from './schema/rows.ts'
import { checkEntity, streamProtocols } from './schema/rules.ts'
import { nearest, pointerSegments, toPointer, validateAuthored } from './schema/validator.ts'
import { vaultConfigSchema, vaultTypeNames } from './schema/vault-config.ts'
import { isRecord, prepare, textFields } from './schema/walk.ts'
import { looksLikeReference, parseTemplate, type Reference } from './vault/reference.ts'

/** The entity kinds this release serves, by their plural in the file. */
export interface Entities {
  readonly services: readonly Service[]
  readonly routes: readonly Route[]
  readonly consumers: readonly Consumer[]
  readonly keyauth_credentials: readonly Authored<KeyAuthCredential>[]
  readonly basicauth_credentials: readonly Authored<BasicAuthCredential>[]
  readonly acls: readonly Acl[]
  readonly plugins: readonly PluginEntity[]
  readonly upstreams: readonly Upstream[]
  readonly targets: readonly Target[]
  readonly certificates: readonly Authored<Certificate>[]
  readonly snis: readonly Sni[]
  readonly ca_certificates: readonly Authored<CaCertificate>[]
  readonly vaults: readonly VaultEntity[]
}

/** One field that holds at least one reference. */
export interface ReferenceUse {
  readonly kind: keyof Entities
  /** Id of the entity the field belongs to. */
  readonly id: string
  /** Place of that entity among those of its kind. */
  readonly index: number
  /** JSON pointer of the field within the entity: `/config/redis/password`. */
  readonly pointer: string
  /** The field's text as authored: a reference, or longer text with references in it. */
  readonly template: string
  /** Each reference in the template, as authored including the braces. */
  readonly references: readonly string[]
  readonly place: Place
}

/**
 * A validated, normalised, frozen configuration: every default filled, every entity with an id,
 * nesting flattened into foreign keys, shorthands expanded, references still as text. Plain data
 * (it survives structured clone).
 */
export interface Config extends Entities {
  /** Path or name the text came from. */
  readonly file: string
  /** The text as authored, for the status API. */
  readonly text: string
  /** False: credentials are stored as their digests already (`_transform: false`). */
  readonly transform: boolean
  /** Those of one entity follow each other. */
  readonly uses: readonly ReferenceUse[]
  readonly warnings: readonly Problem[]
}

/** What a file is checked against besides its own format. */
export interface LoadOptions {
  /** Path or name to tell in problems. */
  readonly file: string
  readonly plugins: readonly Plugin[]
  /** The vault types there are; without them `vaults[].config` is taken as it is. */
  readonly vaultTypes?: readonly { readonly name: string; readonly schema: TSchema }[]
  /** A complaint about a well-formed reference (unknown vault or query name); undefined when fine. */
  readonly vaultCheck?: (
    reference: Reference,
    vaults: readonly VaultEntity[]
  ) => { readonly message: string; readonly fix: string } | undefined
}

/**
 * Reads a configuration in YAML or JSON.
 * Throws ConfigError with every problem at once.
 */
export function loadConfig(text: string, options: LoadOptions): Config {
  const document = new SourceDocument(text, options.file)
  return new Loader(document, options).load(text)
}

class Loader {
  readonly #document: SourceDocument
  readonly #options: LoadOptions
  readonly #plugins: ReadonlyMap<string, Plugin>
  readonly #problems: Problem[] = []
  readonly #warnings: Problem[] = []
  readonly #uses: ReferenceUse[] = []
  readonly #checks: { reference: Reference; place: Place }[] = []
  /** Place of the entity that is loaded now among those of its kind. */
  #index = 0

  constructor(document: SourceDocument, options: LoadOptions) {
    this.#document = document
    this.#options = options
    this.#plugins = new Map(options.plugins.map(plugin => [plugin.name, plugin]))
  }

  load(text: string): Config {
    this.#problems.push(...this.#document.findings)
    const root = this.#root()
    const { rows, problems, warnings } = collectRows(this.#document, root)
    this.#problems.push(...problems)
    this.#warnings.push(...warnings)
    const links = linkRows(rows)
    this.#problems.push(...links.problems)
    const entities = Object.fromEntries(kinds.map(kind => [kind.name, [] as unknown[]]))
    for (const linked of links.linked) {
      const ofKind = entities[linked.row.kind.name]!
      this.#index = ofKind.length
      ofKind.push(this.#entity(linked))
    }
    this.#checkVaults(entities.vaults as VaultEntity[])
    if (this.#problems.length > 0) throw new ConfigError(inFileOrder(withoutEchoes(this.#problems)))
    return deepFreeze({
      ...(entities as unknown as Entities),
      file: this.#options.file,
      text,
      transform: root._transform !== false,
      uses: this.#uses,
      warnings: inFileOrder(this.#warnings)
    })
  }

  #root(): Record<string, unknown> {
    const { root } = this.#document
    const place = { file: this.#options.file, line: 1, column: 1, path: '' }
    if (!isRecord(root)) {
      const fix = 'Write a map that starts with _format_version: "3.0"'
      const code = 'POSTERN_CONFIG_INVALID_VALUE'
      throw new ConfigError([{ code, message: 'expected an object', fix, place }])
    }
    const at = (key: string) => this.#document.place(root, [], [key])
    const version = root._format_version
    if (version === undefined || version === null) {
      const message = 'required field missing'
      const fix = 'Add _format_version: "3.0" as the first line'
      this.#problems.push({
        code: 'POSTERN_CONFIG_REQUIRED',
        message,
        fix,
        place: { ...place, path: '_format_version' }
      })
    } else if (typeof version === 'number') {
      const message = 'expected a string'
      const fix = `Quote it: _format_version: "${version.toFixed(1)}"`
      this.#problems.push({
        code: 'POSTERN_CONFIG_INVALID_VALUE',
        message,
        fix,
        place: at('_format_version')
      })
    } else if (!['1.1', '2.1', '3.0'].includes(version as string)) {
      this.#problems.push({
        code: 'POSTERN_CONFIG_INVALID_VALUE',
        message: 'expected one of: 1.1, 2.1, 3.0',
        fix: 'Write _format_version: "3.0"',
        place: at('_format_version')
      })
    }
    if (root._transform !== undefined && typeof root._transform !== 'boolean') {
      this.#problems.push({
        code: 'POSTERN_CONFIG_INVALID_VALUE',
        message: 'expected a boolean',
        fix: 'Write true or false without quotes',
        place: at('_transform')
      })
    }
    return root
  }

  #entity({ row, id, entity: authored }: Linked): Readonly<Record<string, unknown>> {
    const { kind } = row
    const foreign = new Set(Object.keys(kind.foreign))
    let entity = prepare(kind.schema, authored) as Record<string, unknown>
    const refused = new Set(unservedFields[kind.name])
    for (const violation of validateAuthored(kind.schema, entity)) {
      const [field] = violation.segments
      if (foreign.has(String(field)) && Object.hasOwn(entity, String(field))) continue
      if (refused.has(String(field))) {
        if (row.fields[String(field)] === null) continue
        this.#add(row, violation.segments, {
          code: 'POSTERN_CONFIG_UNSUPPORTED',
          message: `this release does not serve ${field}`,
          fix: 'Remove it'
        })
        continue
      }
      this.#add(row, violation.segments, violation, violation.atKey ? 'key' : 'value')
    }
    for (const field of refused) delete entity[field]
    for (const finding of checkEntity(kind.name, entity, row.fields)) {
      this.#add(row, finding.segments, finding)
    }
    this.#warnOfProtocols(row, entity)
    if (kind.name === 'plugins') entity = this.#plugin(row, id, entity)
    else if (kind.name === 'vaults') entity = this.#vault(row, id, entity)
    else this.#texts(row, id, kind.schema, entity, [])
    return entity
  }

  #warnOfProtocols(row: Row, { protocol, protocols }: Record<string, unknown>): void {
    const field = Array.isArray(protocols) ? 'protocols' : 'protocol'
    const listed: readonly unknown[] = Array.isArray(protocols) ? protocols : [protocol]
    const ignored = listed.filter(name => streamProtocols.has(name as string))
    if (row.kind.name === 'plugins' || ignored.length === 0) return
    this.#warnings.push({
      code: 'POSTERN_CONFIG_NOT_SERVED',
      message: `this release serves HTTP only; ${ignored.join(', ')} is ignored`,
      fix: 'Serve it with another proxy',
      place: row.place([field])
    })
  }

  #plugin(row: Row, id: string, entity: Record<string, unknown>): Record<string, unknown> {
    const { config: _, ...rest } = entity
    this.#texts(row, id, row.kind.schema, rest, [])
    const name = entity.name
    if (typeof name !== 'string') return entity
    const plugin = this.#plugins.get(name)
    if (plugin === undefined) {
      this.#unknownPlugin(row, name)
      return entity
    }
    if (plugin.consumerScope === false && entity.consumer !== undefined) {
      const nested = row.parent?.field === 'consumer'
      this.#add(row, nested ? ['name'] : ['consumer'], {
        code: 'POSTERN_CONFIG_INVALID_VALUE',
        message: 'value must be null',
        fix: `${name} cannot be scoped to a consumer; give it a route or a service, or neither`
      })
    }
    const given = isRecord(entity.config) ? entity.config : {}
    const translated = this.#attempt(row, () => plugin.translate?.(structuredClone(given))) ?? given
    const config = prepare(plugin.schema, translated) as Record<string, unknown>
    const violations = validateAuthored(plugin.schema, config)
    for (const violation of violations) {
      this.#add(
        row,
        ['config', ...violation.segments],
        violation,
        violation.atKey ? 'key' : 'value'
      )
    }
    if (violations.length === 0) {
      const complaints = this.#attempt(row, () => plugin.check?.(structuredClone(config))) ?? []
      for (const { path, message, fix } of complaints) {
        const code = 'POSTERN_CONFIG_INVALID_VALUE'
        this.#add(row, ['config', ...complaintSegments(path)], { code, message, fix })
      }
    }
    this.#texts(row, id, plugin.schema, config, ['config'])
    return { ...entity, config }
  }

  /** What a plugin's own code gives for a configuration; when it throws, that is told as a problem. */
  #attempt<T>(row: Row, ask: () => T): T | undefined {
    try {
      return ask()
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error)
      const fix = 'Correct the configuration of this plugin'
      this.#add(row, ['config'], { code: 'POSTERN_CONFIG_INVALID_VALUE', message, fix })
      return undefined
    }
  }

  #unknownPlugin(row: Row, name: string): void {
    const known = knownPlugins.has(name)
    const close = known ? undefined : nearest(name, [...this.#plugins.keys(), ...knownPlugins])
    this.#add(row, ['name'], {
      code: known ? 'POSTERN_CONFIG_UNSUPPORTED' : 'POSTERN_CONFIG_UNKNOWN_PLUGIN',
      message: known
        ? `this release does not include the plugin '${name}'`
        : `plugin '${name}' not enabled; there is no plugin of this name`,
      fix:
        close !== undefined
          ? `Did you mean ${close}?`
          : `Remove it; this release includes ${[...this.#plugins.keys()].sort().join(', ')}`
    })
  }

  #vault(row: Row, id: string, entity: Record<string, unknown>): Record<string, unknown> {
    const { config: given = {}, ...rest } = entity
    this.#texts(row, id, row.kind.schema, rest, [])
    const types = this.#options.vaultTypes
    const known = vaultTypeNames(types)
    if (typeof entity.prefix === 'string' && known.has(entity.prefix)) {
      this.#add(row, ['prefix'], {
        code: 'POSTERN_CONFIG_INVALID_VALUE',
        message: `must not be one of: ${[...known].join(', ')}`,
        fix: `Choose another prefix, such as my-${entity.prefix}`
      })
    }
    if (!isRecord(given)) return entity
    const type = types?.find(candidate => candidate.name === entity.name)
    if (types !== undefined && type === undefined && typeof entity.name === 'string') {
      const close = nearest(
        entity.name,
        types.map(candidate => candidate.name)
      )
      this.#add(row, ['name'], {
        code: 'POSTERN_CONFIG_INVALID_VALUE',
        message: `vault '${entity.name}' is not installed`,
        fix:
          close === undefined
            ? `Write one of: ${types.map(candidate => candidate.name).join(', ')}`
            : `Did you mean ${close}?`
      })
    }
    const schema = type === undefined ? undefined : vaultConfigSchema(type.schema)
    const config = schema === undefined ? given : prepare(schema, given)
    if (schema !== undefined) {
      for (const violation of validateAuthored(schema, config)) {
        this.#add(
          row,
          ['config', ...violation.segments],
          violation,
          violation.atKey ? 'key' : 'value'
        )
      }
    }
    this.#texts(row, id, schema ?? {}, config, ['config'], true)
    return { ...entity, config }
  }

  /** Notes the references of a value, and tells those that stand where none may. */
  #texts(row: Row, id: string, schema: object, value: unknown, base: Segments, all = false): void {
    for (const field of textFields(schema, value, looksLikeReference, all)) {
      const segments = [...base, ...field.segments]
      const place = row.place(segments)
      if (!field.referenceable) {
        this.#problems.push({
          code: 'POSTERN_CONFIG_REFERENCE',
          message: 'this field cannot hold a reference',
          fix: 'Write the value itself; `postern schema` shows which fields are referenceable',
          place
        })
        continue
      }
      this.#use(row, id, segments, field.text, place)
    }
  }

  #use(row: Row, id: string, segments: Segments, template: string, place: Place): void {
    try {
      const parts = parseTemplate(template)
      if (parts === undefined) return
      const references = parts.filter(part => typeof part !== 'string')
      for (const reference of references) this.#checks.push({ reference, place })
      this.#uses.push({
        kind: row.kind.name as keyof Entities,
        id,
        index: this.#index,
        pointer: toPointer(segments),
        template,
        references: references.map(reference => reference.text),
        place
      })
    } catch (error) {
      const text = error instanceof Error ? error.message : String(error)
      // The parser's messages end with what to write.
      const [, message = text, form] = /^(.*); write (.*)$/s.exec(text) ?? []
      const fix = `Write ${form ?? '{vault://VAULT/RESOURCE/KEY}'}`
      this.#problems.push({ code: 'POSTERN_CONFIG_REFERENCE', message, fix, place })
    }
  }

  #checkVaults(vaults: readonly VaultEntity[]): void {
    for (const { reference, place } of this.#checks) {
      const complaint = this.#options.vaultCheck?.(reference, vaults)
      if (complaint === undefined) continue
      const { message, fix } = complaint
      const code = 'POSTERN_CONFIG_REFERENCE'
      this.#problems.push({ code, message, fix, place, reference: reference.text })
    }
  }

  #add(
    row: Row,
    segments: Segments,
    {
      code,
      message,
      fix
    }: { readonly code: string; readonly message: string; readonly fix: string },
    at: 'key' | 'value' = 'value'
  ): void {
    this.#problems.push({ code, message, fix, place: row.place(segments, at) })
  }
}

/** A complaint's path may be a JSON pointer or dotted names. */
function complaintSegments(path: string): Segments {
  if (path.startsWith('/')) return pointerSegments(path)
  return path.split(/[.[\]]+/).filter(part => part !== '')
}

/** A reference where none may stand is one problem: not also a value of the wrong type. */
function withoutEchoes(problems: readonly Problem[]): readonly Problem[] {
  const told = new Set(
    problems
      .filter(({ code }) => code === 'POSTERN_CONFIG_REFERENCE')
      .map(({ place }) => place.path)
  )
  return problems.filter(
    ({ code, place }) => code !== 'POSTERN_CONFIG_INVALID_VALUE' || !told.has(place.path)
  )
}

function inFileOrder(problems: readonly Problem[]): readonly Problem[] {
  return [...problems].sort(
    (a, b) => a.place.line - b.place.line || a.place.column - b.place.column
  )
}
