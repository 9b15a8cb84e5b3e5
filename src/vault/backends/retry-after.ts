/**
 * Seconds that a Retry-After asks for, which may be a number or a date (RFC 9110, 10.2.3); undefined
 * where it asks for nothing. A date counts from that of the answer: the clocks of both may differ.
 */
export function retryAfter(
  value: string | null | undefined,
  date?: string | null
): number | undefined {
  if (value == null || value.trim() === '') return undefined
  const seconds = Number(value)
  if (Number.isFinite(seconds)) return Math.max(0, seconds)
  const until = Date.parse(value)
  if (Number.isNaN(until)) return undefined
  const sent = Date.parse(date ?? '')
  return Math.max(0, (until - (Number.isNaN(sent) ? Date.now() : sent)) / 1000)
}
