import { constants, type ServerHttp2Session, type ServerHttp2Stream } from 'node:http2'

/** Streams a client may reset before they are answered, however many it lets be answered. */
const FREE_RESETS = 100
/**
 * Bytes that may have been queued for streams when they were cut off. Node counts them against the
 * memory of the session for good, and would refuse streams of a client that often breaks off downloads,
 * as players do that seek; instead of a session that is closed in good order it opens another.
 */
const MAX_LOST = 32 * 1024 * 1024
/** SETTINGS and PING frames a session may send at once, and how many it earns each second. */
const CONTROL_BURST = 500
const CONTROL_RATE = 50

export interface GuardOptions {
  /** Milliseconds a session without requests is kept. */
  readonly idleTimeout: number
  /** Requests of one session, after which it is closed in good order. */
  readonly maxRequests: number
}

/**
 * Ends HTTP/2 sessions that cost more than they ask for: streams reset as fast as they are opened
 * (CVE-2023-44487), floods of SETTINGS or PING (CVE-2019-9512, -9515), and idle ones. What the frame
 * layer bounds itself is set where the server is made: header lists, CONTINUATION frames, invalid
 * frames, streams at a time, memory.
 */
export function guardSession(session: ServerHttp2Session, options: GuardOptions): void {
  let open = 0
  let served = 0
  let resets = 0
  let lost = 0
  let budget = CONTROL_BURST
  let earnedAt = performance.now()
  const end = (): void => {
    session.goaway(constants.NGHTTP2_ENHANCE_YOUR_CALM)
    session.destroy()
  }
  const onControlFrame = (): void => {
    const now = performance.now()
    budget = Math.min(CONTROL_BURST, budget + ((now - earnedAt) / 1000) * CONTROL_RATE)
    earnedAt = now
    budget--
    if (budget < 0 && !session.destroyed) end()
  }
  session.on('ping', onControlFrame)
  session.on('remoteSettings', onControlFrame)
  session.on('stream', (stream: ServerHttp2Stream) => {
    open++
    served++
    if (served === options.maxRequests) session.close()
    stream.once('close', () => {
      open--
      if (!stream.writableFinished) {
        lost += stream.writableLength
        if (lost > MAX_LOST && !session.closed) session.close()
      }
      if (stream.rstCode === constants.NGHTTP2_NO_ERROR || stream.headersSent) return
      resets++
      // Clients with deadlines cancel some of what they ask; only an attack cancels most.
      if (resets > FREE_RESETS && resets * 2 > served && !session.destroyed) end()
    })
  })
  session.setTimeout(options.idleTimeout, () => {
    if (open === 0) session.close()
  })
}
