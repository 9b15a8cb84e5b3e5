import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import t from 'tap'
import { nodeClock } from '../../src/proxy/clock.ts'

await t.test('another thread reads the same clock, whenever it began', async t => {
  const worker = new Worker(
    `import { parentPort } from 'node:worker_threads'
     import { nodeClock } from ${JSON.stringify(import.meta.resolve('../../src/proxy/clock.ts'))}
     parentPort.on('message', () => parentPort.postMessage(nodeClock()))`,
    { eval: true }
  )
  t.teardown(() => worker.terminate())
  const before = nodeClock()
  worker.postMessage('tell')
  const [told] = await once(worker, 'message')
  t.ok(told >= before && told <= nodeClock(), `${before} ${told}`)
})
