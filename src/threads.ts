import { randomBytes } from 'node:crypto'
import { getPriority, setPriority } from 'node:os'
import { Worker } from 'node:worker_threads'
import { type Remote, serveCalls } from './calls.ts'
import {
  type Generation,
  type ListenerTls,
  type SecretState,
  type Secrets,
  toColumns
} from './generation.ts'
import { keepCodeWhileIdle } from './memory.ts'
import { pack } from './packing.ts'
import type { Logger } from './plugins/plugin.ts'
import { createCounts, type RequestCounts } from './proxy/counts.ts'
import type { Answer } from './proxy/dns.ts'
import type { Settings } from './settings.ts'
import type { Touched } from './uses.ts'
import type { ControlCalls, ThreadStats, Update, WorkerCalls, WorkerData } from './worker.ts'

export interface ThreadsOptions {
  /** What the first thread runs in, from {@link firstWorker}. */
  readonly worker: Worker
  readonly settings: Settings
  readonly product: string
  readonly shared: WorkerData['shared']
  readonly log: Logger
  /** Memory that holds the health of upstream addresses. */
  readonly health: SharedArrayBuffer
  /** What is known of host names now. */
  readonly names: () => ReadonlyMap<string, Answer>
  /** What the threads may ask of the control thread. */
  readonly control: ControlCalls
}

interface Thread {
  readonly number: number
  readonly worker: Worker
  readonly calls: Remote<WorkerCalls>
  readonly counts: RequestCounts
  readonly first: boolean
  listening: boolean
  /** The question for its figures that it has not answered yet. */
  asked: Promise<ThreadStats | undefined> | undefined
  /** What ended it; undefined while it lives, and when it ended without an error. */
  failure: Error | undefined
}

/** What is brought into force: see {@link Update}, the form in which it is sent. */
export type Change =
  | { readonly generation: Generation }
  | { readonly secrets: Secrets; readonly touched: Touched; readonly tls?: ListenerTls }

function asSent(change: Change): Update {
  if (!('generation' in change)) return { ...change, secrets: toColumns(change.secrets) }
  const { generation } = change
  const { config, secrets, tls } = generation
  return { generation: { config: pack(config), secrets: toColumns(secrets), tls } }
}

/** Milliseconds in which a thread tells its figures, or counts as unresponsive. */
const STATS_TIMEOUT = 1000
/** Longest pause before a thread that keeps dying is started again, in milliseconds. */
const MAX_RESTART_DELAY = 5000

function newWorker(number: number): Worker {
  keepCodeWhileIdle()
  const file = import.meta.url.endsWith('.ts') ? './worker.ts' : './worker.js'
  return new Worker(new URL(file, import.meta.url), { name: `postern-${number}` })
}

/**
 * Begins to load the code of the first data-plane thread, so that it is ready when the configuration
 * is: a start takes two thirds of the time. It does not keep the process alive until it serves.
 */
export function firstWorker(): Worker {
  const worker = newWorker(1)
  worker.unref()
  return worker
}

/** How much nicer the control thread is than those that serve: a tenth of their share of a busy core. */
const YIELD = 10

/**
 * Lets the threads that serve go before the one that calls this, once they run, where a core is too few
 * for both: while 10,000 routes were loaded again and again beside requests on one core, their p99 was
 * 12 ms instead of 25. Threads that are started later inherit it, one that replaces a dead one too: raising
 * a priority takes a right that containers have not. Only on Linux is it the thread's own; elsewhere
 * it would be that of the process.
 */
export function yieldToServing(): void {
  if (process.platform !== 'linux') return
  try {
    setPriority(0, Math.min(19, getPriority(0) + YIELD))
  } catch {
    // A sandbox may forbid the call, on which nothing but these latencies depends.
  }
}

/**
 * The data-plane threads: starts them, brings the same generation into force in all of them, and
 * replaces one that dies while the others serve on.
 */
export class Threads {
  readonly #options: ThreadsOptions
  readonly #threads = new Map<number, Thread>()
  #generation: Omit<Generation, 'secrets'>
  #secrets: Map<string, SecretState>
  /** What the threads that ended had counted. */
  readonly #ended = createCounts()
  #ports: readonly number[] = []
  readonly #ticketKeys = randomBytes(48)
  #closing = false
  #next = 1

  constructor(generation: Generation, options: ThreadsOptions) {
    this.#generation = generation
    this.#secrets = new Map(generation.secrets)
    this.#options = options
  }

  /**
   * Starts all threads and opens the listeners; gives the ports. Rejects when a plugin's set-up
   * refuses its configuration or an address cannot be bound.
   */
  async start(): Promise<readonly number[]> {
    const { workers } = this.#options.settings
    try {
      this.#ports = await this.#open(this.#spawn())
      await Promise.all(Array.from({ length: workers - 1 }, () => this.#open(this.#spawn())))
    } catch (error) {
      this.#closing = true
      await Promise.all([...this.#threads.values()].map(({ worker }) => worker.terminate()))
      throw error
    }
    return this.#ports
  }

  /** How many threads serve now. */
  get serving(): number {
    return [...this.#threads.values()].filter(({ listening }) => listening).length
  }

  /** The states of references that are in force. */
  get secrets(): Secrets {
    return this.#secrets
  }

  get workers(): readonly Worker[] {
    return [...this.#threads.values()].map(({ worker }) => worker)
  }

  /** Lets a thread listen; rejects with what ended it rather than with its end. */
  async #open(thread: Thread): Promise<readonly number[]> {
    try {
      const ports = await thread.calls.listen()
      thread.listening = true
      return ports
    } catch (error) {
      throw thread.failure ?? error
    }
  }

  #spawn(attempt = 0): Thread {
    const { settings, product, shared, health, names, log, control } = this.#options
    const number = this.#next++
    const counts = createCounts()
    const data: WorkerData = {
      thread: number,
      settings,
      product,
      generation: {
        config: pack(this.#generation.config),
        secrets: toColumns(this.#secrets),
        tls: this.#generation.tls
      },
      ports: this.#ports,
      reusePort: settings.workers > 1,
      shared,
      counts,
      health,
      names: names(),
      first: ![...this.#threads.values()].some(({ first }) => first),
      ticketKeys: this.#ticketKeys
    }
    const worker = number === 1 ? this.#options.worker : newWorker(number)
    worker.ref()
    worker.postMessage(data)
    const thread: Thread = {
      number,
      worker,
      calls: serveCalls<ControlCalls, WorkerCalls>(worker, control),
      counts,
      first: data.first,
      listening: false,
      asked: undefined,
      failure: undefined
    }
    this.#threads.set(number, thread)
    const bornAt = performance.now()
    worker.on('error', error => {
      thread.failure = error
      log.error({ thread: number, err: error }, 'a data-plane thread failed')
    })
    worker.on('exit', () => {
      this.#threads.delete(number)
      addTo(this.#ended, counts)
      // One that has never listened ends what waits for it to: see #replace.
      if (this.#closing || !thread.listening) return
      log.error({ thread: number }, 'a data-plane thread ended and is replaced')
      this.#replaceSoon(performance.now() - bornAt > MAX_RESTART_DELAY ? 0 : attempt + 1)
    })
    return thread
  }

  /** `attempt` counts threads in a row that did not live long. */
  #replaceSoon(attempt: number): void {
    const delay = attempt === 0 ? 0 : Math.min(50 * 2 ** attempt, MAX_RESTART_DELAY)
    setTimeout(() => this.#replace(attempt), delay).unref()
  }

  #replace(attempt: number): void {
    if (this.#closing) return
    const thread = this.#spawn(attempt)
    this.#open(thread).then(
      () => {
        this.#options.log.info({ thread: thread.number }, 'a data-plane thread took over')
      },
      async error => {
        this.#options.log.error(
          { thread: thread.number, err: error },
          'a data-plane thread could not start'
        )
        await thread.worker.terminate()
        this.#replaceSoon(attempt + 1)
      }
    )
  }

  /**
   * Brings an update into force in all threads or in none: every thread prepares it beside what
   * serves, then all commit. Rejects with the first refusal; nothing has changed then.
   */
  async apply(change: Change): Promise<void> {
    const update = asSent(change)
    const threads = [...this.#threads.values()]
    const prepared = await Promise.allSettled(threads.map(({ calls }) => calls.prepare(update)))
    const refusal = prepared.find(
      (result, index) => result.status === 'rejected' && this.#threads.has(threads[index]!.number)
    )
    if (refusal?.status === 'rejected') {
      await Promise.allSettled(threads.map(({ calls }) => calls.abort()))
      throw refusal.reason
    }
    // A thread born from now on starts with what the others are about to commit.
    if ('generation' in change) {
      this.#generation = change.generation
      this.#secrets = new Map(change.generation.secrets)
    } else {
      if (change.tls !== undefined) this.#generation = { ...this.#generation, tls: change.tls }
      for (const [text, state] of change.secrets) this.#secrets.set(text, state)
    }
    await Promise.allSettled(threads.map(({ calls }) => calls.commit()))
    await this.#catchUp(threads, update)
  }

  /** Threads that were started while an update was prepared may have started with the older state. */
  async #catchUp(done: readonly Thread[], update: Update): Promise<void> {
    for (const thread of this.#threads.values()) {
      if (done.includes(thread)) continue
      await thread.calls.prepare(update).then(
        () => thread.calls.commit(),
        () => {}
      )
    }
  }

  /** Tells every thread that the addresses of a host name changed. */
  nameChanged(host: string, answer: Answer): void {
    for (const { calls } of this.#threads.values()) calls.nameChanged(host, answer).catch(() => {})
  }

  /** What all threads have counted since the start, those that ended included. */
  get counts(): RequestCounts {
    const sum = createCounts()
    addTo(sum, this.#ended)
    for (const { counts } of this.#threads.values()) addTo(sum, counts)
    return sum
  }

  /**
   * What each serving thread tells of itself, by its number; undefined for one that does not answer
   * within a second. However many ask, a thread is asked once at a time.
   */
  async stats(): Promise<ReadonlyMap<number, ThreadStats | undefined>> {
    const threads = [...this.#threads.values()].filter(({ listening }) => listening)
    const late = Promise.withResolvers<undefined>()
    const timer = setTimeout(late.resolve, STATS_TIMEOUT, undefined)
    const told = await Promise.all(
      threads.map(thread => Promise.race([statsOf(thread), late.promise]))
    )
    clearTimeout(timer)
    return new Map(
      threads
        .map(({ number }, index) => [number, told[index]] as const)
        .filter(([number]) => this.#threads.has(number))
    )
  }

  /** Drains every thread, at most `timeout` milliseconds, then ends it. */
  async close(timeout: number): Promise<void> {
    this.#closing = true
    await Promise.all(
      [...this.#threads.values()].map(async ({ worker, calls }) => {
        const exited = new Promise<void>(resolve => worker.once('exit', () => resolve()))
        const forced = setTimeout(() => void worker.terminate(), timeout + 2000)
        await calls.close(timeout).catch(() => {})
        await exited
        clearTimeout(forced)
      })
    )
  }
}

/** Undefined when the thread ends meanwhile. */
function statsOf(thread: Thread): Promise<ThreadStats | undefined> {
  thread.asked ??= thread.calls
    .stats()
    .catch(() => undefined)
    .finally(() => {
      thread.asked = undefined
    })
  return thread.asked
}

function addTo(sum: RequestCounts, counts: RequestCounts): void {
  for (const [index, count] of counts.entries()) sum[index]! += count
}
