import { type MessagePort, parentPort, workerData } from 'node:worker_threads'

/** What a test lends to such a thread. */
export interface Lent {
  /** Takes a flag of two: sets its second, then blocks the thread until its first is not 0. */
  readonly port: MessagePort
  /** Counts how often the thread was asked for its figures. */
  readonly asked: Int32Array
}

// A data-plane thread that a test can block.
const { port, asked } = workerData as Lent
port.on('message', (flag: Int32Array) => {
  Atomics.store(flag, 1, 1)
  Atomics.wait(flag, 0, 0)
})
port.unref()
await import('../src/worker.ts')
parentPort!.on('message', ({ method }: { readonly method?: string }) => {
  if (method === 'stats') Atomics.add(asked, 0, 1)
})
