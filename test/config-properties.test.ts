import fc from 'fast-check'
import t from 'tap'
import { stringify } from 'yaml'
import { kinds } from '../src/schema/kinds.ts'
import { plugins, vaultTypes } from './fixtures/config/plugins.ts'
import { loadsOrTells } from './fuzz/config.ts'

const holds = (text: string): void => loadsOrTells(text, plugins, vaultTypes as never)

const fieldNames = [
  ...new Set(
    kinds.flatMap(kind => Object.keys((kind.schema as { properties?: object }).properties ?? {}))
  )
]
const leaf = fc.oneof(
  fc.constantFrom(
    null,
    true,
    0,
    -1,
    80,
    1e21,
    'http',
    'a',
    '/',
    '~/(',
    '*',
    'constructor',
    '{vault://env/a}'
  ),
  fc.constantFrom(
    '{vault://',
    'rate-limiting',
    'http-log',
    '~/a',
    'x.*',
    'http://h:99999',
    '-----BEGIN'
  ),
  fc.string()
)
const key = fc.constantFrom(
  ...fieldNames,
  ...kinds.map(kind => kind.name),
  'url',
  'vault://env/a',
  'toString'
)
const { value } = fc.letrec<{ value: unknown }>(tie => ({
  value: fc.oneof(
    { depthSize: 'small', withCrossShrink: true },
    leaf,
    fc.array(tie('value'), { maxLength: 3 }),
    fc.dictionary(key, tie('value'), { maxKeys: 4 })
  )
}))

/** Entities that are nearly right, so that generation reaches the rules behind the schemas. */
const document = fc.dictionary(
  fc.constantFrom(...kinds.map(kind => kind.name)),
  fc.array(fc.dictionary(key, value, { maxKeys: 5 }), { maxLength: 4 }),
  { maxKeys: 5 }
)

t.test('arbitrary JSON gives a configuration or a ConfigError', async () => {
  fc.assert(fc.property(fc.json(), holds), { numRuns: 200 })
})

t.test('arbitrary entities do', async () => {
  fc.assert(
    fc.property(document, root => holds(JSON.stringify({ _format_version: '3.0', ...root }))),
    { numRuns: 400 }
  )
  fc.assert(
    fc.property(document, root => holds(stringify({ _format_version: '3.0', ...root }))),
    { numRuns: 100 }
  )
})

t.test('arbitrary text does', async () => {
  const yamlish = fc
    .array(
      fc.constantFrom(
        'a: ',
        '- ',
        '[',
        ']',
        '{',
        '}',
        '*x',
        '&x ',
        '<<: ',
        '\n',
        '  ',
        '"',
        "'",
        '|',
        '!t ',
        '? ',
        ': ',
        '#',
        '%',
        '---\n',
        '\t',
        'services',
        'ö'
      ),
      { maxLength: 25 }
    )
    .map(parts => parts.join(''))
  fc.assert(fc.property(fc.oneof(yamlish, fc.string({ unit: 'binary' })), holds), { numRuns: 1000 })
})
