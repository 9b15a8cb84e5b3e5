import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { mkdtemp, rename, rm, writeFile } from 'node:fs/promises'
import http, { type IncomingMessage, type ServerResponse } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { styleText } from 'node:util'

// Shows the gateway's main job with nothing else installed: every line it prints about an answer
// comes from a real request. Ends with Ctrl-C, or by itself with --once.

const LISTEN = process.env.POSTERN_PROXY_LISTEN ?? '127.0.0.1:8000'
const STATUS_LISTEN = process.env.POSTERN_STATUS_LISTEN ?? '127.0.0.1:8007'
const GATEWAY = `http://${LISTEN}`
const STATUS = `http://${STATUS_LISTEN}`
const UPSTREAM_PORT = 9100
const COLLECTOR_PORT = 9101
/** Milliseconds any one thing may take, on a slow machine too. */
const PATIENCE = 60_000

const color = process.stdout.isTTY === true && process.env.NO_COLOR === undefined
const say = (text: string): void => console.log(text)
const step = (text: string): void => say(`\n${color ? styleText('bold', text) : text}`)
const shown = (text: string): void => say(`  ${color ? styleText('green', text) : text}`)

async function listen(
  port: number,
  handle: (request: IncomingMessage, response: ServerResponse) => void
) {
  const server = http.createServer(handle)
  server.listen(port, '127.0.0.1')
  try {
    await once(server, 'listening')
  } catch (error) {
    throw new Error(`The demo needs port ${port} of this machine: ${(error as Error).message}`)
  }
  return server
}

interface Arrived {
  readonly authorization: string | undefined
  readonly status: number
  readonly uri: string
}

async function waitFor<T>(
  what: string,
  poll: () => T | undefined | Promise<T | undefined>
): Promise<T> {
  const end = Date.now() + PATIENCE
  while (Date.now() < end) {
    const value = await poll()
    if (value !== undefined) return value
    await new Promise(resolve => setTimeout(resolve, 50))
  }
  throw new Error(`The demo waited in vain for ${what}.`)
}

const arrived: Arrived[] = []
const upstream = await listen(UPSTREAM_PORT, (request, response) => {
  request.resume()
  response.setHeader('Content-Type', 'application/json')
  response.end(
    `${JSON.stringify({ hello: 'from the upstream', url: request.url, consumer: request.headers['x-consumer-username'] })}\n`
  )
})
const collector = await listen(COLLECTOR_PORT, (request, response) => {
  let text = ''
  request.setEncoding('utf8')
  request.on('data', chunk => {
    text += chunk
  })
  request.on('end', () => {
    const record = JSON.parse(text) as { response: { status: number }; request: { uri: string } }
    arrived.push({
      authorization: request.headers.authorization,
      status: record.response.status,
      uri: record.request.uri
    })
    response.end()
  })
})

// A gateway that runs already would answer in place of the demo's own.
for (const address of [GATEWAY, STATUS]) {
  const free = await listen(Number(new URL(address).port), () => {})
  free.close()
}

const secrets = await mkdtemp(join(tmpdir(), 'postern-demo-'))
const apiKey = `demo-${randomBytes(8).toString('hex')}`
const token = (version: number): string => `token-version-${version}`
await writeFile(join(secrets, 'log-token'), token(1))

const gateway = spawn(
  process.execPath,
  ['--disable-sigusr1', 'src/cli.ts', 'start', '-c', 'config/postern.yaml'],
  {
    stdio: ['ignore', 'inherit', 'inherit'],
    env: {
      ...process.env,
      DEMO_API_KEY: apiKey,
      POSTERN_VAULT_FS_PREFIX: secrets,
      POSTERN_PROXY_LISTEN: LISTEN,
      POSTERN_STATUS_LISTEN: STATUS_LISTEN,
      POSTERN_LOG_LEVEL: process.env.POSTERN_LOG_LEVEL ?? 'warn'
    }
  }
)

let ending = false
async function end(code: number): Promise<void> {
  if (ending) return
  ending = true
  if (gateway.exitCode === null) {
    gateway.kill('SIGTERM')
    await once(gateway, 'exit')
  }
  upstream.close()
  collector.close()
  upstream.closeAllConnections()
  collector.closeAllConnections()
  await rm(secrets, { recursive: true, force: true })
  process.exit(code)
}
process.once('SIGINT', () => void end(0))
process.once('SIGTERM', () => void end(0))
gateway.once('exit', code => {
  if (!ending) {
    say(`\nThe gateway ended by itself (exit code ${code}); what it said stands above.`)
    void end(1)
  }
})

const call = (headers: Record<string, string>) => fetch(`${GATEWAY}/echo/hello`, { headers })

try {
  await waitFor('the gateway to be ready', async () => {
    const answer = await fetch(`${STATUS}/status/ready`).catch(() => undefined)
    return answer?.ok ? true : undefined
  })
  say(`Postern serves config/postern.yaml on ${GATEWAY}; the secrets it refers to:`)
  say('  {vault://env/demo-api-key}  from the environment variable DEMO_API_KEY')
  say(`  {vault://fs/log-token}      from the file ${join(secrets, 'log-token')}`)

  step('1. A request with the key goes through to the upstream')
  const proxied = await call({ apikey: apiKey })
  shown(`${proxied.status} ${(await proxied.text()).trim()}`)
  if (proxied.status !== 200) throw new Error('expected 200')

  step('2. Without a key it does not')
  const refused = await call({})
  shown(
    `${refused.status} ${JSON.stringify(((await refused.json()) as { message: string }).message)}`
  )
  if (refused.status !== 401) throw new Error('expected 401')

  step('3. More than five a minute are too many')
  const limited = await waitFor('the limit', async () => {
    const answer = await call({ apikey: apiKey })
    await answer.text()
    return answer.status === 429 ? answer : undefined
  })
  shown(`429, Retry-After: ${limited.headers.get('retry-after')} seconds`)

  step('4. Each request was logged, with the secret header from the file')
  const first = await waitFor('a log line', () => arrived.find(({ status }) => status === 200))
  shown(`logged ${first.uri} with "Authorization: ${first.authorization}"`)
  if (first.authorization !== `Bearer ${token(1)}`) throw new Error('expected the first token')

  step('5. The secret is rotated on disk; nothing is restarted')
  await writeFile(join(secrets, 'next'), token(2))
  await rename(join(secrets, 'next'), join(secrets, 'log-token'))
  const rotated = await waitFor('the new token', async () => {
    await (await call({})).text()
    return arrived.find(({ authorization }) => authorization === `Bearer ${token(2)}`)
  })
  shown(`logged ${rotated.uri} with "Authorization: ${rotated.authorization}"`)

  step('It stays up; try it yourself (Ctrl-C ends it)')
  say(`  curl -i ${GATEWAY}/echo/hello                     # 401`)
  say(`  curl -i -H 'apikey: ${apiKey}' ${GATEWAY}/echo/hello`)
  say(`  echo another-token > ${join(secrets, 'log-token')}   # rotate it again`)
  say(`  curl ${STATUS}/vaults                             # what the gateway knows of its secrets`)
  say(`  curl ${STATUS}/status`)
  if (process.argv.includes('--once')) await end(0)
} catch (error) {
  say(`\nThe demo failed: ${(error as Error).message}`)
  await end(1)
}
