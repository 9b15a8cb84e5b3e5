import t from 'tap'
import { isExpired, timeLeft, upkeep } from '../../../src/plugins/session/timeouts.ts'

const T0 = 1_700_000_000_000
const after = (seconds: number): number => T0 + seconds * 1000
const times = { created: T0, renewed: T0, touched: T0 }
const DEFAULTS = { absolute: 86_400, rolling: 3600, idling: 900 }
const OFF = { absolute: 0, rolling: 0, idling: 0 }

t.test('a session ends with whichever timeout ends first', async t => {
  t.equal(isExpired(times, DEFAULTS, after(900)), false)
  t.equal(isExpired(times, DEFAULTS, after(900.001)), true)
  const used = { ...times, touched: after(3500) }
  t.equal(isExpired(used, DEFAULTS, after(3600)), false)
  t.equal(isExpired(used, DEFAULTS, after(3601)), true)
  const renewed = { ...times, renewed: after(86_000), touched: after(86_000) }
  t.equal(isExpired(renewed, DEFAULTS, after(86_400)), false)
  t.equal(isExpired(renewed, DEFAULTS, after(86_401)), true)
  t.equal(isExpired(times, OFF, after(1e9)), false)
})

t.test('the time left is told for each timeout that is on', async t => {
  t.same(timeLeft(times, DEFAULTS, after(100)), {
    absolute: 86_300,
    rolling: 3500,
    idling: 800,
    shortest: 800
  })
  t.same(timeLeft(times, { ...OFF, rolling: 10 }, after(4)), {
    absolute: undefined,
    rolling: 6,
    idling: undefined,
    shortest: 6
  })
  t.equal(timeLeft(times, OFF, after(4)).shortest, undefined)
})

t.test(
  'three quarters into its rolling timeout a session is renewed, else use is noted',
  async t => {
    t.equal(upkeep(times, DEFAULTS, after(60)), 'none')
    t.equal(upkeep(times, DEFAULTS, after(61)), 'touch')
    t.equal(upkeep(times, DEFAULTS, after(2700)), 'touch')
    t.equal(upkeep(times, DEFAULTS, after(2701)), 'renew')
    t.equal(upkeep(times, OFF, after(1e9)), 'none')
    t.equal(upkeep(times, { ...OFF, rolling: 100 }, after(70)), 'none')
  }
)

t.test('a session of a short idling timeout is noted before it ends', async t => {
  const short = { ...OFF, idling: 20 }
  t.equal(upkeep(times, short, after(5)), 'none')
  t.equal(upkeep(times, short, after(5.1)), 'touch')
})
