import { chmod, mkdir, mkdtemp, rename, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { startGateway, startUpstream, until } from '../../harness.ts'
import { failures, traffic } from './chaos.ts'
import { credentials } from './credentials.ts'

/** What can become of a file; each is given its path and what it ought to hold. */
const faults: Readonly<Record<string, (path: string, text: string) => Promise<unknown>>> = {
  deleted: path => rm(path),
  'a-folder': async path => {
    await rm(path)
    await mkdir(path)
  },
  'outside-the-root': async path => {
    await rm(path)
    await symlink('/etc/hostname', path)
  },
  'in-a-circle': async path => {
    await rm(path)
    await symlink(path, path)
  },
  'too-large': (path, text) => writeFile(path, text.padEnd(2 * 1024 * 1024)),
  half: (path, text) => writeFile(path, text.slice(0, text.length / 2)),
  empty: path => writeFile(path, ''),
  binary: path => writeFile(path, Buffer.from([0xff, 0xfe, 0x00])),
  // Whoever is root may read it all the same.
  ...(process.getuid?.() === 0 ? {} : { unreadable: path => chmod(path, 0) })
}

await t.test('files go wrong in every way under traffic, and nothing fails', async t => {
  const folder = await mkdtemp(join(tmpdir(), 'postern-fs-chaos-'))
  t.teardown(() => rm(folder, { recursive: true, force: true }))
  const names = Object.keys(faults)
  await using proof = await credentials(names)
  await using upstream = await startUpstream()
  const pathOf = (name: string): string => join(folder, `pair-${name}`)
  const textOf = (name: string, n: number): string => JSON.stringify(proof.pair(name, n))
  const put = async (n: number) => {
    for (const name of names) {
      await writeFile(join(folder, 'next'), textOf(name, n))
      await rename(join(folder, 'next'), pathOf(name)).catch(async () => {
        await rm(pathOf(name), { recursive: true })
        await rename(join(folder, 'next'), pathOf(name))
      })
    }
  }
  await put(1)
  await using gateway = await startGateway(
    {
      vaults: names.map(name => ({
        name: 'fs',
        prefix: `v-${name}`,
        config: { prefix: folder, ttl: 1, neg_ttl: 1 }
      })),
      ...proof.entities((name, member) => `{vault://v-${name}/pair-${name}/${member}}`, upstream)
    },
    { workers: 2, env: { POSTERN_VAULT_ROTATION_INTERVAL: '1' } }
  )
  const current = new Map(names.map(name => [name, 1]))
  await using load = traffic(gateway, proof, current)
  const arrive = async (n: number) => {
    for (const name of names) {
      await until(() => proof.inForce(gateway, name, n), `${name}: pair ${n} in force`, 60_000)
      current.set(name, n)
    }
  }
  await put(2)
  await arrive(2)
  for (const [name, spoil] of Object.entries(faults)) await spoil(pathOf(name), textOf(name, 3))
  await until(
    async () => [...(await failures(gateway)).values()].every(count => count >= 2),
    'every fault to be met twice',
    60_000
  )
  for (const name of names) {
    t.ok(await proof.inForce(gateway, name, 2), `${name}: the last value stays`)
    t.notOk(await proof.inForce(gateway, name, 3), `${name}: no new one is in force`)
  }
  await put(4)
  await arrive(4)
  await load.stop()
  t.strictSame(load.failed, [], 'no request failed')
  t.ok(load.served > names.length, `${load.served} requests were served`)
  t.strictSame(proof.halves(), [], 'no halves')
  t.ok(proof.uses > 0, `${proof.uses} pairs were seen`)
})
