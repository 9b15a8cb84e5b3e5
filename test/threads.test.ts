import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { MessageChannel, Worker } from 'node:worker_threads'
import t from 'tap'
import { startGateway } from '../src/gateway.ts'
import type { Lent } from './blockable-worker.ts'
import { until } from './harness.ts'
import { startProcess } from './process.ts'

// Threads start slowly on a busy machine.
t.setTimeout(120_000)

const shared = (numbers: number): Int32Array => new Int32Array(new SharedArrayBuffer(4 * numbers))

t.test('a blocked thread is told of, holds nobody up and is asked once', async t => {
  const { port1: port, port2 } = new MessageChannel()
  const asked = shared(1)
  const flag = shared(2)
  const release = (): void => {
    Atomics.store(flag, 0, 1)
    Atomics.notify(flag, 0)
  }
  const worker = new Worker(new URL('./blockable-worker.ts', import.meta.url), {
    workerData: { port: port2, asked } satisfies Lent,
    transferList: [port2]
  })
  const gateway = await startGateway(
    {
      POSTERN_CONFIG_STRING: '_format_version: "3.0"',
      POSTERN_PROXY_LISTEN: '127.0.0.1:0',
      POSTERN_STATUS_LISTEN: '127.0.0.1:0',
      POSTERN_WORKERS: '2',
      POSTERN_LOG_LEVEL: 'silent',
      POSTERN_SHUTDOWN_TIMEOUT: '2'
    },
    worker
  )
  t.teardown(async () => {
    release()
    port.close()
    await gateway.close()
  })
  const get = async (path: string): Promise<string> =>
    (await fetch(gateway.statusUrl + path)).text()
  // biome-ignore lint/suspicious/noExplicitAny: the answer has any shape
  const status = async (): Promise<any> => JSON.parse(await get('/status'))

  t.match(await status(), {
    workers: { configured: 2, serving: 2, unresponsive: [] },
    event_loop_delay: { length: 2 }
  })
  port.postMessage(flag)
  await until(() => Atomics.load(flag, 1), 'the thread to be blocked')
  const before = Atomics.load(asked, 0)
  const answers = Array.from({ length: 20 }, (_, index) =>
    get(index % 2 === 0 ? '/status' : '/metrics')
  )
  const [first = '', second = ''] = await Promise.all(answers)
  t.match(JSON.parse(first), {
    workers: { configured: 2, serving: 2, unresponsive: [1] },
    event_loop_delay: [{ thread: 2 }]
  })
  t.match(second, 'postern_worker_unresponsive{thread="1"} 1\n')
  t.match(second, 'postern_worker_unresponsive{thread="2"} 0\n')
  t.match(await status(), { workers: { unresponsive: [1] } }, 'however often it is asked')
  release()
  let polls = 0
  await until(async () => {
    polls++
    return (await status()).workers.unresponsive.length === 0
  }, 'it to answer again')
  t.ok(Atomics.load(asked, 0) - before <= 1 + polls, 'one question stood all the while')
  t.match(await get('/metrics'), 'postern_worker_unresponsive{thread="1"} 0\n')
})

/** The nice values of a process's threads by their names, of those with one name the lowest. */
function niceness(pid: number): ReadonlyMap<string, number> {
  const values = new Map<string, number>()
  for (const thread of readdirSync(`/proc/${pid}/task`)) {
    const text = readFileSync(`/proc/${pid}/task/${thread}/stat`, 'utf8')
    const end = text.lastIndexOf(')')
    const name = text.slice(text.indexOf('(') + 1, end)
    const nice = Number(text.slice(end + 2).split(' ')[16])
    values.set(name, Math.min(nice, values.get(name) ?? nice))
  }
  return values
}

t.test(
  'threads that serve go before the control thread',
  { skip: process.platform === 'linux' ? false : 'needs /proc and priorities of threads' },
  async t => {
    const directory = mkdtempSync(join(tmpdir(), 'postern-threads-'))
    t.teardown(() => rmSync(directory, { recursive: true }))
    const file = join(directory, 'postern.yaml')
    writeFileSync(file, '_format_version: "3.0"\n')
    await using gateway = await startProcess(file, { POSTERN_WORKERS: '2' })
    const pid = gateway.child.pid!
    const own = Number(readFileSync('/proc/self/stat', 'utf8').split(') ')[1]!.split(' ')[16])
    const main = readFileSync(`/proc/${pid}/task/${pid}/comm`, 'utf8').trim()
    await until(() => niceness(pid).get(main) === Math.min(19, own + 10), 'it to step back')
    const values = niceness(pid)
    t.same([values.get('postern-1'), values.get('postern-2')], [own, own])
  }
)
