import { Worker } from 'node:worker_threads'
import t from 'tap'
import {
  CounterTable,
  MAX_LIMIT,
  OVER,
  tableBytes
} from '../../../src/plugins/rate-limiting/counter-table.ts'

const MINUTE = 1
const memory = (slots: number): SharedArrayBuffer => new SharedArrayBuffer(tableBytes(slots))

/** A sequence of pseudo-random integers below `bound` that a seed gives again (mulberry32). */
function numbers(seed: number): (bound: number) => number {
  let state = seed
  return bound => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) % bound
  }
}

t.test('counts like a map, whatever is asked in whatever order', async t => {
  for (let seed = 1; seed <= 20; seed++) {
    const next = numbers(seed)
    const shared = memory(256)
    // Two tables over one memory are two threads that take turns.
    const tables = [new CounterTable(shared), new CounterTable(shared)]
    const model = new Map<string, number>()
    const windows = [1000, 1000, 1000, 1000, 1000, 1000]
    for (let step = 0; step < 3000; step++) {
      const table = tables[next(2)]!
      const period = next(6)
      if (next(200) === 0) windows[period]! += 1 + next(3)
      const window = windows[period]!
      const name = `client-${next(100)}`
      const key = `${period} ${window} ${name}`
      const counted = model.get(key) ?? 0
      const identity = table.identify(name)
      const what = next(10)
      if (what === 0) {
        table.release(period, identity, window)
        model.set(key, Math.max(0, counted - 1))
      } else if (what === 1) {
        if (table.counted(period, identity, window) !== counted) t.fail(`seed ${seed}: ${key}`)
      } else {
        const limit = next(8)
        if (table.take(period, identity, window, limit) !== counted) t.fail(`seed ${seed}: ${key}`)
        if (counted < limit) model.set(key, counted + 1)
      }
    }
    for (const [key, counted] of model) {
      const [period, window, name] = key.split(' ')
      if (Number(window) !== windows[Number(period)]) continue
      const identity = tables[0]!.identify(name!)
      t.equal(tables[0]!.counted(Number(period), identity, Number(window)), counted)
    }
    t.equal(tables[0]!.evictions + tables[1]!.evictions, 0, 'nobody gave way')
  }
})

t.test('what takes part in neither period nor name is counted apart', async t => {
  const table = new CounterTable(memory(64))
  const one = table.identify('one')
  t.equal(table.take(0, one, 7, 5), 0)
  t.equal(table.take(0, one, 7, 5), 1)
  t.equal(table.take(1, one, 7, 5), 0, 'another period')
  t.equal(table.take(0, one, 8, 5), 0, 'another window')
  t.equal(table.take(0, table.identify('two'), 8, 5), 0, 'another name')
})

t.test('a window that another thread has left takes no more', async t => {
  const shared = memory(64)
  const slow = new CounterTable(shared)
  const fast = new CounterTable(shared)
  const identity = slow.identify('client')
  t.equal(slow.take(MINUTE, identity, 9, 1), 0)
  t.equal(fast.take(MINUTE, identity, 10, 1), 0)
  t.equal(slow.take(MINUTE, identity, 9, 1), OVER)
  t.equal(slow.take(MINUTE, identity, 9, 1, true), 0, 'unless the clock was set back')
  t.equal(slow.take(MINUTE, identity, 9, 1, true), 1)
  t.equal(fast.take(MINUTE, identity, 10, 1), 1, 'which leaves the later window alone')
})

t.test('limits need not be whole, and reach as far as the table tells', async t => {
  const table = new CounterTable(memory(64))
  const identity = table.identify('client')
  t.equal(table.take(0, identity, 1, 1.5), 0)
  t.equal(table.take(0, identity, 1, 1.5), 1)
  t.equal(table.take(0, identity, 1, 1.5), 2)
  t.equal(table.counted(0, identity, 1), 2)
  t.equal(table.take(0, identity, 1, MAX_LIMIT), 2)
})

t.test('where there is no room those with the smallest counts give way', async t => {
  const table = new CounterTable(memory(64))
  const heavy = table.identify('heavy')
  for (let i = 0; i < 100; i++) table.take(MINUTE, heavy, 5, 100)
  for (let i = 0; i < 10_000; i++) table.take(MINUTE, table.identify(`passer-by ${i}`), 5, 100)
  t.ok(table.evictions > 9000)
  t.equal(table.take(MINUTE, heavy, 5, 100), 100, 'not the one that is to be stopped')
  const before = table.evictions
  for (let i = 0; i < 40; i++) table.take(MINUTE, table.identify(`later ${i}`), 6, 100)
  t.equal(table.evictions, before, 'the next window has room again')
})

t.test('a slot whose filler died holds up nobody, until the next window', async t => {
  const shared = memory(64)
  const table = new CounterTable(shared)
  const words = new BigUint64Array(shared)
  const identity = table.identify('client')
  const region = 8 + MINUTE * 64 * 2
  const slot = region + identity.start * 2
  Atomics.store(words, slot + 1, 5n << 32n)
  t.equal(table.take(MINUTE, identity, 5, 2), 0)
  t.equal(table.take(MINUTE, identity, 5, 2), 1)
  t.equal(table.take(MINUTE, identity, 5, 2), 2)
  t.not(Atomics.load(words, slot + 1) & 0xffff_ffffn, 0n, 'it is out of use')
  t.equal(table.take(MINUTE, identity, 6, 2), 0)
  t.equal(Atomics.load(words, slot + 1), (6n << 32n) | 2n, 'and in use again')
})

t.test('when all slots are out of use requests pass', async t => {
  const shared = memory(64)
  const table = new CounterTable(shared)
  const words = new BigUint64Array(shared)
  for (let slot = 0; slot < 64; slot++) {
    Atomics.store(words, 8 + MINUTE * 128 + slot * 2 + 1, (5n << 32n) | 0xffff_ffffn)
  }
  const identity = table.identify('client')
  t.equal(table.take(MINUTE, identity, 5, 1), 0)
  t.equal(table.take(MINUTE, identity, 5, 1), 0)
  table.release(MINUTE, identity, 5)
})

t.test('memory of another size is refused', async t => {
  t.throws(() => new CounterTable(new SharedArrayBuffer(1000 * 8)), TypeError)
})

t.test('names are told apart by what nobody can guess', async t => {
  const shared = memory(64)
  const first = new CounterTable(shared)
  t.same(first.identify('client'), new CounterTable(shared).identify('client'), 'in all threads')
  t.not(first.identify('client').tag, new CounterTable(memory(64)).identify('client').tag)
  first.close()
})

/** Asks for `attempts` of each of some names in each of some windows, and tells how many it got. */
const THREAD = `
  const { parentPort, workerData } = require('node:worker_threads')
  import(workerData.module).then(({ CounterTable, OVER }) => {
    const table = new CounterTable(workerData.memory)
    const gate = new Int32Array(workerData.gate)
    const taken = {}
    Atomics.add(gate, 0, 1)
    while (Atomics.load(gate, 0) < workerData.threads);
    for (let window = 1; window <= workerData.windows; window++) {
      for (let i = 0; i < workerData.attempts * workerData.names; i++) {
        const name = 'client ' + ((i * 7 + workerData.number) % workerData.names)
        const before = table.take(2, table.identify(name), window, workerData.limit)
        if (before === OVER) continue
        if (before < workerData.limit) {
          const key = window + name
          taken[key] = (taken[key] ?? 0) + 1
        }
      }
    }
    parentPort.postMessage({ taken, evictions: table.evictions })
  })`

t.test('threads that race for new and old slots take exactly the limit', async t => {
  const threads = 4
  const names = 120
  const windows = 25
  const limit = 50
  const shared = memory(256)
  const gate = new SharedArrayBuffer(4)
  const module = new URL('../../../src/plugins/rate-limiting/counter-table.ts', import.meta.url)
    .href
  const results = await Promise.all(
    Array.from({ length: threads }, async (_, number) => {
      const workerData = {
        module,
        memory: shared,
        gate,
        threads,
        number,
        names,
        windows,
        limit,
        attempts: limit
      }
      const worker = new Worker(THREAD, { eval: true, workerData })
      return new Promise<{ taken: Record<string, number>; evictions: number }>(
        (resolve, reject) => {
          worker.once('message', resolve)
          worker.once('error', reject)
        }
      )
    })
  )
  const sums = new Map<string, number>()
  for (const { taken } of results) {
    for (const [key, count] of Object.entries(taken)) {
      sums.set(key, (sums.get(key) ?? 0) + count)
    }
  }
  t.same(
    results.map(({ evictions }) => evictions),
    [0, 0, 0, 0]
  )
  const wrong = [...sums].filter(([, count]) => count > limit)
  t.same(wrong, [], 'never more')
  // The fastest thread alone asks often enough for all of the last window, which none can miss.
  for (let n = 0; n < names; n++) t.equal(sums.get(`${windows}client ${n}`), limit, 'nor less')
})
