import t from 'tap'
import { Gate } from '../../src/vault/gate.ts'

await t.test('a closed gate ends what is under way and lets nothing begin', async t => {
  const gate = new Gate({
    vault: 'v',
    type: 'test',
    concurrency: 1,
    now: () => performance.now(),
    random: () => 0,
    observe() {}
  })
  let calls = 0
  const call = (signal: AbortSignal) => {
    calls++
    return new Promise<undefined>((_, reject) =>
      signal.addEventListener('abort', () => reject(signal.reason))
    )
  }
  const reads = [gate.run('fetch', 'a', 10, call), gate.run('fetch', 'b', 10, call)]
  const ended = Promise.allSettled(reads)
  await new Promise(resolve => setImmediate(resolve))
  gate.close()
  t.match(await ended, [
    { status: 'rejected', reason: { code: 'POSTERN_VAULT_UNREACHABLE' } },
    { status: 'rejected', reason: { code: 'POSTERN_VAULT_UNREACHABLE' } }
  ])
  await t.rejects(gate.run('fetch', 'c', 10, call), { message: /no longer uses this vault/ })
  t.equal(calls, 1, 'only the first had begun')
})
