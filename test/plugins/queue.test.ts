import t, { type Test } from 'tap'
import { Queue, type QueueConfig, type QueuedBytes, type Sink } from '../../src/plugins/queue.ts'
import { until } from '../harness.ts'

const DEFAULTS: QueueConfig = {
  max_batch_size: 1,
  max_coalescing_delay: 1,
  max_entries: 10_000,
  max_retry_time: 60,
  initial_retry_delay: 0.001,
  max_retry_delay: 60,
  concurrency_limit: 1
}

interface Line {
  readonly level: string
  readonly fields: Record<string, unknown>
  readonly message: string
}

function collectLines() {
  const lines: Line[] = []
  const at = (level: string) => (fields: object, message: string) => {
    lines.push({ level, fields: fields as Record<string, unknown>, message })
  }
  const log = { debug: at('debug'), info: at('info'), warn: at('warn'), error: at('error') }
  const errors = () => lines.filter(line => line.level === 'error').map(line => line.message)
  return { lines, log, errors }
}

/** A sink that keeps what arrives; `answer` may fail or delay a delivery. */
class Collector implements Sink {
  readonly config: QueueConfig
  readonly timeout: number
  readonly batches: (readonly string[])[] = []
  attempts = 0
  closed = 0
  answer: (attempt: number, signal: AbortSignal) => void | Promise<void> = () => {}
  recover?: (error: unknown) => Promise<boolean>

  constructor(config: Partial<QueueConfig> = {}, timeout = 60_000) {
    this.config = { ...DEFAULTS, ...config }
    this.timeout = timeout
  }

  async send(entries: readonly QueuedBytes[], signal: AbortSignal): Promise<void> {
    const texts = entries.map(({ memory, start, end }) => memory.toString('utf8', start, end))
    await this.answer(++this.attempts, signal)
    this.batches.push(texts)
  }

  async close(): Promise<void> {
    this.closed++
  }
}

function open(test: Test, sink: Collector, closeTimeout = 5000) {
  const { lines, log, errors } = collectLines()
  const queue = new Queue('q', log, closeTimeout)
  const detach = queue.attach(sink)
  test.teardown(() => queue.close())
  return { queue, lines, errors, detach }
}

function fail(): never {
  throw Object.assign(new Error('no luck'), { code: 'NO_LUCK' })
}

/** A delivery that hangs until it is aborted. */
function hang(_: number, signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    signal.addEventListener('abort', () => reject(signal.reason))
  })
}

t.test('batch size 1 delivers each entry by itself, in order', async t => {
  const sink = new Collector()
  const { queue } = open(t, sink)
  for (const entry of ['a', 'b', 'c']) queue.enqueue(entry)
  await until(() => queue.length === 0, 'empty')
  t.same(sink.batches, [['a'], ['b'], ['c']])
})

t.test('a full batch goes at once, the rest after the coalescing delay', async t => {
  const sink = new Collector({ max_batch_size: 3, max_coalescing_delay: 0.2 })
  const { queue } = open(t, sink)
  for (const entry of ['a', 'b', 'c', 'd']) queue.enqueue(entry)
  await until(() => queue.length === 0, 'empty')
  t.same(sink.batches, [['a', 'b', 'c'], ['d']])
  queue.enqueue('e')
  await new Promise(resolve => setImmediate(resolve))
  queue.enqueue('f')
  await until(() => queue.length === 0, 'empty again')
  t.same(sink.batches.at(-1), ['e', 'f'])
})

t.test('a batch that fills while it is collected does not wait any longer', async t => {
  const sink = new Collector({ max_batch_size: 2, max_coalescing_delay: 3600 })
  const { queue } = open(t, sink)
  queue.enqueue('a')
  await new Promise(resolve => setImmediate(resolve))
  t.equal(sink.batches.length, 0)
  queue.enqueue('b')
  await until(() => queue.length === 0, 'empty')
  t.same(sink.batches, [['a', 'b']])
})

t.test('a batch that fails is tried again until it arrives', async t => {
  const sink = new Collector()
  sink.answer = attempt => (attempt < 4 ? fail() : undefined)
  const { queue, lines, errors } = open(t, sink)
  queue.enqueue('a')
  queue.enqueue('b')
  await until(() => queue.length === 0, 'empty')
  t.same(sink.batches, [['a'], ['b']])
  t.equal(sink.attempts, 5)
  t.same(
    lines.map(({ level, fields }) => [level, fields.failures, fields.code]),
    [1, 2, 3].map(n => ['warn', n, 'NO_LUCK'])
  )
  t.same(errors(), [])
})

t.test('after max_retry_time a batch is lost, and the next one gets its own time', async t => {
  for (const max_retry_time of [0, -1]) {
    const sink = new Collector({ max_retry_time, max_batch_size: 2, max_coalescing_delay: 0 })
    sink.answer = attempt => (attempt === 1 ? fail() : undefined)
    const { queue, errors } = open(t, sink)
    for (const entry of ['a', 'b', 'c']) queue.enqueue(entry)
    await until(() => queue.length === 0, 'empty')
    t.same(sink.batches, [['c']])
    t.match(errors(), ['2 log entries were lost: max_retry_time has passed'])
  }
})

t.test(
  'a full queue loses its oldest entries, tells it once, and again after it recovered',
  async t => {
    const sink = new Collector({ max_entries: 5 })
    const gate = Promise.withResolvers<void>()
    sink.answer = () => gate.promise
    const { queue, lines, errors } = open(t, sink)
    for (let i = 0; i < 10; i++) queue.enqueue(String(i))
    t.equal(queue.length, 5)
    const warned = lines.filter(({ level }) => level === 'warn')
    t.equal(warned.length, 1)
    t.match(warned[0], { message: /80 %/, fields: { entries: 4, max_entries: 5 } })
    t.equal(errors().length, 1)
    t.match(errors()[0], /full/)
    gate.resolve()
    await until(() => queue.length === 0, 'empty')
    t.same(sink.batches.flat().slice(-5), ['5', '6', '7', '8', '9'])
    sink.answer = () => Promise.reject(new Error('down again'))
    for (let i = 0; i < 6; i++) queue.enqueue(String(i))
    t.equal(errors().length, 2)
    sink.answer = () => {}
  }
)

t.test('what was dropped from a failing batch is not sent again', async t => {
  const sink = new Collector({ max_entries: 2, max_batch_size: 2, max_coalescing_delay: 0 })
  const gate = Promise.withResolvers<void>()
  sink.answer = attempt => (attempt === 1 ? gate.promise : undefined)
  const { queue } = open(t, sink)
  queue.enqueue('a')
  queue.enqueue('b')
  await until(() => sink.attempts === 1, 'a first attempt')
  queue.enqueue('c')
  gate.reject(new Error('failed after all'))
  await until(() => queue.length === 0, 'empty')
  t.same(sink.batches, [['b'], ['c']])
})

t.test('max_bytes bounds what is held, and no entry may be larger', async t => {
  const sink = new Collector({ max_bytes: 6 })
  const gate = Promise.withResolvers<void>()
  sink.answer = () => gate.promise
  const { queue, errors } = open(t, sink)
  for (const entry of ['üü', 'bb', '1234567', 'cc', 'dd']) queue.enqueue(entry)
  t.match(errors(), [/larger than max_bytes/, /full/])
  t.equal(queue.length, 3)
  gate.resolve()
  await until(() => queue.length === 0, 'empty')
  t.same(sink.batches.slice(-3), [['bb'], ['cc'], ['dd']])
})

t.test('without a concurrency limit entries are delivered side by side', async t => {
  const sink = new Collector({ concurrency_limit: -1, max_entries: 3, max_bytes: 100 })
  const gate = Promise.withResolvers<void>()
  sink.answer = attempt => (attempt === 1 ? fail() : gate.promise)
  const { queue, errors } = open(t, sink)
  for (const entry of ['a', 'b', 'c', 'd']) queue.enqueue(entry)
  await until(() => sink.attempts === 4, 'three entries at once, the first tried again')
  t.match(errors(), [/full/], 'only their number is bounded')
  gate.resolve()
  await until(() => queue.length === 0, 'empty')
  t.same(sink.batches.flat().sort(), ['a', 'b', 'c'])
})

t.test('entries that bypass the queue cannot be dropped for bytes', async t => {
  const sink = new Collector({ concurrency_limit: -1, max_bytes: 3 })
  const gate = Promise.withResolvers<void>()
  sink.answer = () => gate.promise
  const { queue, errors } = open(t, sink)
  queue.enqueue('ab')
  queue.enqueue('cd')
  t.equal(queue.length, 1)
  t.match(errors(), [/full/])
  gate.resolve()
  await until(() => queue.length === 0, 'empty')
  t.same(sink.batches, [['ab']])
})

t.test('a delivery that takes too long is aborted and tried again', async t => {
  const sink = new Collector({}, 20)
  sink.answer = (attempt, signal) => (attempt === 1 ? hang(attempt, signal) : undefined)
  const { queue, lines } = open(t, sink)
  queue.enqueue('a')
  await until(() => queue.length === 0, 'empty')
  t.same(sink.batches, [['a']])
  t.match(lines[0]?.message, /not delivered in time/)
})

t.test('recover is asked once per batch, and saves the back-off', async t => {
  const sink = new Collector({ initial_retry_delay: 3600, max_retry_delay: 3600 })
  const asked: unknown[] = []
  sink.answer = attempt => (attempt === 1 ? fail() : undefined)
  sink.recover = async error => {
    asked.push(error)
    return true
  }
  const { queue } = open(t, sink)
  queue.enqueue('a')
  await until(() => queue.length === 0, 'empty')
  t.match(asked, [{ code: 'NO_LUCK' }])
})

t.test('a recovery that gives nothing or fails leaves the usual retries', async t => {
  for (const recover of [async () => false, async () => fail()]) {
    const sink = new Collector()
    let asked = 0
    sink.answer = attempt => (attempt < 4 ? fail() : undefined)
    sink.recover = () => {
      asked++
      return recover()
    }
    const { queue } = open(t, sink)
    queue.enqueue('a')
    await until(() => queue.length === 0, 'empty')
    t.equal(asked, 1)
  }
})

t.test('entries queued for one sink go to the one attached after it', async t => {
  const old = new Collector()
  old.answer = fail
  const { queue, detach } = open(t, old)
  queue.enqueue('a')
  await until(() => old.attempts > 0, 'an attempt with the old sink')
  const next = new Collector()
  queue.attach(next)
  detach()
  await until(() => queue.length === 0, 'empty')
  t.same(next.batches, [['a']])
  t.same(old.batches, [])
  await until(() => old.closed === 1, 'the old sink is closed')
  t.equal(next.closed, 0)
})

t.test('a batch whose sink was replaced meanwhile is tried again at once', async t => {
  const old = new Collector({ initial_retry_delay: 3600, max_retry_delay: 3600 })
  const gate = Promise.withResolvers<void>()
  old.answer = () => gate.promise
  old.recover = async () => false
  const { queue, detach } = open(t, old)
  queue.enqueue('a')
  await until(() => old.attempts === 1, 'an attempt with the old sink')
  const next = new Collector()
  queue.attach(next)
  detach()
  gate.reject(new Error('refused'))
  await until(() => queue.length === 0, 'empty')
  t.same(next.batches, [['a']])
})

t.test('a sink that is detached again gives way to the one before', async t => {
  const first = new Collector()
  const { queue } = open(t, first)
  const second = new Collector()
  const detach = queue.attach(second)
  detach()
  detach()
  queue.enqueue('a')
  await until(() => queue.length === 0, 'empty')
  t.same(first.batches, [['a']])
  await until(() => second.closed === 1, 'closed once')
})

t.test('a detached sink closes after its deliveries', async t => {
  const sink = new Collector()
  const gate = Promise.withResolvers<void>()
  sink.answer = () => gate.promise
  const { queue, detach } = open(t, sink)
  queue.enqueue('a')
  await until(() => sink.attempts === 1, 'an attempt')
  queue.attach(new Collector())
  detach()
  await new Promise(resolve => setImmediate(resolve))
  t.equal(sink.closed, 0)
  gate.resolve()
  await until(() => sink.closed === 1, 'closed')
  t.same(sink.batches, [['a']])
})

t.test('closing cuts the coalescing short and delivers what is left', async t => {
  const sink = new Collector({ max_batch_size: 10, max_coalescing_delay: 3600 })
  const { queue, detach } = open(t, sink)
  queue.enqueue('a')
  queue.enqueue('b')
  detach()
  await queue.close()
  t.same(sink.batches, [['a', 'b']])
  t.equal(sink.closed, 1, 'the last sink stays until then')
  queue.enqueue('late')
  t.equal(queue.length, 0)
})

t.test('closing is bounded, and tells what was lost', async t => {
  const sinks = {
    failing: new Collector({ initial_retry_delay: 3600, max_retry_delay: 3600 }),
    hanging: new Collector(),
    recovering: new Collector(),
    bypassing: new Collector({ concurrency_limit: -1 })
  }
  sinks.failing.answer = fail
  sinks.hanging.answer = hang
  sinks.recovering.answer = fail
  sinks.recovering.recover = () => new Promise(() => {})
  sinks.bypassing.answer = hang
  for (const [name, sink] of Object.entries(sinks)) {
    const { queue, errors } = open(t, sink, 20)
    queue.enqueue('a')
    queue.enqueue('b')
    await queue.close()
    t.equal(queue.length, 0, name)
    t.equal(sink.closed, 1, name)
    const lost = errors().map(message => Number.parseInt(message, 10))
    t.equal(
      lost.reduce((sum, n) => sum + n, 0),
      2,
      name
    )
  }
})

t.test('a sink that cannot close is told about', async t => {
  const sink = new Collector()
  sink.close = () => Promise.reject(new Error('stuck'))
  const { queue, lines } = open(t, sink)
  await queue.close()
  t.match(lines, [{ level: 'warn', message: /did not close/ }])
})

t.test('many entries: what is taken is let go of', async t => {
  const sink = new Collector({ max_batch_size: 7, max_coalescing_delay: 0, max_entries: 1000 })
  const { queue, errors } = open(t, sink)
  const entries = Array.from({ length: 1000 }, (_, i) => String(i))
  for (const entry of entries) queue.enqueue(entry)
  await until(() => queue.length === 0, 'empty')
  t.same(sink.batches.flat(), entries)
  t.same(errors(), [])
})
