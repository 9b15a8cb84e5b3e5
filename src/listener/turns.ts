import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Socket } from 'node:net'

/** Pipelined requests that may wait on one connection; a client that sends more is cut off. */
const MAX_WAITING = 64
/** Milliseconds a client is read on after its last answer, so that it gets to read that. */
const LINGER = 1000

/**
 * Serves the requests of one HTTP/1.1 connection one after the other (RFC 9112 §9.3.2). Node parses
 * and hands over what is pipelined at once, so that requests would overtake each other on their way
 * upstream, and those after a refused one would still be served.
 */
export class Turns {
  readonly #socket: Socket
  #current: ServerResponse | undefined
  #waiting: { readonly response: ServerResponse | undefined; readonly start: () => void }[] = []
  #watching = false
  /** Requests that came over the connection. */
  requests = 0

  constructor(socket: Socket) {
    this.#socket = socket
  }

  /** The response that is not out yet; undefined between requests. */
  get current(): ServerResponse | undefined {
    return this.#current === undefined || isOut(this.#current) ? undefined : this.#current
  }

  /** Whether `response` may begin now; else {@link wait} for its turn. */
  take(response: ServerResponse): boolean {
    if (this.current !== undefined || this.#waiting.length > 0) return false
    this.#current = response
    return true
  }

  /** Calls `start` when the answers before it are out; never when one of them ends the connection. */
  wait(response: ServerResponse | undefined, start: () => void): void {
    if (this.#waiting.length >= MAX_WAITING) {
      this.#socket.destroy()
      return
    }
    this.#waiting.push({ response, start })
    this.#watch()
  }

  #watch(): void {
    if (this.#watching) return
    this.#watching = true
    const current = this.current
    if (current === undefined) setImmediate(this.#next)
    else current.once('close', this.#next)
  }

  readonly #next = (): void => {
    this.#watching = false
    const last = this.#current
    if (this.#socket.destroyed || this.#socket.writableEnded || last?.shouldKeepAlive === false) {
      this.#waiting = []
      return
    }
    const next = this.#waiting.shift()
    if (next === undefined) return
    this.#current = next.response
    next.start()
    if (this.#waiting.length > 0) this.#watch()
  }
}

function isOut(response: ServerResponse): boolean {
  return response.writableFinished || response.destroyed
}

const TURNS = Symbol('turns')
type Carrier = Socket & { [TURNS]?: Turns }

/** The turns of a connection. */
export function turnsOf(socket: Socket): Turns {
  const carrier = socket as Carrier
  carrier[TURNS] ??= new Turns(socket)
  return carrier[TURNS]
}

/** Whether the body of a request is still to come. */
export const isIncomplete = (request: IncomingMessage): boolean => !request.complete

/**
 * Ends a connection whose further bytes have no meaning: what is written goes out, what comes in is
 * dropped, so that closing does not reset the connection under the answer (RFC 9112 §9.6).
 */
export function linger(socket: Socket): void {
  if (socket.destroyed) return
  socket.end()
  socket.resume()
  const timer = setTimeout(() => socket.destroy(), LINGER)
  timer.unref()
  socket.once('close', () => clearTimeout(timer))
  socket.once('end', () => socket.destroy())
}
