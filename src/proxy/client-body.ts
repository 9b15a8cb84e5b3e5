import type { ServerResponse } from 'node:http'
import { isBorrowed, READ_SIZE } from './read-memory.ts'

/** Pieces of memory, for one read each, that are kept for later: 4 MiB. */
const MAX_FREE = 64

const free: Buffer[] = []

/**
 * Writes the body of a response straight to the socket of an HTTP/1.1 client, where node's response
 * object would only pass it on: in its own memory, used again and again, and at once, so that it is
 * known at once whether the client takes it.
 */
export class ClientBody {
  readonly #response: ServerResponse
  readonly #resume: () => void
  /** Memory of writes under way, in their order. */
  readonly #lent: (Buffer | undefined)[] = []
  #begun = false
  #waiting = false

  /**
   * `response` fits {@link isDirect}; `resume` is called once for each {@link write} that gave false.
   */
  constructor(response: ServerResponse, resume: () => void) {
    this.#response = response
    this.#resume = resume
  }

  /** False when the client has not taken everything yet. */
  write(chunk: Buffer): boolean {
    const socket = this.#response.socket!
    this.#cork(chunk)
    socket.uncork()
    this.#waiting = socket.writableLength > 0
    return !this.#waiting
  }

  /** Takes the last bytes; they leave with the end of the response, which the caller calls. */
  finish(chunk: Buffer): void {
    this.#cork(chunk)
  }

  #cork(chunk: Buffer): void {
    const socket = this.#response.socket!
    socket.cork()
    if (!this.#begun) {
      this.#begun = true
      this.#response.flushHeaders()
    }
    if (isBorrowed(chunk)) {
      const piece = free.pop() ?? Buffer.allocUnsafeSlow(READ_SIZE)
      this.#lent.push(piece)
      chunk.copy(piece)
      socket.write(piece.subarray(0, chunk.length), this.#onTaken)
    } else {
      this.#lent.push(undefined)
      socket.write(chunk, this.#onTaken)
    }
  }

  readonly #onTaken = (error?: Error | null): void => {
    const piece = this.#lent.shift()
    // What a connection that failed still reads is not known for sure.
    if (piece !== undefined && error == null && free.length < MAX_FREE) free.push(piece)
    if (!this.#waiting || this.#lent.length > 0) return
    this.#waiting = false
    this.#resume()
  }
}

/**
 * Whether the body of a response whose head is written goes to the socket as it is: its end is known
 * otherwise than by chunks, and no response before it is still on its way over the connection.
 */
export function isDirect(response: ServerResponse): boolean {
  const { statusCode, socket } = response
  return (
    !response.chunkedEncoding &&
    socket !== null &&
    !socket.destroyed &&
    response.writableLength === 0 &&
    statusCode !== 204 &&
    statusCode !== 304
  )
}
