/**
 * A period that limits may be set for. Windows are aligned to the UTC calendar; moments are Unix
 * milliseconds.
 */
export interface Period {
  readonly name: 'second' | 'minute' | 'hour' | 'day' | 'month' | 'year'
  /** As in `X-RateLimit-Limit-Minute`. */
  readonly title: string
  /** Which of the six it is. */
  readonly index: number
  /** What counts as its length, in seconds: a month is 30 days and a year 365. */
  readonly seconds: number
  /** The number of the window that holds this moment; it grows with time and fits 32 bits. */
  windowAt(moment: number): number
  /** When the window that holds this moment began. */
  startOf(moment: number): number
}

function fixed(name: Period['name'], title: string, index: number, seconds: number): Period {
  const length = seconds * 1000
  return {
    name,
    title,
    index,
    seconds,
    windowAt: moment => Math.floor(moment / length),
    startOf: moment => moment - (moment % length)
  }
}

/** The periods, shortest first. */
export const periods: readonly Period[] = [
  fixed('second', 'Second', 0, 1),
  fixed('minute', 'Minute', 1, 60),
  fixed('hour', 'Hour', 2, 3600),
  fixed('day', 'Day', 3, 86_400),
  {
    name: 'month',
    title: 'Month',
    index: 4,
    seconds: 2_592_000,
    windowAt(moment) {
      const date = new Date(moment)
      return date.getUTCFullYear() * 12 + date.getUTCMonth()
    },
    startOf(moment) {
      const date = new Date(moment)
      return Date.UTC(date.getUTCFullYear(), date.getUTCMonth())
    }
  },
  {
    name: 'year',
    title: 'Year',
    index: 5,
    seconds: 31_536_000,
    windowAt: moment => new Date(moment).getUTCFullYear(),
    startOf: moment => Date.UTC(new Date(moment).getUTCFullYear(), 0)
  }
]

/** Seconds until the window that holds `now` is over, at least 1. */
export function secondsLeft(period: Period, now: number): number {
  return Math.max(1, period.seconds - Math.floor((now - period.startOf(now)) / 1000))
}
