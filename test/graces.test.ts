import t from 'tap'
import { Graces } from '../src/graces.ts'
import { until } from './harness.ts'

t.test('what was started together ends together, at its own time', async t => {
  const ended: (readonly string[])[] = []
  const graces = new Graces(references => ended.push(references))
  t.teardown(() => graces.close())
  graces.start(['long'], () => 1000)
  graces.start(['a', 'b', 'later'], text => (text === 'later' ? 0.3 : 0.05))
  t.ok(graces.has('a'))
  await until(() => ended.length === 2, 'both ends')
  t.same(ended, [['a', 'b'], ['later']])
  t.notOk(graces.has('a'))
  t.ok(graces.has('long'))
})

t.test('a grace that starts anew ends later', async t => {
  const ended: (readonly string[])[] = []
  const graces = new Graces(references => ended.push(references))
  t.teardown(() => graces.close())
  graces.start(['a', 'b'], () => 0.05)
  graces.start(['a'], () => 1000)
  await until(() => ended.length === 1, 'the end of the other')
  t.same(ended, [['b']])
  t.ok(graces.has('a'))
})

t.test('none ends once it is closed', async t => {
  const ended: (readonly string[])[] = []
  const closed = new Graces(references => ended.push(references))
  const open = new Graces(references => ended.push(references))
  t.teardown(() => open.close())
  closed.start(['a'], () => 0.02)
  closed.close()
  closed.start(['b'], () => 0)
  open.start(['c'], () => 0.1)
  await until(() => ended.length > 0, 'the end of the open one')
  t.same(ended, [['c']])
})
