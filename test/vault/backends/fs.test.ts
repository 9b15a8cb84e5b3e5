import { mkdir, mkdtemp, rename, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import t from 'tap'
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
  await until(() => changes === 1, 'a notice')
  t.equal((await backend.fetch('token', undefined, signal))?.value, 'two')
})
