import { globSync, readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { parse } from 'yaml'
import { loadConfig } from '../src/config.ts'
import { ConfigError } from '../src/errors.ts'
import { plugins } from '../src/plugins/index.ts'
import { backendTypes } from '../src/vault/backends/index.ts'
import { startUpstream } from './harness.ts'
import { startProcess } from './process.ts'

t.setTimeout(180_000)

async function configFile(t: Test, config: object): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'postern-hardening-'))
  t.teardown(() => rm(directory, { recursive: true, force: true }))
  const file = join(directory, 'postern.json')
  await writeFile(file, JSON.stringify({ _format_version: '3.0', ...config }))
  return file
}

/** The addresses a process listens on, as the kernel has them: `127.0.0.1:8000`. */
function listening(pid: number): string[] {
  const inodes = new Set<string>()
  for (const descriptor of readdirSync(`/proc/${pid}/fd`)) {
    try {
      const [, inode] =
        /^socket:\[(\d+)\]$/.exec(readlinkSync(`/proc/${pid}/fd/${descriptor}`)) ?? []
      if (inode !== undefined) inodes.add(inode)
    } catch {
      // It was closed meanwhile.
    }
  }
  const found = new Set<string>()
  for (const table of ['tcp', 'tcp6', 'udp', 'udp6']) {
    const [, ...lines] = readFileSync(`/proc/${pid}/net/${table}`, 'latin1').trim().split('\n')
    for (const line of lines) {
      const [, local = '', remote = '', state, , , , , , inode = ''] = line.trim().split(/\s+/)
      // 0A is LISTEN; 07 is a UDP socket that hears everyone, unless it is connected.
      const open = state === '0A' || (state === '07' && /^0+:0+$/.test(remote))
      if (!open || !inodes.has(inode)) continue
      const [address = '', port = ''] = local.split(':')
      const bytes = address.match(/../g)!.map(byte => Number.parseInt(byte, 16))
      const host = bytes.length === 4 ? bytes.reverse().join('.') : `[${address}]`
      found.add(`${table.startsWith('udp') ? 'udp ' : ''}${host}:${Number.parseInt(port, 16)}`)
    }
  }
  return [...found].sort()
}

const noTables = process.platform === 'linux' ? false : 'needs /proc/net'

await t.test('nothing listens but what is configured', { skip: noTables }, async t => {
  await using upstream = await startUpstream()
  const file = await configFile(t, {
    services: [{ name: 'up', url: upstream.url, routes: [{ name: 'all', paths: ['/'] }] }]
  })
  await using gateway = await startProcess(file, {
    POSTERN_PROXY_LISTEN: '127.0.0.1:0, 127.0.0.2:0 ssl http2',
    POSTERN_WORKERS: '2'
  })
  const { listen, status } = gateway.lines().find(line => line.msg === 'serving')
  const expected = [...listen, status].map(url => new URL(url).host).sort()
  t.equal(expected.length, 3)
  t.same(listening(gateway.child.pid!), expected)
  t.equal((await fetch(gateway.url)).status, 200)
  gateway.child.kill('SIGUSR1')
  gateway.child.kill('SIGHUP')
  t.equal((await fetch(gateway.url)).status, 200)
  t.same(listening(gateway.child.pid!), expected, 'nor after traffic, a reload and SIGUSR1')
})

/** Every map of a value, with the path to it. */
function* maps(value: unknown, path: string): Generator<readonly [string, object]> {
  if (typeof value !== 'object' || value === null) return
  if (!Array.isArray(value)) yield [path, value]
  for (const [key, part] of Object.entries(value)) yield* maps(part, `${path}/${key}`)
}

/** Whether every object of a value has one of the plain prototypes, or is of a class. */
function isUnpolluted(value: unknown): boolean {
  if (typeof value !== 'object' || value === null) return true
  if ('polluted' in value && !Object.hasOwn(value, 'polluted')) return false
  return Object.values(value).every(isUnpolluted)
}

await t.test('no key of a configuration reaches a prototype', async t => {
  const before = Object.getOwnPropertyNames(Object.prototype).sort()
  const files = globSync(join(import.meta.dirname, '../config/examples/*.yaml'))
  t.ok(files.length > 20)
  let tried = 0
  for (const file of files) {
    const config = parse(readFileSync(file, 'utf8'), { merge: true }) as object
    for (const [path, map] of maps(config, '')) {
      for (const key of ['__proto__', 'constructor', 'prototype']) {
        Object.defineProperty(map, key, {
          value: { polluted: true, prototype: { polluted: true } },
          enumerable: true,
          configurable: true
        })
        const text = JSON.stringify(config)
        Reflect.deleteProperty(map, key)
        tried++
        try {
          const loaded = loadConfig(text, { file, plugins, vaultTypes: backendTypes })
          if (key === '__proto__') t.fail(`${file}${path} takes ${key}`)
          if (!isUnpolluted(loaded)) t.fail(`${file}${path}: ${key} is inherited`)
        } catch (error) {
          if (!(error instanceof ConfigError)) throw error
        }
      }
    }
  }
  t.ok(tried > 500, `${tried} keys`)
  t.same(Object.getOwnPropertyNames(Object.prototype).sort(), before)
  t.equal(({} as { polluted?: unknown }).polluted, undefined)
})

await t.test('the gateway runs without __proto__ and with frozen intrinsics', async t => {
  await using upstream = await startUpstream()
  const file = await configFile(t, {
    services: [{ name: 'up', url: upstream.url, routes: [{ name: 'all', paths: ['/'] }] }],
    plugins: [
      { name: 'key-auth' },
      { name: 'rate-limiting', config: { hour: 100, policy: 'local' } },
      { name: 'correlation-id' }
    ],
    consumers: [{ username: 'anna', keyauth_credentials: [{ key: 'a-key-of-anna' }] }]
  })
  await using gateway = await startProcess(file, {
    NODE_OPTIONS: '--disable-proto=delete --frozen-intrinsics'
  })
  const headers = { apikey: 'a-key-of-anna' }
  const answer = await fetch(gateway.url, { headers })
  t.equal(answer.status, 200)
  t.match(await answer.json(), { headers: { 'x-consumer-username': 'anna' } })
  t.equal((await fetch(gateway.url)).status, 401)
  t.match(await gateway.end(), { code: 0 })
})
