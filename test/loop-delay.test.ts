import t from 'tap'
import { LoopDelayMonitor } from '../src/loop-delay.ts'
import { until } from './harness.ts'

function block(milliseconds: number): void {
  const end = performance.now() + milliseconds
  while (performance.now() < end);
}

await t.test('a loop that was held up tells so, until that is two turns ago', async t => {
  const monitor = new LoopDelayMonitor()
  block(10)
  // Repeated, since a sample is only what comes after the first.
  await until(() => {
    block(300)
    return monitor.read().max > 0.25
  }, 'the delay to be seen')
  const { p50, p99, max } = monitor.read()
  t.ok(p50 >= 0 && p50 <= p99 && p99 <= max, `${p50} ${p99} ${max}`)
  monitor.turn()
  t.ok(monitor.read().max > 0.25, 'the other has seen it too')
  monitor.turn()
  t.equal(monitor.read().max, 0, 'both have begun anew')
})
