import { freePort, type LiveServer, startServer } from './server.ts'

/** A real OpenBao in development mode: unsealed, in memory, `root` as its root token. */
export interface OpenBao extends LiveServer {
  readonly port: number
  readonly url: string
  /** Calls its API with the root token; gives the parsed answer, rejects unless it is 2xx. */
  call(
    method: string,
    path: string,
    body?: unknown,
    headers?: Record<string, string>
  ): Promise<Answer>
}

// biome-ignore lint/suspicious/noExplicitAny: tests look into answers of any shape
export type Answer = any

export const ROOT_TOKEN = 'root'

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
