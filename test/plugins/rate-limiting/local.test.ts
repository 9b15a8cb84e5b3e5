import t from 'tap'
import { CounterTable, tableBytes } from '../../../src/plugins/rate-limiting/counter-table.ts'
import { limitsOf } from '../../../src/plugins/rate-limiting/limits.ts'
import { LocalPolicy } from '../../../src/plugins/rate-limiting/local.ts'
import { periods } from '../../../src/plugins/rate-limiting/periods.ts'

function policyFor(config: Parameters<typeof limitsOf>[0], slots = 256) {
  const table = new CounterTable(new SharedArrayBuffer(tableBytes(slots)))
  const warnings: string[] = []
  const log = {
    debug() {},
    info() {},
    warn: (_: object, message: string) => void warnings.push(message),
    error() {}
  }
  return { table, warnings, policy: new LocalPolicy(limitsOf(config), 'scope:', table, log) }
}

t.test('a refused request takes nothing of the periods that had room', async t => {
  const { policy } = policyFor({ second: 5, hour: 7, year: 7 })
  const now = Date.UTC(2026, 5, 1, 12, 30)
  for (let i = 0; i < 5; i++) t.equal(policy.take('client', now).passes, true)
  t.same(policy.take('client', now), { passes: false, counted: [5, 5, 5] })
  const later = now + 1000
  t.same(policy.take('client', later), { passes: true, counted: [0, 5, 5] })
  t.same(policy.take('client', later), { passes: true, counted: [1, 6, 6] })
  for (let i = 0; i < 3; i++) {
    t.same(policy.take('client', later), { passes: false, counted: [2, 7, 7] })
  }
  t.same(policy.take('other', later), { passes: true, counted: [0, 0, 0] })
})

t.test('a request whose window ended while it was counted belongs to the next', async t => {
  const { policy, table } = policyFor({ minute: 100, hour: 3 })
  const identity = table.identify('scope:client')
  const hour = periods[2]!
  const past = Date.now() - 3_600_000
  // Another thread has counted in this hour already.
  table.take(hour.index, identity, hour.windowAt(Date.now()), 3)
  t.equal(policy.take('client', past).passes, true)
  t.equal(policy.take('client', past).passes, true)
  t.equal(policy.take('client', past).passes, false)
  t.equal(
    table.counted(periods[1]!.index, identity, periods[1]!.windowAt(past)),
    0,
    'nothing is left of the first attempts'
  )
})

t.test('limits hold after the clock was set back', async t => {
  const { policy, table } = policyFor({ hour: 2 })
  const hour = periods[2]!
  table.take(hour.index, table.identify('scope:client'), hour.windowAt(Date.now()) + 24, 2)
  t.equal(policy.take('client', Date.now()).passes, true)
  t.equal(policy.take('client', Date.now()).passes, true)
  t.equal(policy.take('client', Date.now()).passes, false)
})

t.test('a table that is full warns, once in a while', async t => {
  const { policy, warnings } = policyFor({ hour: 2 }, 64)
  const now = Date.now()
  for (let i = 0; i < 64; i++) policy.take(`client ${i}`, now)
  t.same(warnings, [])
  for (let i = 64; i < 100; i++) t.equal(policy.take(`client ${i}`, now).passes, true)
  t.equal(warnings.length, 1)
  policy.take('another', now + 61_000)
  t.equal(warnings.length, 2)
})
