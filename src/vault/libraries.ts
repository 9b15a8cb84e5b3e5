/** Milliseconds that reads wait for one library at most: that of a vault's module may never come. */
const PATIENCE = 10_000

/**
 * The libraries of vaults while they are imported. That blocks the thread for hundreds of milliseconds
 * each, in which answers lie unread while time-outs run: so no vault is read meanwhile.
 */
export class Libraries {
  readonly #patience: number
  readonly #underWay = new Set<Promise<void>>()

  constructor(patience = PATIENCE) {
    this.#patience = patience
  }

  /** Begins an import; what it rejects with is met again by whoever needs the library. */
  load(start: () => Promise<unknown>): void {
    const bounded = Promise.withResolvers<void>()
    const timer = setTimeout(bounded.resolve, this.#patience)
    const done = (): void => bounded.resolve()
    start().then(done, done)
    const waited = bounded.promise.finally(() => {
      clearTimeout(timer)
      this.#underWay.delete(waited)
    })
    this.#underWay.add(waited)
  }

  /** Resolves when no import is under way. */
  async loaded(): Promise<void> {
    while (this.#underWay.size > 0) await Promise.all(this.#underWay)
  }
}
