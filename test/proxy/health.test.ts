import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import t from 'tap'
import {
  type Check,
  createHealthMemory,
  HealthRules,
  HealthTable,
  isChecked
} from '../../src/proxy/health.ts'
import type { HealthChecks } from '../../src/schema/entities.ts'

type Thresholds = {
  successes?: number
  tcp_failures?: number
  timeouts?: number
  http_failures?: number
}

function rules({ successes = 0, ...failures }: Thresholds, check: Check = 'passive'): HealthRules {
  return new HealthRules(check, {
    healthy: { successes, http_statuses: [200, 302] },
    unhealthy: { tcp_failures: 0, timeouts: 0, http_failures: 0, http_statuses: [500], ...failures }
  } as HealthChecks['passive'])
}

const open = () => new HealthTable(createHealthMemory())

await t.test('each kind of failure has its counter and threshold', async t => {
  const table = open()
  for (const [kind, thresholds] of [
    ['tcp', { tcp_failures: 3 }],
    ['timeout', { timeouts: 3 }],
    ['http', { http_failures: 3 }]
  ] as const) {
    const slot = table.acquire(kind)
    const { epoch } = table
    const each = rules(thresholds)
    const other = kind === 'tcp' ? 'timeout' : 'tcp'
    for (let i = 0; i < 5; i++) t.notOk(each.failure(slot, other), 'threshold 0 is off')
    t.notOk(each.failure(slot, kind))
    t.notOk(each.failure(slot, kind))
    t.ok(slot.healthy)
    t.equal(table.epoch, epoch)
    t.ok(each.failure(slot, kind), 'the third')
    t.notOk(slot.healthy)
    t.ok(table.epoch > epoch)
    t.notOk(each.failure(slot, kind), 'it is so already')
  }
})

await t.test('a success resets failures, a failure resets successes', async t => {
  const slot = open().acquire('a')
  const each = rules({ successes: 2, tcp_failures: 2, http_failures: 2 })
  each.failure(slot, 'tcp')
  each.failure(slot, 'http')
  t.match(slot.counters('passive'), { tcp_failures: 1, http_failures: 1 })
  each.success(slot)
  t.match(slot.counters('passive'), { successes: 0, tcp_failures: 0, http_failures: 0 })
  each.failure(slot, 'tcp')
  t.ok(each.failure(slot, 'tcp'))
  t.notOk(each.success(slot))
  t.equal(slot.counters('passive').successes, 1)
  each.failure(slot, 'tcp')
  t.equal(slot.counters('passive').successes, 0)
  each.success(slot)
  t.ok(each.success(slot), 'two in a row')
  t.ok(slot.healthy)
  t.same(slot.counters('passive'), { successes: 0, tcp_failures: 0, timeouts: 0, http_failures: 0 })
})

await t.test('active and passive checks count each for itself', async t => {
  const slot = open().acquire('a')
  const passive = rules({ http_failures: 2, tcp_failures: 2 })
  const active = rules({ successes: 2, http_failures: 2 }, 'active')
  active.failure(slot, 'http')
  passive.failure(slot, 'http')
  t.ok(slot.healthy, 'one of each is not two of one')
  for (let i = 0; i < 5; i++) passive.success(slot)
  t.match(slot.counters('active'), { http_failures: 1 })
  t.match(slot.counters('passive'), { http_failures: 0 })
  t.ok(active.failure(slot, 'http'), 'good requests between do not matter')
  passive.success(slot)
  t.notOk(slot.healthy)
  t.notOk(active.success(slot))
  passive.failure(slot, 'http')
  t.ok(active.success(slot), 'two in a row of its own')
  passive.failure(slot, 'tcp')
  for (let i = 0; i < 5; i++) active.success(slot)
  t.ok(passive.failure(slot, 'tcp'), 'good probes between do not matter')
  slot.turn(true)
  for (const check of ['active', 'passive'] as const) {
    t.same(slot.counters(check), { successes: 0, tcp_failures: 0, timeouts: 0, http_failures: 0 })
  }
})

await t.test('without a threshold of successes nothing brings it back but being told', async t => {
  const slot = open().acquire('a')
  const each = rules({ tcp_failures: 1 })
  t.ok(each.failure(slot, 'tcp'))
  for (let i = 0; i < 20; i++) each.success(slot)
  t.notOk(slot.healthy)
  t.ok(slot.turn(true))
  t.ok(slot.healthy)
  t.notOk(slot.turn(true), 'no change')
})

await t.test('statuses count as their list says, others not at all', async t => {
  const slot = open().acquire('a')
  const each = rules({ successes: 1, http_failures: 1 })
  t.notOk(each.status(slot, 404))
  t.notOk(each.status(slot, 200))
  t.ok(each.status(slot, 500))
  t.notOk(each.status(slot, 404))
  t.notOk(slot.healthy)
  t.ok(each.status(slot, 302))
})

await t.test('a key has one slot, which starts anew when nobody held it', async t => {
  const memory = createHealthMemory()
  const one = new HealthTable(memory)
  const other = new HealthTable(memory)
  const slot = one.acquire('pool a 10.0.0.1 80')
  slot.turn(false)
  slot.setLatency(12.5, 1000)
  t.notOk(other.acquire('pool a 10.0.0.1 80').healthy)
  t.ok(other.acquire('pool a 10.0.0.1 81').healthy, 'another key')
  one.release('pool a 10.0.0.1 80')
  const again = one.acquire('pool a 10.0.0.1 80')
  t.notOk(again.healthy, 'the other holds it still')
  t.equal(again.latency, 12.5)
  t.equal(again.latencyAt, 1000)
  for (const table of [one, other]) table.release('pool a 10.0.0.1 80')
  const fresh = one.acquire('pool a 10.0.0.1 80')
  t.ok(fresh.healthy)
  t.equal(fresh.latency, 0)
  one.release('a key nobody has')
})

await t.test('slots are used again, and a full table still gives one', async t => {
  const table = open()
  for (let i = 0; i < 20_000; i++) {
    const key = `short-lived ${i}`
    const slot = table.acquire(key)
    if (!slot.healthy) t.fail('a slot that is not fresh')
    slot.turn(false)
    table.release(key)
  }
  const slots = Array.from({ length: 10_000 }, (_, i) => table.acquire(`long-lived ${i}`))
  slots[0]!.turn(false)
  t.equal(slots.filter(({ healthy }) => !healthy).length, 1, 'each has its own')
})

await t.test('threads count together, and one of them turns the state', async t => {
  const memory = createHealthMemory()
  const table = new HealthTable(memory)
  const slot = table.acquire('shared')
  const code = `
    import { parentPort, workerData } from 'node:worker_threads'
    import { HealthTable } from ${JSON.stringify(new URL('../../src/proxy/health.ts', import.meta.url).href)}
    const table = new HealthTable(workerData)
    const slot = table.acquire('shared')
    let turned = 0
    for (let i = 0; i < 1000; i++) {
      table.acquire('busy ' + i)
      if (slot.fail('passive', 'tcp', 2000)) turned++
      table.release('busy ' + i)
    }
    parentPort.postMessage(turned)
  `
  const turned = await Promise.all(
    [1, 2].map(async () => {
      const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(code)}`), {
        workerData: memory
      })
      const [count] = await once(worker, 'message')
      return count as number
    })
  )
  t.equal(turned[0]! + turned[1]!, 1, 'exactly one saw the 2000th')
  t.notOk(slot.healthy)
  t.equal(slot.counters('passive').tcp_failures, 2000)
})

await t.test('an upstream is checked as soon as any check can take a target out', async t => {
  const checks = (active: object, passive: object) =>
    ({
      active: {
        healthy: { interval: 0 },
        unhealthy: { interval: 0 },
        ...active
      },
      passive: { unhealthy: { tcp_failures: 0, timeouts: 0, http_failures: 0, ...passive } }
    }) as HealthChecks
  t.notOk(isChecked(checks({}, {})))
  t.ok(isChecked(checks({ healthy: { interval: 1 } }, {})))
  t.ok(isChecked(checks({ unhealthy: { interval: 1 } }, {})))
  for (const field of ['tcp_failures', 'timeouts', 'http_failures']) {
    t.ok(isChecked(checks({}, { [field]: 1 })), field)
  }
})
