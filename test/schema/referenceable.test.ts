import t from 'tap'
import { Type } from 'typebox'
import { describeSchema } from '../../src/schema/describe.ts'
import { referenceable, resolveFields, validateResolved } from '../../src/schema/referenceable.ts'
import type { Secret } from '../../src/vault/secret.ts'

const schema = Type.Object({
  url: referenceable(Type.String({ format: 'uri' })),
  port: referenceable(Type.Integer({ minimum: 1 })),
  ratio: Type.Optional(referenceable(Type.Number())),
  on: Type.Optional(referenceable(Type.Boolean())),
  tokens: Type.Optional(Type.Array(referenceable(Type.String()))),
  headers: Type.Optional(Type.Record(Type.String(), referenceable(Type.String()))),
  host: Type.Optional(Type.String({ format: 'postern-host' })),
  format: Type.Optional(Type.String())
})

const values: Readonly<Record<string, string>> = {
  '{vault://env/port}': ' 8080 ',
  '{vault://env/ratio}': '-0.5',
  '{vault://env/on}': 'false',
  '{vault://env/url}': 'http://h',
  '{vault://env/word}': 'word'
}
const resolve = (template: string) => ({ value: values[template]!, previous: 'before' })

t.test('every referenceable text becomes a Secret, the rest keeps its type', async t => {
  const authored = {
    url: '{vault://env/url}',
    port: '{vault://env/port}',
    ratio: '{vault://env/ratio}',
    on: '{vault://env/on}',
    tokens: ['literal', '{vault://env/word}'],
    headers: { a: '{vault://env/word}' },
    host: 'plain'
  }
  const result = resolveFields(schema, authored, resolve) as Record<string, unknown> & {
    url: Secret
    tokens: Secret[]
    headers: Record<string, Secret>
  }
  t.equal(result.url.reveal(), 'http://h')
  t.equal(result.url.revealPrevious(), 'before')
  t.same([result.port, result.ratio, result.on, result.host], [8080, -0.5, false, 'plain'])
  t.same(
    result.tokens.map(token => token.reveal()),
    ['literal', 'word']
  )
  t.equal(result.tokens[0]!.revealPrevious(), undefined)
  t.equal(result.headers.a!.reveal(), 'word')
  t.ok(Object.isFrozen(result) && Object.isFrozen(result.tokens) && Object.isFrozen(result.headers))
  t.equal(authored.url, '{vault://env/url}', 'the argument is untouched')
  t.notMatch(JSON.stringify(result), /literal|word|http:/)
})

t.test('what resolving throws passes through', async t => {
  const fail = () => {
    throw new RangeError('absent')
  }
  t.throws(() => resolveFields(schema, { url: '{vault://env/url}', port: 1 }, fail), RangeError)
})

t.test('resolved values are held to the schema without being shown', async t => {
  const found = validateResolved(schema, { url: 'hunter2', port: 'hunter2', tokens: [5] })
  t.same(found.map(({ path }) => path).sort(), ['/port', '/tokens/0', '/url'])
  t.notMatch(JSON.stringify(found), /hunter2/)
  t.same(validateResolved(schema, { url: 'http://h', port: 1 }), [])
})

t.test('Optional goes around referenceable', async t => {
  t.throws(() => referenceable(Type.Optional(Type.String())), TypeError)
})

t.test('schemas are described as plain JSON Schema', async t => {
  const described = describeSchema(schema) as {
    $schema: string
    properties: Record<string, Record<string, unknown>>
  }
  t.equal(described.$schema, 'https://json-schema.org/draft/2020-12/schema')
  t.same(described.properties.url, { type: 'string', format: 'uri', referenceable: true })
  t.same(described.properties.host, {
    type: 'string',
    description: 'a host name or IP address, without port'
  })
  t.same(described.properties.format, { type: 'string' })
  t.notMatch(JSON.stringify(described), /postern-/)
})
