import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { isMainThread } from 'node:worker_threads'

/** Names the file with the milliseconds that the wall clock of this process is wrong by. */
export const CLOCK_FILE = 'TEST_CLOCK_FILE'

/*
 * Preloaded (`--import`), it sets the wall clock of a process whenever the file changes, as an operator
 * or a time service does, and writes beside it what it was set by. Timers and `performance.now` go on,
 * as they do then.
 */
const file = process.env[CLOCK_FILE]
if (file !== undefined) {
  const TrueDate = Date
  let shift = 0
  setInterval(() => {
    // The folder goes with the test that made it.
    const wanted = existsSync(file) ? Number(readFileSync(file, 'utf8')) : shift
    if (wanted === shift) return
    shift = wanted
    if (isMainThread) writeFileSync(`${file}.seen`, String(shift))
  }, 50).unref()
  const now = (): number => TrueDate.now() + shift
  globalThis.Date = new Proxy(TrueDate, {
    construct: (target, values, called) =>
      Reflect.construct(target, values.length === 0 ? [now()] : values, called),
    apply: () => new TrueDate(now()).toString(),
    get: (target, name) => (name === 'now' ? now : Reflect.get(target, name))
  })
}
