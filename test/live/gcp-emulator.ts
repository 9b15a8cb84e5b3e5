import { freePort } from '../ports.ts'
import type { ServiceAnswer } from '../vault/fault-server.ts'
import { PROJECT } from '../vault/gcp-server.ts'
import { startServer } from './server.ts'

/** Secret Manager as gcp-secret-manager-emulator plays it over REST, with an administrator's calls. */
export interface GcpEmulator {
  readonly url: string
  /** Adds a version, to a new secret where there is none; gives its number. */
  put(name: string, value: string): Promise<string>
  /** Makes a version unreadable, or readable again. */
  turn(name: string, version: string, state: 'disable' | 'enable' | 'destroy'): Promise<void>
  remove(name: string): Promise<void>
  /** Ends the process at once; everything it holds is lost. */
  kill(): Promise<void>
  /** Starts it again, empty, on the same port. */
  start(): Promise<void>
  [Symbol.asyncDispose](): Promise<void>
}

/** Starts `server-rest` on free ports. */
export async function startGcpEmulator(): Promise<GcpEmulator> {
  const port = await freePort()
  const grpcPort = await freePort()
  const url = `http://127.0.0.1:${port}`
  const secrets = `${url}/v1/projects/${PROJECT}/secrets`
  const ask = async (method: string, path: string, body?: object) => {
    const response = await fetch(`${secrets}${path}`, {
      method,
      ...(body === undefined ? {} : { body: JSON.stringify(body) })
    })
    const text = await response.text()
    return { ok: response.ok, text }
  }
  const demand = async (method: string, path: string, body?: object): Promise<string> => {
    const { ok, text } = await ask(method, path, body)
    if (!ok) throw new Error(`${method} ${path}: ${text}`)
    return text
  }
  const launch = () =>
    startServer({
      command: 'server-rest',
      args: ['--http-port', String(port), '--grpc-port', String(grpcPort)],
      ready: async () => (await ask('GET', '')).ok
    })
  let server = await launch()
  return {
    url,
    async put(name, value) {
      if (!(await ask('GET', `/${name}`)).ok) {
        await demand('POST', `?secretId=${name}`, { replication: { automatic: {} } })
      }
      const payload = { data: Buffer.from(value).toString('base64') }
      const added = JSON.parse(await demand('POST', `/${name}:addVersion`, { payload }))
      return (added.name as string).slice(added.name.lastIndexOf('/') + 1)
    },
    async turn(name, version, state) {
      await demand('POST', `/${name}/versions/${version}:${state}`, {})
    },
    async remove(name) {
      await demand('DELETE', `/${name}`)
    },
    kill: () => server.kill(),
    async start() {
      server = await launch()
    },
    [Symbol.asyncDispose]: () => server.kill()
  }
}

const STATUS: Readonly<Record<string, readonly [number, string]>> = {
  NotFound: [404, 'NOT_FOUND'],
  FailedPrecondition: [400, 'FAILED_PRECONDITION'],
  InvalidArgument: [400, 'INVALID_ARGUMENT']
}

/** The emulator's errors, a text that gRPC makes of them, as Google gives them over REST. */
export function asGoogle(answer: ServiceAnswer): ServiceAnswer {
  const [, code = '', message = ''] =
    /^\{"error":"rpc error: code = (\w+) desc = (.*)"\}/s.exec(String(answer.body)) ?? []
  const known = STATUS[code]
  if (known === undefined) return answer
  const [status, name] = known
  return { status, body: { error: { code: status, status: name, message } } }
}
