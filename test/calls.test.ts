import { MessageChannel, Worker } from 'node:worker_threads'
import t, { type Test } from 'tap'
import { serveCalls } from '../src/calls.ts'

interface Methods {
  add(a: number, b: number): number
  fail(code: string | undefined): never
  never(): Promise<void>
}

const methods: Methods = {
  add: (a, b) => a + b,
  fail(code) {
    throw Object.assign(new Error('refused'), code === undefined ? {} : { code })
  },
  never: () => new Promise(() => {})
}

function connect(test: Test) {
  const { port1, port2 } = new MessageChannel()
  test.teardown(() => port1.close())
  serveCalls<Methods, object>(port2, methods)
  return { far: serveCalls<object, Methods>(port1, {}), port1 }
}

t.test('calls are answered, each its own, in both directions', async t => {
  const { port1, port2 } = new MessageChannel()
  t.teardown(() => port1.close())
  const one = serveCalls<Methods, Methods>(port1, methods)
  const two = serveCalls<Methods, Methods>(port2, { ...methods, add: (a, b) => a * b })
  t.same(await Promise.all([one.add(2, 5), two.add(2, 5), one.add(1, 1)]), [10, 7, 1])
})

t.test('an error crosses with its message and code', async t => {
  const { far } = connect(t)
  await t.rejects(far.fail('POSTERN_X'), { message: 'refused', code: 'POSTERN_X' })
  const error = await far.fail(undefined).catch(error => error)
  t.equal(error.message, 'refused')
})

t.test('calls that wait when the other side goes reject', async t => {
  const { far, port1 } = connect(t)
  const waiting = far.never()
  port1.close()
  await t.rejects(waiting, { message: 'the thread ended' })
  const worker = new Worker('setInterval(() => {}, 1000)', { eval: true })
  const calls = serveCalls<object, Methods>(worker, {})
  const pending = calls.never()
  await worker.terminate()
  await t.rejects(pending, { message: 'the thread ended' })
})

t.test('the far side is no promise itself', async t => {
  const { far } = connect(t)
  t.equal(await far, far)
})
