import { type BigIntStats, statSync } from 'node:fs'
import { stat } from 'node:fs/promises'
import { setTimeout as delay } from 'node:timers/promises'

export interface WatchOptions {
  /** Milliseconds between two looks at the file. */
  readonly interval?: number
}

const DEFAULT_INTERVAL = 500
/** Milliseconds a file must not change before it counts as written. */
const SETTLE = 50
/** Looks at a file that keeps changing before it is reported all the same. */
const MAX_LOOKS = 40

/**
 * Calls `changed` after the file at `path` was written, replaced or created, once its writer has
 * finished; a file that is gone is not a change. Symbolic links are followed to their end. Every
 * change after this call is noticed, so call it before the file is read. Gives the function that
 * stops watching. It polls, since change events do not reach bind mounts and network file systems,
 * and a watch on a file is lost when the file is renamed over.
 */
export function watchFile(
  path: string,
  changed: () => void,
  options: WatchOptions = {}
): () => void {
  const { interval = DEFAULT_INTERVAL } = options
  let stopped = false
  let looking = false
  let known = stateNow(path)

  const poll = async (): Promise<void> => {
    let before = await look(path)
    if (before === undefined || before === known) return
    for (let looks = 0; looks < MAX_LOOKS && !stopped; looks++) {
      await delay(SETTLE, undefined, { ref: false })
      const now = await look(path)
      if (now === before) break
      before = now
    }
    if (stopped || before === undefined) return
    known = before
    changed()
  }
  const timer = setInterval(() => {
    if (looking) return
    looking = true
    void poll().finally(() => {
      looking = false
    })
  }, interval)
  timer.unref()

  return () => {
    stopped = true
    clearInterval(timer)
  }
}

/** What tells two states of a file apart. */
function stateOf({ dev, ino, size, mtimeNs, ctimeNs }: BigIntStats): string {
  return `${dev}:${ino}:${size}:${mtimeNs}:${ctimeNs}`
}

/** The state at this moment; undefined when there is no file that can be looked at. */
function stateNow(path: string): string | undefined {
  try {
    return stateOf(statSync(path, { bigint: true }))
  } catch {
    return undefined
  }
}

/** The same without waiting for the disk. */
async function look(path: string): Promise<string | undefined> {
  try {
    return stateOf(await stat(path, { bigint: true }))
  } catch {
    return undefined
  }
}
