import { once } from 'node:events'
import type { IncomingMessage } from 'node:http'
import { createRequire } from 'node:module'
import type { AddressInfo } from 'node:net'
import type { Test } from 'tap'
import { type WebSocket as Client, type ServerOptions, WebSocketServer } from 'ws'
import { type TestGateway, until } from './harness.ts'

export const { WebSocket } = createRequire(import.meta.url)('ws') as { WebSocket: typeof Client }

type ClientOptions = ConstructorParameters<typeof WebSocket>[2]

export interface Upstream {
  readonly port: number
  readonly url: string
  readonly server: WebSocketServer
  /** The handshakes it has seen. */
  readonly handshakes: IncomingMessage[]
  /** The connections it has, in order. */
  readonly sockets: Client[]
}

/** A WebSocket server on a free port that echoes, or leaves its sockets alone. */
export async function startServer(
  t: Test,
  options: ServerOptions = {},
  echoes = true
): Promise<Upstream> {
  const server = new WebSocketServer({ port: 0, host: '127.0.0.1', ...options })
  await once(server, 'listening')
  const handshakes: IncomingMessage[] = []
  const sockets: Client[] = []
  server.on('connection', (socket, request) => {
    handshakes.push(request)
    sockets.push(socket)
    socket.on('error', () => {})
    if (echoes) socket.on('message', (data, binary) => socket.send(data, { binary }))
  })
  t.teardown(() => {
    for (const client of server.clients) client.terminate()
    server.close()
  })
  const { port } = server.address() as AddressInfo
  return { port, url: `http://127.0.0.1:${port}`, server, handshakes, sockets }
}

export const serving = (url: string, fields: object = {}) => ({
  services: [{ name: 'ws', url, ...fields, routes: [{ name: 'ws', paths: ['/'] }] }]
})

/** A client of the gateway, not yet connected. */
export function dial(
  t: Test,
  gateway: TestGateway,
  path = '/',
  protocols: string[] = [],
  options: ClientOptions = {}
): Client {
  const client = new WebSocket(gateway.url.replace('http', 'ws') + path, protocols, options)
  client.on('error', () => {})
  t.teardown(() => client.terminate())
  return client
}

export async function connect(...parameters: Parameters<typeof dial>): Promise<Client> {
  const client = dial(...parameters)
  await Promise.race([
    once(client, 'open'),
    once(client, 'unexpected-response').then(([, response]) => {
      throw new Error(`the handshake was answered ${response.statusCode}`)
    })
  ])
  return client
}

/** The refusal of a handshake: status, fields and body. */
export async function refusal(...parameters: Parameters<typeof dial>) {
  const client = dial(...parameters)
  const [, response] = (await once(client, 'unexpected-response')) as [unknown, IncomingMessage]
  let body = ''
  for await (const chunk of response) body += chunk
  return { status: response.statusCode!, headers: response.headers, body }
}

export const openOf = async (gateway: TestGateway): Promise<number> =>
  (await gateway.status('/status')).json().webSockets

const inFlightOf = async (gateway: TestGateway): Promise<number> =>
  (await gateway.status('/status')).json().inFlight

export async function allLetGo(gateway: TestGateway): Promise<void> {
  await until(
    async () => (await openOf(gateway)) === 0 && (await inFlightOf(gateway)) === 0,
    'the connections to be let go'
  )
}

/** Waits until a count has stopped to grow. */
export async function stalled(count: () => number): Promise<void> {
  let before = -1
  let same = 0
  await until(async () => {
    await new Promise(resolve => setTimeout(resolve, 30))
    same = count() === before ? same + 1 : 0
    before = count()
    return same === 10
  }, 'it to be held back')
}
