import { globSync, readFileSync } from 'node:fs'
import { basename, dirname, join, relative } from 'node:path'
import t from 'tap'
import { usages } from '../src/commands/usage.ts'
import { loadConfig } from '../src/config.ts'
import { plugins } from '../src/plugins/index.ts'
import { kinds, unservedFields, unservedKinds } from '../src/schema/kinds.ts'
import { collectSettings, type Setting, settingsTable } from '../src/settings.ts'
import { backendTypes } from '../src/vault/backends/index.ts'
import { createVaults } from '../src/vault/vaults.ts'

const root = join(import.meta.dirname, '..')
const read = (file: string): string => readFileSync(join(root, file), 'utf8')
const sources = globSync('src/**/*.ts', { cwd: root }).map(file => [file, read(file)] as const)
const pages = ['README.md', ...globSync('docs/*.md', { cwd: root })]
const settings: readonly Setting[] = Object.values(settingsTable)

/** The cells of each table row of a text, without the code marks. */
const rows = (text: string): string[][] =>
  text
    .split('\n')
    .filter(line => line.startsWith('| ') && !line.startsWith('| ---'))
    .map(line =>
      line
        .slice(1, -1)
        .split(/(?<!\\)\|/)
        .map(cell => cell.trim())
    )
const bare = (cell = ''): string => cell.replace(/^`(.*)`$/, '$1')

/** The part of a page below a heading, up to the next heading of its level. */
function section(page: string, heading: string): string {
  const [, rest] = read(page).split(`\n## ${heading}\n`)
  if (rest === undefined) throw new Error(`${page} has no section ${heading}`)
  return rest.split('\n## ')[0]!
}

await t.test('every code the gateway uses is explained, and no other', async t => {
  const variables = new Set(settings.map(({ variable }) => variable))
  const used = new Map<string, string>()
  for (const [file, text] of sources) {
    const quoted = text.matchAll(/(?<!startsWith\()'(POSTERN_[A-Z0-9_]*[A-Z0-9])'/g)
    const keys = text.matchAll(/^\s+(POSTERN_[A-Z0-9_]+):/gm)
    for (const [, code] of [...quoted, ...keys]) {
      if (!variables.has(code!)) used.set(code!, file)
    }
  }
  const documented = rows(read('docs/errors.md'))
    .map(([code]) => bare(code))
    .filter(code => code.startsWith('POSTERN_'))
  t.ok(used.size > 25)
  for (const [code, file] of used) t.ok(documented.includes(code), `${code} of ${file}`)
  for (const code of documented) t.ok(used.has(code), `${code} of docs/errors.md is used`)
  t.equal(new Set(documented).size, documented.length, 'no code stands there twice')
})

await t.test('errors with a code are made in one line that names it', async t => {
  for (const [file, text] of sources) {
    const made = [...text.matchAll(/createError(?:<[^>]*>)?\(\s*([^,\n]+)/g)].map(
      ([, code]) => code!
    )
    for (const code of made) t.match(code, /^'POSTERN_[A-Z_]+'$/, file)
  }
})

await t.test('the table of the environment is the table of the settings', async t => {
  const documented = rows(section('docs/operations.md', 'Environment'))
    .filter(([variable]) => bare(variable).startsWith('POSTERN_'))
    .map(cells => `| ${cells.join(' | ')} |`)
  const expected = settings.map(row => {
    const kong = row.kong.map(name => `\`${name}\``).join(', ') || '–'
    const standard =
      row.default === undefined ? 'unset' : row.default === '' ? 'none' : `\`${row.default}\``
    return `| \`${row.variable}\` | ${kong} | ${standard} | ${row.doc.replaceAll('|', '\\|')} |`
  })
  t.same(documented, expected)
})

await t.test('the table of the commands has each command, called as its help says', async t => {
  const table = rows(section('docs/operations.md', 'Commands')).map(([call]) =>
    bare(call).replaceAll('\\|', '|')
  )
  const documented = table.filter(call => call.startsWith('postern '))
  // Offline and online it is two things to know.
  const split = documented.filter(call => call !== 'postern check --resolve [FILE] [--json]')
  const expected = Object.values(usages).map(({ call }) =>
    `postern ${call}`.replace(' [--resolve]', '')
  )
  t.same(split, expected)
})

interface FieldSchema {
  readonly type?: string
  readonly default?: unknown
  readonly properties?: Readonly<Record<string, FieldSchema>>
  readonly required?: readonly string[]
  readonly referenceable?: boolean
}
const COMMON = ['id', 'tags', 'created_at', 'updated_at']

const standardOf = (schema: FieldSchema, parent: FieldSchema, name: string): string =>
  schema.default !== undefined
    ? `\`${JSON.stringify(schema.default)}\``
    : parent.required?.includes(name)
      ? 'required'
      : '–'

await t.test('every field of every entity is documented with its default', async t => {
  for (const kind of kinds) {
    const schema = kind.schema as FieldSchema
    const text = section('docs/configuration.md', kind.name)
    const documented = new Map(rows(text).map(([name, ...rest]) => [bare(name), rest]))
    const own = Object.entries(schema.properties!).filter(([name]) => !COMMON.includes(name))
    for (const [name, field] of own) {
      const [standard, meaning = ''] = documented.get(name) ?? []
      const where = `${kind.name}.${name}`
      t.equal(standard, name === 'healthchecks' ? 'below' : standardOf(field, schema, name), where)
      t.equal(meaning.includes('*ref*'), field.referenceable === true, `${where} takes references`)
      documented.delete(name)
    }
    const below = (field: FieldSchema, path: string): void => {
      for (const [name, part] of Object.entries(field.properties ?? {})) {
        const inner = `${path}${name}`
        if (part.properties !== undefined) below(part, `${inner}.`)
        else {
          const expected = part.default === undefined ? '–' : `\`${JSON.stringify(part.default)}\``
          t.equal(documented.get(inner)?.[0], expected, `${kind.name}.healthchecks.${inner}`)
          documented.delete(inner)
        }
      }
    }
    below(schema.properties!.healthchecks ?? {}, '')
    documented.delete('field')
    documented.delete('in `healthchecks`')
    t.same([...documented.keys()], [], `${kind.name} has no field that is not there`)
  }
})

await t.test('what is accepted and not served, or refused, is named', async t => {
  const accepted = section('docs/configuration.md', 'Accepted and not served')
  t.same(
    new Set([...accepted.matchAll(/`(\w+)`/g)].map(([, name]) => name)),
    new Set(unservedKinds)
  )
  const page = read('docs/configuration.md')
  for (const name of Object.values(unservedFields).flat()) t.match(page, `\`${name}\``)
})

await t.test('every plugin has a section and stands in the table with its priority', async t => {
  const table = new Map(rows(read('docs/plugins.md')).map(([name, priority]) => [name, priority]))
  for (const { name, priority } of plugins) {
    t.equal(table.get(`[${name}](#${name})`), String(priority), name)
    t.ok(section('docs/plugins.md', name).length > 50, name)
  }
})

await t.test('every vault type has a section', async t => {
  for (const { name } of backendTypes) t.type(section('docs/vaults.md', name), 'string', name)
})

const anchor = (heading: string): string =>
  heading
    .toLowerCase()
    .replace(/[^\p{L}\p{N} _-]/gu, '')
    .replaceAll(' ', '-')

await t.test('every relative link leads to something', async t => {
  let links = 0
  for (const page of pages) {
    for (const [, target] of read(page).matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^[a-z]+:/.test(target!)) continue
      links++
      const [path, fragment] = target!.split('#')
      const file = path === '' ? page : relative(root, join(root, dirname(page), path!))
      t.ok(globSync(file, { cwd: root }).length === 1, `${page} → ${target}`)
      if (fragment === undefined || !file.endsWith('.md')) continue
      const headings = [...read(file).matchAll(/^#+ (.*)$/gm)].map(([, text]) => anchor(text!))
      t.ok(headings.includes(fragment), `${page} → ${target}`)
    }
  }
  t.ok(links > 30)
})

const examples = globSync('config/**/*.yaml', { cwd: root })
const authored = pages.map(read).join('\n')

await t.test('every example is valid, raises no warning, and is named by a page', async t => {
  t.ok(examples.length > 8)
  const vaults = createVaults({
    backendTypes,
    defaults: { fs: { prefix: '/run/secrets' } }
  })
  t.teardown(() => vaults.close())
  for (const file of examples) {
    const { warnings, routes } = loadConfig(read(file), {
      file,
      plugins,
      vaultTypes: backendTypes,
      vaultCheck: (reference, entities) => vaults.check(reference, entities)
    })
    t.same(warnings, [], file)
    t.ok(routes.length > 0, `${file} serves something`)
    t.ok(authored.includes(basename(file)), `${file} is named`)
    t.match(read(file), /^# /, `${file} begins with what it shows`)
    for (const [block] of read(file).matchAll(/(?:^# {3}POSTERN_\w+=.*\n)+/gm)) {
      const lines = block.matchAll(/(POSTERN_\w+)=(.*)/g)
      const env = Object.fromEntries(Array.from(lines, ([, name, value]) => [name, value]))
      t.same(collectSettings(env).warnings, [], `${file}: ${block}`)
    }
  }
})

await t.test('README says of each dependency why it is there', async t => {
  const table = read('README.md').split('## Dependencies')[1]!.split('## License')[0]!
  const told = [...table.matchAll(/^\| ([^|]+) \|/gm)]
    .slice(1)
    .flatMap(([, names]) => names!.split(', '))
    .filter(name => !name.startsWith('---'))
  const { dependencies } = JSON.parse(read('package.json')) as { dependencies: object }
  t.same(told.sort(), Object.keys(dependencies).sort())
})
