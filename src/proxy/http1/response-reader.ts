import { errors } from 'undici'
import { isAll, TOKEN, VALUE } from '../bytes.ts'
import { owned } from '../read-memory.ts'

/** What a {@link ResponseReader} tells. Arrays are flat: name, value, name, value, … as received. */
export interface ResponseSink {
  /**
   * Checked after every call: while true, nothing more is told until {@link ResponseReader.resume},
   * but the rest of a body as far as it was read.
   */
  readonly paused: boolean
  /** `contentLength` is -1 when the head does not tell the body's length. */
  onHead(status: number, reason: string, rawHeaders: string[], contentLength: number): void
  onBody(chunk: Buffer): void
  /**
   * The response is whole. `reusable` tells whether another may follow on the connection: the length
   * was unambiguous, both sides are HTTP/1.1 and keep it, and no byte came after it.
   */
  onEnd(rawTrailers: string[], reusable: boolean): void
  /** The connection speaks another protocol from here on; `head` is what came of that already. */
  onUpgrade(rawHeaders: string[], head: Buffer): void
}

/** Where in a response the next byte belongs. */
const IDLE = 0
const HEAD = 1
const FIXED = 2
const CHUNK_SIZE = 3
const CHUNK_DATA = 4
const CHUNK_END = 5
const TRAILERS = 6
const UNTIL_CLOSE = 7
/** Whole, but told only after a pause. */
const ENDING = 8

const NOTHING: string[] = []
/** Bytes of a chunk-size line, its extensions included. */
const MAX_CHUNK_LINE = 256
/** Interim responses before the final one. */
const MAX_INFORMATIONAL = 32
/** Hex digits of a chunk size: 13 is 2⁵² bytes, beyond which sums stop being exact. */
const CHUNK_SIZE_LINE = /^([0-9A-Fa-f]{1,13})(?:[\t ]*;[\t\x20-\x7e\x80-\xff]*)?$/
const DIGITS = /^\d{1,15}$/

/** Any deviation from RFC 9112: the connection it came on cannot be trusted any more. */
function malformed(what: string): Error {
  return Object.assign(new errors.HTTPParserError(`the response ${what}`), {
    code: 'HPE_INVALID_RESPONSE'
  })
}

/** Control characters, and line breaks that are not CRLF: what another parser might read differently. */
function unsafe(place: string): Error {
  return malformed(`has a control character or a bare line break in its ${place}`)
}

/**
 * Reads HTTP/1.1 responses off one connection (RFC 9112), strictly: whatever two parsers could read
 * in two ways is refused, so that no bytes of one response are taken for those of the next. Throws
 * HTTPParserError; the reader is unusable afterwards.
 */
export class ResponseReader {
  readonly #sink: ResponseSink
  readonly #maxHeadSize: number
  #state = IDLE
  #method = ''
  #remaining = 0
  #keepAlive = false
  #informational = 0
  /** Whether the request asked for another protocol. */
  #upgrade = false
  /** The fields of the answer that switches to it. */
  #switched: string[] | undefined = undefined
  /** Bytes of an unfinished head, line or trailer section. */
  #partial: Buffer | undefined = undefined
  /** Bytes that came while the sink was paused. */
  #held: Buffer | undefined = undefined
  #trailers = NOTHING
  #reusable = false
  /** The upstream closed its side while the sink was paused. */
  #closed = false

  /** `maxHeadSize` bounds a head and a trailer section, in bytes. */
  constructor(sink: ResponseSink, maxHeadSize: number) {
    this.#sink = sink
    this.#maxHeadSize = maxHeadSize
  }

  /** Expects the response to a request of this method; `upgrade` when it may switch protocols. */
  begin(method: string, upgrade = false): void {
    this.#method = method
    this.#upgrade = upgrade
    this.#state = HEAD
    this.#informational = 0
    this.#closed = false
  }

  /** Bytes as they come off the connection; what is borrowed of them goes on as such, and is not kept. */
  feed(chunk: Buffer): void {
    if (this.#held !== undefined) {
      this.#held = Buffer.concat([this.#held, chunk])
      return
    }
    this.#read(chunk)
  }

  /** Goes on after a pause. */
  resume(): void {
    if (this.#state === ENDING) this.#tellEnd()
    const held = this.#held
    if (held !== undefined) {
      this.#held = undefined
      this.#read(held)
    }
    if (this.#closed && !this.#sink.paused) this.finish()
  }

  /** The upstream has closed its side. Throws SocketError when a response is unfinished. */
  finish(): void {
    if (this.#sink.paused && this.#state !== IDLE) this.#closed = true
    else if (this.#state === UNTIL_CLOSE) this.#end(NOTHING, false)
    else if (this.#state !== IDLE) throw new errors.SocketError('other side closed')
  }

  #read(chunk: Buffer): void {
    let at = 0
    // Within a body the rest of a read is told despite a pause: to keep it takes a copy, which costs
    // more than what the sink has to take then, one read at most.
    let inBody = false
    while (at < chunk.length) {
      if (this.#sink.paused && (!inBody || this.#state === ENDING)) {
        this.#held = owned(chunk.subarray(at))
        return
      }
      switch (this.#state) {
        case HEAD:
          at = this.#readHead(chunk, at)
          if (this.#switched !== undefined) {
            this.#sink.onUpgrade(this.#switched, chunk.subarray(at))
            return
          }
          break
        case FIXED:
          at = this.#readFixed(chunk, at)
          inBody = true
          break
        case UNTIL_CLOSE:
          this.#sink.onBody(at === 0 ? chunk : chunk.subarray(at))
          return
        case CHUNK_DATA:
          at = this.#readChunkData(chunk, at)
          inBody = true
          break
        case CHUNK_SIZE:
        case CHUNK_END:
          at = this.#readLine(chunk, at)
          break
        case TRAILERS:
          at = this.#readTrailers(chunk, at)
          break
        default:
          throw malformed('is followed by bytes nobody asked for')
      }
    }
  }

  #readHead(chunk: Buffer, at: number): number {
    const before = this.#partial?.length ?? 0
    const bytes = before === 0 ? chunk : Buffer.concat([this.#partial!, chunk.subarray(at)])
    const start = before === 0 ? at : 0
    const end = bytes.indexOf('\r\n\r\n', Math.max(start, before - 3), 'latin1')
    if ((end === -1 ? bytes.length : end) - start > this.#maxHeadSize) {
      throw new errors.HeadersOverflowError()
    }
    if (end === -1) {
      // Where lines end in a bare LF that end never comes.
      if (hasBareLineFeed(bytes, Math.max(start, before))) throw unsafe('head')
      this.#partial = owned(bytes.subarray(start))
      return chunk.length
    }
    this.#partial = undefined
    this.#takeHead(bytes.toString('latin1', start, end), bytes.length > end + 4)
    return before === 0 ? end + 4 : at + end + 4 - before
  }

  #takeHead(head: string, more: boolean): void {
    const lineEnd = head.indexOf('\r\n')
    const statusLine = lineEnd === -1 ? head : head.slice(0, lineEnd)
    const minor = statusLine.charCodeAt(7) - 48
    const status = Number(statusLine.slice(9, 12))
    // RFC 9112 §4: HTTP-version SP status-code SP [reason-phrase]; the last space may lack.
    if (
      !statusLine.startsWith('HTTP/1.') ||
      (minor !== 0 && minor !== 1) ||
      statusLine.charCodeAt(8) !== 32 ||
      !(status >= 100 && status <= 599) ||
      !(statusLine.length === 12 || statusLine.charCodeAt(12) === 32)
    ) {
      throw malformed('does not begin with a status line of HTTP/1.x')
    }
    if (!isAll(statusLine, VALUE)) throw unsafe('head')
    const rawHeaders = lineEnd === -1 ? [] : parseFields(head, lineEnd + 2, 'head')
    this.#frame(status, statusLine.slice(13), rawHeaders, minor === 1, more)
  }

  /** How the body is delimited (RFC 9112 §6.3). */
  #frame(
    status: number,
    reason: string,
    rawHeaders: string[],
    http11: boolean,
    more: boolean
  ): void {
    let contentLength = -1
    let chunked = false
    let keepAlive = http11
    for (let i = 0; i < rawHeaders.length; i += 2) {
      const name = rawHeaders[i]!
      const value = rawHeaders[i + 1]!
      // The length of a name tells the three that matter from nearly all others.
      if (name.length === 14 && name.toLowerCase() === 'content-length') {
        if (contentLength !== -1 || !DIGITS.test(value))
          throw malformed('has no single valid Content-Length')
        contentLength = Number(value)
      } else if (name.length === 17 && name.toLowerCase() === 'transfer-encoding') {
        if (chunked || value.toLowerCase() !== 'chunked')
          throw malformed('has a Transfer-Encoding other than chunked')
        chunked = true
      } else if (name.length === 10 && name.toLowerCase() === 'connection') {
        if (value.toLowerCase().includes('close')) keepAlive = false
      }
    }
    if (chunked && (contentLength !== -1 || !http11)) {
      throw malformed('gives its length in two ways')
    }
    if (status < 200) {
      if (status === 101) {
        if (!this.#upgrade) throw malformed('switches to a protocol nobody asked for')
        this.#switched = rawHeaders
        return
      }
      if (++this.#informational > MAX_INFORMATIONAL)
        throw malformed('follows too many interim ones')
      this.#sink.onHead(status, reason, rawHeaders, -1)
      return
    }
    this.#keepAlive = keepAlive
    const bodiless = status === 204 || status === 304 || this.#method === 'HEAD'
    if (bodiless || contentLength === 0) this.#state = ENDING
    else if (chunked) this.#state = CHUNK_SIZE
    else if (contentLength === -1) this.#state = UNTIL_CLOSE
    else {
      this.#state = FIXED
      this.#remaining = contentLength
    }
    this.#sink.onHead(status, reason, rawHeaders, bodiless ? 0 : contentLength)
    if (bodiless || contentLength === 0) this.#end(NOTHING, !more)
  }

  #readFixed(chunk: Buffer, at: number): number {
    const left = chunk.length - at
    if (left < this.#remaining) {
      this.#remaining -= left
      this.#sink.onBody(at === 0 ? chunk : chunk.subarray(at))
      return chunk.length
    }
    const end = at + this.#remaining
    this.#sink.onBody(at === 0 && end === chunk.length ? chunk : chunk.subarray(at, end))
    this.#end(NOTHING, end === chunk.length)
    return end
  }

  #readChunkData(chunk: Buffer, at: number): number {
    const end = Math.min(chunk.length, at + this.#remaining)
    this.#remaining -= end - at
    if (this.#remaining === 0) this.#state = CHUNK_END
    this.#sink.onBody(chunk.subarray(at, end))
    return end
  }

  /** One line: a chunk size, or the empty end of a chunk. */
  #readLine(chunk: Buffer, at: number): number {
    const before = this.#partial?.length ?? 0
    const bytes = before === 0 ? chunk : Buffer.concat([this.#partial!, chunk.subarray(at)])
    const start = before === 0 ? at : 0
    const end = bytes.indexOf(10, Math.max(start, before))
    if ((end === -1 ? bytes.length : end) - start > MAX_CHUNK_LINE) {
      throw malformed('has a chunk-size line that does not end')
    }
    if (end === -1) {
      this.#partial = owned(bytes.subarray(start))
      return chunk.length
    }
    this.#partial = undefined
    if (end === start || bytes[end - 1] !== 13)
      throw malformed('has a bare line break in its chunks')
    this.#takeLine(bytes.toString('latin1', start, end - 1))
    return before === 0 ? end + 1 : at + end + 1 - before
  }

  #takeLine(line: string): void {
    if (this.#state === CHUNK_END) {
      if (line !== '') throw malformed('has a chunk longer than its size')
      this.#state = CHUNK_SIZE
      return
    }
    const size = CHUNK_SIZE_LINE.exec(line)
    if (size === null) throw malformed('has a chunk size that is none')
    this.#remaining = Number.parseInt(size[1]!, 16)
    this.#state = this.#remaining === 0 ? TRAILERS : CHUNK_DATA
  }

  /** RFC 9112 §7.1.2: field lines up to an empty one. */
  #readTrailers(chunk: Buffer, at: number): number {
    const before = this.#partial?.length ?? 0
    const bytes = before === 0 ? chunk : Buffer.concat([this.#partial!, chunk.subarray(at)])
    const start = before === 0 ? at : 0
    const empty = bytes.length - start >= 2 && bytes[start] === 13 && bytes[start + 1] === 10
    const found = empty ? start - 2 : bytes.indexOf('\r\n\r\n', start, 'latin1')
    if (!empty && (found === -1 ? bytes.length : found) - start > this.#maxHeadSize) {
      throw new errors.HeadersOverflowError()
    }
    if (!empty && found === -1) {
      if (hasBareLineFeed(bytes, Math.max(start, before))) throw unsafe('trailers')
      this.#partial = owned(bytes.subarray(start))
      return chunk.length
    }
    this.#partial = undefined
    const end = found + 4
    const text = empty ? '' : bytes.toString('latin1', start, found)
    this.#end(empty ? NOTHING : parseFields(text, 0, 'trailers'), end === bytes.length)
    return before === 0 ? end : at + end - before
  }

  /** `last`: no byte came after the response. */
  #end(rawTrailers: string[], last: boolean): void {
    this.#trailers = rawTrailers
    // One that might have switched may be no HTTP connection for the upstream any more.
    this.#reusable = last && this.#keepAlive && !this.#upgrade
    if (this.#sink.paused) this.#state = ENDING
    else this.#tellEnd()
  }

  #tellEnd(): void {
    this.#state = IDLE
    this.#sink.onEnd(this.#trailers, this.#reusable)
  }
}

/** Whether an LF without a CR before it stands at or after `from`. */
function hasBareLineFeed(bytes: Buffer, from: number): boolean {
  for (let at = bytes.indexOf(10, from); at !== -1; at = bytes.indexOf(10, at + 1)) {
    if (bytes[at - 1] !== 13) return true
  }
  return false
}

/** Field lines from `at` on, without the CRLF of the last (RFC 9112 §5). */
function parseFields(text: string, at: number, place: string): string[] {
  const fields: string[] = []
  for (let from = at; from < text.length; ) {
    let end = text.indexOf('\r\n', from)
    if (end === -1) end = text.length
    const colon = text.indexOf(':', from)
    // No space before the colon, no folded line: both are no token.
    const name = colon === -1 || colon > end ? '' : text.slice(from, colon)
    if (name === '' || !isAll(name, TOKEN)) throw malformed('has a line in its fields that is none')
    let first = colon + 1
    let last = end
    while (first < last && isBlank(text.charCodeAt(first))) first++
    while (last > first && isBlank(text.charCodeAt(last - 1))) last--
    const value = text.slice(first, last)
    if (!isAll(value, VALUE)) throw unsafe(place)
    fields.push(name, value)
    from = end + 2
  }
  return fields
}

function isBlank(code: number): boolean {
  return code === 32 || code === 9
}
