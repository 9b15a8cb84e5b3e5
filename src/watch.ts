import { type Stats, unwatchFile, watchFile as watchStat } from 'node:fs'
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
 * finished; a file that is gone is not a change. Symbolic links are followed to their end. Gives the
 * function that stops watching. It polls, since change events do not reach bind mounts and network
 * file systems, and a watch on a file is lost when the file is renamed over.
 */
export function watchFile(
  path: string,
  changed: () => void,
  options: WatchOptions = {}
): () => void {
  const { interval = DEFAULT_INTERVAL } = options
  let stopped = false
  let settling = false

  const settle = async (): Promise<void> => {
    let before = await look(path)
    for (let looks = 0; looks < MAX_LOOKS && !stopped; looks++) {
      await delay(SETTLE, undefined, { ref: false })
      const now = await look(path)
      if (now === before) break
      before = now
    }
    settling = false
    if (!stopped && before !== undefined) changed()
  }
  const onPoll = ({ nlink }: Stats): void => {
    // Polls during the wait are about changes that the wait itself sees.
    if (settling || nlink === 0) return
    settling = true
    void settle()
  }

  watchStat(path, { interval, persistent: false }, onPoll)
  return () => {
    stopped = true
    unwatchFile(path, onPoll)
  }
}

/** What tells two states of a file apart; undefined when there is none that can be looked at. */
async function look(path: string): Promise<string | undefined> {
  try {
    const { dev, ino, size, mtimeNs, ctimeNs } = await stat(path, { bigint: true })
    return `${dev}:${ino}:${size}:${mtimeNs}:${ctimeNs}`
  } catch {
    return undefined
  }
}
