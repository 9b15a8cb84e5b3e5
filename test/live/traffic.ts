import { setTimeout } from 'node:timers/promises'

/** Requests that go on until they are stopped. */
export interface Traffic extends AsyncDisposable {
  /** What was not answered 200: another status, or why there was no answer. */
  readonly failures: readonly unknown[]
  /** How many were answered 200. */
  readonly served: number
  /** Resolves once the last request is answered. */
  stop(): Promise<void>
}

/** Four clients that hardly rest between requests; `ask` sends one and gives its status. */
export function traffic(ask: () => Promise<number>): Traffic {
  const failures: unknown[] = []
  let served = 0
  let running = true
  const clients = Array.from({ length: 4 }, async () => {
    while (running) {
      const status = await ask().catch((error: Error) => error.message)
      if (status === 200) served++
      else failures.push(status)
      // The servers under test share the machine.
      await setTimeout(5)
    }
  })
  const stop = async () => {
    running = false
    await Promise.all(clients)
  }
  return {
    failures,
    get served() {
      return served
    },
    stop,
    [Symbol.asyncDispose]: stop
  }
}
