import { executionAsyncResource } from 'node:async_hooks'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'

/** Milliseconds after which everything a start loads has been loaded. */
const SETTLED = 1000

/**
 * Collects this thread's garbage once, soon: what loading and compiling a configuration leaves behind
 * is most of the heap, and V8 gives it back only under pressure. A node that has just started holds
 * 18 MB less for it.
 */
export function releaseLoadGarbage(): void {
  setTimeout(() => {
    collector()({ type: 'major', execution: 'sync', flavor: 'last-resort' })
  }, SETTLED).unref()
}

type Collect = (options: object) => void
let collect: Collect | undefined

/** V8's own function, which a thread gets when it first asks. */
function collector(): Collect {
  if (collect === undefined) {
    setFlagsFromString('--expose-gc')
    collect = runInNewContext('gc') as Collect
  }
  return collect
}

/** Bytes of read bodies after which what is left of them is collected. */
const READ_GARBAGE = 4 * 1_048_576
let read = 0

/**
 * Tells that a piece of a request's body was read of which nothing is given back (see {@link giveBack}).
 * Each stands in memory outside of V8's heap, of which V8 lets some 45 MB pile up before it collects.
 * Only the young generation is looked at, where little lives: no difference in the time of uploads was
 * seen.
 */
export function bodyRead(bytes: number): void {
  read += bytes
  if (read < READ_GARBAGE) return
  read = 0
  collector()({ type: 'minor' })
}

/** Bytes of memory that are worth giving back by themselves. */
const WORTHWHILE = 1024

/**
 * Gives the memory of a piece back now instead of at a collection; the piece is empty afterwards. Only
 * for a piece of which nobody else has a view, and that no write reads any more. Reading 64 kB into new
 * memory costs 18 µs where a collection frees it and 3 where it is given back: that piece's memory is
 * the next one's, still in the processor's cache.
 */
export function giveBack({ buffer, length }: Buffer): void {
  // Of what stands in a block together with others, nothing can be given back.
  if (length >= WORTHWHILE && length === buffer.byteLength) (buffer as ArrayBuffer).transfer(0)
}

/**
 * Lets threads that are started after it keep their compiled code while nothing asks. Eight seconds
 * after the last request V8 would give memory back, and with it hidden classes and what was compiled
 * for them: the requests of the next second took up to five times as long.
 */
export function keepCodeWhileIdle(): void {
  setFlagsFromString('--no-memory-reducer')
}

const kept: object[] = []

/**
 * Keeps one of the objects that process.nextTick queues. When a collection finds none alive, V8
 * forgets their hidden class, and from then on makes each of them in its runtime instead of in
 * optimised code: 6 % of the time of a small request, found by `perf`. To be called before the first
 * collection of a thread.
 */
export function keepTickShape(): void {
  process.nextTick(() => kept.push(executionAsyncResource()))
}
