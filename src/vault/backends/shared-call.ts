interface UnderWay<T> {
  readonly result: Promise<T>
  readonly aborter: AbortController
  waiting: number
}

/**
 * One call at a time that many wait for, a login say. Each waits as long as his own signal lets him;
 * the call is aborted with the last of them, so that whoever comes next begins another.
 */
export class SharedCall<T> {
  #underWay: UnderWay<T> | undefined

  /** What the call under way comes to, begun by `start` when there is none. */
  async join(start: (signal: AbortSignal) => Promise<T>, signal: AbortSignal): Promise<T> {
    signal.throwIfAborted()
    this.#underWay ??= this.#begin(start)
    const call = this.#underWay
    call.waiting++
    const givenUp = Promise.withResolvers<never>()
    const giveUp = (): void => {
      if (--call.waiting === 0) {
        this.#forget(call)
        call.aborter.abort(signal.reason)
      }
      givenUp.reject(signal.reason)
    }
    signal.addEventListener('abort', giveUp, { once: true })
    try {
      return await Promise.race([call.result, givenUp.promise])
    } finally {
      signal.removeEventListener('abort', giveUp)
    }
  }

  #begin(start: (signal: AbortSignal) => Promise<T>): UnderWay<T> {
    const aborter = new AbortController()
    const call: UnderWay<T> = { result: start(aborter.signal), aborter, waiting: 0 }
    const ended = (): void => this.#forget(call)
    call.result.then(ended, ended)
    return call
  }

  #forget(call: UnderWay<T>): void {
    if (this.#underWay === call) this.#underWay = undefined
  }
}
