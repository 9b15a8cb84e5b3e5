/**
 * What a data-plane thread counts of its requests, in shared memory that it alone writes: at 1 to 5
 * the answers by the first digit of their status, at 0 all others, at 6 the seconds they took.
 */
export type RequestCounts = Float64Array<SharedArrayBuffer>

const MEMBERS = 7
/** Where the seconds are. */
export const SECONDS = 6

export function createCounts(): RequestCounts {
  return new Float64Array(new SharedArrayBuffer(MEMBERS * Float64Array.BYTES_PER_ELEMENT))
}

/** Adds one answered request. */
export function countRequest(counts: RequestCounts, status: number, milliseconds: number): void {
  const digit = (status / 100) | 0
  counts[digit >= 1 && digit <= 5 ? digit : 0]! += 1
  counts[SECONDS]! += milliseconds / 1000
}
