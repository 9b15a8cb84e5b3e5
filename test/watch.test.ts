import { writeFileSync } from 'node:fs'
import { mkdir, mkdtemp, rename, rm, symlink, unlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { watchFile } from '../src/watch.ts'

const INTERVAL = 20
// Watching keeps no process alive, so the tests do.
const alive = setInterval(() => {}, 1000)

interface Watched {
  readonly directory: string
  readonly file: string
  readonly calls: () => number
  readonly stop: () => void
  /** Resolves at the next call after this is called. */
  readonly next: () => Promise<void>
}

/** Watches a file in a directory of its own, which `arrange` fills before. */
async function watched(
  t: Test,
  arrange: (directory: string, file: string) => Promise<void>
): Promise<Watched> {
  const directory = await mkdtemp(join(tmpdir(), 'postern-watch-'))
  const file = join(directory, 'postern.yaml')
  await arrange(directory, file)
  let calls = 0
  let waiting = Promise.withResolvers<void>()
  const stop = watchFile(
    file,
    () => {
      calls++
      waiting.resolve()
    },
    { interval: INTERVAL }
  )
  t.teardown(async () => {
    stop()
    await rm(directory, { recursive: true })
  })
  return {
    directory,
    file,
    stop,
    calls: () => calls,
    next() {
      waiting = Promise.withResolvers()
      return waiting.promise
    }
  }
}

const withFile = async (_directory: string, file: string): Promise<void> => writeFile(file, 'one')
/** Time within which a change would be told several times over. */
const quiet = (): Promise<void> => delay(20 * INTERVAL)

await t.test('a file that is written over', async t => {
  const { file, next } = await watched(t, withFile)
  const changed = next()
  await writeFile(file, 'two')
  await t.resolves(changed)
})

await t.test('a change right after the watch began', async t => {
  const { file, next, calls } = await watched(t, withFile)
  const changed = next()
  writeFileSync(file, 'other')
  await t.resolves(changed)
  await quiet()
  t.equal(calls(), 1)
})

await t.test('a file that is renamed over, again and again', async t => {
  const { file, next } = await watched(t, withFile)
  for (const content of ['two', 'six', 'ten']) {
    const changed = next()
    await writeFile(`${file}.new`, content)
    await rename(`${file}.new`, file)
    await t.resolves(changed, content)
    await quiet()
  }
})

await t.test('a directory that Kubernetes swaps by its ..data link', async t => {
  const { directory, next } = await watched(t, async (directory, file) => {
    for (const [version, content] of [
      ['..v1', 'one'],
      ['..v2', 'two']
    ] as const) {
      await mkdir(join(directory, version))
      await writeFile(join(directory, version, 'postern.yaml'), content)
    }
    await symlink('..v1', join(directory, '..data'))
    await symlink('..data/postern.yaml', file)
  })
  const changed = next()
  await symlink('..v2', join(directory, '..data_tmp'))
  await rename(join(directory, '..data_tmp'), join(directory, '..data'))
  await t.resolves(changed)
})

await t.test('a file that comes to be', async t => {
  const { file, next, calls } = await watched(t, async () => {})
  await quiet()
  t.equal(calls(), 0)
  const changed = next()
  await writeFile(file, 'one')
  await t.resolves(changed)
})

await t.test('a file that goes is not a change, its return is', async t => {
  const { file, next, calls } = await watched(t, withFile)
  await unlink(file)
  await quiet()
  t.equal(calls(), 0)
  const changed = next()
  await writeFile(file, 'two')
  await t.resolves(changed)
})

await t.test('one call for a file that is written in pieces', async t => {
  const { file, next, calls } = await watched(t, withFile)
  const changed = next()
  for (let piece = 0; piece < 10; piece++) {
    await writeFile(file, `${piece}`.repeat(piece + 1), { flag: 'a' })
    await delay(INTERVAL / 2)
  }
  await changed
  await quiet()
  t.ok(calls() <= 2, `${calls()} calls`)
})

await t.test('no call after stop, nor for a file nothing happens to', async t => {
  const { file, stop, calls } = await watched(t, withFile)
  await quiet()
  t.equal(calls(), 0)
  stop()
  await writeFile(file, 'two')
  await quiet()
  t.equal(calls(), 0)
})

await t.test('stopping while a change settles', async t => {
  const { file, stop, calls } = await watched(t, withFile)
  await writeFile(file, 'two')
  await delay(INTERVAL)
  stop()
  await quiet()
  t.equal(calls(), 0)
})

clearInterval(alive)
