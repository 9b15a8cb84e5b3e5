import { setTimeout as delay } from 'node:timers/promises'

/** Milliseconds between two refreshes: what arrives meanwhile is refreshed together after it. */
const PAUSE = 400

/** Refreshes what events name: the first at once, a burst of them together, never two at a time. */
export class Refresher<T> {
  readonly #refresh: (items: ReadonlySet<T>) => Promise<unknown>
  #pending = new Set<T>()
  #running = false
  #closed = false

  /** `refresh` must not reject. */
  constructor(refresh: (items: ReadonlySet<T>) => Promise<unknown>) {
    this.#refresh = refresh
  }

  request(items: Iterable<T>): void {
    for (const item of items) this.#pending.add(item)
    if (!this.#running) void this.#run()
  }

  async #run(): Promise<void> {
    this.#running = true
    while (this.#pending.size > 0 && !this.#closed) {
      const items = this.#pending
      this.#pending = new Set()
      await this.#refresh(items)
      await delay(PAUSE, undefined, { ref: false })
    }
    this.#running = false
  }

  close(): void {
    this.#closed = true
  }
}
