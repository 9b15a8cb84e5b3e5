import { Readable } from 'node:stream'
import { BodyAborted, BodyTooLarge, WriteTimeout } from '../errors.ts'
import type { HttpExchange } from './exchange.ts'

/**
 * The client's body on its way upstream, with back-pressure. It stands between the two so that an
 * upstream connection that fails never destroys the client's, whose answer is still to be written.
 */
export class RequestBody extends Readable {
  readonly #exchange: HttpExchange
  readonly #writeTimeout: number
  readonly #maxBytes: number
  #timer: NodeJS.Timeout | undefined
  /** Whether any byte was handed on, after which an attempt cannot be repeated. */
  touched = false

  /** `writeTimeout` in milliseconds; `maxBytes` 0 is unlimited. */
  constructor(exchange: HttpExchange, writeTimeout: number, maxBytes: number) {
    super()
    this.#exchange = exchange
    this.#writeTimeout = writeTimeout
    this.#maxBytes = maxBytes
  }

  override _construct(callback: (error?: Error | null) => void): void {
    const { raw } = this.#exchange
    // Whoever sends the body learns of a failure from its own listener; without one it is moot.
    this.on('error', () => {})
    raw.pause()
    raw.on('data', this.#onData)
    raw.once('end', this.#onEnd)
    raw.once('close', this.#onClose)
    raw.once('error', this.#onClose)
    callback()
  }

  override _read(): void {
    clearTimeout(this.#timer)
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

  #onData = (chunk: Buffer): void => {
    this.touched = true
    this.#exchange.bytesReceived += chunk.length
    if (this.#maxBytes > 0 && this.#exchange.bytesReceived > this.#maxBytes) {
      this.destroy(new BodyTooLarge(this.#maxBytes))
      return
    }
    if (this.push(chunk)) return
    this.#exchange.raw.pause()
    this.#timer = setTimeout(this.#onStall, this.#writeTimeout)
  }

  #onStall = (): void => {
    this.destroy(new WriteTimeout())
  }

  #onEnd = (): void => {
    this.push(null)
  }

  #onClose = (): void => {
    if (!this.#exchange.raw.readableEnded) this.destroy(new BodyAborted())
  }
}
