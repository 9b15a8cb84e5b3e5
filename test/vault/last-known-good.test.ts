import { randomBytes } from 'node:crypto'
import { cp, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { openLastKnownGood } from '../../src/vault/last-known-good.ts'

const DAY = 86_400
/** A file of release 0.6.0, under a key of ones. */
const EARLIER = join(import.meta.dirname, '../fixtures/known-good-0.6.0.json')
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
  t.same((await readdir(folder)).sort(), ['known.bin', 'known.bin.generation'], 'nothing else')
  for (const each of [file, `${file}.generation`]) t.equal((await stat(each)).mode & 0o777, 0o600)
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
  const last = await open()
  t.equal(last.outdated, undefined, 'nothing was asked for')
  t.equal(last.get('a'), undefined)
  t.equal(last.get('lease'), undefined)
  t.match(last.outdated, {
    code: 'POSTERN_VAULT_CACHE_REFUSED',
    message: /2 of them are past the maximum age of 86400 s .* from 87100 s ago/
  })
})

await t.test('a clock that was set back breaks nothing', async t => {
  const { open, wait } = await setUp(t)
  const first = await open()
  first.keep('a', value, 0)
  await first.close()
  wait(-3600)
  t.equal((await open()).get('a')?.age, 0)
})

await t.test('a clock that was far ahead and is set right keeps no age for ever', async t => {
  const { open, wait } = await setUp(t)
  wait(365 * DAY)
  const store = await open()
  store.keep('a', value, 0)
  wait(-365 * DAY)
  store.keep('a', value, 0)
  await store.close()
  wait(2 * DAY)
  t.equal((await open()).get('a'), undefined)
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

await t.test(
  'an older copy that is put back is refused, a crash between the two files is not',
  async t => {
    const { open, file } = await setUp(t)
    const record = `${file}.generation`
    const write = async (version: string): Promise<void> => {
      const store = await open()
      store.keep('a', { ...value, version }, 0)
      await store.close()
    }
    const versionNow = async (): Promise<string | undefined> =>
      (await open()).get('a')?.fetched.version
    const refused = async (reason: RegExp, what: string): Promise<void> => {
      const store = await open()
      t.equal((store.refused as { code?: string } | undefined)?.code, 'POSTERN_VAULT_CACHE_REFUSED')
      t.match(store.refused?.message, reason, what)
      t.equal(store.get('a'), undefined, what)
    }
    await write('1')
    await cp(file, `${file}.1`)
    await cp(record, `${record}.1`)
    await write('2')
    await cp(file, `${file}.2`)
    await cp(record, `${record}.2`)
    t.equal(await versionNow(), '2', 'an honest restart')

    await cp(`${file}.1`, file)
    await refused(
      /older copy, of generation 1, and .*known.bin.generation knows of 2/,
      'rolled back'
    )
    await cp(`${file}.2`, file)
    await cp(`${record}.1`, record)
    t.equal(await versionNow(), '2', 'a process that ended before it wrote the record')
    await rm(record)
    await refused(/known.bin.generation, .* is missing/, 'the record taken away')
    await writeFile(record, '{"generation":1}')
    await refused(/known.bin.generation, .* is damaged/, 'the record damaged')
    const forged = { ...JSON.parse(await readFile(`${record}.2`, 'utf8')), generation: 1 }
    await writeFile(record, JSON.stringify(forged))
    await refused(/known.bin.generation, .* is damaged/, 'the record forged')

    await write('3')
    t.equal(await versionNow(), '3', 'what was refused is written anew')
    await cp(`${file}.2`, file)
    await refused(/not the file that .*known.bin.generation is about/, 'one of before that')
    await write('4')
    await cp(file, `${file}.4`)
    await write('5')
    await cp(`${file}.4`, file)
    await refused(/older copy/, 'the new one is guarded as well')
  }
)

await t.test(
  'one process that takes over while another ends leaves a file that is used',
  async t => {
    const { open } = await setUp(t)
    const first = await open()
    first.keep('a', value, 0)
    await first.close()
    const ending = await open()
    const starting = await open()
    for (const version of ['2', '3', '4']) {
      ending.keep('a', { ...value, version }, 0)
      await ending.close()
    }
    starting.keep('a', { ...value, version: '5' }, 0)
    await starting.close()
    t.equal((await open()).get('a')?.fetched.version, '5')
  }
)

await t.test('a file of a release without the record is used until there is one', async t => {
  const { file, open, wait } = await setUp(t)
  const key = Buffer.alloc(32, 1)
  const authored = JSON.parse(await readFile(EARLIER, 'utf8'))
  await writeFile(file, authored.text)
  wait((authored.at - Date.now()) / 1000)
  const store = await open({ key })
  t.equal(store.refused, undefined)
  t.same(store.get('a')?.fetched, value)
  store.keep('a', value, 0)
  await store.close()
  t.ok((await open({ key })).get('a'))
  await writeFile(file, authored.text)
  t.match((await open({ key })).refused?.message, /older copy, of generation 0/)
})

await t.test('a new key seals everything anew, also what an earlier process kept', async t => {
  const { open } = await setUp(t)
  const first = await open()
  for (const name of ['a', 'b', 'c']) first.keep(name, value, 0)
  await first.close()
  const key = randomBytes(32)
  const second = await open()
  t.ok(second.get('a'))
  second.keep('b', { ...value, version: '8' }, 0)
  t.ok(second.get('c'))
  second.drop('c')
  t.ok(second.useKey(key))
  t.notOk(second.useKey(Buffer.from(key)), 'the same')
  t.ok(second.get('a'), 'this process has it still')
  await second.close()
  t.match((await open()).refused?.message, /another POSTERN_VAULT_CACHE_KEY/)
  const third = await open({ key })
  t.equal(third.refused, undefined)
  t.same(third.get('a')?.fetched, value)
  t.equal(third.get('b')?.fetched.version, '8')
  t.equal(third.get('c'), undefined)
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
