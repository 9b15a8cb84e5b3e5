import t from 'tap'
import { retryAfter } from '../../../src/vault/backends/retry-after.ts'

t.test('a pause is a number of seconds, or a date', async t => {
  t.equal(retryAfter('7'), 7)
  t.equal(retryAfter('0'), 0)
  t.equal(retryAfter('1.5'), 1.5)
  t.equal(retryAfter('-3'), 0)
  for (const nothing of [undefined, null, '', ' ', 'soon', 'Infinity'])
    t.equal(retryAfter(nothing), undefined)
  const sent = 'Wed, 21 Oct 2015 07:28:00 GMT'
  t.equal(retryAfter('Wed, 21 Oct 2015 07:28:12 GMT', sent), 12, 'of a clock far from ours')
  t.equal(retryAfter(sent, 'Wed, 21 Oct 2015 07:28:12 GMT'), 0)
  t.equal(retryAfter(sent), 0)
  const soon = retryAfter(new Date(Date.now() + 60_000).toUTCString())!
  t.ok(soon > 0 && soon <= 60)
})
