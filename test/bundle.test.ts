import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { promisify } from 'node:util'
import t from 'tap'
import { Agent } from 'undici'
import { version } from '../src/version.ts'
import { send, startUpstream, until } from './harness.ts'

const run = promisify(execFile)
const root = join(import.meta.dirname, '..')

await t.test('the bundle serves as the sources do', async t => {
  await run(process.execPath, ['scripts/bundle.ts'], { cwd: root })
  const cli = join(root, 'dist/cli.js')
  const { stdout } = await run(process.execPath, [cli, 'version'])
  t.equal(stdout.trim(), version)
  await using upstream = await startUpstream()
  const services = [{ name: 'a', url: upstream.url, routes: [{ name: 'a', paths: ['/'] }] }]
  const child = execFile(process.execPath, ['--disable-sigusr1', cli, 'start'], {
    env: {
      ...process.env,
      POSTERN_CONFIG_STRING: JSON.stringify({ _format_version: '3.0', services }),
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
  child.kill('SIGTERM')
  t.same(await once(child, 'exit'), [0, null])
})
