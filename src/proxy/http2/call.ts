import type { IncomingHttpHeaders } from 'node:http'
import {
  type ClientHttp2Stream,
  type ClientSessionRequestOptions,
  constants,
  type OutgoingHttpHeaders
} from 'node:http2'
import type { Readable } from 'node:stream'
import { type Dispatcher, errors } from 'undici'
import { WriteTimeout } from '../../errors.ts'
import { bodyRead } from '../../memory.ts'
import { isAll, TARGET, VALUE } from '../bytes.ts'
import { mayTrail } from '../headers.ts'
import { HeldBody } from '../held-body.ts'
import type { ForwardOptions, PooledCall } from '../pool.ts'

/** Fields of HTTP/1.1 that a connection of HTTP/2 must not have (RFC 9113 §8.2.2). */
const CONNECTION_FIELDS = new Set([
  'connection',
  'host',
  'keep-alive',
  'proxy-connection',
  'transfer-encoding',
  'upgrade'
])

/**
 * Whether a field of the head that ends a gRPC call tells of its end: such a head stands for the
 * trailers too, with the metadata of an error in it, and has hardly anything of its own.
 */
const tellsEnd = (name: string): boolean => name !== 'date' && name !== 'server' && mayTrail(name)

/** A request's fields as HTTP/2 has them: names in lower case, repeats as arrays. */
function requestHeaders(
  { method, path, headers }: ForwardOptions,
  scheme: string
): OutgoingHttpHeaders {
  const flat = headers as readonly string[]
  if (!isAll(path, TARGET)) throw new errors.InvalidArgumentError('invalid request path')
  const fields: OutgoingHttpHeaders = Object.create(null)
  fields[constants.HTTP2_HEADER_METHOD] = method
  fields[constants.HTTP2_HEADER_SCHEME] = scheme
  fields[constants.HTTP2_HEADER_PATH] = path
  for (let i = 0; i < flat.length; i += 2) {
    const name = flat[i]!.toLowerCase()
    const value = flat[i + 1]!
    if (!isAll(value, VALUE)) throw new errors.InvalidArgumentError(`invalid ${name} header`)
    if (name === 'host') fields[constants.HTTP2_HEADER_AUTHORITY] = value
    if (CONNECTION_FIELDS.has(name)) continue
    const before = fields[name]
    if (before === undefined) fields[name] = value
    else if (Array.isArray(before)) before.push(value)
    else fields[name] = [String(before), value]
  }
  return fields
}

/** Fields as they came, flat and without pseudo-headers. */
function flatten(headers: IncomingHttpHeaders): string[] {
  const flat: string[] = []
  for (const [name, value] of Object.entries(headers)) {
    if (name.startsWith(':') || value === undefined) continue
    for (const each of Array.isArray(value) ? value : [value]) flat.push(name, each)
  }
  return flat
}

/** The client's trailers, which a body that was streamed has as field lines after its end. */
function trailersOf({
  trailers = ''
}: Readable & { readonly trailers?: string }): OutgoingHttpHeaders {
  const fields: OutgoingHttpHeaders = Object.create(null)
  for (const line of trailers.split('\r\n')) {
    const colon = line.indexOf(': ')
    if (colon === -1) continue
    const name = line.slice(0, colon).toLowerCase()
    const before = fields[name]
    const value = line.slice(colon + 2)
    fields[name] = before === undefined ? value : [...[before].flat().map(String), value]
  }
  return fields
}

function isStream(body: ForwardOptions['body']): body is Readable {
  return body != null && !Buffer.isBuffer(body) && !(body instanceof HeldBody)
}

/** The connection that carries a call. */
export interface Carrier {
  /** Opens the stream of a request. */
  open(headers: OutgoingHttpHeaders, options: ClientSessionRequestOptions): ClientHttp2Stream
  /** Whether a request whose stream failed will be sent once more; then it is told to no one. */
  again(stream: ClientHttp2Stream | undefined): boolean
  /** The upstream was silent for too long, so that the connection is in doubt. */
  doubt(): void
}

/** A stream of events is silent for as long as nothing happens: no time without bytes is too long. */
const isEventStream = (type: string | undefined): boolean =>
  /^text\/event-stream\b/i.test(type ?? '')

/** One request over a stream of HTTP/2: undici's controller for its handler. */
export class Http2Call implements PooledCall {
  readonly options: ForwardOptions
  readonly handler: Dispatcher.DispatchHandler
  readonly version = '2'
  rawHeaders: string[] | null = null
  rawTrailers: string[] | null = null
  aborted = false
  reason: Error | null = null
  paused = false
  /** Whether its session had carried another request before. */
  reused = false
  /** Times the upstream has said that it had not begun with it. */
  refusals = 0
  #carrier: Carrier | undefined = undefined
  #bodyTimeout: number
  #stream: ClientHttp2Stream | undefined = undefined
  #timer: NodeJS.Timeout | undefined = undefined
  #answered = false
  #ended = false
  /** Whether what is expected is that the upstream takes more of the body. */
  #sending = false

  constructor(options: ForwardOptions, handler: Dispatcher.DispatchHandler) {
    this.options = options
    this.handler = handler
    this.#bodyTimeout = options.bodyTimeout ?? 0
  }

  /** Whether it is on its way, over a stream. */
  get sent(): boolean {
    return this.#stream !== undefined
  }

  /** Whether nothing of it is lost when it is sent once more. */
  get repeatable(): boolean {
    const { body } = this.options
    return !this.#answered && !this.#ended && !isStream(body)
  }

  pause(): void {
    if (this.paused) return
    this.paused = true
    clearTimeout(this.#timer)
    this.#stream?.pause()
  }

  resume(): void {
    if (!this.paused) return
    this.paused = false
    this.#expect(this.#answered ? this.#bodyTimeout : this.options.headersTimeout)
    this.#stream?.resume()
  }

  abort(reason: Error): void {
    if (this.aborted || this.#ended) return
    this.aborted = true
    this.reason = reason
    this.fail(reason)
  }

  /** Sends the request over a connection, whose scheme is `scheme`. */
  send(carrier: Carrier, scheme: string): void {
    const { body } = this.options
    const streamed = isStream(body) ? body : undefined
    let stream: ClientHttp2Stream
    this.#carrier = carrier
    this.#stream = undefined
    try {
      stream = carrier.open(requestHeaders(this.options, scheme), {
        waitForTrailers: streamed !== undefined
      })
    } catch (error) {
      this.#lose(undefined, error as Error)
      return
    }
    this.#stream = stream
    stream.on('headers', headers => {
      this.handler.onResponseStart?.(this, headers[':status'] ?? 0, headers)
    })
    stream.on('response', (headers, flags) => this.#onResponse(headers, flags))
    stream.on('data', (chunk: Buffer) => {
      if (!this.paused) this.#expect(this.#bodyTimeout)
      this.handler.onResponseData?.(this, chunk)
    })
    stream.on('trailers', headers => {
      this.rawTrailers = flatten(headers)
    })
    stream.on('end', () => this.#onEnd())
    stream.on('error', error => this.#lose(stream, error))
    stream.on('close', () => this.#lose(stream, new errors.SocketError('other side closed')))
    this.handler.onRequestStart?.(this, null)
    if (this.aborted) return
    if (streamed !== undefined) {
      this.#sendStreamed(streamed, stream)
      return
    }
    if (body instanceof HeldBody) {
      this.#sendHeld(body.lend(), stream)
      return
    }
    if (body == null) stream.end()
    else stream.end(body as Buffer)
    this.#expect(this.options.headersTimeout)
  }

  /** A stream ended before its answer did. */
  #lose(stream: ClientHttp2Stream | undefined, error: Error): void {
    if (this.#ended || stream !== this.#stream) return
    if (this.#carrier?.again(stream) === true) {
      clearTimeout(this.#timer)
      this.#stream = undefined
    } else this.fail(error)
  }

  refuse(error: Error): void {
    this.fail(error)
  }

  /** Writes a body that is held, no faster than it is taken. */
  #sendHeld(pieces: readonly Buffer[], stream: ClientHttp2Stream): void {
    let next = 0
    const write = (): void => {
      // It has ended, or goes over another connection by now.
      if (this.#ended || stream !== this.#stream) return
      while (next < pieces.length) {
        if (!stream.write(pieces[next++])) {
          this.#sending = true
          this.#expect(this.options.writeTimeout)
          return
        }
      }
      stream.off('drain', write)
      this.#sending = false
      stream.end()
      if (!this.#answered) this.#expect(this.options.headersTimeout)
    }
    stream.on('drain', write)
    write()
  }

  /** Writes a streamed body with the stream's back-pressure. */
  #sendStreamed(body: Readable, stream: ClientHttp2Stream): void {
    body.on('data', (chunk: Buffer) => {
      bodyRead(chunk.length)
      if (!stream.write(chunk)) body.pause()
    })
    stream.on('drain', () => body.resume())
    stream.on('wantTrailers', () => stream.sendTrailers(trailersOf(body)))
    body.once('end', () => {
      stream.end()
      if (!this.#answered && !this.#ended) this.#expect(this.options.headersTimeout)
    })
    body.once('error', error => this.fail(error))
  }

  #onResponse(
    headers: IncomingHttpHeaders & { ':status'?: number | undefined },
    flags: number
  ): void {
    this.#answered = true
    const status = headers[':status'] ?? 0
    let raw = flatten(headers)
    if ((flags & constants.NGHTTP2_FLAG_END_STREAM) !== 0 && headers['grpc-status'] !== undefined) {
      // A call that ends with its head: the client is to see the ending where endings stand.
      this.rawTrailers = raw.filter((_, i) => tellsEnd(raw[i - (i % 2)]!))
      raw = raw.filter((_, i) => !tellsEnd(raw[i - (i % 2)]!))
    }
    this.rawHeaders = raw
    if (isEventStream(headers['content-type'])) this.#bodyTimeout = 0
    this.#expect(this.#bodyTimeout)
    this.handler.onResponseStart?.(this, status, headers, '')
  }

  #onEnd(): void {
    if (this.#ended || !this.#answered) return
    this.#finish()
    this.handler.onResponseEnd?.(this, {})
    const { body } = this.options
    // An answer before the end of the request: the rest of the body has no reader.
    const stream = this.#stream!
    if (stream.writableEnded) return
    if (isStream(body)) body.destroy()
    // Not from within the session's own reading: Node 24 then loses the RST_STREAM of a stream that has
    // a part of its body queued, and writes empty DATA frames for it without end.
    setImmediate(() => stream.close(constants.NGHTTP2_NO_ERROR))
  }

  /** Ends the request with an error, unless it has ended already. */
  fail(error: Error): void {
    if (this.#ended) return
    this.#finish()
    this.#stream?.close(constants.NGHTTP2_CANCEL)
    this.handler.onResponseError?.(this, error)
  }

  #finish(): void {
    this.#ended = true
    clearTimeout(this.#timer)
  }

  /** Something must come within so many milliseconds; 0 waits for ever. */
  #expect(timeout: number | null | undefined): void {
    clearTimeout(this.#timer)
    if (timeout == null || timeout === 0 || this.#ended) return
    this.#timer = setTimeout(this.#onTimeout, timeout)
    this.#timer.unref()
  }

  /** The error when what is expected did not happen in time. */
  #overdue(): Error {
    if (this.#answered) return new errors.BodyTimeoutError()
    return this.#sending ? new WriteTimeout() : new errors.HeadersTimeoutError()
  }

  readonly #onTimeout = (): void => {
    this.#carrier?.doubt()
    this.fail(this.#overdue())
  }
}
