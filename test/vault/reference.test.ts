import t from 'tap'
import {
  looksLikeReference,
  parseReference,
  parseTemplate,
  unquotedReference
} from '../../src/vault/reference.ts'

const parsed = (text: string): readonly (string | undefined)[] => {
  const { vault, resource, key, version } = parseReference(text)
  return [vault, resource, key, version]
}

await t.test('the vectors of the format', async t => {
  const vectors: Record<string, readonly (string | undefined)[]> = {
    '{vault://env/test}': ['env', 'test'],
    '{vault://env/a/b}': ['env', 'a', 'b'],
    '{vault://env/a/b/}': ['env', 'a/b'],
    '{vault://env/a/b/c}': ['env', 'a/b', 'c'],
    '{vault://env//a//b//}': ['env', 'a/b'],
    '{vault://env/a/}': ['env', 'a'],
    '{vault://env/a%2Fb}': ['env', 'a/b'],
    '{vault://env/a%2Fb/c}': ['env', 'a/b', 'c'],
    '{vault://env/test%3Asecret/test%3Akey}': ['env', 'test:secret', 'test:key'],
    '{vault://aws/%2Fsecret/key}': ['aws', '/secret', 'key'],
    '{vault://aws/%2Fsecret/key/}': ['aws', '/secret/key'],
    '{vault://aws/%2Fsecret%2Fkey}': ['aws', '/secret/key'],
    '{vault://aws/secret/path/%2Faaa/key}': ['aws', 'secret/path//aaa', 'key'],
    '{vault://fs-vault/db/password.txt}': ['fs-vault', 'db', 'password.txt'],
    '{vault://env/a%20b}': ['env', 'a b'],
    '{vault://env/100%}': ['env', '100%'],
    '{vault://env/a%zz}': ['env', 'a%zz'],
    '{vault://env/a;b/c}': ['env', 'a'],
    '{vault://env/../a}': ['env', '..', 'a'],
    '{vault://u:p@env:80/x}': ['env', 'x'],
    '{vault://[env]/x}': ['env', 'x'],
    '{vault://env/test?x=y#2}': ['env', 'test', undefined, '2'],
    '{vault://env/test#1.5}': ['env', 'test', undefined, '1.5'],
    '{vault://env/test#0x2}': ['env', 'test', undefined, '2'],
    '{vault://env/test#1e1}': ['env', 'test', undefined, '10'],
    '{vault://env/test#-1}': ['env', 'test', undefined, '-1']
  }
  for (const [text, [vault, resource, key, version]] of Object.entries(vectors))
    t.same(parsed(text), [vault, resource, key, version], text)
  t.same(parseReference('{vault://env/test?x=y#2}').overrides, { x: 'y' })
  t.same(parseReference('{vault://env/a?flag}').overrides, { flag: 'true' })
  t.same(parseReference('{vault://env/a?prefix=}').overrides, { prefix: '' })
})

await t.test('the vectors that differ on purpose', async t => {
  // Decoding is done once, and `+` is no space: what is written is what is asked for.
  t.same(parsed('{vault://env/a+b}').slice(0, 2), ['env', 'a+b'])
  t.same(parsed('{vault://env/a%2Bb}').slice(0, 2), ['env', 'a+b'])
  t.same(parsed('{vault://env/a%252Bb}').slice(0, 2), ['env', 'a%2Bb'])
  t.same(parsed('{vault://env/a%252Fb}').slice(0, 2), ['env', 'a%2Fb'])
  t.same(parseReference('{vault://env/a?prefix=SSL_%2B+}').overrides, { prefix: 'SSL_++' })
  // A reference ends at its first brace, so that several can stand in one text.
  t.equal(parseTemplate('{vault://env/a}{vault://env/b}')?.length, 2)
  // Braces and spaces are near misses, told with what to write.
  for (const text of [
    '{vault://env/a b}',
    '{vault://env/a}}',
    '{vault://env/{a}}',
    '{vault://env/test# 2 }'
  ]) {
    t.throws(() => parseReference(text), { code: 'POSTERN_REFERENCE_INVALID' }, text)
  }
  // A list would be dropped without a word, so a repeated name is an error.
  t.throws(() => parseReference('{vault://env/a?prefix=x&prefix=y}'), /given twice/)
})

await t.test('malformed references, by what is wrong with them', async t => {
  const malformed: Record<string, RegExp> = {
    'vault://env/a': /not a reference/,
    '{vault://env/a': /not a reference/,
    '{vault://}': /missing host/,
    '{vault:///foo}': /missing host/,
    '{vault://:80/x}': /missing host/,
    '{vault://u@/x}': /missing host/,
    '{vault://env}': /missing path/,
    '{vault://env#1}': /missing path/,
    '{vault://env?x=y}': /missing path/,
    '{vault://env/}': /empty path/,
    '{vault://env/?x=y}': /empty path/,
    '{vault://env/#1}': /empty path/,
    '{vault://env/////}': /invalid path/,
    '{vault://env/t#}': /invalid version/,
    '{vault://env/t#abc}': /invalid version/,
    '{vault://env/t#1#2}': /invalid version/,
    '{vault://env/t#2?x=y}': /invalid version/,
    '{vault://env/t?version=1#2}': /given twice/,
    '{vault://env/t?version=}': /version is empty/,
    '{vault://env/t?pointer=a}': /starts with a slash/
  }
  for (const [text, reason] of Object.entries(malformed)) {
    t.throws(() => parseReference(text), { code: 'POSTERN_REFERENCE_INVALID' }, text)
    t.throws(() => parseReference(text), reason, text)
    t.throws(() => parseReference(text), /; write /, `${text}: what to write`)
  }
})

await t.test('pointer, default and version are the reference’s own', async t => {
  t.match(parseReference('{vault://aws/a/b?pointer=/x/y&default=d%20e&version=STAGE&ttl=5}'), {
    resource: 'a/b',
    key: undefined,
    pointer: '/x/y',
    fallback: 'd e',
    version: 'STAGE',
    overrides: { ttl: '5' }
  })
  t.equal(parseReference('{vault://aws/a?default=}').fallback, '')
})

await t.test('texts with references', async t => {
  const template = parseTemplate('Bearer {vault://env/a}, {vault://env/b}!')
  t.match(template, ['Bearer ', { resource: 'a' }, ', ', { resource: 'b' }, '!'])
  for (const text of ['', 'plain', '{curly}', '$vault', '{vaults}'])
    t.equal(parseTemplate(text), undefined, text)
  for (const text of [
    'vault://env/a',
    '{Vault://env/a}',
    '{ vault://env/a}',
    '{vault:/env/a}',
    'x {vault://env/a',
    // biome-ignore lint/suspicious/noTemplateCurlyInString: what people write who mean a reference
    '${vault://env/a}',
    '{{vault://env/a}}',
    ' {vault://env/a}',
    '{vault://env/a}\n'
  ]) {
    t.throws(() => parseTemplate(text), { code: 'POSTERN_REFERENCE_INVALID' }, text)
    t.ok(looksLikeReference(text), text)
  }
  t.equal(unquotedReference({ 'vault://env/a': null }), '"{vault://env/a}"')
  for (const value of [null, 'x', [], {}, { a: null }, { 'vault://env/a': 1 }, { a: 1, b: 2 }])
    t.equal(unquotedReference(value), undefined)
})
