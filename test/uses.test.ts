import t from 'tap'
import { loadConfig } from '../src/config.ts'
import { touchedBy, UseIndex } from '../src/uses.ts'
import { plugins, vaultTypes } from './fixtures/config/plugins.ts'

const index = new UseIndex(
  loadConfig(
    JSON.stringify({
      _format_version: '3.0',
      consumers: [
        { username: 'a', keyauth_credentials: [{ key: '{vault://env/one}' }] },
        { username: 'b', keyauth_credentials: [{ key: 'literal' }, { key: '{vault://env/two}' }] },
        {
          username: 'c',
          basicauth_credentials: [
            { username: '{vault://env/one}', password: '{vault://env/three}' }
          ]
        }
      ]
    }),
    { file: 'kong.json', plugins, vaultTypes }
  )
)

t.test('uses of a reference', async t => {
  t.same(
    index.of('{vault://env/one}').map(({ kind, pointer }) => [kind, pointer]),
    [
      ['keyauth_credentials', '/key'],
      ['basicauth_credentials', '/username']
    ]
  )
  t.same(index.of('{vault://env/none}'), [])
})

t.test('entities that use references, each once and with every use of theirs', async t => {
  const both = index.entities(['{vault://env/three}', '{vault://env/one}', '{vault://env/none}'])
  t.same(
    both.map(({ kind, index, all }) => [kind, index, all.map(({ pointer }) => pointer)]),
    [
      ['keyauth_credentials', 0, ['/key']],
      ['basicauth_credentials', 0, ['/username', '/password']]
    ]
  )
  t.same(index.entities([]), [])
  t.same(
    index.entities().map(({ kind, index }) => `${kind} ${index}`),
    ['keyauth_credentials 0', 'keyauth_credentials 2', 'basicauth_credentials 0']
  )
})

t.test('touched entities are places in the configuration', async t => {
  const touched = touchedBy(index.entities())
  t.same(touched.get('keyauth_credentials'), [0, 2])
  t.same(touched.get('basicauth_credentials'), [0])
  t.same(touched.get('plugins'), undefined)
  t.match(index.config.keyauth_credentials[2], { key: '{vault://env/two}' })
})
