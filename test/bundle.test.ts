import { execFile } from 'node:child_process'
import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { promisify } from 'node:util'
import t from 'tap'
import { Agent } from 'undici'
import { WebSocket, WebSocketServer } from 'ws'
import { version } from '../src/version.ts'
import { send, startUpstream, until } from './harness.ts'

const run = promisify(execFile)
const root = join(import.meta.dirname, '..')
// What a bundle covers is its packages' code too, which says nothing about this project's tests.
const uncovered = ['-u', 'NODE_OPTIONS', '-u', 'NODE_V8_COVERAGE', process.execPath]

await t.test('the bundle serves as the sources do', async t => {
  await run(process.execPath, ['scripts/bundle.ts'], { cwd: root })
  const cli = join(root, 'dist/cli.js')
  const { stdout } = await run('env', [...uncovered, cli, 'version'])
  t.equal(stdout.trim(), version)
  await using upstream = await startUpstream()
  const sockets = new WebSocketServer({ host: '127.0.0.1', port: 0 })
  t.teardown(() => sockets.close())
  await once(sockets, 'listening')
  sockets.on('connection', socket => socket.on('message', data => socket.send(data)))
  const socketPort = (sockets.address() as AddressInfo).port
  const services = [
    { name: 'a', url: upstream.url, routes: [{ name: 'a', paths: ['/'] }] },
    { name: 'b', url: `http://127.0.0.1:${socketPort}`, routes: [{ name: 'b', paths: ['/ws'] }] }
  ]
  // What is loaded on demand is asked for: the log's client, the WebSocket proxy.
  const plugins = [{ name: 'http-log', config: { http_endpoint: `${upstream.url}/log` } }]
  const child = execFile('env', [...uncovered, '--disable-sigusr1', cli, 'start'], {
    env: {
      ...process.env,
      POSTERN_CONFIG_STRING: JSON.stringify({ _format_version: '3.0', services, plugins }),
      POSTERN_PROXY_LISTEN: '127.0.0.1:0',
      POSTERN_STATUS_LISTEN: 'off',
      POSTERN_WORKERS: '1',
      POSTERN_LOG_LEVEL: 'info'
    }
  })
  t.teardown(() => child.kill('SIGKILL'))
  let log = ''
  child.stdout!.on('data', chunk => {
    log += chunk
  })
  const url = await until(
    () => /http:\/\/127\.0\.0\.1:\d+/.exec(log)?.[0],
    'the gateway to serve',
    60_000
  )
  const agent = new Agent()
  t.teardown(() => agent.destroy())
  t.equal((await send(agent, `${url}/x`)).json().url, '/x')
  await until(() => upstream.requests.some(({ url: path }) => path === '/log'), 'the log record')
  const socket = new WebSocket(`${url.replace('http', 'ws')}/ws`)
  await once(socket, 'open')
  socket.send('hello')
  t.equal(String((await once(socket, 'message'))[0]), 'hello')
  socket.terminate()
  child.kill('SIGTERM')
  t.same(await once(child, 'exit'), [0, null])
})
