import { inspect } from 'node:util'
import type { Test } from 'tap'
import { VaultThrottled } from '../../src/errors.ts'
import type { Backend, BackendEnvironment, BackendType, Fetched } from '../../src/vault/backend.ts'
import { extract } from '../../src/vault/extract.ts'
import { until } from '../harness.ts'
import { type Fault, faults, RETRY_AFTER } from './fault-server.ts'

export { type Fault, faults, RETRY_AFTER } from './fault-server.ts'

/** The cases of the contract, by the names that `skip` takes. */
export const cases = [
  'text',
  'json',
  'odd keys',
  'unicode',
  'versions',
  'absent',
  'removed',
  ...faults.map(fault => `fault: ${fault}` as const),
  'retry-after',
  'aborted before',
  'abort',
  'concurrent',
  'recovery',
  'probe',
  'close'
] as const

export type Case = (typeof cases)[number]

/** A backend under test with the service it speaks to. Started once for the whole contract. */
export interface ContractSubject {
  readonly type: BackendType
  readonly config: Readonly<Record<string, unknown>>
  readonly environment?: BackendEnvironment
  /** Stores a value as an operator would and gives the version `fetch` must tell, where it is known. */
  put(resource: string, value: string | object): Promise<string | undefined>
  /** Takes a resource away for good. */
  remove(resource: string): Promise<void>
  /** A resource name that is legal for this backend, made from letters, digits and dashes. */
  resource(name: string): string
  /**
   * Makes every following answer fail this way, or sound again. Where half an answer arrives (`half`,
   * `garbage`, `slow`), it is half of the true one, so that a leak of it would show.
   */
  fault(kind: Fault | undefined): void | Promise<void>
  close(): Promise<void>
  /** Cases that do not apply, with the reason, which is printed. */
  readonly skip?: Partial<Record<Case, string>>
  /** Connections open to the service now; lets the contract check that none is left behind. */
  connections?(): number
  /**
   * The nth value that `put` takes, for services that do not store just anything. Default: a JSON
   * object. What is fetched is compared by `matches`.
   */
  sample?(n: number): string | object
  /** Whether a read gave what was put. Default: equal as JSON where an object was put, else as text. */
  matches?(fetched: Fetched, put: string | object): boolean
  /** Texts besides the values that no error may hold (tokens, keys, passwords of the config). */
  readonly secrets?: readonly string[]
}

/** Reasons to skip every case that needs a service that can fail, but for those in `except`. */
export function withoutFaults(
  reason: string,
  except: readonly Case[] = []
): Partial<Record<Case, string>> {
  const names = cases.filter(
    name =>
      name.startsWith('fault: ') ||
      name === 'retry-after' ||
      name === 'abort' ||
      name === 'recovery'
  )
  return Object.fromEntries(
    names.filter(name => !except.includes(name)).map(name => [name, reason])
  )
}

/** What each fault must come to: the codes of src/errors.ts that say so, or `unreachable` for any other error. */
const EXPECTED: Readonly<Record<Fault, readonly string[]>> = {
  refused: ['unreachable'],
  'black-hole': ['unreachable'],
  reset: ['unreachable'],
  half: ['unreachable', 'POSTERN_VAULT_MALFORMED'],
  garbage: ['unreachable', 'POSTERN_VAULT_MALFORMED'],
  huge: ['unreachable', 'POSTERN_VAULT_MALFORMED'],
  endless: ['unreachable', 'POSTERN_VAULT_MALFORMED'],
  slow: ['unreachable'],
  redirect: ['unreachable'],
  'bad-gateway': ['unreachable'],
  denied: ['POSTERN_VAULT_DENIED'],
  absent: [],
  throttled: ['POSTERN_VAULT_THROTTLED'],
  unavailable: ['unreachable']
}
const KINDS = ['POSTERN_VAULT_DENIED', 'POSTERN_VAULT_THROTTLED', 'POSTERN_VAULT_MALFORMED']

/** Milliseconds after which a read of a service that hangs is given up. */
const PATIENCE = 700
/** Milliseconds within which an aborted read must have ended, also on a busy machine. */
const PROMPT = 5000

/**
 * The cases every backend passes, whatever service it speaks to. `start` gives it with its service;
 * it is closed at the end. Each case opens the backend anew.
 */
export async function backendContract(
  t: Test,
  name: string,
  start: () => Promise<ContractSubject>
): Promise<void> {
  await t.test(`${name}: the contract of a backend`, async t => {
    const subject = await start()
    try {
      for (const { title, names, run } of PARTS) {
        for (const each of names) {
          const skip = subject.skip?.[each]
          await t.test(`${each}: ${title}`, skip === undefined ? {} : { skip }, async t => {
            await using bench = await openBench(subject, each)
            await run(t, bench)
          })
        }
      }
    } finally {
      await subject.fault(undefined)
      await subject.close()
    }
  })
}

/** A subject with its backend opened for one case. */
interface Bench extends AsyncDisposable {
  readonly subject: ContractSubject
  readonly backend: Backend
  readonly name: Case
  /** A resource of this case alone. */
  resource(suffix?: string): string
  sample(n: number): string | object
  matches(fetched: Fetched | undefined, put: string | object): boolean
  fetch(resource: string, signal?: AbortSignal): Promise<Fetched | undefined>
  /** The error a read ends in, with its kind; fails the test when it succeeds. */
  failure(t: Test, resource: string): Promise<{ kind: string; error: unknown }>
  close(): Promise<void>
}

async function openBench(subject: ContractSubject, name: Case): Promise<Bench> {
  const environment = subject.environment ?? { env: {}, log: { info() {}, warn() {} } }
  const backend = await subject.type.open(subject.config, environment)
  const slug = name.replace(/[^a-z]+/g, '-')
  let closed = false
  const bench: Bench = {
    subject,
    backend,
    name,
    resource: (suffix = 'a') => subject.resource(`contract-${slug}-${suffix}`),
    sample: n => subject.sample?.(n) ?? { user: `canary-user-${n}`, password: `canary-word-${n}` },
    matches(fetched, put) {
      if (fetched === undefined) return false
      if (subject.matches !== undefined) return subject.matches(fetched, put)
      if (typeof put === 'string') return fetched.value === put
      const value = typeof fetched.value === 'string' ? JSON.parse(fetched.value) : fetched.value
      return inspect(sorted(value), { depth: 9 }) === inspect(sorted(put), { depth: 9 })
    },
    fetch: (resource, signal = AbortSignal.timeout(10_000)) =>
      backend.fetch(resource, undefined, signal),
    async failure(t, resource) {
      try {
        await backend.fetch(resource, undefined, AbortSignal.timeout(PATIENCE))
      } catch (error) {
        const { code } = error as { code?: string }
        return { kind: KINDS.includes(code ?? '') ? code! : 'unreachable', error }
      }
      t.fail('the read succeeded')
      return { kind: 'none', error: undefined }
    },
    async close() {
      if (closed) return
      closed = true
      await backend.close?.()
    },
    async [Symbol.asyncDispose]() {
      await subject.fault(undefined)
      await bench.close()
    }
  }
  return bench
}

/** Whether nothing is stored: a backend gives undefined, or throws SecretAbsent with a reason. */
async function isAbsent(read: Promise<Fetched | undefined>): Promise<boolean> {
  try {
    return (await read) === undefined
  } catch (error) {
    if ((error as { code?: string }).code !== 'POSTERN_VAULT_ABSENT') throw error
    return true
  }
}

function sorted(value: unknown): unknown {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return value
  return Object.entries(value)
    .map(([key, member]) => [key, sorted(member)] as const)
    .sort(([a], [b]) => (a < b ? -1 : 1))
}

interface Part {
  readonly title: string
  readonly names: readonly Case[]
  run(t: Test, bench: Bench): Promise<void>
}

const ODD = {
  '': 'empty name',
  'with space': 'a',
  'with/slash': 'b',
  'with.dot': 'c',
  'with~tilde': 'd',
  'with"quote': 'e',
  'with\\backslash': 'f',
  ünïcode: 'g',
  constructor: 'h'
}

const PARTS: readonly Part[] = [
  {
    title: 'text comes back as it was stored',
    names: ['text'],
    async run(t, bench) {
      for (const [i, text] of ['plain', ' spaces around ', 'two\nlines', '{"not json'].entries()) {
        const resource = bench.resource(`t${i}`)
        await bench.subject.put(resource, text)
        const fetched = await bench.fetch(resource)
        t.equal(fetched && extract(fetched, 'it', undefined, undefined, false), text)
      }
    }
  },
  {
    title: 'members of a JSON object are addressed by key and pointer',
    names: ['json'],
    async run(t, bench) {
      const resource = bench.resource()
      await bench.subject.put(resource, { user: 'anna', port: 5432, deep: { er: ['x', 'y'] } })
      const fetched = (await bench.fetch(resource))!
      t.equal(extract(fetched, 'it', 'user', undefined, false), 'anna')
      t.equal(extract(fetched, 'it', 'port', undefined, false), '5432')
      t.equal(extract(fetched, 'it', undefined, '/deep/er/1', false), 'y')
      t.throws(() => extract(fetched, 'it', 'toString', undefined, false), {
        code: 'POSTERN_VAULT_ABSENT'
      })
    }
  },
  {
    title: 'members may have any name',
    names: ['odd keys'],
    async run(t, bench) {
      const resource = bench.resource()
      await bench.subject.put(resource, ODD)
      const fetched = (await bench.fetch(resource))!
      for (const [key, value] of Object.entries(ODD)) {
        t.equal(extract(fetched, 'it', key, undefined, false), value, JSON.stringify(key))
      }
    }
  },
  {
    title: 'no character is lost',
    names: ['unicode'],
    async run(t, bench) {
      const resource = bench.resource()
      const value = { word: 'pässwörd 密码 🔑 \u0000\u0007\u2028 ﷽' }
      await bench.subject.put(resource, value)
      const fetched = (await bench.fetch(resource))!
      t.equal(extract(fetched, 'it', 'word', undefined, false), value.word)
    }
  },
  {
    title: 'equal while nothing changes, different after an update',
    names: ['versions'],
    async run(t, bench) {
      const resource = bench.resource()
      const told = await bench.subject.put(resource, bench.sample(1))
      const first = (await bench.fetch(resource))!
      t.ok(bench.matches(first, bench.sample(1)), 'the value is the one that was put')
      t.equal((await bench.fetch(resource))?.version, first.version, 'equal while unchanged')
      if (told !== undefined) t.equal(first.version, told, 'the version is the one that was told')
      const toldNext = await bench.subject.put(resource, bench.sample(2))
      const second = (await bench.fetch(resource))!
      t.ok(bench.matches(second, bench.sample(2)), 'the update is seen by the next read')
      if (toldNext !== undefined) t.equal(second.version, toldNext)
      if (first.version !== undefined) t.not(second.version, first.version)
      t.notMatch(String(second.version), 'canary', 'a version tells nothing of the value')
    }
  },
  {
    title: 'what was never stored is absent',
    names: ['absent'],
    async run(t, bench) {
      t.ok(await isAbsent(bench.fetch(bench.resource('never'))))
    }
  },
  {
    title: 'what was taken away is absent',
    names: ['removed'],
    async run(t, bench) {
      const resource = bench.resource()
      await bench.subject.put(resource, bench.sample(1))
      t.ok(await bench.fetch(resource))
      await bench.subject.remove(resource)
      t.ok(await isAbsent(bench.fetch(resource)))
    }
  },
  {
    title: 'a fault is told as what it is, without a word of any secret',
    names: faults.map(fault => `fault: ${fault}` as const),
    async run(t, bench) {
      const fault = bench.name.slice('fault: '.length) as Fault
      const resource = bench.resource()
      await bench.subject.put(resource, bench.sample(1))
      t.ok(await bench.fetch(resource), 'it can be read before')
      await bench.subject.fault(fault)
      if (fault === 'absent') {
        t.ok(await isAbsent(bench.fetch(resource)))
      } else {
        const begun = performance.now()
        const { kind, error } = await bench.failure(t, resource)
        t.ok(EXPECTED[fault].includes(kind), `${fault} is told as ${kind}`)
        t.ok(performance.now() - begun < PATIENCE + PROMPT, 'it ends when it is given up')
        assertSilent(t, error, bench)
      }
      await bench.subject.fault(undefined)
    }
  },
  {
    title: 'the pause a vault asks for is handed on',
    names: ['retry-after'],
    async run(t, bench) {
      const resource = bench.resource()
      await bench.subject.put(resource, bench.sample(1))
      await bench.subject.fault('throttled')
      const { error } = await bench.failure(t, resource)
      t.ok(error instanceof VaultThrottled)
      t.equal((error as InstanceType<typeof VaultThrottled>).retryAfter, RETRY_AFTER)
    }
  },
  {
    title: 'a read that is not wanted any more is not begun',
    names: ['aborted before'],
    async run(t, bench) {
      const resource = bench.resource()
      await bench.subject.put(resource, bench.sample(1))
      await t.rejects(bench.fetch(resource, AbortSignal.abort()))
      t.ok(await bench.fetch(resource), 'the next one is not harmed')
    }
  },
  {
    title: 'reads end with their signal and leave nothing open',
    names: ['abort'],
    async run(t, bench) {
      const resource = bench.resource()
      await bench.subject.put(resource, bench.sample(1))
      await bench.fetch(resource)
      await bench.subject.fault('black-hole')
      const aborter = new AbortController()
      const reads = Array.from({ length: 5 }, () => bench.fetch(resource, aborter.signal))
      const settled = Promise.allSettled(reads)
      await new Promise(resolve => setTimeout(resolve, 50))
      const begun = performance.now()
      aborter.abort()
      for (const { status } of await settled) t.equal(status, 'rejected')
      t.ok(performance.now() - begun < PROMPT, 'promptly')
      await bench.close()
      if (bench.subject.connections !== undefined) {
        await until(() => bench.subject.connections!() === 0, 'every connection to be closed')
      }
    }
  },
  {
    title: 'reads side by side each get their own',
    names: ['concurrent'],
    async run(t, bench) {
      const resources = Array.from({ length: 12 }, (_, i) => bench.resource(`n${i}`))
      await Promise.all(resources.map((name, i) => bench.subject.put(name, bench.sample(i))))
      const wanted = [...resources.entries(), ...resources.entries()]
      const fetched = await Promise.all(wanted.map(([, resource]) => bench.fetch(resource)))
      t.ok(wanted.every(([i], at) => bench.matches(fetched[at], bench.sample(i))))
    }
  },
  {
    title: 'after each fault the same backend reads on',
    names: ['recovery'],
    async run(t, bench) {
      const resource = bench.resource()
      await bench.subject.put(resource, bench.sample(1))
      for (const fault of faults.filter(
        each => bench.subject.skip?.[`fault: ${each}`] === undefined
      )) {
        await bench.subject.fault(fault)
        await bench.fetch(resource, AbortSignal.timeout(PATIENCE)).catch(() => {})
        await bench.subject.fault(undefined)
        await until(
          async () => (await bench.fetch(resource).catch(() => undefined)) !== undefined,
          `a read after ${fault}`
        )
      }
      t.ok(bench.matches(await bench.fetch(resource), bench.sample(1)))
    }
  },
  {
    title: 'a look at the version agrees with a read',
    names: ['probe'],
    async run(t, bench) {
      const { backend, subject } = bench
      if (backend.probe === undefined) {
        t.pass('this backend has none')
        return
      }
      const probe = (resource: string) =>
        backend.probe!(resource, undefined, AbortSignal.timeout(10_000))
      const resource = bench.resource()
      await subject.put(resource, bench.sample(1))
      const first = await probe(resource)
      t.type(first, 'string')
      t.equal(first, (await bench.fetch(resource))?.version)
      await subject.put(resource, bench.sample(2))
      t.not(await probe(resource), first)
      t.equal(await probe(resource), (await bench.fetch(resource))?.version)
      t.equal(await probe(bench.resource('never')), undefined)
      if (subject.skip?.['fault: denied'] === undefined) {
        await subject.fault('denied')
        await t.rejects(probe(resource), { code: 'POSTERN_VAULT_DENIED' })
      }
    }
  },
  {
    title: 'a backend that was closed holds nothing',
    names: ['close'],
    async run(t, bench) {
      const resource = bench.resource()
      await bench.subject.put(resource, bench.sample(1))
      await bench.fetch(resource)
      await bench.close()
      if (bench.subject.connections !== undefined) {
        await until(() => bench.subject.connections!() === 0, 'every connection to be closed')
      }
      t.pass('it closed')
    }
  }
]

/** Fails when what would be printed of an error holds a value. */
function assertSilent(t: Test, error: unknown, { subject }: Bench): void {
  const shown = inspect(error, { depth: 9, showHidden: true }) + safeJson(error)
  for (const word of ['canary', ...(subject.secrets ?? [])]) {
    t.notOk(shown.includes(word), `no error holds ${word === 'canary' ? 'a value' : 'a secret'}`)
  }
}

function safeJson(value: unknown): string {
  try {
    return JSON.stringify(value) ?? ''
  } catch {
    return ''
  }
}
