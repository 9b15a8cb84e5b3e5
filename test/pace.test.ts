import t from 'tap'
import { inSlices } from '../src/pace.ts'

t.test(
  'others have their turn while a long task goes on, and every item its own in order',
  async t => {
    const done: number[] = []
    let turns = 0
    let going = true
    const others = (): void => {
      turns++
      if (going) setImmediate(others)
    }
    setImmediate(others)
    await inSlices([1, 2, 3, 4, 5].values(), item => {
      const until = performance.now() + 3
      while (performance.now() < until);
      done.push(item)
    })
    going = false
    t.same(done, [1, 2, 3, 4, 5])
    t.ok(turns >= 5, `${turns} turns`)
  }
)

t.test('a short task is done at once', async t => {
  const done: number[] = []
  const pending = inSlices([1, 2], item => {
    done.push(item)
  })
  t.same(done, [1, 2])
  await pending
})

t.test('what a task throws ends it', async t => {
  const failing = inSlices([1, 2], item => {
    throw new RangeError(`${item}`)
  })
  await t.rejects(failing, new RangeError('1'))
})
