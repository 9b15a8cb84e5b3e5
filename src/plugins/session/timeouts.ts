/** When things happened to a session, in Unix milliseconds. */
export interface Times {
  readonly created: number
  /** When its id and cookie were last made anew. */
  readonly renewed: number
  /** When its cookie last took note of its use. */
  readonly touched: number
}

/** Seconds a session may last from its creation, its last renewal and its last use; 0 is off. */
export interface Timeouts {
  readonly absolute: number
  readonly rolling: number
  readonly idling: number
}

/** Seconds left of each timeout that is on, and of the one that ends first. */
export interface TimeLeft {
  readonly absolute: number | undefined
  readonly rolling: number | undefined
  readonly idling: number | undefined
  readonly shortest: number | undefined
}

/** What a session in use needs: nothing, a note of its use, or to be made anew. */
export type Upkeep = 'none' | 'touch' | 'renew'

/** Part of the rolling timeout after which a session is renewed. */
const RENEW_AFTER = 0.75
/** Seconds between two notes of use; less where the idling timeout is short. */
const TOUCH_EVERY = 60
const TOUCH_PART = 0.25

/** Where the timeouts of a session stand at `now`, in Unix milliseconds. */
export function timeLeft(times: Times, timeouts: Timeouts, now: number): TimeLeft {
  const left = (timeout: number, since: number): number | undefined =>
    timeout === 0 ? undefined : timeout - (now - since) / 1000
  const absolute = left(timeouts.absolute, times.created)
  const rolling = left(timeouts.rolling, times.renewed)
  const idling = left(timeouts.idling, times.touched)
  const shortest = Math.min(absolute ?? Infinity, rolling ?? Infinity, idling ?? Infinity)
  return { absolute, rolling, idling, shortest: shortest === Infinity ? undefined : shortest }
}

export function isExpired(times: Times, timeouts: Timeouts, now: number): boolean {
  const { shortest } = timeLeft(times, timeouts, now)
  return shortest !== undefined && shortest < 0
}

export function upkeep(times: Times, timeouts: Timeouts, now: number): Upkeep {
  const { rolling, idling } = timeouts
  if (rolling > 0 && now - times.renewed > rolling * RENEW_AFTER * 1000) return 'renew'
  const noteAfter = Math.min(TOUCH_EVERY, idling * TOUCH_PART)
  return idling > 0 && now - times.touched > noteAfter * 1000 ? 'touch' : 'none'
}
