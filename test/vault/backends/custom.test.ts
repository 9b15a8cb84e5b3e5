import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { collect } from '../../../src/resolve.ts'
import { loadBackends } from '../../../src/vault/backends/custom.ts'
import { startGateway, startUpstream } from '../../harness.ts'

const example = join(import.meta.dirname, '../../../examples/key-server-vault.mjs')

await t.test('the example of the documentation serves a gateway', async t => {
  await using upstream = await startUpstream()
  await using server = await startUpstream((received, response) => {
    if (received.headers.authorization !== 'Bearer t0ken') response.statusCode = 403
    else if (received.url === '/secrets/anna') response.setHeader('ETag', '"1"').write('annas-key')
    else response.statusCode = 404
    response.end()
  })
  await using gateway = await startGateway(
    {
      services: [
        {
          name: 'echo',
          url: upstream.url,
          routes: [{ name: 'echo', paths: ['/'] }],
          plugins: [{ name: 'key-auth' }]
        }
      ],
      vaults: [
        {
          prefix: 'keys',
          name: 'key-server',
          config: { url: server.url, token: '{vault://env/t}' }
        }
      ],
      consumers: [
        {
          username: 'anna',
          keyauth_credentials: [
            { key: '{vault://keys/anna}' },
            { key: '{vault://key-server/other?default=others-key}' }
          ]
        }
      ]
    },
    {
      env: {
        T: 't0ken',
        POSTERN_VAULT_BACKENDS: example,
        POSTERN_VAULT_KEY_SERVER_URL: server.url,
        POSTERN_VAULT_KEY_SERVER_TOKEN: 't0ken'
      }
    }
  )
  for (const apikey of ['annas-key', 'others-key'])
    t.equal((await gateway.fetch('/', { headers: { apikey } })).status, 200, apikey)
  const { references } = (await gateway.status('/vaults')).json()
  const found = references.find((each: object) => /anna/.test(JSON.stringify(each)))
  t.match(found, { reference: '{vault://keys/anna}', version: '"1"', state: 'ok' })
})

await t.test('a module that is no type of vault is told with what it lacks', async t => {
  const folder = await mkdtemp(join(tmpdir(), 'postern-custom-'))
  t.teardown(() => rm(folder, { recursive: true }))
  const load = async (name: string, source: string): Promise<string> => {
    const file = join(folder, name)
    await writeFile(file, source)
    try {
      const types = await loadBackends([file], ['env'])
      return types.map(type => type.name).join()
    } catch (error) {
      return (error as Error).message.replace(file, 'FILE')
    }
  }
  const whole = "name: 'x', schema: {}, protectedFields: [], open() {}"
  t.equal(await load('a.mjs', `export default { ${whole} }`), 'x')
  t.equal(await load('b.mjs', `export default [{ ${whole} }, { ${whole}, name: 'y' }]`), 'x,y')
  t.match(await load('c.mjs', `export default [{ ${whole} }, { ${whole} }]`), /"x" already/)
  t.match(await load('d.mjs', `export default { ${whole}, name: 'env' }`), /"env" already/)
  t.match(await load('e.mjs', 'export default undefined'), /it lacks name/)
  t.match(await load('f.mjs', "export default { name: 'X' }"), /it lacks name/)
  t.match(await load('g.mjs', "export default { name: 'x' }"), /it lacks schema/)
  t.match(await load('h.mjs', "export default { name: 'x', schema: {} }"), /protectedFields/)
  t.match(
    await load('i.mjs', "export default { name: 'x', schema: {}, protectedFields: [] }"),
    /it lacks open/
  )
  t.match(await load('j.mjs', 'syntax error'), /cannot be loaded/)
  await t.rejects(loadBackends([join(folder, 'missing.mjs')], []), /ERR_MODULE_NOT_FOUND/)
  await t.rejects(loadBackends(['no-such-package'], []), /MODULE_NOT_FOUND/)
  await t.rejects(collect({ POSTERN_VAULT_BACKENDS: join(folder, 'missing.mjs') }), {
    code: 'POSTERN_CONFIG_INVALID',
    problems: [{ code: 'POSTERN_SETTING_INVALID', place: { path: 'POSTERN_VAULT_BACKENDS' } }]
  })
})

await t.test('what a module does wrong is told as its own doing', async t => {
  const directory = await mkdtemp(join(tmpdir(), 'postern-custom-'))
  t.teardown(() => rm(directory, { recursive: true }))
  const module = async (name: string, text: string): Promise<string> => {
    const path = join(directory, `${name}.mjs`)
    await writeFile(path, text)
    return path
  }
  const hung = await module('hung', 'await new Promise(() => {})')
  await t.rejects(loadBackends([hung], [], 50), {
    message: /hung\.mjs: the module was not loaded within 0\.05 s/
  })
  const type = (open: string): string =>
    `export default { name: 'own', schema: { type: 'object' }, protectedFields: [], open() { ${open} } }`
  const told = async (name: string, open: string): Promise<unknown> => {
    const [own] = await loadBackends([await module(name, type(open))], [])
    const log = { info() {}, warn() {} }
    const vault = await own!.open({}, { env: {}, log })
    return vault.fetch('r', undefined, AbortSignal.timeout(1000))
  }
  await t.rejects(told('null', 'return null'), { code: 'POSTERN_VAULT_SETTINGS', message: /"own"/ })
  await t.rejects(told('text', "throw 'no luck'"), { message: 'no luck' })
  await t.rejects(told('thrown', "return { fetch() { throw 'no luck' } }"), { message: 'no luck' })
  for (const [name, given] of [
    ['bare', "'a bare text'"],
    ['number', '{ value: 5 }'],
    ['lease', "{ value: 'x', ttl: 'soon' }"]
  ] as const) {
    await t.rejects(told(name, `return { fetch: () => (${given}) }`), {
      code: 'POSTERN_VAULT_MALFORMED',
      message: /the module did not give/
    })
  }
  const kept = await module(
    'kept',
    `class Vault {
  #left = 1
  async fetch() { return { value: 'x', version: String(this.#left) } }
  async probe() { return String(this.#left) }
  watch() { return () => { this.#left-- } }
  health() { return { tokenExpiresAt: this.#left } }
  close() { this.#left = 0 }
}
${type('return new Vault()')}`
  )
  const [own] = await loadBackends([kept], [])
  const vault = await own!.open({}, { env: {}, log: { info() {}, warn() {} } })
  const { signal } = new AbortController()
  t.same(await vault.fetch('r', undefined, signal), { value: 'x', version: '1' })
  t.equal(await vault.probe!('r', undefined, signal), '1')
  t.same(vault.health!(), { tokenExpiresAt: 1 })
  vault.watch!('r', () => {})()
  t.same(vault.health!(), { tokenExpiresAt: 0 })
  vault.close!()
  t.equal(await told('nothing', 'return { fetch: () => null }'), undefined)
  t.same(await told('v7', "return { fetch: () => ({ value: 'x', version: 7 }) }"), {
    value: 'x',
    version: '7'
  })
})

await t.test('the rest of the environment is told beside a module that cannot be used', async t => {
  const env = {
    POSTERN_VAULT_BACKENDS: '/nowhere.mjs',
    POSTERN_VAULT_OWN_URL: 'http://x',
    POSTERN_WORKERS: 'many',
    POSTERN_WORKRS: '2'
  }
  const error = await collect(env).catch(refused => refused)
  t.same(
    error.problems.map((problem: { place: { path: string } }) => problem.place.path),
    ['POSTERN_VAULT_BACKENDS', 'POSTERN_WORKRS', 'POSTERN_WORKERS']
  )
})
