import type { Socket } from 'node:net'
import type { Readable } from 'node:stream'
import { errors } from 'undici'
import { bodyRead, giveBack } from '../../memory.ts'
import type { HeldBody } from '../held-body.ts'

/** The connection a request body is written to. */
export interface Sender {
  readonly socket: Socket
  /** The upstream is to take more of the body, in time. */
  bodyWaits(): void
  /** The body is out whole. */
  bodySent(): void
  fail(error: Error): void
}

/** Writes the body of one request. */
export interface BodyWriter {
  /** The socket takes more. */
  resume(): void
  /** What was not written yet is wanted no longer. */
  stop(): void
}

/** Bytes of a held body that are written at a time, each of which the upstream is given time to take. */
const BURST = 131_072

/** Writes a body that is held whole, the first of it together with the head in one system call. */
export class HeldWriter implements BodyWriter {
  readonly #body: HeldBody
  readonly #sender: Sender
  readonly #pieces: readonly Buffer[]
  #next = 0
  #stopped = false

  constructor(body: HeldBody, sender: Sender) {
    this.#body = body
    this.#sender = sender
    this.#pieces = body.read()
  }

  begin(head: string): void {
    const { socket } = this.#sender
    socket.cork()
    socket.write(head, 'latin1')
    this.#write()
    socket.uncork()
  }

  #write(): void {
    const { socket } = this.#sender
    const pieces = this.#pieces
    socket.cork()
    for (let bytes = 0, last = false; !last; ) {
      const piece = pieces[this.#next++]!
      bytes += piece.length
      last = bytes >= BURST || this.#next === pieces.length
      // A single one is enough: what is corked is taken at once.
      if (last) socket.write(piece, this.#onTaken)
      else socket.write(piece)
    }
    socket.uncork()
    if (socket.writableLength > 0) this.#sender.bodyWaits()
  }

  readonly #onTaken = (error?: Error | null): void => {
    // What a connection that failed still reads is not known for sure.
    if (error != null) return
    if (this.#next < this.#pieces.length) {
      if (!this.#stopped) this.#write()
      return
    }
    this.#body.done()
    if (!this.#stopped) this.#sender.bodySent()
  }

  resume(): void {}

  stop(): void {
    this.#stopped = true
  }
}

/** A body that is streamed, as `RequestBody` is one. */
interface Streamed extends Readable {
  /** Field lines after a chunked body. */
  readonly trailers?: string
  /** Whether the memory of its pieces may be given back once they are written. */
  readonly givesAway?: boolean
}

/** Writes a body that is streamed with the connection's back-pressure (RFC 9112 §7.1 when chunked). */
export class StreamWriter implements BodyWriter {
  readonly #stream: Streamed
  readonly #sender: Sender
  /** Bytes still announced; -1 when the body is chunked. */
  #remaining: number
  #done = false
  /** Pieces that are being written, in their order. */
  readonly #writing: Buffer[] = []

  constructor(stream: Streamed, sender: Sender, length: number) {
    this.#stream = stream
    this.#sender = sender
    this.#remaining = length
    stream.on('data', this.#onData)
    stream.once('end', this.#onEnd)
    stream.once('error', this.#onError)
    stream.once('close', this.#onClose)
  }

  resume(): void {
    this.#stream.resume()
  }

  stop(): void {
    if (this.#done) return
    this.#done = true
    this.#stream.off('data', this.#onData)
    this.#stream.destroy()
  }

  readonly #onData = (chunk: Buffer): void => {
    const { socket } = this.#sender
    let flowing: boolean
    if (this.#remaining === -1) {
      if (chunk.length === 0) return
      socket.cork()
      socket.write(`${chunk.length.toString(16)}\r\n`, 'latin1')
      this.#write(chunk)
      flowing = socket.write('\r\n', 'latin1')
      socket.uncork()
    } else {
      if (chunk.length > this.#remaining) {
        this.#sender.fail(new errors.RequestContentLengthMismatchError())
        return
      }
      this.#remaining -= chunk.length
      flowing = this.#write(chunk)
    }
    if (!flowing) this.#stream.pause()
  }

  #write(chunk: Buffer): boolean {
    const { socket } = this.#sender
    if (this.#stream.givesAway === true) {
      this.#writing.push(chunk)
      return socket.write(chunk, this.#onTaken)
    }
    bodyRead(chunk.length)
    return socket.write(chunk)
  }

  readonly #onTaken = (error?: Error | null): void => {
    const chunk = this.#writing.shift()!
    // What a connection that failed still reads is not known for sure.
    if (error == null) giveBack(chunk)
  }

  readonly #onEnd = (): void => {
    if (this.#done) return
    this.#done = true
    if (this.#remaining > 0) {
      this.#sender.fail(new errors.RequestContentLengthMismatchError())
      return
    }
    if (this.#remaining === -1) {
      this.#sender.socket.write(`0\r\n${this.#stream.trailers ?? ''}\r\n`, 'latin1')
    }
    this.#sender.bodySent()
  }

  readonly #onError = (error: Error): void => {
    if (this.#done) return
    this.#done = true
    this.#sender.fail(error)
  }

  readonly #onClose = (): void => {
    if (!this.#done) this.#onError(new errors.RequestAbortedError())
  }
}
