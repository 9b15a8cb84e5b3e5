import http from 'node:http'
import { collect, prepareSettings } from '../resolve.ts'
import { type Environment, type Listener, settingsTable } from '../settings.ts'
import type { Call } from './command.ts'

/** Milliseconds the running gateway has to answer. */
const TIMEOUT = 10_000

/** Calls the status API of the gateway that runs with this environment. */
export async function ask(
  { env, output }: Call,
  method: 'GET' | 'POST',
  path: string
): Promise<number> {
  const listener = await statusListener(env)
  if (listener === undefined) {
    output.tell(
      'The status API is off (POSTERN_STATUS_LISTEN), so the running gateway cannot be reached.'
    )
    return 1
  }
  const { port } = listener
  const host = { '0.0.0.0': '127.0.0.1', '::': '::1' }[listener.host] ?? listener.host
  try {
    const { status, text } = await request({ host, port, method, path })
    if (status < 300) output.out(text)
    else output.tell(text)
    return status < 300 ? 0 : 1
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException
    const origin = `http://${host.includes(':') ? `[${host}]` : host}:${port}`
    output.tell(`No gateway answers at ${origin}: ${code ?? message}`)
    return 1
  }
}

/** Asks a vault only when the address itself stands in one: a health check runs often. */
async function statusListener(env: Environment): Promise<Listener | undefined> {
  const collected = await collect(env)
  if (!collected.references.some(({ name }) => name === 'statusListen')) {
    const { parse, default: standard } = settingsTable.statusListen
    return parse(collected.authored.get('statusListen')?.text ?? standard!, () => {})
  }
  const { settings, vaults } = await prepareSettings(env)
  await vaults.close()
  return settings.statusListen
}

function request(options: http.RequestOptions): Promise<{ status: number; text: string }> {
  return new Promise((resolve, reject) => {
    const sent = http.request({ ...options, timeout: TIMEOUT, agent: false }, response => {
      let text = ''
      response.setEncoding('utf8')
      response.on('data', chunk => {
        text += chunk
      })
      response.on('end', () => resolve({ status: response.statusCode!, text }))
      response.on('error', reject)
    })
    sent.on('timeout', () => sent.destroy(new Error(`no answer within ${TIMEOUT / 1000} s`)))
    sent.on('error', reject)
    sent.end()
  })
}
