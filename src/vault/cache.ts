import { isDeepStrictEqual } from 'node:util'
import type { Fetched } from './backend.ts'
import { type Clock, codeOf, outcomeOf } from './gate.ts'

/** Why a resource has no value. A vault that throttles counts as unreachable. */
export type FailureState = 'absent' | 'denied' | 'unreachable' | 'malformed'

/** What the last read that failed came to. */
export interface ReadFailure {
  readonly state: FailureState
  /** The error code it is told under. */
  readonly code: string
  /** Never holds a value. */
  readonly message: string
}

/** Freshness of a resource, in seconds. */
export interface Freshness {
  /** How long a value is fresh, so when it is read again; 0 is for ever. A lease comes first. */
  readonly ttl: number
  /** How long an absence or denial is believed before it is asked again. */
  readonly negTtl: number
  /** How long the last good value is served after it stopped being fresh. */
  readonly resurrectTtl: number
  /** Whether an absence or denial takes the value out of service at once. */
  readonly failOnDenied: boolean
  /** How long one read may take. */
  readonly timeout: number
}

/** What resources are read from: an open vault. */
export interface Source {
  /** Calls `begun` when the call is made, as opposed to waiting for its turn. */
  fetch(
    resource: string,
    version: string | undefined,
    timeout: number,
    begun: () => void
  ): Promise<Fetched | undefined>
  /** Undefined when versions cannot be asked for alone; see Backend.probe. */
  readonly probe:
    | ((
        resource: string,
        version: string | undefined,
        timeout: number,
        begun: () => void
      ) => Promise<string | undefined>)
    | undefined
  /** Until when the vault asked not to be asked, on the resource's clock. */
  readonly pausedUntil: number
  /** Calls `changed` when the resource changed at its source, where the vault can tell. */
  watch(resource: string, changed: () => void): () => void
  /** Whether settings of the vault itself are read from this resource. */
  dependsOn(resource: Resource): boolean
  /** Every such resource. */
  readonly allDependencies: readonly Resource[]
}

/** Of a resource that nothing holds. */
const UNHELD: Freshness = {
  ttl: 0,
  negTtl: 0,
  resurrectTtl: 0,
  failOnDenied: false,
  timeout: 10
}

/** First pause after a failure, in milliseconds; it doubles with each one in a row. */
const BACKOFF_BASE = 1000
/** Longest pause while the vault gives no answer: short, for it ends an outage. */
const UNREACHABLE_CAP = 30_000
/** The same while there is no value that serves meanwhile, or one of an earlier process. */
const WITHOUT_VALUE_CAP = 5000
/** Longest pause of the back-off after any other failure. */
const REFUSED_CAP = 300_000
/** Parts of its life after which a lease is read again, and by which a ttl may come early. */
const LEASE_PART = 2 / 3
const TTL_JITTER = 0.1
/** Attempts of a first read whose vault gave no answer at once, and while it throttles. */
const QUICK_ATTEMPTS = 3
const THROTTLED_ATTEMPTS = 6
/** Longest that a first read waits in all, and that an attempt may have taken to be repeated, in milliseconds. */
const LOAD_PATIENCE = 30_000
const QUICK = 1000

/**
 * One resource of one vault: the unit of fetching. Whatever references take from it comes from the
 * same read, so parts of one secret never mix versions. Times are of a clock that does not jump.
 */
export class Resource {
  readonly name: string
  readonly version: string | undefined
  readonly source: Source
  readonly #clock: Clock
  readonly #held = new Set<Freshness>()
  readonly #gone: () => void
  #freshness: Freshness = UNHELD
  #fetched: Fetched | undefined
  /** When what is held was known to be current: the start of the read that said so. */
  #confirmedAt = Number.NEGATIVE_INFINITY
  #jitter = 0
  #revision = 0
  #reads = 0
  #failure: ReadFailure | undefined
  #failures = 0
  /** Steps of the back-off so far. */
  #setbacks = 0
  #failingSince = 0
  #rejected: string | undefined
  #rejections = 0
  #rejectedSince = 0
  #retryAt = 0
  #reading: Promise<void> | undefined
  #following: Promise<void> | undefined
  #begun = false
  #restored = false

  /** `gone` is called when the vault says that there is nothing, or nothing for the gateway. */
  constructor(
    name: string,
    version: string | undefined,
    source: Source,
    clock: Clock,
    gone: () => void = () => {}
  ) {
    this.name = name
    this.version = version
    this.source = source
    this.#clock = clock
    this.#gone = gone
  }

  /** Keeps it as fresh as this until the function it gives is called. The strictest holder decides. */
  hold(freshness: Freshness): () => void {
    this.#held.add(freshness)
    this.#freshness = strictest(this.#held)
    return () => {
      this.#held.delete(freshness)
      if (this.#held.size > 0) this.#freshness = strictest(this.#held)
    }
  }

  get freshness(): Freshness {
    return this.#freshness
  }

  /** The last good read, while it may be served; undefined when there is none. */
  get current(): Fetched | undefined {
    if (this.#fetched === undefined) return undefined
    const now = this.#clock.now()
    const resurrect = this.freshness.resurrectTtl * 1000
    if (this.#rejected !== undefined && now >= this.#rejectedSince + resurrect) return undefined
    if (this.#failure === undefined) return this.#fetched
    const { state } = this.#failure
    if (this.freshness.failOnDenied && (state === 'denied' || state === 'absent')) return undefined
    return now >= this.#staleSince + resurrect ? undefined : this.#fetched
  }

  /** When the value stopped being fresh, while reads fail. */
  get #staleSince(): number {
    const ttl = this.#ttl
    return ttl > 0 ? this.#confirmedAt + ttl * 1000 : this.#failingSince
  }

  /** Why the last read failed; undefined when it did not. */
  get failure(): ReadFailure | undefined {
    return this.#failure
  }

  /** Why the value that was read last could not be brought into force; undefined when it could. */
  get rejected(): string | undefined {
    return this.#rejected
  }

  /** Failed reads and refused values in a row. */
  get failures(): number {
    return this.#failures + this.#rejections
  }

  /** Seconds since the value was known to be current; undefined while there is none. */
  get age(): number | undefined {
    if (this.#fetched === undefined) return undefined
    return Math.max(0, (this.#clock.now() - this.#confirmedAt) / 1000)
  }

  /** Grows whenever a read gave something else than the one before. */
  get revision(): number {
    return this.#revision
  }

  /** Reads that succeeded. */
  get reads(): number {
    return this.#reads
  }

  /** Whether a read is under way or waits for its turn. */
  get reading(): boolean {
    return this.#reading !== undefined
  }

  get #ttl(): number {
    return this.#fetched?.ttl ?? this.freshness.ttl
  }

  /** When it is to be read next, on the clock; Infinity when none is due by time. */
  get dueAt(): number {
    const due = this.#ownDueAt
    return due === Number.POSITIVE_INFINITY ? due : Math.max(due, this.source.pausedUntil)
  }

  get #ownDueAt(): number {
    if (this.#failure !== undefined || this.#rejected !== undefined) return this.#retryAt
    if (this.#fetched === undefined) return 0
    const { ttl: lease } = this.#fetched
    if (lease !== undefined) return this.#confirmedAt + lease * 1000 * LEASE_PART
    const { ttl } = this.freshness
    // Coming early by chance keeps resources, and nodes, from being due in step.
    return ttl > 0
      ? this.#confirmedAt + ttl * 1000 * (1 - this.#jitter * TTL_JITTER)
      : Number.POSITIVE_INFINITY
  }

  /** Whether it is to be read at `dueAt` itself: the next look at what is due may be too late. */
  get urgent(): boolean {
    return (
      this.#failure !== undefined ||
      this.#rejected !== undefined ||
      this.#fetched?.ttl !== undefined
    )
  }

  /**
   * Reads when there is no value, or when one is due. A vault that gives no answer at once, or
   * throttles, is asked a few times. Never rejects: a failure is a state.
   */
  async load(): Promise<void> {
    const startedAt = this.#clock.now()
    if (this.current !== undefined && startedAt < this.dueAt) return
    const setbacks = this.#setbacks
    for (let attempt = 1; ; attempt++) {
      const begunAt = this.#clock.now()
      // All attempts of one load are one step of the back-off.
      this.#setbacks = setbacks
      await this.join()
      if (this.#failure?.state !== 'unreachable') return
      const now = this.#clock.now()
      const paused = this.source.pausedUntil > now
      const again = paused
        ? attempt < THROTTLED_ATTEMPTS
        : attempt < QUICK_ATTEMPTS && now - begunAt < QUICK
      const pause = paused ? this.source.pausedUntil - now : 100 * 3 ** (attempt - 1)
      if (!again || now + pause - startedAt > LOAD_PATIENCE) return
      await new Promise(resolve => setTimeout(resolve, pause + 1))
    }
  }

  /** Waits for the read under way, or reads now. Never rejects. */
  join(): Promise<void> {
    this.#reading ??= this.#start()
    return this.#reading
  }

  /**
   * Reads now, once however many ask, and never with a call that was made before it was asked for.
   * Never rejects.
   */
  refresh(): Promise<void> {
    if (this.#reading === undefined || !this.#begun) return this.join()
    this.#following ??= this.#reading.then(() => {
      this.#following = undefined
      return this.join()
    })
    return this.#following
  }

  #start(): Promise<void> {
    this.#begun = false
    const begun = (): void => {
      this.#begun = true
    }
    return this.#read(begun).finally(() => {
      this.#reading = undefined
    })
  }

  async #read(begun: () => void): Promise<void> {
    const askedAt = this.#clock.now()
    try {
      const fetched = await this.#ask(begun)
      if (fetched === undefined)
        this.#fail('absent', 'POSTERN_VAULT_ABSENT', 'nothing is stored there')
      else this.#succeed(fetched, askedAt)
    } catch (error) {
      const outcome = outcomeOf(error)
      const state = outcome === 'throttled' ? 'unreachable' : outcome
      this.#fail(state, codeOf(error), (error as Error).message)
    }
  }

  /** An unchanged version is not read again. */
  async #ask(begun: () => void): Promise<Fetched | undefined> {
    const { timeout } = this.freshness
    const held = this.#fetched
    // A lease is renewed by reading; and what has no version cannot be told from another.
    if (this.source.probe !== undefined && held?.version !== undefined && held.ttl === undefined) {
      const version = await this.source.probe(this.name, this.version, timeout, begun)
      if (version === held.version) return held
      if (version === undefined) return undefined
    }
    return this.source.fetch(this.name, this.version, timeout, begun)
  }

  #succeed(fetched: Fetched, askedAt: number): void {
    const same = this.#fetched !== undefined && sameFetched(this.#fetched, fetched)
    if (!same) {
      this.#revision++
      this.#rejected = undefined
      this.#rejections = 0
    }
    // The object held stays while it says the same, for what was taken from it.
    if (!same || fetched.ttl !== undefined || fetched.version !== this.#fetched?.version)
      this.#fetched = fetched
    this.#reads++
    this.#confirmedAt = askedAt
    this.#restored = false
    this.#jitter = this.#clock.random()
    this.#failure = undefined
    this.#failures = 0
    this.#setbacks = 0
    if (this.#rejected !== undefined) this.#backOff(this.#rejections, REFUSED_CAP, 0)
  }

  #fail(state: FailureState, code: string, message: string): void {
    if (this.#failure === undefined) this.#failingSince = this.#clock.now()
    this.#failure = { state, code, message }
    if (state === 'absent' || state === 'denied') this.#gone()
    const minimum = state === 'absent' || state === 'denied' ? this.freshness.negTtl * 1000 : 0
    const provisional = this.current === undefined || this.#restored
    const unreachable = provisional ? WITHOUT_VALUE_CAP : UNREACHABLE_CAP
    this.#failures++
    this.#backOff(this.#setbacks++, state === 'unreachable' ? unreachable : REFUSED_CAP, minimum)
  }

  /** What was read last is in force. */
  accept(): void {
    this.#rejected = undefined
    this.#rejections = 0
  }

  /** What was read last could not be brought into force: it is read and tried again after a pause. */
  reject(reason: string): void {
    if (this.#rejected === undefined) this.#rejectedSince = this.#clock.now()
    this.#rejected = reason
    this.#backOff(this.#rejections++, REFUSED_CAP, 0)
  }

  /** Serves what was read `age` seconds ago, by an earlier process, while reads fail. */
  restore(fetched: Fetched, age: number): void {
    this.#fetched = fetched
    this.#confirmedAt = this.#clock.now() - age * 1000
    this.#revision++
    this.#restored = true
  }

  /** Whether the value is one that {@link restore} gave. */
  get restored(): boolean {
    return this.#restored
  }

  #backOff(before: number, cap: number, minimum: number): void {
    const pause = Math.min(BACKOFF_BASE * 2 ** Math.min(before, 20), cap)
    // Jitter of a quarter keeps many nodes from asking in step.
    this.#retryAt = this.#clock.now() + Math.max(minimum, pause * (0.75 + this.#clock.random() / 2))
  }
}

/** The strictest of each: where references to one resource differ, none gets less than it asked for. */
function strictest(all: ReadonlySet<Freshness>): Freshness {
  const each = [...all]
  const ttls = each.map(({ ttl }) => ttl).filter(ttl => ttl > 0)
  return {
    ttl: ttls.length === 0 ? 0 : Math.min(...ttls),
    negTtl: Math.min(...each.map(({ negTtl }) => negTtl)),
    resurrectTtl: Math.min(...each.map(({ resurrectTtl }) => resurrectTtl)),
    failOnDenied: each.some(({ failOnDenied }) => failOnDenied),
    timeout: Math.min(...each.map(({ timeout }) => timeout))
  }
}

function sameFetched(a: Fetched, b: Fetched): boolean {
  return isDeepStrictEqual(a.value, b.value)
}
