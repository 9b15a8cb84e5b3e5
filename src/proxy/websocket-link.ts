import type { WebSocket } from 'ws'

/** Bytes that may wait for a peer before the other one is no longer read. */
const HIGH_WATER = 131_072
/** Bytes below which it is read again. */
const LOW_WATER = 65_536

/** RFC 6455 §7.4.1: stands for a close frame without a code. */
const NO_CODE = 1005
/** RFC 6455 §7.4.1: stands for a connection that ended without a close frame. */
const ABNORMAL = 1006

/**
 * Joins the two sides of a proxied WebSocket in what @fastify/http-proxy, which passes the messages,
 * leaves out: neither side is read faster than the other takes, and how one ended the other learns.
 */
export function join(source: WebSocket, target: WebSocket): void {
  throttle(source, target)
  throttle(target, source)
  mirrorEnd(source, target)
  mirrorEnd(target, source)
}

/** Reads `from` only as fast as `to` takes. */
function throttle(from: WebSocket, to: WebSocket): void {
  const { send, ping, pong } = to
  const hold = (): void => {
    if (to.bufferedAmount > HIGH_WATER) from.pause()
  }
  const sent = (): void => {
    if (from.isPaused && to.bufferedAmount < LOW_WATER) from.resume()
  }
  to.send = (data: Parameters<WebSocket['send']>[0], options: unknown): void => {
    send.call(to, data, options as { binary: boolean }, sent)
    hold()
  }
  to.ping = data => {
    ping.call(to, data, undefined, sent)
    hold()
  }
  to.pong = data => {
    pong.call(to, data, undefined, sent)
    hold()
  }
}

/** Ends `to` as `from` ended: with the same code and reason, without a code, or cut off. */
function mirrorEnd(from: WebSocket, to: WebSocket): void {
  // Before the listener of the library, which invents codes for the last two.
  from.prependListener('close', (code, reason) => {
    // Or it would not hear of the answer to its close frame.
    to.resume()
    if (code === NO_CODE) to.close()
    else if (code === ABNORMAL) to.terminate()
    else to.close(code, reason)
  })
}
