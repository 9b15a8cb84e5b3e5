import type { LoopDelay } from './loop-delay.ts'
import { type RequestCounts, SECONDS } from './proxy/counts.ts'
import type { Observe, VaultEvent } from './vault/observation.ts'
import type { ReferenceStatus, VaultHealth } from './vault/vaults.ts'

/** Upper bounds of the buckets of a vault's latency, in seconds. */
const BUCKETS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10] as const
/** References with series of their own; beyond it the sums by vault remain. */
export const MAX_SERIES = 1000

interface Reads {
  /** By operation and outcome. */
  readonly outcomes: Map<string, { operation: string; outcome: string; count: number }>
  readonly buckets: number[]
  seconds: number
}

/** What the gateway tells at the moment of a scrape. */
export interface MetricsState {
  readonly version: string
  /** Unix milliseconds. */
  readonly startedAt: number
  readonly workers: {
    readonly configured: number
    readonly serving: number
    /** Numbers of the threads that did not tell of themselves in time. */
    readonly unresponsive: readonly number[]
  }
  /** Of the threads that told it, as the following. */
  readonly inFlight: number
  readonly webSockets: number
  /** Of each data-plane thread that told it. */
  readonly delays: readonly (LoopDelay & { readonly thread: number })[]
  /** Sum of the counts of all threads. */
  readonly requests: RequestCounts
  readonly entities: Readonly<Record<string, number>>
  readonly lastReload: { readonly at: number; readonly ok: boolean } | undefined
  readonly references: readonly ReferenceStatus[]
  readonly health: readonly VaultHealth[]
  readonly certificates: readonly {
    readonly certificate: string
    readonly names: string
    /** Unix milliseconds. */
    readonly notAfter: number
  }[]
}

/**
 * The gateway's metrics. What happens is counted here as plain numbers, what is so is asked for at a
 * scrape; both leave in Prometheus's text format 0.0.4. Control thread only.
 */
export class Metrics {
  readonly #reads = new Map<string, Reads>()
  readonly #changes = new Map<string, number>()
  readonly #refusals = new Map<string, number>()
  readonly #pauses = new Map<string, number>()
  readonly #reloads = { ok: 0, refused: 0 }

  /** Takes in what the vault layer tells. */
  readonly observe: Observe = event => {
    if (event.kind === 'read') this.#read(event)
    else if (event.kind === 'changed') increase(this.#changes, event.vault)
    else if (event.kind === 'refused') increase(this.#refusals, event.vault)
    else increase(this.#pauses, event.vault)
  }

  #read({ vault, operation, outcome, seconds }: VaultEvent & { readonly kind: 'read' }): void {
    let reads = this.#reads.get(vault)
    if (reads === undefined) {
      reads = { outcomes: new Map(), buckets: BUCKETS.map(() => 0), seconds: 0 }
      this.#reads.set(vault, reads)
    }
    const key = `${operation} ${outcome}`
    const before = reads.outcomes.get(key)
    if (before === undefined) reads.outcomes.set(key, { operation, outcome, count: 1 })
    else before.count++
    reads.seconds += seconds
    const bucket = BUCKETS.findIndex(bound => seconds <= bound)
    if (bucket !== -1) reads.buckets[bucket]!++
  }

  reloaded(ok: boolean): void {
    this.#reloads[ok ? 'ok' : 'refused']++
  }

  /** Everything as text. */
  render(state: MetricsState): string {
    const text = new Exposition()
    this.#node(text, state)
    this.#traffic(text, state)
    this.#configuration(text, state)
    this.#vaults(text, state)
    secrets(text, state.references)
    return text.end()
  }

  #node(text: Exposition, { version, startedAt, workers }: MetricsState): void {
    const { user, system } = process.cpuUsage()
    text.family('postern_build_info', 'gauge', 'Version of the gateway and of Node.')
    text.sample({ version, node: process.versions.node }, 1)
    text.family('process_start_time_seconds', 'gauge', 'Unix time of the start.')
    text.sample({}, startedAt / 1000)
    text.family('process_cpu_seconds_total', 'counter', 'CPU time of all threads.')
    text.sample({}, (user + system) / 1e6)
    text.family('process_resident_memory_bytes', 'gauge', 'Resident memory of all threads.')
    text.sample({}, process.memoryUsage.rss())
    text.family('postern_workers', 'gauge', 'Data-plane threads.')
    text.sample({ state: 'configured' }, workers.configured)
    text.sample({ state: 'serving' }, workers.serving)
  }

  #traffic(text: Exposition, state: MetricsState): void {
    const { requests, inFlight, webSockets, delays, workers } = state
    text.family(
      'postern_worker_unresponsive',
      'gauge',
      'Whether a data-plane thread did not tell of itself within a second.'
    )
    const told = delays.map(({ thread }) => [thread, 0] as const)
    for (const [thread, value] of [
      ...told,
      ...workers.unresponsive.map(each => [each, 1] as const)
    ])
      text.sample({ thread: `${thread}` }, value)
    text.family('postern_requests_total', 'counter', 'Requests answered, by class of status.')
    let count = 0
    for (const digit of [1, 2, 3, 4, 5, 0]) {
      count += requests[digit]!
      text.sample({ class: digit === 0 ? 'other' : `${digit}xx` }, requests[digit]!)
    }
    text.family('postern_request_duration_seconds', 'summary', 'From head received to answer sent.')
    text.sample({}, requests[SECONDS]!, '_sum')
    text.sample({}, count, '_count')
    text.family('postern_requests_in_flight', 'gauge', 'Requests that are being served.')
    text.sample({}, inFlight)
    text.family('postern_websockets_open', 'gauge', 'WebSocket connections.')
    text.sample({}, webSockets)
    text.family(
      'postern_event_loop_delay_seconds',
      'gauge',
      'How late each data-plane thread runs what is due, of the last 30 to 60 seconds.'
    )
    for (const { thread, p50, p99, max } of delays) {
      text.sample({ thread: `${thread}`, quantile: '0.5' }, p50)
      text.sample({ thread: `${thread}`, quantile: '0.99' }, p99)
      text.sample({ thread: `${thread}`, quantile: '1' }, max)
    }
  }

  #configuration(text: Exposition, state: MetricsState): void {
    text.family('postern_config_entities', 'gauge', 'Entities of the running configuration.')
    for (const [kind, count] of Object.entries(state.entities)) text.sample({ kind }, count)
    text.family('postern_config_reloads_total', 'counter', 'Reloads, by result.')
    for (const [result, count] of Object.entries(this.#reloads)) text.sample({ result }, count)
    if (state.lastReload !== undefined) {
      const { at, ok } = state.lastReload
      text.family('postern_config_last_reload_success', 'gauge', 'Whether the last reload took.')
      text.sample({}, ok ? 1 : 0)
      text.family('postern_config_last_reload_timestamp_seconds', 'gauge', 'When it was.')
      text.sample({}, at / 1000)
    }
    text.family(
      'postern_certificate_expiry_timestamp_seconds',
      'gauge',
      'When a configured certificate ends.'
    )
    for (const { notAfter, ...labels } of state.certificates) text.sample(labels, notAfter / 1000)
  }

  #vaults(text: Exposition, { references, health }: MetricsState): void {
    text.family('postern_vault_reads_total', 'counter', 'Reads of a vault, by outcome.')
    for (const [vault, { outcomes }] of this.#reads) {
      for (const { operation, outcome, count } of outcomes.values())
        text.sample({ vault, operation, outcome }, count)
    }
    text.family('postern_vault_read_duration_seconds', 'histogram', 'Time a read took.')
    for (const [vault, { buckets, outcomes, seconds }] of this.#reads) {
      let below = 0
      for (const [index, bound] of BUCKETS.entries()) {
        below += buckets[index]!
        text.sample({ vault, le: String(bound) }, below, '_bucket')
      }
      const count = outcomes.values().reduce((sum, each) => sum + each.count, 0)
      text.sample({ vault, le: '+Inf' }, count, '_bucket')
      text.sample({ vault }, seconds, '_sum')
      text.sample({ vault }, count, '_count')
    }
    text.family('postern_vault_references', 'gauge', 'References, by vault and state.')
    for (const [vault, own] of Map.groupBy(references, ({ vault }) => vault)) {
      for (const [state, some] of Map.groupBy(own, reference => reference.state)) {
        text.sample({ vault, state }, some.length)
      }
    }
    text.family('postern_vault_oldest_value_seconds', 'gauge', 'Age of the oldest value in force.')
    for (const [vault, own] of Map.groupBy(references, ({ vault }) => vault)) {
      const oldest = own.reduce((age, reference) => Math.max(age, reference.age ?? 0), 0)
      text.sample({ vault }, oldest)
    }
    text.family('postern_vault_changes_total', 'counter', 'New values that came into force.')
    for (const [vault, count] of this.#changes) text.sample({ vault }, count)
    text.family('postern_vault_refusals_total', 'counter', 'New values that were refused.')
    for (const [vault, count] of this.#refusals) text.sample({ vault }, count)
    text.family('postern_vault_pauses_total', 'counter', 'Times a vault asked to be asked less.')
    for (const [vault, count] of this.#pauses) text.sample({ vault }, count)
    text.family(
      'postern_vault_last_known_good',
      'gauge',
      'References served from the last-known-good file.'
    )
    for (const [vault, own] of Map.groupBy(references, ({ vault }) => vault)) {
      const kept = own.filter(({ source }) => source === 'last-known-good')
      text.sample({ vault }, kept.length)
    }
    text.family(
      'postern_vault_token_expiry_timestamp_seconds',
      'gauge',
      'When the credential of a vault ends.'
    )
    for (const { vault, tokenExpiresAt } of health) {
      if (tokenExpiresAt !== undefined) text.sample({ vault }, tokenExpiresAt / 1000)
    }
  }
}

function increase(counts: Map<string, number>, name: string): void {
  counts.set(name, (counts.get(name) ?? 0) + 1)
}

/** Series by reference, for as many as a scrape should carry. */
function secrets(text: Exposition, references: readonly ReferenceStatus[]): void {
  const listed = references.slice(0, MAX_SERIES)
  const now = Date.now() / 1000
  text.family('postern_secret_info', 'gauge', 'Version in force, as the vault names it.')
  for (const { reference, vault, version } of listed) {
    if (version !== undefined) text.sample({ reference, vault, version }, 1)
  }
  text.family('postern_secret_stale', 'gauge', 'Whether the value could not be refreshed.')
  for (const { reference, vault, state } of listed)
    text.sample({ reference, vault }, state === 'ok' ? 0 : 1)
  text.family('postern_secret_age_seconds', 'gauge', 'Since it was read.')
  for (const { reference, vault, age } of listed) {
    if (age !== undefined) text.sample({ reference, vault }, age)
  }
  text.family('postern_secret_last_success_timestamp_seconds', 'gauge', 'When it was read.')
  for (const { reference, vault, age } of listed) {
    if (age !== undefined) text.sample({ reference, vault }, Math.round(now - age))
  }
  text.family('postern_secret_next_refresh_seconds', 'gauge', 'Until it is read again.')
  for (const { reference, vault, next_refresh } of listed) {
    if (next_refresh !== undefined) text.sample({ reference, vault }, next_refresh)
  }
  text.family('postern_secret_failures', 'gauge', 'Failed reads and refused values in a row.')
  for (const { reference, vault, failures } of listed) text.sample({ reference, vault }, failures)
  text.family('postern_secret_unlisted', 'gauge', 'References without series of their own.')
  text.sample({}, references.length - listed.length)
}

type Labels = Readonly<Record<string, string>>

/** Prometheus's text format, version 0.0.4. */
class Exposition {
  readonly #lines: string[] = []
  #name = ''

  family(name: string, type: 'counter' | 'gauge' | 'histogram' | 'summary', help: string): void {
    this.#name = name
    this.#lines.push(`# HELP ${name} ${help}`, `# TYPE ${name} ${type}`)
  }

  sample(labels: Labels, value: number, suffix = ''): void {
    const pairs = Object.entries(labels).map(([name, text]) => `${name}="${escapeLabel(text)}"`)
    const shown = pairs.length === 0 ? '' : `{${pairs.join(',')}}`
    this.#lines.push(`${this.#name}${suffix}${shown} ${value}`)
  }

  end(): string {
    return `${this.#lines.join('\n')}\n`
  }
}

function escapeLabel(text: string): string {
  return text.replaceAll('\\', '\\\\').replaceAll('"', '\\"').replaceAll('\n', '\\n')
}
