import type { HealthChecks } from '../schema/entities.ts'

/**
 * The health of every address of every upstream, in memory all threads share, so that what one
 * thread sees of an address counts for all. An open hash table of fixed size: threads find the slot
 * of an address by its key alone. It is written under a lock, which is held for microseconds and only
 * when an address comes or goes; counting needs none.
 */

/** Addresses the table holds; more get a slot of their own in one thread. */
const SLOTS = 8192
/** Slots looked at for a key. */
const WINDOW = 32
/** 32-bit cells of a slot: one cache line, so that threads do not share lines by accident. */
const CELLS = 16
/** Cells before the first slot. */
const HEADER = 16

// Cells of the header.
const LOCK = 0
const EPOCH = 1

// Cells of a slot. The key takes the first two.
const HOLDERS = 2
const UNHEALTHY = 3
/** As 64-bit floats: two cells each. */
const LATENCY = 4
const LATENCY_AT = 6
/** Where the counters of each kind of check begin. */
const CHECKS = { active: 8, passive: 12 } as const

// Counters of a kind of check, from where they begin.
const SUCCESSES = 0
const TCP_FAILURES = 1
const TIMEOUTS = 2
const HTTP_FAILURES = 3

/**
 * What watches an address: probes, or the requests it serves. Each counts for itself, since each has
 * thresholds of its own: requests that go well must not hide that probes fail, nor the other way.
 */
export type Check = keyof typeof CHECKS

/** Makes the memory of a table; hand it to every thread. */
export function createHealthMemory(): SharedArrayBuffer {
  return new SharedArrayBuffer((HEADER + SLOTS * CELLS) * Int32Array.BYTES_PER_ELEMENT)
}

/** 64-bit FNV-1a; never 0, which marks a free slot. */
function hash64(text: string): bigint {
  let high = 0xcbf29ce4
  let low = 0x84222325
  for (let i = 0; i < text.length; i++) {
    low = (low ^ text.charCodeAt(i)) >>> 0
    // Times 0x100000001b3, in 32-bit halves.
    const product = low * 0x1b3
    const carry = Math.floor(product / 0x1_0000_0000)
    high = (Math.imul(high, 0x1b3) + carry + (low << 8)) >>> 0
    low = product >>> 0
  }
  return BigInt.asIntN(64, (BigInt(high) << 32n) | BigInt(low)) || 1n
}

/** The counters of one address, shared by all threads. */
export class HealthSlot {
  readonly #cells: Int32Array
  readonly #floats: Float64Array
  readonly #base: number

  constructor(cells: Int32Array, floats: Float64Array, base: number) {
    this.#cells = cells
    this.#floats = floats
    this.#base = base
  }

  get healthy(): boolean {
    return Atomics.load(this.#cells, this.#base + UNHEALTHY) === 0
  }

  /** Milliseconds, a moving average as its writer makes it; 0 when there is none yet. */
  get latency(): number {
    return this.#floats[(this.#base + LATENCY) >> 1]!
  }

  /** When it last changed, by the clock of the node. */
  get latencyAt(): number {
    return this.#floats[(this.#base + LATENCY_AT) >> 1]!
  }

  // Two threads writing at once lose one of two samples, which an average can bear.
  setLatency(value: number, at: number): void {
    this.#floats[(this.#base + LATENCY) >> 1] = value
    this.#floats[(this.#base + LATENCY_AT) >> 1] = at
  }

  /** What a kind of check has counted. */
  counters(check: Check) {
    const base = this.#base + CHECKS[check]
    const at = (cell: number): number => Atomics.load(this.#cells, base + cell)
    return {
      successes: at(SUCCESSES),
      tcp_failures: at(TCP_FAILURES),
      timeouts: at(TIMEOUTS),
      http_failures: at(HTTP_FAILURES)
    }
  }

  /**
   * Counts a success, which ends the row of failures the same check had seen; gives whether it made
   * the address healthy. `enough` 0 never does.
   */
  succeed(check: Check, enough: number): boolean {
    const cells = this.#cells
    const base = this.#base + CHECKS[check]
    // Nearly every success finds nothing to change, and reading does not disturb other threads.
    for (let cell = base + TCP_FAILURES; cell <= base + HTTP_FAILURES; cell++) {
      if (Atomics.load(cells, cell) !== 0) Atomics.store(cells, cell, 0)
    }
    if (enough === 0 || this.healthy) return false
    if (Atomics.add(cells, base + SUCCESSES, 1) + 1 < enough) return false
    return this.#turn(false)
  }

  /** Counts a failure; gives whether it made the address unhealthy. `enough` 0 does not count. */
  fail(check: Check, kind: Failure, enough: number): boolean {
    if (enough === 0) return false
    const cells = this.#cells
    const base = this.#base + CHECKS[check]
    if (Atomics.load(cells, base + SUCCESSES) !== 0) Atomics.store(cells, base + SUCCESSES, 0)
    if (!this.healthy) return false
    if (Atomics.add(cells, base + FAILURE_CELLS[kind], 1) + 1 < enough) return false
    return this.#turn(true)
  }

  /** Sets the state; gives whether it was another. Counters start anew. */
  turn(healthy: boolean): boolean {
    return this.#turn(!healthy)
  }

  /** Of threads that reach a threshold at once, one turns the state. */
  #turn(unhealthy: boolean): boolean {
    const cells = this.#cells
    const from = unhealthy ? 0 : 1
    if (Atomics.compareExchange(cells, this.#base + UNHEALTHY, from, 1 - from) !== from)
      return false
    for (const first of Object.values(CHECKS)) {
      // The failures that took it out stay to be seen until it is back.
      const last = first + (unhealthy ? SUCCESSES : HTTP_FAILURES)
      for (let cell = first; cell <= last; cell++) Atomics.store(cells, this.#base + cell, 0)
    }
    Atomics.add(cells, EPOCH, 1)
    return true
  }
}

const FAILURE_CELLS = { tcp: TCP_FAILURES, timeout: TIMEOUTS, http: HTTP_FAILURES } as const

/** What can go wrong: no connection or a broken one, no answer in time, a status that says so. */
export type Failure = keyof typeof FAILURE_CELLS

/** One thread's way to the shared table. */
export class HealthTable {
  readonly #cells: Int32Array
  readonly #floats: Float64Array
  readonly #keys: BigInt64Array

  constructor(memory: SharedArrayBuffer) {
    this.#cells = new Int32Array(memory)
    this.#floats = new Float64Array(memory)
    this.#keys = new BigInt64Array(memory)
  }

  /** Grows with every change of state, in any thread. */
  get epoch(): number {
    return Atomics.load(this.#cells, EPOCH)
  }

  /**
   * The slot of an address, held until {@link release}. The state of a key that nobody holds starts
   * anew; what is held stays, so it survives reloads.
   */
  acquire(key: string): HealthSlot {
    const hash = hash64(key)
    return this.#locked(() => {
      const base = this.#find(hash)
      // A full table: health is then known to this thread alone.
      if (base === undefined) {
        const memory = new SharedArrayBuffer((HEADER + CELLS) * Int32Array.BYTES_PER_ELEMENT)
        return new HealthSlot(new Int32Array(memory), new Float64Array(memory), HEADER)
      }
      if (Atomics.add(this.#cells, base + HOLDERS, 1) === 0) {
        this.#cells.fill(0, base + UNHEALTHY, base + CELLS)
        this.#keys[base >> 1] = hash
      }
      return new HealthSlot(this.#cells, this.#floats, base)
    })
  }

  release(key: string): void {
    const hash = hash64(key)
    this.#locked(() => {
      const base = this.#find(hash)
      if (base !== undefined && this.#keys[base >> 1] === hash) {
        Atomics.sub(this.#cells, base + HOLDERS, 1)
      }
    })
  }

  /** Where a key stands, else where it can stand. Within the lock. */
  #find(hash: bigint): number | undefined {
    const first = Number(BigInt.asUintN(32, hash)) % SLOTS
    let free: number | undefined
    for (let i = 0; i < WINDOW; i++) {
      const base = HEADER + ((first + i) % SLOTS) * CELLS
      if (this.#keys[base >> 1] === hash) return base
      if (free === undefined && Atomics.load(this.#cells, base + HOLDERS) === 0) free = base
    }
    return free
  }

  #locked<T>(task: () => T): T {
    const cells = this.#cells
    // A thread that died within the lock never gives it back: the wait is bounded, then it is taken.
    for (let i = 0; i < 100 && Atomics.compareExchange(cells, LOCK, 0, 1) !== 0; i++) {
      Atomics.wait(cells, LOCK, 1, 1)
    }
    try {
      return task()
    } finally {
      Atomics.store(cells, LOCK, 0)
      Atomics.notify(cells, LOCK, 1)
    }
  }
}

/** Whether an upstream's targets are checked at all. */
export function isChecked({ active, passive }: HealthChecks): boolean {
  const { tcp_failures, timeouts, http_failures } = passive.unhealthy
  return (
    active.healthy.interval > 0 ||
    active.unhealthy.interval > 0 ||
    tcp_failures > 0 ||
    timeouts > 0 ||
    http_failures > 0
  )
}

/** What one kind of check makes of what it saw, compiled from its part of `healthchecks`. */
export class HealthRules {
  readonly #check: Check
  readonly #successes: number
  readonly #thresholds: Readonly<Record<Failure, number>>
  /** 1 for a status of the healthy list, 2 for one of the unhealthy. */
  readonly #statuses = new Uint8Array(1000)

  constructor(check: Check, { healthy, unhealthy }: HealthChecks[Check]) {
    this.#check = check
    this.#successes = healthy.successes
    this.#thresholds = {
      tcp: unhealthy.tcp_failures,
      timeout: unhealthy.timeouts,
      http: unhealthy.http_failures
    }
    for (const status of healthy.http_statuses) this.#statuses[status] = 1
    for (const status of unhealthy.http_statuses) this.#statuses[status] = 2
  }

  /** Counts a status; gives whether the address changed its state. One of neither list is nothing. */
  status(slot: HealthSlot, status: number): boolean {
    const meaning = this.#statuses[status]
    if (meaning === 1) return this.success(slot)
    return meaning === 2 && this.failure(slot, 'http')
  }

  success(slot: HealthSlot): boolean {
    return slot.succeed(this.#check, this.#successes)
  }

  failure(slot: HealthSlot, kind: Failure): boolean {
    return slot.fail(this.#check, kind, this.#thresholds[kind])
  }
}

/** The key of an address in the table: what a reload must leave as it is for the state to stay. */
export function healthKey(
  upstream: { readonly name: string },
  host: string,
  { ip, port }: { readonly ip: string; readonly port: number }
): string {
  return `${upstream.name} ${host} ${ip} ${port}`
}
