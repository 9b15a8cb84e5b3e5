import { mkdir, mkdtemp, rename, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import t, { type Test } from 'tap'
import { fsBackend } from '../../../src/vault/backends/fs.ts'
import { until } from '../../harness.ts'
import { backendContract, withoutFaults } from '../backend-contract.ts'

await backendContract(t, 'fs', async () => {
  const root = await mkdtemp(join(tmpdir(), 'postern-fs-'))
  return {
    type: fsBackend,
    config: { prefix: root },
    async put(resource, value) {
      const path = join(root, resource)
      await mkdir(dirname(path), { recursive: true })
      await writeFile(`${path}~`, typeof value === 'string' ? value : JSON.stringify(value))
      await rename(`${path}~`, path)
      return undefined
    },
    remove: resource => rm(join(root, resource)),
    resource: name => `folder/${name}`,
    fault() {},
    close: () => rm(root, { recursive: true }),
    skip: withoutFaults('a file system has no such fault that a test could switch on')
  }
})

await t.test('a change between the read and the first look of the watch is noticed', async t => {
  const root = await mkdtemp(join(tmpdir(), 'postern-fs-'))
  t.teardown(() => rm(root, { recursive: true }))
  const backend = await fsBackend.open({ prefix: root }, undefined as never)
  await writeFile(join(root, 'token'), 'one')
  const { signal } = new AbortController()
  t.equal((await backend.fetch('token', undefined, signal))?.value, 'one')
  await writeFile(join(root, 'next'), 'two')
  await rename(join(root, 'next'), join(root, 'token'))
  let changes = 0
  const stop = backend.watch!('token', () => changes++)
  t.teardown(stop)
  await until(() => changes >= 1, 'a notice')
  t.equal((await backend.fetch('token', undefined, signal))?.value, 'two')
})

const signal = AbortSignal.timeout(60_000)

/** A root with a vault on it, and something beside it that must not be read. */
async function rooted(t: Test) {
  const folder = await mkdtemp(join(tmpdir(), 'postern-fs-'))
  t.teardown(() => rm(folder, { recursive: true }))
  const root = join(folder, 'root')
  await mkdir(root)
  await writeFile(join(folder, 'outside'), 'canary')
  const vault = await fsBackend.open({ prefix: root }, { env: {}, log: { info() {}, warn() {} } })
  const read = async (resource: string) => (await vault.fetch(resource, undefined, signal))?.value
  return { folder, root, vault, read }
}

await t.test('nothing outside the root is read', async t => {
  const { folder, root, read } = await rooted(t)
  await symlink(join(folder, 'outside'), join(root, 'link'))
  await symlink('..', join(root, 'up'))
  for (const resource of ['../outside', 'a/../../outside', '..\\outside', 'link', 'up/outside'])
    await t.rejects(read(resource), { code: 'POSTERN_VAULT_DENIED' }, resource)
  await t.rejects(read('in\0side'), { code: 'POSTERN_VAULT_DENIED' })
  const absent = { code: 'POSTERN_VAULT_ABSENT' }
  await t.rejects(read('%2e%2e/outside'), absent, 'an escape is decoded once, by the reference')
  await t.rejects(read('/outside'), absent, 'a slash at the start means the root')
})

await t.test('one newline at the end is not part of the secret', async t => {
  const { root, read } = await rooted(t)
  const texts = { a: 'x\n', b: 'x\r\n', c: 'x\n\n', d: 'x', e: '\n', f: ' x ' }
  for (const [name, text] of Object.entries(texts)) await writeFile(join(root, name), text)
  t.same(await Promise.all(Object.keys(texts).map(read)), ['x', 'x', 'x\n', 'x', '', ' x '])
})

await t.test('what is no readable file of a fair size is told', async t => {
  const { root, read } = await rooted(t)
  await mkdir(join(root, 'folder'))
  await writeFile(join(root, 'large'), Buffer.alloc(1024 * 1024 + 1))
  await symlink('loop', join(root, 'loop'))
  await t.rejects(read('folder'), { code: 'POSTERN_VAULT_MALFORMED' })
  await t.rejects(read('large'), { code: 'POSTERN_VAULT_MALFORMED' })
  await writeFile(join(root, 'binary'), Buffer.from([0x6b, 0xff, 0x00]))
  await t.rejects(read('binary'), { code: 'POSTERN_VAULT_MALFORMED' })
  for (const name of ['loop', 'large/below'])
    await t.rejects(read(name), {
      code: 'POSTERN_VAULT_ABSENT',
      message: `Nothing is stored at ${join(root, name)} (there is no such file)`
    })
})

await t.test('a swap as Kubernetes makes it, and a replaced file, are noticed', async t => {
  const { root, vault, read } = await rooted(t)
  for (const [folder, text] of [
    ['..1', 'first'],
    ['..2', 'second']
  ] as const) {
    await mkdir(join(root, folder))
    await writeFile(join(root, folder, 'password'), text)
  }
  await symlink('..1', join(root, '..data'))
  await symlink(join('..data', 'password'), join(root, 'password'))
  t.equal(await read('password'), 'first')
  let changes = 0
  const stop = vault.watch!('password', () => {
    changes++
  })
  t.teardown(stop)
  t.equal(typeof vault.watch!('../outside', () => {}), 'function')
  await new Promise(resolve => setTimeout(resolve, 100))
  await symlink('..2', join(root, '..data_tmp'))
  await rename(join(root, '..data_tmp'), join(root, '..data'))
  await until(() => changes >= 1, 'the swap to be noticed')
  t.equal(await read('password'), 'second')
  const seen = changes
  await writeFile(join(root, 'next'), 'third')
  await rename(join(root, 'next'), join(root, 'password'))
  await until(() => changes > seen, 'the new file to be noticed')
  t.equal(await read('password'), 'third')
})
