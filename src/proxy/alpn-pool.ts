import type { buildConnector, Dispatcher } from 'undici'
import { Http1Pool, type Http1PoolOptions } from './http1/pool.ts'
import { Http2Pool } from './http2/pool.ts'
import { EndingDispatcher, type ForwardOptions } from './pool.ts'

/**
 * Connections over TLS to one address, in HTTP/2 where the upstream chooses it (RFC 7301) and in
 * HTTP/1.1 otherwise. What it chose once goes for the next connections, until it no longer offers HTTP/2.
 */
export class AlpnPool extends EndingDispatcher {
  readonly #http1: Http1Pool
  readonly #http2: Http2Pool
  #speaksHttp2 = true

  /** `connect` of the options offers HTTP/1.1 alone; `offerHttp2` both. */
  constructor(origin: URL, options: Http1PoolOptions, offerHttp2: buildConnector.connector) {
    super()
    this.#http1 = new Http1Pool(origin, options)
    this.#http2 = new Http2Pool(origin, { ...options, connect: offerHttp2 }, waiting => {
      this.#speaksHttp2 = false
      for (const { options, handler } of waiting) this.#http1.dispatch(options, handler)
    })
  }

  override dispatch(options: ForwardOptions, handler: Dispatcher.DispatchHandler): boolean {
    return (this.#speaksHttp2 ? this.#http2 : this.#http1).dispatch(options, handler)
  }

  protected override async finish(error: Error | undefined): Promise<void> {
    // What waits for the first may go on to the second, so that closes last.
    const close = (pool: Dispatcher) => (error === undefined ? pool.close() : pool.destroy(error))
    await close(this.#http2)
    await close(this.#http1)
  }
}
