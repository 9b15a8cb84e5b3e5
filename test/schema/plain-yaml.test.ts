import { globSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import * as fc from 'fast-check'
import t from 'tap'
import { isMap, isSeq, type Node, parseDocument, type Scalar, stringify, type YAMLMap } from 'yaml'
import { loadConfig } from '../../src/config.ts'
import { ConfigError, type Problem } from '../../src/errors.ts'
import { plugins } from '../../src/plugins/index.ts'
import { readPlain } from '../../src/schema/plain-yaml.ts'

interface Noted {
  readonly root: unknown
  /** `path key value` of each member, and `path` of each container, with their offsets. */
  readonly places: ReadonlyMap<string, readonly number[]>
}

/** What the reader under test makes of a text; undefined when it leaves it to the parser. */
function plainly(text: string): Noted | undefined {
  const containers = new Map<object, number>()
  const members = new Map<object, Map<string, readonly number[]>>()
  const read = readPlain(text, {
    container: (value, offset) => containers.set(value, offset),
    member: (container, key, ...offsets) => {
      if (!members.has(container)) members.set(container, new Map())
      members.get(container)!.set(key, offsets)
    }
  })
  if (read === undefined) return undefined
  const places = new Map<string, readonly number[]>()
  const visit = (value: unknown, path: string): void => {
    if (typeof value !== 'object' || value === null) return
    places.set(path, [containers.get(value)!])
    for (const [key, member] of Object.entries(value)) {
      places.set(`${path} ${key}`, members.get(value)!.get(key)!)
      visit(member, `${path}/${key}`)
    }
  }
  visit(read.root, '')
  return { root: read.root, places }
}

/** The same by the parser; undefined when it finds anything wrong. */
function thoroughly(text: string): Noted | undefined {
  const document = parseDocument(text, {
    prettyErrors: false,
    schema: 'core',
    stringKeys: true,
    resolveKnownTags: false,
    logLevel: 'silent'
  })
  if (document.errors.length > 0 || document.warnings.length > 0) return undefined
  const places = new Map<string, readonly number[]>()
  const visit = (node: Node | null, path: string): void => {
    if (!isMap(node) && !isSeq(node)) return
    places.set(path, [node.range![0]])
    const pairs: [key: string, keyOffset: number | undefined, value: Node | null][] = isMap(node)
      ? (node as YAMLMap<Scalar, Node | null>).items.map(({ key, value }) => [
          String(key.value),
          key.range![0],
          value
        ])
      : (node.items as (Node | null)[]).map((item, index) => [String(index), undefined, item])
    for (const [key, keyOffset, value] of pairs) {
      const [from, to] = value?.range ?? [0, 0]
      const valueOffset = keyOffset === undefined || to > from ? from : keyOffset
      places.set(`${path} ${key}`, [keyOffset ?? from, valueOffset])
      visit(value, `${path}/${key}`)
    }
  }
  visit(document.contents as Node | null, '')
  return { root: document.toJS(), places }
}

/** Whether the reader took a text; fails when it reads another thing than the parser. */
function agrees(text: string): boolean {
  const plain = plainly(text)
  if (plain === undefined) return false
  const thorough = thoroughly(text)
  const told = JSON.stringify(text)
  if (thorough === undefined) throw new Error(`the parser refuses ${told}`)
  if (!isDeepStrictEqual(plain.root, thorough.root))
    throw new Error(`read as ${fc.stringify(plain.root)}: ${told}`)
  for (const [path, offsets] of thorough.places) {
    const noted = plain.places.get(path)
    if (String(noted) !== String(offsets))
      throw new Error(`${path} stands at ${offsets}, not ${noted}: ${told}`)
  }
  return true
}

const texts = fc.oneof(
  fc.constantFrom(
    ...[
      '',
      'null',
      '~',
      'true',
      'False',
      '1',
      '-1',
      '1.5',
      '1e3',
      '0x1f',
      '0o7',
      '+1',
      '.5',
      '.inf'
    ],
    ...[
      'a: b',
      'a #b',
      "it's",
      '"',
      '- a',
      '? a',
      '[a]',
      '{a: 1}',
      '#',
      'a:',
      '%a',
      '@a',
      '`',
      '&a'
    ],
    ...['~/p1/(?<id>\\d+)$', '/a/', 'h1.example', '*.example', 'a\nb', 'a\n\nb\n', ' a ', 'a\n'],
    ...[
      '{vault://env/key}',
      'a\\b',
      '\u00e9',
      '\u{1f600}',
      '-',
      '--- a',
      '...',
      '<<',
      '!a',
      '|',
      '>'
    ],
    ...['http://a.example:80/b', 'a\tb', '1_000', '12e', '0123', '-0', '1.', '-1.5e-3', 'a, b']
  ),
  fc.string({ maxLength: 6 })
)
const keys = fc.oneof(
  fc.constantFrom('name', 'paths', 'x-a', 'a.b', 'a b', '1', 'true', '<<', 'constructor', 'a:b'),
  fc.string({ maxLength: 4 })
)
const { value: values } = fc.letrec<{ value: unknown }>(tie => ({
  value: fc.oneof(
    { depthSize: 'small', withCrossShrink: true },
    texts,
    fc.constantFrom(null, true, false, 0, 1, -1, 1.5, 1e21),
    fc.array(tie('value'), { maxLength: 3 }),
    fc.dictionary(keys, tie('value'), { maxKeys: 3 })
  )
}))
const examples = globSync(join(import.meta.dirname, '../../config/examples/*.yaml'))
/** Some lines of an example. */
const excerpts = fc
  .record({
    path: fc.constantFrom(...examples),
    from: fc.nat(),
    length: fc.integer({ min: 1, max: 30 })
  })
  .map(({ path, from, length }) => {
    const lines = readFileSync(path, 'utf8').split('\n')
    const first = from % lines.length
    return lines.slice(first, first + length).join('\n')
  })
const written = fc
  .record({
    root: fc.dictionary(keys, values, { minKeys: 1, maxKeys: 4 }),
    json: fc.boolean(),
    indent: fc.integer({ min: 1, max: 4 }),
    indentSeq: fc.boolean(),
    collectionStyle: fc.constantFrom('any' as const, 'block' as const, 'flow' as const),
    singleQuote: fc.constantFrom(true, false, null),
    stringType: fc.constantFrom('PLAIN' as const, 'QUOTE_DOUBLE' as const, 'QUOTE_SINGLE' as const),
    lineWidth: fc.constantFrom(0, 20)
  })
  .map(({ root, json, indent, stringType, ...options }) =>
    json
      ? JSON.stringify(root, null, indent - 1)
      : stringify(root, { indent, defaultStringType: stringType, ...options })
  )
/** Pieces that mean something in YAML, to be put anywhere. */
const pieces = fc.constantFrom(
  ...[' ', '  ', '\n', '\n  ', ':', ': ', ' #', '#', '- ', '-', ',', '[', ']', '{', '}', '"', "'"],
  ...[
    '|',
    '|-\n',
    '>',
    '&a ',
    '*a',
    '!t ',
    '? ',
    '%',
    '---\n',
    '...\n',
    '\t',
    '\\',
    '~',
    '<<: ',
    'a'
  ],
  ...['\n\n', '\n#c\n', ' # c\n', '1', 'a: ', 'null', ' |\n  a\n  b\n', '\u00a0', '\u2028', '\r\n']
)
const changes = fc.array(fc.record({ at: fc.nat(), cut: fc.nat({ max: 3 }), piece: pieces }), {
  maxLength: 3
})

await t.test('what it reads, the parser reads as the same value at the same places', async t => {
  let taken = 0
  const property = fc.property(fc.oneof(written, excerpts), changes, (document, edits) => {
    let text = document
    for (const { at, cut, piece } of edits) {
      const from = at % (text.length + 1)
      text = text.slice(0, from) + piece + text.slice(from + cut)
    }
    if (agrees(text)) taken++
  })
  t.doesNotThrow(() =>
    fc.assert(property, {
      numRuns: Number(process.env.PLAIN_RUNS ?? 3000),
      seed: Number(process.env.PLAIN_SEED ?? 1)
    })
  )
  t.ok(taken > 300, `${taken} texts were read`)
})

await t.test('it reads nearly every example, and JSON', async t => {
  const left = examples.filter(path => !agrees(readFileSync(path, 'utf8')))
  t.ok(left.length < examples.length / 10, left.join(', '))
  t.ok(agrees('{"a":[1,-2.5,true,null,"x\\u00e9\\n"],"b":{"c":[]},"d":{}}\n'))
})

await t.test('it leaves to the parser what it does not know for sure', async t => {
  for (const text of [
    'a: &x 1\nb: *x\n',
    'a: !t 1\n',
    'a: >\n  b\n',
    'a: |+\n  b\n',
    'a: |\n  b\n   \n  c\n',
    'a: 1\na: 2\n',
    '{"a":1,"a":2}',
    '{"__proto__":1}',
    'a: {vault://env/x: }\n',
    '{"vault://env/x":null}',
    'a: b\n  c\n',
    'a: "b\n  c"\n',
    'a: [b,\nc]\n',
    'a: b\n---\nc: d\n',
    'a:\tb\n',
    'a: 0x1f\n',
    'a: {b: 1}}\n',
    `${'['.repeat(70)}${']'.repeat(70)}`,
    '- a\n',
    'text',
    ''
  ]) {
    t.equal(readPlain(text), undefined, JSON.stringify(text))
  }
})

await t.test('problems are told at the same places, whoever read the text', async t => {
  const text = `
# Wrong in many ways.
_format_version: "3.0"
services:
- name: a
  url: "http://a.internal:1"
  colour: blue
  routes:
    - { name: r, paths: [x, "/y"], protocols: [http, smoke] }
    - name: r
      hosts:
        - "{vault://env/host}"
  plugins:
    - name: key-aut
certificates:
  - cert: |
      none
    key: '{vault://env/key}'
consumers: {}
`
  const problems = (text: string): readonly Problem[] => {
    try {
      loadConfig(text, { file: 'a.yaml', plugins })
    } catch (error) {
      if (error instanceof ConfigError) return error.problems
      throw error
    }
    return []
  }
  const left = `${text}_comment: &left to the parser\n`
  t.equal(readPlain(left), undefined)
  t.ok(problems(text).length > 6)
  t.same(problems(text), problems(left))
})
