import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import t from 'tap'
import { fetch } from 'undici'
import { Gate } from '../../src/vault/gate.ts'

const createGate = (): Gate =>
  new Gate({
    vault: 'v',
    type: 'test',
    concurrency: 1,
    now: () => performance.now(),
    random: () => 0,
    observe() {}
  })

await t.test('a closed gate ends what is under way and lets nothing begin', async t => {
  const gate = createGate()
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

// In a thread of its own: it answers while this one is blocked.
const SERVER = `
const { parentPort } = require('node:worker_threads')
const server = require('node:http').createServer((request, response) => {
  parentPort.postMessage('asked')
  setTimeout(() => response.end('answered ' + request.url), 50)
})
server.listen(0, '127.0.0.1', () => parentPort.postMessage(server.address().port))
`

await t.test('a time-out does not run while this thread is blocked', async t => {
  const server = new Worker(SERVER, { eval: true })
  t.teardown(() => server.terminate())
  const [port] = await once(server, 'message')
  const block = (): void => {
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 2500)
  }
  const ask = async (path: string, signal: AbortSignal): Promise<string> =>
    (await fetch(`http://127.0.0.1:${port}${path}`, { signal })).text()
  server.once('message', block)
  const answers = await createGate().run('fetch', 'a', 2, async signal => [
    await ask('/login', signal),
    await ask('/secret', signal)
  ])
  t.same(answers, ['answered /login', 'answered /secret'])
})

await t.test('what takes longer than its time-out ends', async t => {
  await t.rejects(
    createGate().run('fetch', 'a', 0.15, () => new Promise(() => {})),
    { code: 'POSTERN_VAULT_UNREACHABLE', message: /no answer within 0.15 s/ }
  )
})
