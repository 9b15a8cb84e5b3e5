import { readFile, rename, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import t from 'tap'
import { Agent } from 'undici'
import { send, startUpstream, until } from '../../harness.ts'
import { startProcess } from '../../process.ts'
import { startFaultProxy } from '../fault-proxy.ts'
import { failures, type Served, traffic } from './chaos.ts'
import { credentials } from './credentials.ts'
import { CLOCK_FILE } from './shifted-clock.ts'
import { aws, azure, conjur, gcp, hcv } from './subjects.ts'

const PRELOAD = pathToFileURL(join(import.meta.dirname, 'shifted-clock.ts')).href
const HOUR = 3_600_000
/** Bytes the resident memory may grow by, whatever vaults answer. */
const GROWTH = 100 * 1024 * 1024

await t.test('the wall clock jumps by an hour, both ways, with every vault', async t => {
  const directory = t.testdir({ clock: '0' })
  const started = await Promise.all([hcv(), aws(), gcp(), azure(), conjur()])
  const subjects = new Map(started.map(subject => [subject.type, subject]))
  const proxies = new Map(
    await Promise.all(
      started.map(
        async ({ type, url, proxy }) =>
          [type, await startFaultProxy(url, { retryAfter: 1, ...proxy })] as const
      )
    )
  )
  t.teardown(async () => {
    for (const proxy of proxies.values()) await proxy.close()
    for (const subject of started) await subject[Symbol.asyncDispose]()
  })
  const names = [...subjects.keys()]
  await using proof = await credentials(names)
  await using upstream = await startUpstream()
  const put = async (n: number) => {
    for (const [name, subject] of subjects) await subject.put(`pair-${name}`, proof.pair(name, n))
  }
  await put(1)
  const vaults = await Promise.all(
    started.map(async ({ type, settings }) => ({
      name: type,
      prefix: `v-${type}`,
      // A value that a jump of the clock made too old to be served would be gone.
      config: {
        ...(await settings(proxies.get(type)!, type)),
        ttl: 1,
        neg_ttl: 1,
        resurrect_ttl: 600
      }
    }))
  )
  const entities = proof.entities(
    (name, member) => `{vault://v-${name}/pair-${name}/${member}}`,
    upstream
  )
  const file = join(directory, 'postern.yaml')
  await writeFile(file, JSON.stringify({ _format_version: '3.0', vaults, ...entities }))
  await writeFile(join(directory, 'trust.pem'), started.map(({ trust }) => trust ?? '').join(''))
  await using gateway = await startProcess(file, {
    NODE_OPTIONS: `--import=${PRELOAD}`,
    NODE_EXTRA_CA_CERTS: join(directory, 'trust.pem'),
    [CLOCK_FILE]: join(directory, 'clock'),
    POSTERN_VAULT_ROTATION_INTERVAL: '1',
    POSTERN_LOG_LEVEL: 'info',
    ...Object.assign({}, ...started.map(({ env }) => env))
  })
  const agent = new Agent()
  t.teardown(() => agent.destroy())
  const served: Served = {
    fetch: (path, options) => send(agent, gateway.url + path, options),
    status: (path, options) => send(agent, gateway.statusUrl + path, options),
    tlsUrl: undefined
  }
  const current = new Map(names.map(name => [name, 1]))
  await using load = traffic(served, proof, current)
  const arrive = (n: number) =>
    Promise.all(
      names.map(async name => {
        await until(() => proof.inForce(served, name, n), `${name}: pair ${n} in force`, 60_000)
        current.set(name, n)
      })
    )
  const jump = async (shift: number) => {
    await writeFile(join(directory, 'clock.next'), String(shift))
    await rename(join(directory, 'clock.next'), join(directory, 'clock'))
    const seen = () => readFile(join(directory, 'clock.seen'), 'utf8').catch(() => '0')
    await until(async () => Number(await seen()) === shift, 'the clock to jump')
  }

  let n = 1
  for (const shift of [HOUR, -HOUR, 0]) {
    await jump(shift)
    await put(++n)
    await arrive(n)
    // Tokens that end before their time by the clock of the gateway, or long after it.
    for (const subject of started) subject.expire()
    await put(++n)
    await arrive(n)
  }

  for (const proxy of proxies.values()) await proxy.fault('refused')
  await jump(HOUR)
  await until(
    async () => [...(await failures(served)).values()].every(count => count >= 1),
    'every vault to be missed',
    60_000
  )
  const { references } = (await served.status('/vaults')).json()
  for (const { reference, state, age, next_refresh: next } of references) {
    t.equal(state, 'stale', `${reference} is served`)
    t.ok(age < 600 && next < 600, `${reference}: ${age} s old, next in ${next} s`)
  }
  for (const proxy of proxies.values()) await proxy.fault(undefined)
  await put(++n)
  await arrive(n)

  const memory = async (): Promise<number> => (await served.status('/status')).json().memory
  await proxies.get('hcv')!.fault('endless')
  const refreshed = async () =>
    (await served.status('/vaults/refresh?prefix=v-hcv', { method: 'POST' })).status
  t.equal(await refreshed(), 200)
  const before = await memory()
  for (let i = 0; i < 20; i++) await refreshed()
  const growth = (await memory()) - before
  t.ok(growth < GROWTH, `${Math.round(growth / 1024 / 1024)} MiB more after 20 endless answers`)
  await proxies.get('hcv')!.fault(undefined)
  await put(++n)
  // Its next read by time is half a minute away by now.
  t.equal(await refreshed(), 200)
  await arrive(n)

  await load.stop()
  t.strictSame(load.failed, [], 'no request failed')
  t.ok(load.served > names.length, `${load.served} requests were served`)
  t.strictSame(proof.halves(), [], 'no halves')
  t.notMatch(JSON.stringify(gateway.lines()), /-password-\d/, 'no log line shows a secret')
})
