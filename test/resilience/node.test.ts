import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, existsSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { startGateway, startUpstream, until } from '../harness.ts'
import { freePort } from '../ports.ts'
import { cleanEnvironment } from '../process.ts'
import { redisBlock, startRedis, withoutRedisServer } from '../redis.ts'
import { startTraffic } from '../traffic.ts'

t.setTimeout(180_000)

await t.test('Redis is killed, and comes back', { skip: withoutRedisServer }, async t => {
  await using redis = await startRedis({ own: true })
  await using upstream = await startUpstream((_received, response) => void response.end('ok'))
  await using gateway = await startGateway({
    services: [{ name: 'up', url: upstream.url, routes: [{ name: 'all', paths: ['/'] }] }],
    plugins: [
      {
        name: 'rate-limiting',
        config: {
          hour: 1_000_000,
          policy: 'redis',
          fault_tolerant: true,
          redis: { ...redisBlock(redis), timeout: 1000 }
        }
      }
    ]
  })
  const limited = async (): Promise<boolean> =>
    (await gateway.fetch('/')).headers['ratelimit-remaining'] !== undefined
  await until(limited, 'requests to be counted')
  const traffic = startTraffic(gateway.url)
  await until(() => traffic.report.served > 10, 'traffic')
  for (const [trouble, end] of [
    [redis.stop, redis.start],
    [async () => redis.freeze(), async () => redis.thaw()]
  ] as const) {
    await trouble()
    const before = traffic.report.served
    await until(() => traffic.report.served > before + 20, 'traffic without Redis')
    await end()
    await until(limited, 'requests to be counted again', 30_000)
  }
  const { served, failures } = await traffic.stop()
  t.same(failures, [], `${served} requests lost nothing`)
})

await t.test('data-plane threads are killed, one after the other', async t => {
  await using upstream = await startUpstream((_received, response) => void response.end('ok'))
  await using gateway = await startGateway(
    { services: [{ name: 'up', url: upstream.url, routes: [{ name: 'all', paths: ['/'] }] }] },
    { workers: 2 }
  )
  // What a killed thread held is gone with it: its clients connect again, as clients do.
  const traffic = startTraffic(gateway.url, { reconnecting: true })
  await until(() => traffic.report.served > 10, 'traffic')
  for (let round = 0; round < 2; round++) {
    await gateway.gateway.workers[0]!.terminate()
    const before = traffic.report.served
    await until(() => traffic.report.served > before + 20, 'traffic with one thread')
    await until(
      async () => (await gateway.status('/status')).json().workers.serving === 2,
      'another thread to take over',
      60_000
    )
  }
  const { served, failures } = await traffic.stop()
  t.same(failures, [], `${served} requests were answered`)
})

await t.test('a thread that dies before it serves is replaced like any other', async t => {
  await using upstream = await startUpstream((_received, response) => void response.end('ok'))
  await using gateway = await startGateway(
    { services: [{ name: 'up', url: upstream.url, routes: [{ name: 'all', paths: ['/'] }] }] },
    { workers: 2 }
  )
  const before = new Set(gateway.gateway.workers)
  await gateway.gateway.workers[0]!.terminate()
  for (let killed = 0; killed < 2; killed++) {
    const young = await until(
      () => gateway.gateway.workers.find(worker => !before.has(worker)),
      'a thread that starts'
    )
    t.equal((await gateway.status('/status')).json().workers.serving, 1, 'not serving yet')
    before.add(young)
    await young.terminate()
  }
  await until(
    async () => (await gateway.status('/status')).json().workers.serving === 2,
    'another thread to take over',
    60_000
  )
})

const full = existsSync('/dev/full') ? false : 'needs /dev/full'

await t.test(
  'the disk of the log is full, and that of the vault cache',
  { skip: full },
  async t => {
    await using upstream = await startUpstream((_received, response) => void response.end('ok'))
    const directory = mkdtempSync(join(tmpdir(), 'postern-full-'))
    t.teardown(() => rmSync(directory, { recursive: true }))
    const file = join(directory, 'postern.json')
    const config = (path: string): string =>
      JSON.stringify({
        _format_version: '3.0',
        services: [{ name: 'up', url: upstream.url, routes: [{ name: 'all', paths: [path] }] }],
        consumers: [{ username: 'anna', keyauth_credentials: [{ key: '{vault://env/full-key}' }] }]
      })
    writeFileSync(file, config('/'))
    const [port, statusPort] = [await freePort(), await freePort()]
    const output = openSync('/dev/full', 'w')
    const child = spawn(
      process.execPath,
      [join(import.meta.dirname, '../../src/cli.ts'), 'start', file],
      {
        stdio: ['ignore', output, output],
        env: cleanEnvironment({
          POSTERN_PROXY_LISTEN: `127.0.0.1:${port}`,
          POSTERN_STATUS_LISTEN: `127.0.0.1:${statusPort}`,
          POSTERN_WORKERS: '1',
          POSTERN_LOG_LEVEL: 'debug',
          POSTERN_VAULT_CACHE_FILE: '/dev/full',
          POSTERN_VAULT_CACHE_KEY: '00'.repeat(32),
          FULL_KEY: 'a-key-of-some-length'
        })
      }
    )
    closeSync(output)
    const exited = once(child, 'exit')
    t.teardown(() => child.kill('SIGKILL'))
    const url = `http://127.0.0.1:${port}/`
    await until(
      () => {
        if (child.exitCode !== null) throw new Error(`it ended with ${child.exitCode}`)
        return fetch(url).then(
          ({ status }) => status === 200,
          () => false
        )
      },
      'the gateway to serve',
      60_000
    )
    const traffic = startTraffic(url)
    await until(() => traffic.report.served > 50, 'traffic')
    for (const path of ['/reload', '/vaults/refresh']) {
      const answer = await fetch(`http://127.0.0.1:${statusPort}${path}`, { method: 'POST' })
      t.ok(answer.ok, `${path}: ${answer.status}`)
    }
    await fetch(`${url}not-found-anywhere`)
    const before = traffic.report.served
    await until(() => traffic.report.served > before + 50, 'traffic afterwards')
    const { served, failures } = await traffic.stop()
    t.same(failures, [], `${served} requests lost nothing`)
    child.kill('SIGTERM')
    t.same(await exited, [0, null], 'and it ends in order')
  }
)
