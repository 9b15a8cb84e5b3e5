import type { IncomingHttpHeaders, ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import type { Duplex, Writable } from 'node:stream'
import type { Dispatcher } from 'undici'
import { UpgradeRefused } from '../errors.ts'
import { ClientBody, isDirect } from './client-body.ts'
import type { HttpExchange } from './exchange.ts'
import { failureKind, upstreamFailure } from './failure.ts'
import { HeldBody } from './held-body.ts'
import type { BorrowingHandler, Call } from './http1/call.ts'
import type { ForwardOptions, PooledCall } from './pool.ts'
import { owned } from './read-memory.ts'
import { RequestBody } from './request-body.ts'
import type { TargetAddress } from './targets.ts'
import type { Peer } from './upstream.ts'
import { type Ending, endSoon } from './write-batch.ts'

/** What a forward tells the life of its request. */
export interface ForwardOwner {
  readonly maxBodySize: number
  /** Milliseconds a client may take nothing of its response. */
  readonly sendTimeout: number
  /** `bodyLength` undefined keeps the client's framing. */
  upstreamHeaders(exchange: HttpExchange, peer: Peer, bodyLength: number | undefined): string[]
  /** The upstream's head arrived; runs the response phase and writes the head. */
  head(
    exchange: HttpExchange,
    status: number,
    statusText: string | undefined,
    rawHeaders: readonly (Buffer | string)[]
  ): void | Promise<void>
  informational(exchange: HttpExchange, status: number, headers: IncomingHttpHeaders): void
  /** The upstream took the upgrade: `socket`, paused, speaks the other protocol. */
  upgraded(exchange: HttpExchange, rawHeaders: readonly (Buffer | string)[], socket: Socket): void
  /** Hands trailers on, before the response ends. Throws when they are too many. */
  trailers(exchange: HttpExchange, rawTrailers: readonly (Buffer | string)[]): void
  /** No attempt succeeded, or none is left; `error` undefined means there was no peer to try. */
  failed(exchange: HttpExchange, error: Error | undefined): void
}

/** Bytes of a response that are read ahead of the client where the route buffers responses. */
const READ_AHEAD = 65_536
/** Bytes of a body that is cheaper to copy than to write by itself. */
const SMALL_BODY = 4096

/** Methods whose repetition can have effects of its own (RFC 9110 §9.2.2, as the format lists them). */
const NOT_REPEATABLE = new Set(['POST', 'LOCK', 'PATCH'])

/** What another attempt would meet as well: the request, its client, or the time it has waited is the cause. */
const FINAL = new Set([
  'POSTERN_BODY_TOO_LARGE',
  'POSTERN_BODY_ABORTED',
  'POSTERN_TRAILERS_TOO_MANY',
  'POSTERN_WRITE_TIMEOUT',
  'POSTERN_UPSTREAM_QUEUE_TIMEOUT',
  'POSTERN_UPSTREAM_UPGRADE',
  'UND_ERR_INVALID_ARG',
  'UND_ERR_REQ_CONTENT_LENGTH_MISMATCH'
])

/** Attempts that met a connection the upstream had just closed, and so count for nothing. */
const MAX_STALE = 3

/**
 * Sends one exchange to its upstream and streams the answer back, with back-pressure both ways.
 * A handler of undici's dispatch: one object per request, no closure per event.
 */
export class Forward implements BorrowingHandler, Ending {
  readonly borrows = true
  readonly #exchange: HttpExchange
  readonly #owner: ForwardOwner
  #body: RequestBody | HeldBody | null
  /** What is there of the body beforehand. */
  readonly #held: HeldBody | undefined
  #controller: Dispatcher.DispatchController | undefined
  #tried: Set<TargetAddress> | undefined
  /** The peer of the attempt under way. */
  #peer: Peer | undefined = undefined
  /** Attempts that count, and those that met a connection just closed. */
  #attempts = 0
  #stale = 0
  /** Whether any byte of the request of the current attempt went out. */
  #sent = false
  #responded = false
  #aborted = false
  #ended = false
  /** Bytes of a Content-Length body still to come; -1 when its end is not known beforehand. */
  #remaining = -1
  /** A small body, to leave in one write with its head. */
  #text: string | undefined = undefined
  /** The shorter way to the client, where there is one: decided with the first bytes of a body. */
  #clientBody: ClientBody | null | undefined = undefined
  /** Bytes read from the upstream before the client took them. */
  readonly #ahead: number
  #clientTimer: NodeJS.Timeout | undefined

  /** `held` is what was read of the client's body; of one that a plugin made, nothing is sent. */
  constructor(
    exchange: HttpExchange,
    owner: ForwardOwner,
    hasBody: boolean,
    held: HeldBody | undefined
  ) {
    this.#exchange = exchange
    this.#owner = owner
    this.#ahead = exchange.match?.traits.responseBuffering === false ? 0 : READ_AHEAD
    const { upstream, raw } = exchange
    this.#held = upstream.body === undefined ? held : HeldBody.of(upstream.body)
    // Trailers stand only after chunks, so that a body with some is streamed.
    const direct = upstream.body !== undefined || raw.rawTrailers.length === 0
    if (this.#held?.whole === true && direct) this.#body = this.#held
    else this.#body = hasBody ? this.#newBody() : null
  }

  #newBody(): RequestBody {
    const { service } = this.#exchange
    return new RequestBody(
      this.#exchange,
      service!.write_timeout,
      this.#owner.maxBodySize,
      this.#held
    )
  }

  /** Picks a peer and sends; called again for each retry. */
  attempt(): void {
    if (this.#aborted) return
    const exchange = this.#exchange
    const chosenAt = performance.now()
    try {
      const peer = exchange.target!.pick(exchange, this.#tried)
      if (peer instanceof Promise) {
        peer.then(
          found => this.#send(found, chosenAt),
          error => this.#giveUp(error)
        )
      } else {
        this.#send(peer, chosenAt)
      }
    } catch (error) {
      this.#giveUp(error as Error)
    }
  }

  #send(peer: Peer | undefined, chosenAt: number): void {
    const exchange = this.#exchange
    if (this.#aborted) return
    if (peer === undefined) {
      this.#giveUp(undefined)
      return
    }
    const now = performance.now()
    exchange.sentMark = now
    exchange.tries.push({ startedAt: Date.now(), latency: now - chosenAt, peer })
    this.#sent = false
    this.#attempts++
    this.#peer = peer
    peer.begin()
    // Of one that is held whole every attempt sends its own.
    if (this.#body instanceof RequestBody && !this.#body.fresh) this.#body = this.#newBody()
    const { service, upstream, request } = exchange
    const body = this.#body
    const length = body instanceof HeldBody ? body.length : undefined
    try {
      const options: ForwardOptions = {
        path: upstream.query === undefined ? upstream.path : `${upstream.path}?${upstream.query}`,
        method: request.method,
        headers: this.#owner.upstreamHeaders(exchange, peer, length),
        body,
        headersTimeout: service!.read_timeout,
        bodyTimeout: service!.read_timeout,
        writeTimeout: service!.write_timeout,
        upgrade: exchange.upgrade === undefined ? null : 'websocket'
      }
      peer.pool.dispatch(options as Dispatcher.DispatchOptions, this)
    } catch (error) {
      this.onResponseError(undefined, error as Error)
    }
  }

  /** The attempt under way has ended, whichever way. */
  #settle(): void {
    this.#peer?.end()
    this.#peer = undefined
  }

  /** No attempt is left. */
  #giveUp(error: Error | undefined): void {
    if (this.#aborted) return
    this.#ended = true
    if (this.#body instanceof RequestBody) this.#body.destroy()
    this.#owner.failed(this.#exchange, error)
  }

  /** The client is gone: stop the upstream's work too. */
  abort(): void {
    if (this.#ended || this.#aborted) return
    this.#aborted = true
    this.#settle()
    this.#controller?.abort(new Error('client closed the connection'))
    if (this.#body instanceof RequestBody) this.#body.destroy()
  }

  onRequestStart(controller: Dispatcher.DispatchController): void {
    this.#controller = controller
    this.#sent = true
    if (this.#aborted) controller.abort(new Error('client closed the connection'))
  }

  onResponseStart(
    controller: Dispatcher.DispatchController,
    status: number,
    headers: IncomingHttpHeaders,
    statusText?: string
  ): void {
    const exchange = this.#exchange
    if (status < 200) {
      this.#owner.informational(exchange, status, headers)
      return
    }
    const now = performance.now()
    exchange.firstByteMark = now
    this.#peer?.answered(status, now - exchange.sentMark)
    exchange.upstreamStatuses.push(status)
    if (exchange.tunnels && status < 300) {
      // RFC 9113 §8.5: to the client it would say that the tunnel is open.
      controller.abort(new UpgradeRefused(`it answers ${status} instead of 101`))
      return
    }
    this.#responded = true
    exchange.upstreamVersion = (controller as PooledCall).version
    // No other attempt will send it.
    if (this.#body instanceof HeldBody) this.#body.release()
    const length = headers['content-length']
    this.#remaining = length === undefined ? -1 : Number(length)
    const pending = this.#owner.head(
      exchange,
      status,
      statusText,
      controller.rawHeaders as readonly (Buffer | string)[]
    )
    if (pending !== undefined) {
      controller.pause()
      pending.then(
        () => controller.resume(),
        error => controller.abort(error)
      )
    } else if (length === undefined) process.nextTick(flushHead, this)
  }

  /** The attempt lasts, for its target too, until the client's connection closes. */
  onRequestUpgrade(
    controller: Dispatcher.DispatchController,
    status: number,
    _headers: IncomingHttpHeaders,
    socket: Duplex
  ): void {
    const exchange = this.#exchange
    const now = performance.now()
    exchange.firstByteMark = now
    this.#peer?.answered(status, now - exchange.sentMark)
    exchange.upstreamStatuses.push(status)
    this.#responded = true
    this.#owner.upgraded(
      exchange,
      controller.rawHeaders as readonly (Buffer | string)[],
      socket as Socket
    )
  }

  /**
   * Sends the head of a body of unknown length if none of the body came with it: a stream of events
   * may be silent for long after it, and its client waits for the head.
   */
  flushHead(): void {
    const { rawResponse, bytesSent } = this.#exchange
    if (bytesSent > 0 || this.#ended || rawResponse.destroyed) return
    // HTTP/2 has sent it.
    if ('flushHeaders' in rawResponse) rawResponse.flushHeaders()
  }

  onResponseData(controller: Dispatcher.DispatchController, chunk: Buffer): void {
    const exchange = this.#exchange
    const rawResponse = exchange.rawResponse as Writable
    exchange.bytesSent += chunk.length
    const last = chunk.length === this.#remaining
    this.#remaining -= chunk.length
    // The last bytes of a body of known length end the response here: head and body of a small one
    // leave in a single write, as text: a syscall less, 6 % of a small request.
    if (last && chunk.length <= SMALL_BODY && !exchange.http2 && this.#clientBody === undefined) {
      this.#finish()
      this.#text = chunk.toString('latin1')
      endSoon(this)
      return
    }
    const body = this.#bodyOf(exchange, controller)
    if (last) {
      this.#finish()
      if (body === null) {
        rawResponse.end(owned(chunk))
        if (rawResponse.writableLength > 0) this.#watchClient()
      } else {
        body.finish(chunk)
        endSoon(this)
      }
    } else if (body === null) {
      if (rawResponse.write(owned(chunk)) || rawResponse.writableLength <= this.#ahead) return
      controller.pause()
      this.#watchClient()
      rawResponse.once('drain', () => this.#clientTook(controller))
    } else if (!body.write(chunk)) {
      controller.pause()
      this.#watchClient()
    }
  }

  #bodyOf(
    { rawResponse, http2 }: HttpExchange,
    controller: Dispatcher.DispatchController
  ): ClientBody | null {
    if (this.#clientBody === undefined) {
      const response = rawResponse as ServerResponse
      this.#clientBody =
        http2 || !isDirect(response)
          ? null
          : new ClientBody(response, () => this.#clientTook(controller))
    }
    return this.#clientBody
  }

  /** Ends the response, whose last bytes have come. */
  end(): void {
    const rawResponse = this.#exchange.rawResponse as Writable
    // The client went away meanwhile.
    if (rawResponse.destroyed) return
    if (this.#text === undefined) rawResponse.end()
    else rawResponse.end(this.#text, 'latin1')
    if (rawResponse.writableLength > 0) this.#watchClient()
  }

  #clientTook(controller: Dispatcher.DispatchController): void {
    this.settle()
    controller.resume()
  }

  /** Ends the response of a client that takes nothing for as long as `sendTimeout`. */
  #watchClient(): void {
    const { rawResponse, raw } = this.#exchange
    let before = -1
    clearInterval(this.#clientTimer)
    this.#clientTimer = setInterval(() => {
      const taken = (raw.socket?.bytesWritten ?? 0) - (rawResponse as Writable).writableLength
      if (taken === before) rawResponse.destroy()
      before = taken
    }, this.#owner.sendTimeout)
  }

  /** Nothing is waited for on the client's side any more. */
  settle(): void {
    clearInterval(this.#clientTimer)
  }

  onResponseEnd(controller: Dispatcher.DispatchController): void {
    if (this.#ended) return
    this.#finish()
    const trailers = controller.rawTrailers as readonly (Buffer | string)[] | null | undefined
    if (trailers != null && trailers.length > 0) {
      try {
        this.#owner.trailers(this.#exchange, trailers)
      } catch (error) {
        // Its head is out.
        this.#exchange.rawResponse.destroy(error as Error)
        return
      }
    }
    this.end()
  }

  onResponseError(controller: Dispatcher.DispatchController | undefined, error: Error): void {
    const exchange = this.#exchange
    if (this.#aborted || this.#ended) return
    const peer = this.#peer
    this.#settle()
    if (this.#responded) {
      this.#ended = true
      // The head is out, so only a cut connection tells the client that the body is not whole.
      exchange.rawResponse.destroy(error)
      return
    }
    const attempt = exchange.tries.at(-1)!
    attempt.code = upstreamFailure(error).status
    if (this.#wasStale(controller as Call | undefined, error)) {
      // RFC 9112 §9.3.1: it closed while the request was on its way. That says nothing of its health.
      this.#stale++
      this.#attempts--
      attempt.state = 'next'
      setImmediate(attemptAgain, this)
      return
    }
    const kind = failureKind(error)
    if (kind !== undefined) peer?.failed(kind)
    if (this.#mayRetry(error)) {
      attempt.state = 'next'
      if (peer !== undefined) {
        this.#tried ??= new Set()
        this.#tried.add(peer.address)
      }
      setImmediate(attemptAgain, this)
    } else {
      attempt.state = 'failed'
      this.#giveUp(error)
    }
  }

  /** Whether a connection that had served before was found closed, and the request can be sent again. */
  #wasStale(call: Call | undefined, error: Error): boolean {
    return (
      call?.reused === true &&
      this.#stale < MAX_STALE &&
      failureKind(error) === 'tcp' &&
      this.#isRepeatable()
    )
  }

  #mayRetry(error: Error & { code?: string }): boolean {
    if (this.#attempts > this.#exchange.service!.retries) return false
    return !FINAL.has(error.code ?? '') && this.#isRepeatable()
  }

  /** Never once a part of the body is gone, nor what must not happen twice once it was sent. */
  #isRepeatable(): boolean {
    if (this.#body instanceof RequestBody && !this.#body.fresh && this.#held?.whole !== true)
      return false
    return !this.#sent || !NOT_REPEATABLE.has(this.#exchange.request.method)
  }

  #finish(): void {
    this.#ended = true
    this.#settle()
    this.#exchange.lastByteMark = performance.now()
  }
}

/** Not from within the failure of the last: pools see what else has closed, and the stack stays flat. */
function attemptAgain(forward: Forward): void {
  forward.attempt()
}

function flushHead(forward: Forward): void {
  forward.flushHead()
}
