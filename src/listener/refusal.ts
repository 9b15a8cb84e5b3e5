import type { Socket } from 'node:net'
import { isIncomplete, linger, turnsOf } from './turns.ts'

type Refusal = readonly [status: string, message: string]

const BAD_REQUEST: Refusal = ['400 Bad Request', 'Bad request']
const TOO_LONG: Refusal = ['414 URI Too Long', 'URI too long']
const REFUSALS: Readonly<Record<string, Refusal>> = {
  HPE_HEADER_OVERFLOW: ['400 Bad Request', 'Request header or cookie too large'],
  HPE_CHUNK_EXTENSIONS_OVERFLOW: ['413 Payload Too Large', 'Payload too large'],
  HPE_INVALID_VERSION: ['505 HTTP Version Not Supported', 'HTTP version not supported'],
  ERR_HTTP_REQUEST_TIMEOUT: ['408 Request Timeout', 'Request timeout']
}
const METHOD_NOT_ALLOWED: Refusal = ['405 Method Not Allowed', 'Method not allowed']
const TOO_MANY: Refusal = ['503 Service Unavailable', 'Too many connections']

const REFUSED = Symbol('refused')
type Refusable = Socket & { [REFUSED]?: true }

export type ParserError = Error & {
  readonly code?: string
  readonly bytesParsed?: number
  readonly rawPacket?: Buffer
}

/** Answers on connections where there is no request to run through the handler. */
export class Refusals {
  readonly #fields: (id: string) => string

  /** `fields` gives the gateway's own field lines for an answer with this request id. */
  constructor(fields: (id: string) => string) {
    this.#fields = fields
  }

  /** What the parser or a time-out refused: answered in its turn, then the connection ends. */
  parserError(error: ParserError, socket: Socket): void {
    const refusable = socket as Refusable
    if (error.code === 'ECONNRESET' || !socket.writable) {
      socket.destroy()
      return
    }
    if (refusable[REFUSED]) return
    refusable[REFUSED] = true
    const refusal = refusalOf(error)
    const turns = turnsOf(socket)
    const { current } = turns
    if (current === undefined) this.#answer(socket, refusal)
    else if (isIncomplete(current.req)) {
      if (!current.headersSent) this.#answer(socket, refusal)
      // The rest of a request that was refused already.
      else if (current.writableEnded) linger(socket)
      else socket.destroy()
    } else if (current.shouldKeepAlive) turns.wait(undefined, () => this.#answer(socket, refusal))
    // RFC 9112 §9.6: what follows the last request of a connection is not looked at.
  }

  /** RFC 9110 §9.3.6: this gateway opens no tunnels. */
  connect(socket: Socket): void {
    this.#answer(socket, METHOD_NOT_ALLOWED)
  }

  /** More connections than may be open. */
  overload(socket: Socket): void {
    socket.on('error', () => {})
    this.#answer(socket, TOO_MANY)
  }

  #answer(socket: Socket, [status, message]: Refusal): void {
    const id = crypto.randomUUID().replaceAll('-', '')
    const body = `${message}\nrequest_id: ${id}\n`
    socket.write(
      // RFC 9110 §6.6.1: whoever has a clock dates what it refuses, too.
      `HTTP/1.1 ${status}\r\nContent-Type: text/plain; charset=utf-8\r\n` +
        `Date: ${new Date().toUTCString()}\r\n${this.#fields(id)}Content-Length: ${body.length}\r\nConnection: close\r\n\r\n${body}`
    )
    linger(socket)
  }
}

function refusalOf({ code = '', rawPacket, bytesParsed }: ParserError): Refusal {
  if (code === 'HPE_HEADER_OVERFLOW' && rawPacket !== undefined) {
    // Still within the request line: it is the target that is too long.
    const seen = rawPacket.toString('latin1', 0, bytesParsed ?? rawPacket.length)
    if (/^[A-Z-]+ [^\r\n]*$/.test(seen)) return TOO_LONG
  }
  return REFUSALS[code] ?? BAD_REQUEST
}
