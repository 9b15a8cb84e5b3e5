/**
 * Milliseconds of a clock that nobody sets and that all threads of the node share, for marks that
 * one thread leaves and another reads: `performance.now()` counts from the start of each thread.
 */
export function nodeClock(): number {
  const [seconds, nanoseconds] = process.hrtime()
  return seconds * 1000 + nanoseconds / 1e6
}
