import fc from 'fast-check'
import t from 'tap'
import { stringify } from 'yaml'
import { loadConfig } from '../src/config.ts'
import { ConfigError } from '../src/errors.ts'
import { kinds } from '../src/schema/kinds.ts'
import { plugins, vaultTypes } from './fixtures/config/plugins.ts'

/** Loads, or throws ConfigError with problems that have a place and a fix; anything else fails. */
function holds(text: string): void {
  try {
    loadConfig(text, { file: 'any.yml', plugins, vaultTypes })
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error
    if (error.problems.length === 0) throw new Error('no problem told')
    const lines = text.split(/\r\n|\r|\n/).length
    for (const { place, fix } of error.problems) {
      if (place.line < 1 || place.line > lines || place.column < 1) throw new Error('no such place')
      if (fix === '') throw new Error('no fix')
    }
  }
}

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
