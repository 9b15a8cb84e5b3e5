import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createServer } from 'node:net'
import { join } from 'node:path'
import t from 'tap'
import { cleanEnvironment } from './process.ts'

const root = join(import.meta.dirname, '..')

/** A port nobody listens on, or `port` itself when it is given; undefined when that is taken. */
async function freePort(port = 0): Promise<number | undefined> {
  const server = createServer()
  try {
    server.listen(port, '127.0.0.1')
    await once(server, 'listening')
    return (server.address() as { port: number }).port
  } catch {
    return undefined
  } finally {
    server.close()
  }
}

// config/postern.yaml names them, and the demo runs that file.
const taken = (await Promise.all([freePort(9100), freePort(9101)])).includes(undefined)
const skip = taken && process.env.CI !== 'true' ? 'needs the ports 9100 and 9101' : false
if (skip !== false) process.stderr.write(`Skipped: the demo ${skip}\n`)

t.test('the demo shows what it says, by real requests', { skip }, async t => {
  const env = cleanEnvironment({
    POSTERN_PROXY_LISTEN: `127.0.0.1:${await freePort()}`,
    POSTERN_STATUS_LISTEN: `127.0.0.1:${await freePort()}`,
    POSTERN_WORKERS: '1'
  })
  const words = ['--disable-sigusr1', 'demo/run.ts', '--once']
  const demo = spawn(process.execPath, words, { cwd: root, env })
  t.teardown(() => demo.kill('SIGKILL'))
  let written = ''
  for (const stream of [demo.stdout, demo.stderr]) {
    stream.setEncoding('utf8').on('data', chunk => {
      written += chunk
    })
  }
  const [code] = await once(demo, 'close')
  t.equal(code, 0, written)
  const shown = [
    /1\..*\n {2}200 .*"consumer":"demo"/,
    /2\..*\n {2}401 "No API key found in request"/,
    /3\..*\n {2}429, Retry-After: \d+ seconds/,
    /4\..*\n {2}logged \/echo\/hello with "Authorization: Bearer token-version-1"/,
    /5\..*\n {2}logged \/echo\/hello with "Authorization: Bearer token-version-2"/,
    /curl -i -H 'apikey: demo-[0-9a-f]+' http:\/\/127\.0\.0\.1:\d+\/echo\/hello/
  ]
  for (const pattern of shown) t.match(written, pattern)
})
