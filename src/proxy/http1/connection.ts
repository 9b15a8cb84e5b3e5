import type { IncomingHttpHeaders } from 'node:http'
import type { Socket } from 'node:net'
import type { Readable } from 'node:stream'
import { errors } from 'undici'
import { isAll, TARGET, TOKEN, VALUE } from '../bytes.ts'
import { HeldBody } from '../held-body.ts'
import { owned, readAsStream, readBy } from '../read-memory.ts'
import { writeSoon } from '../write-batch.ts'
import { type BodyWriter, HeldWriter, type Sender, StreamWriter } from './body-writer.ts'
import type { Call } from './call.ts'
import { ResponseReader, type ResponseSink } from './response-reader.ts'

/** What a connection tells its pool. */
export interface ConnectionOwner {
  /** The connection can carry another request. */
  onFree(connection: Connection): void
  /** The connection is gone, whether it was in use or not. */
  onGone(connection: Connection): void
  /** `call` must hear something by its deadline from now on. */
  watch(call: Call): void
}

/** Bytes of a body that is cheaper to copy than to write by itself. */
const SMALL_BODY = 4096

/** One HTTP/1.1 connection to an upstream: one request at a time, never pipelined. */
export class Connection implements ResponseSink, Sender {
  readonly socket: Socket
  readonly #owner: ConnectionOwner
  readonly #reader: ResponseReader
  #call: Call | undefined = undefined
  #body: BodyWriter | undefined = undefined
  /** Whether a failed write of a body is told to {@link Connection.#onWriteFailed}. */
  #catching = false
  /** Why the upstream takes no more. */
  #broken: Error | undefined = undefined
  /** Requests sent over it. */
  requests = 0
  /** `performance.now()` since when it is free. */
  idleSince = 0
  /** Milliseconds the upstream keeps it while idle, as far as it said so (`Keep-Alive: timeout=`). */
  idleHint = Number.POSITIVE_INFINITY

  /** `maxHeadSize` in bytes. */
  constructor(socket: Socket, owner: ConnectionOwner, maxHeadSize: number) {
    this.socket = socket
    this.#owner = owner
    this.#reader = new ResponseReader(this, maxHeadSize)
    readBy(socket, this.#onData)
    socket.on('end', this.#onEnd)
    socket.on('error', this.#onError)
    socket.on('close', this.#onClose)
    socket.on('drain', this.#onDrain)
  }

  get call(): Call | undefined {
    return this.#call
  }

  /** Whether nothing more can be sent. */
  get dead(): boolean {
    return this.socket.destroyed || !this.socket.writable
  }

  get paused(): boolean {
    return this.#call?.paused ?? false
  }

  /**
   * Sends a request. Throws InvalidArgumentError, having sent nothing, when a part of it could be
   * read as more than that part.
   */
  send(call: Call): void {
    const { options } = call
    const fields = options.headers as readonly string[]
    const { body } = options
    let head = `${options.method} ${options.path} HTTP/1.1\r\n`
    if (options.path === '' || !isAll(options.path, TARGET))
      throw new errors.InvalidArgumentError('invalid request path')
    if (options.method === '' || !isAll(options.method, TOKEN))
      throw new errors.InvalidArgumentError('invalid request method')
    let length = -1
    for (let i = 0; i < fields.length; i += 2) {
      const name = fields[i]!
      const value = fields[i + 1]!
      if (name === '' || !isAll(name, TOKEN) || !isAll(value, VALUE)) {
        throw new errors.InvalidArgumentError(`invalid ${name} header`)
      }
      if (name.length === 14 && name.toLowerCase() === 'content-length') {
        if (length !== -1 || !/^\d{1,15}$/.test(value)) {
          throw new errors.InvalidArgumentError('invalid content-length header')
        }
        length = Number(value)
      }
      head += `${name}: ${value}\r\n`
    }
    const held = Buffer.isBuffer(body) ? HeldBody.of(body) : body instanceof HeldBody ? body : null
    const stream = body == null || held !== null ? undefined : (body as Readable)
    if (held !== null && length !== held.length) {
      if (length !== -1) throw new errors.RequestContentLengthMismatchError()
      head += `Content-Length: ${held.length}\r\n`
    }
    if (body == null && length > 0) throw new errors.RequestContentLengthMismatchError()
    if (stream !== undefined && length === -1) head += 'Transfer-Encoding: chunked\r\n'
    this.#call = call
    call.connection = this
    call.reused = this.requests > 0
    this.requests++
    this.#reader.begin(options.method, options.upgrade != null)
    call.handler.onRequestStart?.(call, null)
    if (call.aborted) return
    head += '\r\n'
    if (stream !== undefined || (held !== null && held.length > SMALL_BODY))
      this.#catchFailedWrites()
    if (stream !== undefined) {
      this.socket.write(head, 'latin1')
      this.#body = new StreamWriter(stream, this, length)
    } else if (held !== null && held.length > SMALL_BODY) {
      const writer = new HeldWriter(held, this)
      this.#body = writer
      writer.begin(head)
    } else {
      this.#await(call, options.headersTimeout)
      writeSoon(this.socket, held === null ? head : head + held.text())
    }
  }

  #await(call: Call, timeout: number | null | undefined): void {
    if (timeout == null || timeout === 0) {
      call.deadline = Number.POSITIVE_INFINITY
      return
    }
    call.deadline = performance.now() + timeout
    this.#owner.watch(call)
  }

  bodyWaits(): void {
    const call = this.#call
    // From its head on the answer is what is waited for.
    if (call === undefined || call.answered) return
    call.sending = true
    this.#await(call, call.options.writeTimeout)
  }

  /** The upstream's answer is due. */
  bodySent(): void {
    this.#body = undefined
    const call = this.#call
    if (call === undefined) return
    call.sending = false
    if (!call.answered) this.#await(call, call.options.headersTimeout)
  }

  pause(): void {
    this.#call!.deadline = Number.POSITIVE_INFINITY
    this.socket.pause()
  }

  resume(): void {
    const call = this.#call
    if (call === undefined) return
    this.#await(call, call.answered ? call.bodyTimeout : call.options.headersTimeout)
    try {
      this.#reader.resume()
    } catch (error) {
      this.fail(error as Error)
    }
    if (!this.paused) this.socket.resume()
  }

  /**
   * Node destroys a socket with the first write that fails, and what was not read of it is lost: half
   * of the answers of an upstream that refuses a 20 MB body and resets the connection. So that failure
   * is not told to the stream, which then takes no further piece of the body, and the connection ends
   * as everything else does: with the answer, the end or the error of what is read.
   */
  #catchFailedWrites(): void {
    if (this.#catching) return
    this.#catching = true
    const { socket } = this
    const { _write, _writev } = socket
    const unless =
      (done: (error?: Error | null) => void) =>
      (error?: Error | null): void => {
        if (error == null || !this.#onWriteFailed(error)) done(error)
      }
    socket._write = (chunk, encoding, done) => _write.call(socket, chunk, encoding, unless(done))
    socket._writev = (chunks, done) => _writev!.call(socket, chunks, unless(done))
  }

  /** Whether the answer may still be read. */
  #onWriteFailed(error: NodeJS.ErrnoException): boolean {
    const call = this.#call
    if (call === undefined || (error.code !== 'EPIPE' && error.code !== 'ECONNRESET')) return false
    this.#broken = error
    if (!call.answered) this.#await(call, call.options.headersTimeout)
    return true
  }

  readonly #onData = (chunk: Buffer): void => {
    const call = this.#call
    if (call === undefined) {
      // RFC 9112 §9.2: bytes nobody asked for are no response to anything.
      this.socket.destroy()
      return
    }
    if (call.answered) this.#await(call, call.bodyTimeout)
    try {
      this.#reader.feed(chunk)
    } catch (error) {
      this.fail(error as Error)
    }
  }

  onHead(status: number, reason: string, rawHeaders: string[], contentLength: number): void {
    const call = this.#call!
    call.rawHeaders = rawHeaders
    const headers: IncomingHttpHeaders = {}
    if (status >= 200) {
      call.answered = true
      if (contentLength !== -1) headers['content-length'] = String(contentLength)
    }
    for (let i = 0; i < rawHeaders.length; i += 2) {
      const name = rawHeaders[i]!
      if (name.length === 10 && name.toLowerCase() === 'keep-alive')
        this.#noteHint(rawHeaders[i + 1]!)
      else if (name.length === 4 && name.toLowerCase() === 'link')
        addLink(headers, rawHeaders[i + 1]!)
      else if (name.length === 12 && isEventStream(name, rawHeaders[i + 1]!)) call.bodyTimeout = 0
    }
    if (call.answered) this.#await(call, call.bodyTimeout)
    call.handler.onResponseStart?.(call, status, headers, reason)
  }

  #noteHint(value: string): void {
    const seconds = /(?:^|[\s,;])timeout=(\d{1,6})/i.exec(value)
    // A second less, so that the upstream never closes it just as a request leaves.
    if (seconds !== null) this.idleHint = Math.max(0, (Number(seconds[1]) - 1) * 1000)
  }

  onBody(chunk: Buffer): void {
    const call = this.#call!
    call.handler.onResponseData?.(call, call.borrows ? chunk : owned(chunk))
  }

  onEnd(rawTrailers: string[], reusable: boolean): void {
    const call = this.#call!
    this.#call = undefined
    call.connection = undefined
    call.rawTrailers = rawTrailers
    const body = this.#body
    this.#body = undefined
    if (reusable && body === undefined && this.#broken === undefined) this.#owner.onFree(this)
    else {
      // An answer before the end of the request: the rest of the body has no reader.
      body?.stop()
      this.socket.destroy()
    }
    call.handler.onResponseEnd?.(call, {})
  }

  /** Hands the socket, paused, to the handler of the request; it is the pool's no longer. */
  onUpgrade(rawHeaders: string[], head: Buffer): void {
    const call = this.#call!
    const { socket } = this
    this.#call = undefined
    call.connection = undefined
    call.rawHeaders = rawHeaders
    call.deadline = Number.POSITIVE_INFINITY
    readAsStream(socket, this.#onData)
    socket.off('end', this.#onEnd)
    socket.off('error', this.#onError)
    socket.off('close', this.#onClose)
    socket.off('drain', this.#onDrain)
    socket.pause()
    if (head.length > 0) socket.unshift(owned(head))
    this.#owner.onGone(this)
    if (call.handler.onRequestUpgrade === undefined) socket.destroy()
    else call.handler.onRequestUpgrade(call, 101, {}, socket)
  }

  /** Ends the connection, and with an error the request on it. */
  fail(error: Error): void {
    const call = this.#call
    this.#call = undefined
    this.#body?.stop()
    this.#body = undefined
    this.socket.destroy()
    if (call === undefined) return
    call.connection = undefined
    call.deadline = Number.POSITIVE_INFINITY
    call.handler.onResponseError?.(call, error)
  }

  readonly #onEnd = (): void => {
    if (this.#call === undefined) {
      this.socket.destroy()
      return
    }
    try {
      this.#reader.finish()
    } catch (error) {
      this.fail(this.#broken ?? (error as Error))
    }
  }

  readonly #onClose = (): void => {
    if (this.#call !== undefined) this.fail(new errors.SocketError('other side closed'))
    this.#owner.onGone(this)
  }

  readonly #onError = (error: Error): void => this.fail(error)

  readonly #onDrain = (): void => this.#body?.resume()
}

/** A stream of events is silent for as long as nothing happens: no time without bytes is too long. */
function isEventStream(name: string, value: string): boolean {
  return name.toLowerCase() === 'content-type' && /^text\/event-stream\b/i.test(value)
}

function addLink(headers: IncomingHttpHeaders, value: string): void {
  headers.link = headers.link === undefined ? value : `${headers.link}, ${value}`
}
