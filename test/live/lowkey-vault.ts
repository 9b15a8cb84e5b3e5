import { freePort } from '../ports.ts'
import { startFaultProxy } from '../vault/fault-proxy.ts'
import type { ServiceAnswer } from '../vault/fault-server.ts'
import { findServer, startServer } from './server.ts'

/** Key Vault and a machine's metadata service as lowkey-vault plays them. */
export interface LowkeyVault {
  readonly url: string
  /** The name it knows its vault by. */
  readonly host: string
  /** Of the metadata service. */
  readonly metadataUrl: string
  /** Stores a value as the newest version; gives its id. */
  put(name: string, value: string, contentType?: string): Promise<string>
  /** Deletes and purges. */
  remove(name: string): Promise<void>
  /** Ends the process at once; everything it holds is lost. */
  kill(): Promise<void>
  /** Starts it again, empty, on the same ports. */
  start(): Promise<void>
  [Symbol.asyncDispose](): Promise<void>
}

/** Starts the archive with Java on free ports. */
export async function startLowkeyVault(): Promise<LowkeyVault> {
  const port = await freePort()
  const metadataPort = await freePort()
  const url = `https://127.0.0.1:${port}`
  const host = `localhost:${port}`
  // Its certificate is its own; a proxy takes it.
  const plain = await startFaultProxy(url, { headers: { host, authorization: 'Bearer admin' } })
  const ask = (method: string, path: string, body?: object) =>
    fetch(`${plain.url}${path}`, {
      method,
      headers: { 'content-type': 'application/json' },
      ...(body === undefined ? {} : { body: JSON.stringify(body) })
    })
  const demand = async (method: string, path: string, body?: object): Promise<string> => {
    const response = await ask(method, `${path}?api-version=7.4`, body)
    const text = await response.text()
    if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${text}`)
    return text
  }
  const launch = () =>
    startServer({
      command: 'java',
      args: [
        '-jar',
        findServer('lowkey-vault-app.jar')!,
        `--server.port=${port}`,
        `--app.token.port=${metadataPort}`,
        '--LOWKEY_AUTH_RESOURCE=vault.azure.net'
      ],
      ready: async () => (await ask('GET', '/ping')).ok
    })
  let server = await launch()
  return {
    url,
    host,
    metadataUrl: `http://127.0.0.1:${metadataPort}`,
    async put(name, value, contentType) {
      const content = contentType === undefined ? {} : { contentType }
      const { id } = JSON.parse(await demand('PUT', `/secrets/${name}`, { value, ...content }))
      return (id as string).slice(id.lastIndexOf('/') + 1)
    },
    async remove(name) {
      await demand('DELETE', `/secrets/${name}`)
      await demand('DELETE', `/deletedsecrets/${name}`)
    },
    kill: () => server.kill(),
    async start() {
      server = await launch()
    },
    async [Symbol.asyncDispose]() {
      await plain.close()
      await server.kill()
    }
  }
}

/** Its 404, whose code is the name of a class, as Azure gives it. */
export function asAzure(answer: ServiceAnswer): ServiceAnswer {
  if (answer.status !== 404 || !/NotFoundException/.test(String(answer.body))) return answer
  return { status: 404, body: { error: { code: 'SecretNotFound', message: 'not found' } } }
}
