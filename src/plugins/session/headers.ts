import type { HeaderKind } from './config.ts'
import type { Session } from './jar.ts'
import { type TimeLeft, type Timeouts, timeLeft } from './timeouts.ts'

/** The header field of each kind. */
const NAMES: Readonly<Record<HeaderKind, string>> = {
  id: 'Session-Id',
  audience: 'Session-Audience',
  subject: 'Session-Subject',
  timeout: 'Session-Timeout',
  'idling-timeout': 'Session-Idling-Timeout',
  'rolling-timeout': 'Session-Rolling-Timeout',
  'absolute-timeout': 'Session-Absolute-Timeout'
}

const LEFT: Readonly<Record<string, keyof TimeLeft>> = {
  timeout: 'shortest',
  'idling-timeout': 'idling',
  'rolling-timeout': 'rolling',
  'absolute-timeout': 'absolute'
}

/** What tells the upstream or the client about a session, compiled from the kinds that are asked for. */
export class SessionHeaders {
  readonly #kinds: readonly HeaderKind[]
  /** The fields' names. */
  readonly names: readonly string[]

  constructor(kinds: readonly HeaderKind[] | undefined) {
    this.#kinds = kinds ?? []
    this.names = this.#kinds.map(kind => NAMES[kind])
  }

  /** Sets the fields; a timeout that is off has none. `now` in Unix milliseconds. */
  set(
    target: { setHeader(name: string, value: string): void },
    session: Session,
    audience: string,
    timeouts: Timeouts,
    now: number
  ): void {
    if (this.#kinds.length === 0) return
    const left = timeLeft(session.times, timeouts, now)
    for (const kind of this.#kinds) {
      const value = fieldValue(kind, session, audience, left)
      if (value !== undefined) target.setHeader(NAMES[kind], value)
    }
  }
}

function fieldValue(
  kind: HeaderKind,
  { id, identities }: Session,
  audience: string,
  left: TimeLeft
): string | undefined {
  if (kind === 'id') return id.toString('base64url')
  if (kind === 'audience') return audience
  if (kind === 'subject') return identities.find(one => one.audience === audience)?.subject
  const seconds = left[LEFT[kind]!]
  return seconds === undefined ? undefined : `${Math.floor(seconds)}`
}
