import { randomBytes } from 'node:crypto'
import { IncomingMessage } from 'node:http'
import { constants, type Http2ServerRequest, type ServerHttp2Stream } from 'node:http2'
import type { Socket } from 'node:net'
import { Duplex } from 'node:stream'
import { groupFields } from './headers.ts'

/** Fields of an HTTP/1.1 handshake's answer that HTTP/2 has no use for (RFC 8441 §5). */
const NOT_ANSWERED = new Set(['connection', 'upgrade', 'sec-websocket-accept'])

/**
 * Makes an extended CONNECT (RFC 8441 §5) the GET that opens a WebSocket over HTTP/1.1, which is what
 * routes and plugins know and the upstream is sent: with a key of our own, since HTTP/2 has none.
 */
export function asHandshake(raw: Http2ServerRequest): void {
  const { headers, rawHeaders } = raw
  const key = randomBytes(16).toString('base64')
  const fields: string[] = []
  for (let i = 0; i < rawHeaders.length; i += 2) {
    const name = rawHeaders[i]!
    if (name === ':method') fields.push(name, 'GET')
    else if (name !== ':protocol' && name !== 'sec-websocket-key')
      fields.push(name, rawHeaders[i + 1]!)
  }
  fields.push('Sec-WebSocket-Key', key)
  headers[':method'] = 'GET'
  delete headers[':protocol']
  headers['sec-websocket-key'] = key
  rawHeaders.splice(0, rawHeaders.length, ...fields)
}

/** A client's handshake as it is over HTTP/1.1, and what its WebSocket runs over. */
export interface ClientSide {
  readonly request: IncomingMessage
  readonly socket: Duplex
}

/** The client of a handshake that {@link asHandshake} made; its answer opens the tunnel. */
export function tunnelOf({ stream, headers }: Http2ServerRequest): ClientSide {
  const socket = new TunnelSocket(stream)
  socket.on('error', () => socket.destroy())
  const request = new IncomingMessage(socket as Duplex as Socket)
  request.method = 'GET'
  request.httpVersion = '1.1'
  request.httpVersionMajor = 1
  request.httpVersionMinor = 1
  request.headers = {
    connection: 'Upgrade',
    upgrade: 'websocket',
    'sec-websocket-version': '13',
    'sec-websocket-key': headers['sec-websocket-key'] as string
  }
  return { request, socket }
}

/**
 * An HTTP/2 stream as the connection of a WebSocket: the head of the HTTP/1.1 answer, which is written
 * first, goes out as that of HTTP/2; what follows is data (RFC 8441 §5).
 */
class TunnelSocket extends Duplex {
  readonly #stream: ServerHttp2Stream
  #answered = false

  constructor(stream: ServerHttp2Stream) {
    super()
    this.#stream = stream
    let ended = false
    stream.on('data', (chunk: Buffer) => {
      if (!this.push(chunk)) stream.pause()
    })
    stream.on('end', () => {
      ended = true
      this.push(null)
    })
    // What came before a good end is still read; any other is a connection that was cut.
    stream.on('close', () => {
      if (!ended || !this.writableFinished) this.destroy()
    })
  }

  override _read(): void {
    this.#stream.resume()
  }

  override _write(
    chunk: Buffer,
    encoding: BufferEncoding,
    callback: (error?: Error | null) => void
  ): void {
    if (this.#answered) {
      this.#stream.write(chunk, encoding, callback)
      return
    }
    this.#answered = true
    try {
      this.#answer(chunk.toString())
      callback()
    } catch (error) {
      // Mostly that the client has reset the stream.
      callback(error as Error)
    }
  }

  override _final(callback: (error?: Error | null) => void): void {
    this.#stream.end(callback)
  }

  override _destroy(error: Error | null, callback: (error?: Error | null) => void): void {
    // RFC 8441 §5: a connection that is cut is a stream that is reset.
    if (!this.#stream.closed && !(this.writableFinished && this.readableEnded)) {
      this.#stream.close(constants.NGHTTP2_CANCEL)
    }
    callback(error)
  }

  #answer(text: string): void {
    const [line, ...lines] = text.slice(0, text.indexOf('\r\n\r\n')).split('\r\n')
    if (!line!.startsWith('HTTP/1.1 101 ')) throw new Error('the handshake was not completed')
    const fields: string[] = []
    for (const each of lines) {
      const colon = each.indexOf(':')
      const name = each.slice(0, colon)
      if (!NOT_ANSWERED.has(name.toLowerCase())) fields.push(name, each.slice(colon + 1).trim())
    }
    this.#stream.respond({ ':status': 200, ...groupFields(fields) })
  }
}
