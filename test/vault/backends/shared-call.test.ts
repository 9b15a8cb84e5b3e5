import t from 'tap'
import { SharedCall } from '../../../src/vault/backends/shared-call.ts'

/** Calls that end when the test says so. */
function calls() {
  const begun: { signal: AbortSignal; end: (value: string) => void }[] = []
  const start = (signal: AbortSignal): Promise<string> => {
    const { promise, resolve, reject } = Promise.withResolvers<string>()
    signal.addEventListener('abort', () => reject(signal.reason))
    begun.push({ signal, end: resolve })
    return promise
  }
  return { begun, start }
}

await t.test('many share one call, and the next begins another', async t => {
  const { begun, start } = calls()
  const call = new SharedCall<string>()
  const { signal } = new AbortController()
  const both = [call.join(start, signal), call.join(start, signal)]
  t.equal(begun.length, 1)
  begun[0]!.end('a')
  t.strictSame(await Promise.all(both), ['a', 'a'])
  const next = call.join(start, signal)
  begun[1]!.end('b')
  t.equal(await next, 'b')
})

await t.test('the call lives as long as the last who waits', async t => {
  const { begun, start } = calls()
  const call = new SharedCall<string>()
  const [hasty, patient] = [new AbortController(), new AbortController()]
  const first = call.join(start, hasty.signal)
  const second = call.join(start, patient.signal)
  hasty.abort(new Error('too late'))
  await t.rejects(first, { message: 'too late' })
  t.notOk(begun[0]!.signal.aborted)
  begun[0]!.end('a')
  t.equal(await second, 'a')
})

await t.test('a call nobody waits for is ended, and holds up no other', async t => {
  const { begun, start } = calls()
  const call = new SharedCall<string>()
  const hasty = new AbortController()
  const first = call.join(start, hasty.signal)
  hasty.abort(new Error('too late'))
  await t.rejects(first, { message: 'too late' })
  t.ok(begun[0]!.signal.aborted)
  const { signal } = new AbortController()
  const next = call.join(start, signal)
  begun[1]!.end('b')
  t.equal(await next, 'b')
  await t.rejects(call.join(start, AbortSignal.abort(new Error('never'))), { message: 'never' })
  t.equal(begun.length, 2)
})

await t.test('a failure is told to all, and forgotten', async t => {
  const call = new SharedCall<string>()
  const { signal } = new AbortController()
  const fail = () => Promise.reject(new Error('no'))
  await t.rejects(Promise.all([call.join(fail, signal), call.join(fail, signal)]), {
    message: 'no'
  })
  t.equal(await call.join(async () => 'yes', signal), 'yes')
})
