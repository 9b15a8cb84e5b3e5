import { type HcvServer, ROOT_TOKEN } from '../vault/hcv-server.ts'
import { freePort, type LiveServer, startServer } from './server.ts'

/** A real OpenBao in development mode: unsealed, in memory, with the same root token as the fake. */
export interface OpenBao extends LiveServer, HcvServer {}

/** Starts `bao server -dev` on a free port. */
export async function startOpenBao(): Promise<OpenBao> {
  const port = await freePort()
  const url = `http://127.0.0.1:${port}`
  const server = await startServer({
    command: 'bao',
    args: [
      'server',
      '-dev',
      '-dev-no-store-token',
      `-dev-root-token-id=${ROOT_TOKEN}`,
      `-dev-listen-address=127.0.0.1:${port}`
    ],
    ready: async () => (await fetch(`${url}/v1/sys/health`)).status === 200
  })
  return {
    ...server,
    port,
    url,
    async call(method, path, body, headers = {}) {
      const response = await fetch(`${url}/v1/${path}`, {
        method,
        headers: { 'x-vault-token': ROOT_TOKEN, ...headers },
        ...(body === undefined ? {} : { body: JSON.stringify(body) })
      })
      const text = await response.text()
      if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${text}`)
      return text === '' ? undefined : JSON.parse(text)
    }
  }
}
