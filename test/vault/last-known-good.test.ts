import { randomBytes } from 'node:crypto'
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { openLastKnownGood } from '../../src/vault/last-known-good.ts'

const DAY = 86_400
const value = { value: { user: 'kept-user', password: 'kept-password' }, version: '7' }

async function setUp(t: Test) {
  const folder = await mkdtemp(join(tmpdir(), 'postern-known-'))
  t.teardown(() => rm(folder, { recursive: true }))
  const file = join(folder, 'known.bin')
  const key = randomBytes(32)
  const failures: Error[] = []
  let now = Date.now()
  return {
    folder,
    file,
    failures,
    wait: (seconds: number) => {
      now += seconds * 1000
    },
    open: (other: { key?: Buffer; file?: string } = {}) =>
      openLastKnownGood({
        file,
        key,
        maxAge: DAY,
        failed: error => failures.push(error),
        now: () => now,
        ...other
      })
  }
}

await t.test('what was kept comes back, and only under its own identity', async t => {
  const { open, file, folder, wait } = await setUp(t)
  const first = await open()
  first.keep('vault-a secret', value, 5)
  await first.close()
  t.same(await readdir(folder), ['known.bin'], 'nothing else is left')
  t.equal((await stat(file)).mode & 0o777, 0o600)
  const text = await readFile(file, 'utf8')
  for (const word of ['kept', 'vault-a', 'secret', 'password'])
    t.notOk(text.includes(word), `no ${word} in it`)
  wait(60)
  const second = await open()
  t.equal(second.refused, undefined)
  t.same(second.get('vault-a secret'), { fetched: value, age: 65 })
  t.equal(second.get('vault-b secret'), undefined, 'another vault configuration')
  await second.close()
})

await t.test('what is too old, or a lease that ended, is not used', async t => {
  const { open, wait } = await setUp(t)
  const first = await open()
  first.keep('a', value, 0)
  first.keep('lease', { ...value, ttl: 600 }, 0)
  await first.close()
  wait(500)
  t.ok((await open()).get('lease'))
  wait(200)
  const later = await open()
  t.equal(later.get('lease'), undefined)
  t.ok(later.get('a'))
  wait(DAY)
  t.equal((await open()).get('a'), undefined)
})

await t.test('a clock that was set back breaks nothing', async t => {
  const { open, wait } = await setUp(t)
  const first = await open()
  first.keep('a', value, 0)
  await first.close()
  wait(-3600)
  t.equal((await open()).get('a')?.age, 0)
})

await t.test('what the vault took away never comes back', async t => {
  const { open } = await setUp(t)
  const first = await open()
  first.keep('a', value, 0)
  first.keep('b', value, 0)
  await first.close()
  const second = await open()
  second.drop('a')
  t.ok(second.get('b'))
  t.equal(second.get('a'), undefined, 'at once')
  await second.close()
  const third = await open()
  t.equal(third.get('a'), undefined, 'nor later')
  t.ok(third.get('b'), 'what this process asked for and did not read stays')
  third.keep('a', value, 0)
  third.drop('a')
  third.keep('a', value, 0)
  await third.close()
  const fourth = await open()
  t.ok(fourth.get('a'), 'stored anew, it is kept anew')
  t.equal(fourth.get('b')?.fetched.version, '7')
})

await t.test('what no longer is referred to goes', async t => {
  const { open } = await setUp(t)
  const first = await open()
  first.keep('a', value, 0)
  await first.close()
  const second = await open()
  second.keep('b', value, 0)
  await second.close()
  const third = await open()
  t.equal(third.get('a'), undefined)
  t.ok(third.get('b'))
})

await t.test('a file that cannot be trusted is refused, and nothing of it used', async t => {
  const { open, file } = await setUp(t)
  const first = await open()
  first.keep('a', value, 0)
  await first.close()
  const text = await readFile(file, 'utf8')
  const [head, body, proof] = text.split('\n')
  const refused = async (content: string, reason: RegExp): Promise<void> => {
    await writeFile(file, content)
    const store = await open()
    t.equal((store.refused as { code?: string } | undefined)?.code, 'POSTERN_VAULT_CACHE_REFUSED')
    t.match(store.refused?.message, reason)
    t.equal(store.get('a'), undefined)
    await store.close()
  }
  await refused('', /damaged/)
  await refused('{}\n{}\n', /damaged/)
  await refused(text.slice(0, text.length / 2), /damaged/)
  await refused(`${head}\n{}\n${proof}`, /damaged/)
  await refused(`${head}\n${body!.replace(/.(?="})/, '-')}\n${proof}`, /damaged/)
  await refused(text.replace('"version":1', '"version":0'), /its format is 0/)
  const foreign = await open({ key: randomBytes(32) })
  await writeFile(file, text)
  t.match(
    (await open({ key: randomBytes(32) })).refused?.message,
    /another POSTERN_VAULT_CACHE_KEY/
  )
  foreign.keep('a', value, 0)
  await foreign.close()
  t.match((await open()).refused?.message, /another POSTERN_VAULT_CACHE_KEY/, 'it is written anew')
})

await t.test('a folder that cannot be written, or read as a file, is told', async t => {
  const { open, failures, folder } = await setUp(t)
  const store = await open({ file: join(folder, 'missing', 'known.bin') })
  store.keep('a', value, 0)
  t.ok(store.get('a'), 'it serves this process anyway')
  await store.close()
  t.match(failures, [{ code: 'ENOENT' }])
  t.match((await open({ file: folder })).refused?.message, /cannot be read/)
})

await t.test('an unchanged value is written again only when its age would matter', async t => {
  const { open, file, wait } = await setUp(t)
  const store = await open()
  store.keep('a', value, 0)
  await store.close()
  const before = await readFile(file, 'utf8')
  wait(60)
  store.keep('a', value, 0)
  await store.close()
  t.equal(await readFile(file, 'utf8'), before)
  wait(DAY / 4)
  store.keep('a', value, 0)
  await store.close()
  t.not(await readFile(file, 'utf8'), before)
})
