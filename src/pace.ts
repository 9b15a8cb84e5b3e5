import { setImmediate } from 'node:timers/promises'

/** Longest that a long task holds its thread, in milliseconds. */
const SLICE = 2

/** Cuts a long task into slices, between which requests and everything else have their turn. */
export class Pace {
  #began = performance.now()

  /** Whether the slice has been long enough; then `rest` is to be awaited. */
  get tired(): boolean {
    return performance.now() - this.#began > SLICE
  }

  /** Lets whatever waits in this thread go first. */
  async rest(): Promise<void> {
    await setImmediate()
    this.#began = performance.now()
  }
}
