import { Readable } from 'node:stream'
import { BodyAborted, BodyTimeout, BodyTooLarge, WriteTimeout } from '../errors.ts'
import type { HttpExchange } from './exchange.ts'
import { filterTrailers } from './headers.ts'
import type { HeldBody } from './held-body.ts'

/**
 * The client's body on its way upstream, with back-pressure. It stands between the two so that an
 * upstream connection that fails never destroys the client's, whose answer is still to be written.
 * One timer waits for whoever is due: the client while the upstream could take more, else the upstream.
 */
export class RequestBody extends Readable {
  readonly #exchange: HttpExchange
  readonly #writeTimeout: number
  readonly #maxBytes: number
  readonly #held: HeldBody | undefined
  /** What is held and was not handed on yet, from the index on. */
  #pieces: readonly Buffer[] = []
  #next = 0
  #timer: NodeJS.Timeout | undefined
  #stalled = false
  #touched = false
  /** The client's trailers as field lines, once the body has ended; towards a chunked request. */
  trailers = ''

  /** `writeTimeout` in milliseconds; `maxBytes` 0 is unlimited; `held` comes before what still comes. */
  constructor(
    exchange: HttpExchange,
    writeTimeout: number,
    maxBytes: number,
    held: HeldBody | undefined
  ) {
    super()
    this.#exchange = exchange
    this.#writeTimeout = writeTimeout
    this.#maxBytes = maxBytes
    this.#held = held
  }

  /**
   * Whether its pieces belong to whoever takes them: nobody else will read their memory. Not of a body
   * that another attempt may send, nor of one of HTTP/2, whose pieces may stand in memory together.
   */
  get givesAway(): boolean {
    return this.#held?.whole !== true && !this.#exchange.http2
  }

  /** Whether no byte was handed on yet, so that it can be sent by another attempt. */
  get fresh(): boolean {
    return !this.#touched && !this.destroyed
  }

  override _construct(callback: (error?: Error | null) => void): void {
    const { raw } = this.#exchange
    // Whoever sends the body learns of a failure from its own listener; without one it is moot.
    this.on('error', () => {})
    if (this.#held !== undefined) this.#pieces = this.#held.lend()
    if (this.#held?.whole === true) {
      callback()
      return
    }
    this.#exchange.acceptBody()
    raw.pause()
    raw.on('data', this.#onData)
    raw.once('end', this.#onEnd)
    raw.once('close', this.#onClose)
    raw.once('error', this.#onClose)
    callback()
  }

  override _read(): void {
    if (this.#next < this.#pieces.length) {
      this.#handOn(this.#held!)
      return
    }
    if (this.#held?.whole === true) {
      this.#onEnd()
      return
    }
    this.#expect(false)
    this.#exchange.raw.resume()
  }

  override _destroy(error: Error | null, callback: (error?: Error | null) => void): void {
    clearTimeout(this.#timer)
    const { raw } = this.#exchange
    raw.off('data', this.#onData)
    raw.off('end', this.#onEnd)
    raw.off('close', this.#onClose)
    raw.off('error', this.#onClose)
    callback(error)
  }

  #handOn(held: HeldBody): void {
    const piece = this.#pieces[this.#next++]!
    this.#touched = true
    if (this.#next === this.#pieces.length && !held.whole) {
      held.release()
      this.#pieces = []
    }
    this.#expect(true)
    this.push(piece)
  }

  /** Who must do something next, and by when. */
  #expect(stalled: boolean): void {
    if (this.#timer !== undefined && stalled === this.#stalled) {
      this.#timer.refresh()
      return
    }
    clearTimeout(this.#timer)
    this.#stalled = stalled
    this.#timer = setTimeout(
      this.#onTimeout,
      stalled ? this.#writeTimeout : this.#exchange.options.bodyTimeout
    )
  }

  readonly #onData = (chunk: Buffer): void => {
    this.#touched = true
    this.#exchange.bytesReceived += chunk.length
    if (this.#maxBytes > 0 && this.#exchange.bytesReceived > this.#maxBytes) {
      this.destroy(new BodyTooLarge(this.#maxBytes))
      return
    }
    if (this.push(chunk)) {
      this.#expect(false)
      return
    }
    this.#exchange.raw.pause()
    this.#expect(true)
  }

  readonly #onTimeout = (): void => {
    this.destroy(this.#stalled ? new WriteTimeout() : new BodyTimeout())
  }

  readonly #onEnd = (): void => {
    clearTimeout(this.#timer)
    const problem = this.#exchange.trailersProblem()
    if (problem !== undefined) {
      this.destroy(problem)
      return
    }
    const fields = filterTrailers(this.#exchange.raw.rawTrailers)
    for (let i = 0; i < fields.length; i += 2) this.trailers += `${fields[i]}: ${fields[i + 1]}\r\n`
    this.push(null)
  }

  readonly #onClose = (): void => {
    if (!this.#exchange.raw.readableEnded) this.destroy(new BodyAborted())
  }
}
