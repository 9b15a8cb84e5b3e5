import t from 'tap'
import { type TSchema, Type } from 'typebox'
import {
  nearest,
  pointerSegments,
  toPointer,
  validateAuthored
} from '../../src/schema/validator.ts'
import { vaultConfigSchema } from '../../src/schema/vault-config.ts'
import { prepare, textFields } from '../../src/schema/walk.ts'

function messages(schema: TSchema, value: unknown): readonly string[] {
  return validateAuthored(schema, value).map(
    ({ segments, message }) => `${toPointer(segments)} ${message}`
  )
}

t.test('every constraint is told in words', async t => {
  const rows: [TSchema, unknown, string[]][] = [
    [Type.String(), 5, [' expected a string']],
    [Type.Number(), 'x', [' expected a number']],
    [Type.Unsafe({ type: ['string', 'integer'] }), true, [' expected a string or an integer']],
    [Type.Integer({ maximum: 3 }), 4, [' value should be at most 3']],
    [Type.Number({ exclusiveMaximum: 3 }), 3, [' value must be less than 3']],
    [Type.Integer({ multipleOf: 2 }), 3, [' value must be a multiple of 2']],
    [Type.String({ maxLength: 1 }), 'ab', [' length must be at most 1']],
    [Type.Array(Type.Unknown(), { minItems: 1 }), [], [' length must be at least 1']],
    [
      Type.Array(Type.Unknown(), { uniqueItems: true }),
      [{ a: 1 }, { a: 1 }],
      [' the same item stands twice']
    ],
    [Type.Literal('a'), 'b', [' expected one of: a']],
    [Type.String({ format: 'ipv4' }), 'x', [' not a valid ipv4']],
    [Type.Unsafe({ not: {} }), 1, [' must NOT be valid']],
    [
      Type.Union([Type.Object({ a: Type.String() }), Type.String()]),
      { a: 1 },
      ['/a expected a string']
    ],
    [
      Type.Union([Type.Object({ a: Type.String() }), Type.Object({ b: Type.String() })]),
      {},
      [' expected a record']
    ],
    [
      Type.Unsafe({ anyOf: [{ minLength: 3 }, { pattern: '^x' }] }),
      'a',
      [' matches none of its forms']
    ],
    [Type.Object({ a: Type.String() }), { a: null }, ['/a required field missing']],
    [
      Type.Object({ a: Type.String(), b: Type.Integer() }),
      { a: 1, b: 'x' },
      ['/a expected a string', '/b expected an integer']
    ]
  ]
  for (const [schema, value, want] of rows) t.same(messages(schema, value), want, want.join())
})

t.test('a property may be named like a keyword', async t => {
  const schema = Type.Object({
    enum: Type.Unsafe<string>({ type: 'string', format: 'uri', referenceable: true }),
    default: Type.Optional(Type.Integer())
  })
  t.same(messages(schema, { enum: '{vault://env/x}' }), [])
  t.same(messages(schema, { enum: 'x', default: 'y' }), [
    '/enum missing scheme in url',
    '/default expected an integer'
  ])
})

t.test('pointers', async t => {
  t.equal(toPointer(['a/b', 'c~d', 0]), '/a~1b/c~0d/0')
  t.same(pointerSegments('/a~1b/c~0d/0'), ['a/b', 'c~d', '0'])
  t.same(pointerSegments(''), [])
})

t.test('names are suggested only when close', async t => {
  t.equal(nearest('hvc', ['env', 'hcv']), 'hcv')
  t.equal(nearest('Servics', ['services']), 'services')
  t.equal(nearest('x', ['y']), undefined)
  t.equal(nearest('consumer', ['plugins', 'routes']), undefined)
})

t.test('defaults go into a copy, nulls keep them out', async t => {
  const schema = Type.Object({
    a: Type.Optional(Type.Integer({ default: 1 })),
    b: Type.Object({ c: Type.Integer({ default: 2 }) }, { default: {} }),
    d: Type.Optional(Type.Union([Type.String(), Type.Null()])),
    list: Type.Optional(Type.Array(Type.Object({ e: Type.Integer({ default: 3 }) })))
  })
  const value = Object.freeze({ list: [{}] })
  t.same(prepare(schema, value), { list: [{ e: 3 }], a: 1, b: { c: 2 } })
  t.same(value, { list: [{}] })
  t.same(prepare(schema, { a: null, d: null, b: null }), { d: null, b: null })
})

t.test('texts are found with whether they may hold references', async t => {
  const mark = { type: 'string', referenceable: true }
  const schema = {
    properties: { a: { anyOf: [mark, { type: 'integer' }] }, b: { additionalProperties: mark } }
  }
  const found = textFields(schema, { a: 'x', b: { c: 'y' }, d: ['z'] })
  t.same(
    found.map(({ segments, referenceable }) => [segments.join('.'), referenceable]),
    [
      ['a', true],
      ['b.c', true],
      ['d.0', false]
    ]
  )
})

t.test('vault settings take the common ones, and references in each of them', async t => {
  const type = Type.Object({
    port: Type.Integer(),
    hosts: Type.Optional(Type.Array(Type.String({ format: 'uri' })))
  })
  const schema = vaultConfigSchema(type)
  t.equal(vaultConfigSchema(type), schema, 'made once')
  t.same(
    messages(schema, {
      port: '{vault://env/port}',
      hosts: ['{vault://env/h}'],
      ttl: 60,
      on_denied: 'fail'
    }),
    []
  )
  t.same(messages(schema, { port: 1, on_denied: 'no', other: 1 }), [
    '/other unknown field',
    '/on_denied expected one of: keep, fail'
  ])
  const forms = vaultConfigSchema(
    Type.Union([Type.Object({ a: Type.Integer() }), Type.Object({ b: Type.Integer() })])
  )
  t.same(messages(forms, { b: '{vault://env/b}', ttl: 1 }), [])
})
