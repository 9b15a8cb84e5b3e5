import t from 'tap'
import { Libraries } from '../../src/vault/libraries.ts'

await t.test('reads wait for every import, also for one that fails', async t => {
  const libraries = new Libraries()
  await libraries.loaded()
  const one = Promise.withResolvers<void>()
  libraries.load(() => one.promise)
  libraries.load(() => Promise.reject(new Error('not installed')))
  let loaded = false
  const waiting = libraries.loaded().then(() => {
    loaded = true
  })
  await new Promise(setImmediate)
  t.notOk(loaded)
  one.resolve()
  await waiting
  t.ok(loaded)
})

await t.test('an import that never comes is not waited for without end', async t => {
  const libraries = new Libraries(20)
  libraries.load(() => new Promise(() => {}))
  await libraries.loaded()
  t.pass()
})
