import type { ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import { isBorrowed, READ_SIZE } from './read-memory.ts'

/** Pieces of memory, for one read each, that are kept for later: 4 MiB. */
const MAX_FREE = 64
/** Bytes before and after a chunk of one read (RFC 9112 §7.1): five hexadecimal digits, two CRLFs. */
const BEFORE = 7
const AFTER = 2
/** Bytes of a piece that is not worth a read's memory, and as a chunk waits for what the turn brings more. */
const SMALL = 4096
/** Bytes that may wait for it. */
const MAX_WAITING = 65_536

const free: Buffer[] = []

/**
 * Writes the body of a response straight to the socket of an HTTP/1.1 client, where node's response
 * object would only pass it on: in its own memory, used again and again, and at once, so that it is
 * known at once whether the client takes it.
 */
export class ClientBody {
  readonly #response: ServerResponse
  readonly #chunked: boolean
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
    this.#chunked = response.chunkedEncoding
    this.#resume = resume
  }

  /** False when the client has not taken everything yet. */
  write(chunk: Buffer): boolean {
    const socket = this.#response.socket!
    this.#cork(chunk)
    // Of a small response in chunks the end follows within the turn: one write then instead of two.
    if (this.#chunked && chunk.length < SMALL && socket.writableLength < MAX_WAITING) {
      process.nextTick(uncork, socket)
      return true
    }
    uncork(socket)
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
      const small = chunk.length < SMALL
      const piece = small
        ? Buffer.allocUnsafe(BEFORE + chunk.length + AFTER)
        : (free.pop() ?? Buffer.allocUnsafeSlow(BEFORE + READ_SIZE + AFTER))
      this.#lent.push(small ? undefined : piece)
      chunk.copy(piece, BEFORE)
      socket.write(this.#framed(piece, chunk.length), this.#onTaken)
    } else {
      this.#lent.push(undefined)
      if (this.#chunked) socket.write(`${chunk.length.toString(16)}\r\n`, 'latin1')
      socket.write(chunk, this.#onTaken)
      if (this.#chunked) socket.write('\r\n', 'latin1')
    }
  }

  /** The bytes that stand in a piece, as the client gets them. */
  #framed(piece: Buffer, length: number): Buffer {
    if (!this.#chunked) return piece.subarray(BEFORE, BEFORE + length)
    const size = `${length.toString(16)}\r\n`
    piece.write(size, BEFORE - size.length, 'latin1')
    piece.write('\r\n', BEFORE + length, 'latin1')
    return piece.subarray(BEFORE - size.length, BEFORE + length + AFTER)
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

/** Lets everything leave that was corked. */
function uncork(socket: Socket): void {
  while (socket.writableCorked > 0) socket.uncork()
}

/**
 * Whether the body of a response whose head is written can go straight to the socket: no response
 * before it is still on its way over the connection.
 */
export function isDirect(response: ServerResponse): boolean {
  const { statusCode, socket } = response
  return (
    socket !== null &&
    !socket.destroyed &&
    response.writableLength === 0 &&
    statusCode !== 204 &&
    statusCode !== 304
  )
}
