import t from 'tap'
import { periods, secondsLeft } from '../../../src/plugins/rate-limiting/periods.ts'

/** How much of an ISO date is the same throughout a window. */
const SAME = { second: 19, minute: 16, hour: 13, day: 10, month: 7, year: 4 }

t.test('windows are those of the calendar, without gaps', async t => {
  const moments = [
    Date.UTC(2024, 1, 29, 23, 59, 59, 999),
    Date.UTC(2026, 0, 1),
    Date.UTC(2026, 11, 31, 23, 59, 59),
    Date.UTC(2100, 1, 28, 12, 30, 15, 1)
  ]
  for (let i = 0; i < 1000; i++) moments.push(Math.floor(Math.random() * Date.UTC(2105, 0)))
  for (const moment of moments) {
    for (const period of periods) {
      const label = `${period.name} of ${new Date(moment).toISOString()}`
      const start = period.startOf(moment)
      const same = (text: number) => new Date(text).toISOString().slice(0, SAME[period.name])
      if (
        start > moment ||
        same(start) !== same(moment) ||
        same(start - 1) === same(start) ||
        period.windowAt(start) !== period.windowAt(moment) ||
        period.windowAt(start - 1) !== period.windowAt(moment) - 1 ||
        period.windowAt(moment) >= 2 ** 32
      ) {
        t.fail(label)
      }
    }
  }
  t.same(
    periods.map(({ index }) => index),
    [0, 1, 2, 3, 4, 5]
  )
})

t.test('what is left of a window is at least a second', async t => {
  const [second, minute, , , month] = periods
  const moment = Date.UTC(2026, 0, 31, 12, 0, 10, 900)
  t.equal(secondsLeft(second!, moment), 1)
  t.equal(secondsLeft(minute!, moment), 50)
  t.equal(secondsLeft(month!, Date.UTC(2026, 0, 2)), 29 * 86_400)
  t.equal(secondsLeft(month!, moment), 1, 'a month counts as 30 days')
})
