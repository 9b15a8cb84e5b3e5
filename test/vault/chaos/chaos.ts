import type { Test } from 'tap'
import {
  startGateway,
  startUpstream,
  type TestGateway,
  type TestUpstream,
  until
} from '../../harness.ts'
import { startFaultProxy } from '../fault-proxy.ts'
import { type FaultServer, type FaultServerOptions, faults } from '../fault-server.ts'

/** What happens to one vault of the gateway, each to its own: a fault, or that its token ends. */
export const scenarios = ['sound', 'expired-token', ...faults] as const

export type Scenario = (typeof scenarios)[number]

/** A backend with the service it speaks to, for one run of everything that can go wrong. */
export interface ChaosSubject extends AsyncDisposable {
  /** The type of vault. */
  readonly type: string
  /** Where the service listens, for plain HTTP. */
  readonly url: string
  readonly env?: Readonly<Record<string, string>>
  /** PEM of the certificate that its proxies show, where they speak TLS. */
  readonly trust?: string
  /** How the proxies before the service listen, and what of it their faults spare. */
  readonly proxy?: FaultServerOptions
  /** Requests of one read at most, with what it takes to be sure of a refusal. */
  readonly requestsPerRead: number
  /** Settings of a vault that asks this proxy alone. */
  settings(proxy: FaultServer, name: string): Promise<object> | object
  /** Rotates a secret as an operator would. */
  put(resource: string, value: Readonly<Record<string, string>>): Promise<unknown> | unknown
  /** Ends every token that was given out. */
  expire(): void
}

/** A gateway as clients see it, in this process or another. */
export type Served = Pick<TestGateway, 'fetch' | 'status' | 'tlsUrl'>

/** What the pairs of each name are used for, and how a request shows which one is in force. */
export interface Proof {
  /** The nth pair: members of one secret. */
  pair(name: string, n: number): Readonly<Record<string, string>>
  /** Entities that use it; `reference` gives the reference to a member. */
  entities(reference: (name: string, member: string) => string, upstream: TestUpstream): object
  /** Sends one request that needs the nth pair or, in its grace, takes a later one; gives what failed. */
  request(gateway: Served, name: string, n: number): Promise<string | undefined>
  /** Whether the nth pair is in force. */
  inForce(gateway: Served, name: string, n: number): Promise<boolean>
  /** Every use the gateway made of halves of different pairs. */
  halves(): readonly string[]
  /** Uses that were looked at. */
  readonly uses: number
  [Symbol.asyncDispose](): Promise<void>
}

const CLIENTS = 3
const RETRY_AFTER = 2
/** What a read only ends of by its time-out, and that, in seconds: also for a busy machine. */
const HANGING: ReadonlySet<Scenario> = new Set(['black-hole', 'slow'])
const TIMEOUT = 3
/** Bytes that may be under way when an answer is given up, in buffers of both ends and the kernel. */
const UNDER_WAY = 24 * 1024 * 1024
/** What recovers by itself while it lasts, so that there is nothing to wait for. */
const HARMLESS: ReadonlySet<Scenario> = new Set(['sound', 'expired-token'])

/**
 * One gateway with one vault for each scenario, each behind a fault proxy of its own, all under
 * traffic that never stops. Secrets rotate before, during and after the faults: no request fails, no
 * halves mix, nobody is asked without pause, and every vault's new value arrives when it can.
 */
export async function chaos(
  t: Test,
  name: string,
  start: () => Promise<ChaosSubject>,
  prove: (names: readonly string[]) => Promise<Proof>
): Promise<void> {
  await t.test(`${name}: everything goes wrong at once, and nothing fails`, async t => {
    await using subject = await start()
    await using proof = await prove(scenarios)
    await using upstream = await startUpstream()
    await using elsewhere = await startUpstream()
    await using proxies = await startProxies(subject, elsewhere.url)
    const put = (n: number) =>
      Promise.all(scenarios.map(each => subject.put(resourceOf(each), proof.pair(each, n))))
    await put(1)
    await using gateway = await startGateway(
      await configuration(subject, proxies.each, proof, upstream),
      {
        workers: 2,
        env: {
          POSTERN_VAULT_ROTATION_INTERVAL: '1',
          POSTERN_PROXY_LISTEN: '127.0.0.1:0, 127.0.0.1:0 ssl',
          ...subject.env
        }
      }
    )
    const current = new Map<string, number>(scenarios.map(each => [each, 1]))
    await using load = traffic(gateway, proof, current)
    const arrive = async (n: number, which: readonly Scenario[]) => {
      await Promise.all(
        which.map(async each => {
          await until(() => proof.inForce(gateway, each, n), `${each}: pair ${n} in force`, 60_000)
          current.set(each, n)
        })
      )
    }

    await put(2)
    await arrive(2, scenarios)

    for (const proxy of proxies.each.values()) proxy.requests.length = 0
    const begun = performance.now()
    await Promise.all(faults.map(fault => proxies.each.get(fault)!.fault(fault)))
    subject.expire()
    // What was under way when the faults began may still give what was stored then.
    await until(
      async () => {
        const failing = await failures(gateway)
        return faults.every(
          each => proxies.each.get(each)!.requests.length + failing.get(prefix(each))! > 0
        )
      },
      'every fault to be met',
      60_000
    )
    await put(3)
    await arrive(3, [...HARMLESS])
    await until(
      async () => {
        const failing = await failures(gateway)
        return faults.every(each => failing.get(prefix(each))! >= leastFailures(each))
      },
      'every fault to come to a failure',
      60_000
    )
    for (const each of faults) {
      t.notOk(await proof.inForce(gateway, each, 3), `${each}: the last value stays`)
    }
    const failed = await failures(gateway)
    const seen = new Map(scenarios.map(each => [each, proxies.each.get(each)!.requests.length]))
    const seconds = (performance.now() - begun) / 1000
    for (const fault of faults) {
      const reads = mostReads(seconds, fault)
      t.ok(
        failed.get(prefix(fault))! <= reads,
        `${fault}: ${failed.get(prefix(fault))} failed reads in ${seconds} s`
      )
      t.ok(
        seen.get(fault)! <= reads * subject.requestsPerRead,
        `${fault}: ${seen.get(fault)} requests in ${seconds} s`
      )
    }

    for (const fault of faults) await proxies.each.get(fault)!.fault(undefined)
    await arrive(3, faults)
    await put(4)
    await arrive(4, scenarios)
    await load.stop()

    t.strictSame(load.failed, [], 'no request failed')
    t.ok(load.served > scenarios.length, `${load.served} requests were served`)
    t.strictSame(proof.halves(), [], 'no halves')
    t.ok(proof.uses > 0, `${proof.uses} uses of pairs were looked at`)
    t.strictSame(elsewhere.requests, [], 'no redirect was followed to where no vault is')
    for (const fault of ['huge', 'endless'] as const) {
      const { taken } = proxies.each.get(fault)!
      t.ok(taken > 0 && taken < UNDER_WAY, `${fault}: ${taken} bytes were taken`)
    }
  })
}

/** Failed reads that are waited for. */
function leastFailures(scenario: Scenario): number {
  return scenario === 'throttled' || HANGING.has(scenario) ? 1 : 2
}

/** Reads that back-off with jitter allows within so many seconds, the first one included. */
function mostReads(seconds: number, scenario: Scenario): number {
  const byBackOff = 1 + Math.floor(Math.log2(1 + seconds / 0.75))
  return scenario === 'throttled'
    ? Math.min(byBackOff, 1 + Math.floor(seconds / RETRY_AFTER))
    : byBackOff
}

function prefix(scenario: Scenario): string {
  return `v-${scenario}`
}

function resourceOf(name: string): string {
  return `pair-${name}`
}

async function startProxies(subject: ChaosSubject, elsewhere: string) {
  const each = new Map<Scenario, FaultServer>()
  for (const scenario of scenarios) {
    each.set(
      scenario,
      await startFaultProxy(subject.url, {
        retryAfter: RETRY_AFTER,
        elsewhere,
        ...subject.proxy
      })
    )
  }
  return {
    each,
    async [Symbol.asyncDispose]() {
      await Promise.all([...each.values()].map(proxy => proxy.close()))
    }
  }
}

async function configuration(
  subject: ChaosSubject,
  proxies: ReadonlyMap<Scenario, FaultServer>,
  proof: Proof,
  upstream: TestUpstream
): Promise<object> {
  const reference = (name: string, member: string): string =>
    `{vault://v-${name}/${resourceOf(name)}/${member}}`
  const vaults = await Promise.all(
    scenarios.map(async scenario => ({
      name: subject.type,
      prefix: prefix(scenario),
      config: {
        ...(await subject.settings(proxies.get(scenario)!, scenario)),
        ttl: 1,
        neg_ttl: 1,
        ...(HANGING.has(scenario) ? { timeout: TIMEOUT } : {})
      }
    }))
  )
  return { vaults, ...proof.entities(reference, upstream) }
}

/** Failed reads in a row by vault. */
export async function failures(gateway: Served): Promise<ReadonlyMap<string, number>> {
  const { references } = (await gateway.status('/vaults')).json()
  return new Map(
    references.map(({ vault, failures }: { vault: string; failures: number }) => [vault, failures])
  )
}

/** Clients that never stop; what fails is kept. */
export function traffic(gateway: Served, proof: Proof, current: ReadonlyMap<string, number>) {
  const failed: string[] = []
  let served = 0
  let running = true
  const clients = Array.from({ length: CLIENTS }, async () => {
    while (running) {
      for (const [scenario, n] of current) {
        const failure = await proof.request(gateway, scenario, n)
        if (failure === undefined) {
          served++
          continue
        }
        failed.push(`${scenario}: pair ${n}: ${failure}`)
        await new Promise(resolve => setTimeout(resolve, 10))
      }
    }
  })
  const stop = async () => {
    running = false
    await Promise.all(clients)
  }
  return {
    failed,
    get served() {
      return served
    },
    stop,
    [Symbol.asyncDispose]: stop
  }
}
