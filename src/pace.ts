import { setImmediate } from 'node:timers/promises'

/** Longest that a long task holds its thread, in milliseconds. */
const SLICE = 2

/** Does something with each item, in slices between which requests and everything else have their turn. */
export async function inSlices<T>(items: Iterable<T>, task: (item: T) => void): Promise<void> {
  let began = performance.now()
  for (const item of items) {
    task(item)
    if (performance.now() - began < SLICE) continue
    await setImmediate()
    began = performance.now()
  }
}
