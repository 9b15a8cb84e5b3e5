import { once } from 'node:events'
import http, { type IncomingMessage, type RequestListener, type ServerResponse } from 'node:http'
import https from 'node:https'
import type { AddressInfo, Socket } from 'node:net'
import { TLSSocket } from 'node:tls'

/** What can be wrong between a gateway and a vault, or with what the vault answers. */
export const faults = [
  'refused',
  'black-hole',
  'reset',
  'half',
  'garbage',
  'huge',
  'slow',
  'denied',
  'absent',
  'throttled',
  'unavailable'
] as const

export type Fault = (typeof faults)[number]

/** Faults of the wire, which a {@link FaultServer} plays itself; the others are answers of the service. */
export type WireFault = Exclude<Fault, 'denied' | 'absent' | 'throttled' | 'unavailable'>

/** Seconds that every fake says in Retry-After when it throttles. */
export const RETRY_AFTER = 7

const HUGE = 10 * 1024 * 1024

/** One request a fake service received. */
export interface ServiceRequest {
  readonly method: string
  /** Path and query. */
  readonly url: string
  readonly headers: IncomingMessage['headers']
  readonly body: string
  /** The client's certificate (DER), where TLS asked for one and it was shown. */
  readonly certificate?: Buffer
}

export interface ServiceAnswer {
  readonly status?: number
  readonly headers?: Readonly<Record<string, string>>
  /** Text, or an object that is sent as JSON. */
  readonly body?: string | object
}

/** A service's answer to a request, while the fault (if any) is one that the service itself must play. */
export type Service = (
  request: ServiceRequest,
  fault: Fault | undefined
) => ServiceAnswer | Promise<ServiceAnswer>

export interface FaultServerOptions {
  /** Serves https with this certificate. */
  readonly tls?: https.ServerOptions
  /** Which requests a fault is played on; all of them when left out (a login may be spared, say). */
  readonly affects?: (request: ServiceRequest) => boolean
}

/** An HTTP server on a free port whose answers can be made to fail on the wire. */
export interface FaultServer {
  readonly url: string
  readonly port: number
  /** Every request, in order. */
  readonly requests: ServiceRequest[]
  /** Connections open now. */
  readonly connections: number
  fault(kind: Fault | undefined): Promise<void>
  close(): Promise<void>
}

/** Starts a fake service; `service` gives the answers, the server plays what goes wrong on the wire. */
export async function startFaultServer(
  service: Service,
  options: FaultServerOptions = {}
): Promise<FaultServer> {
  const requests: ServiceRequest[] = []
  let fault: Fault | undefined
  const listener: RequestListener = async (incoming, response) => {
    const chunks: Buffer[] = []
    try {
      for await (const chunk of incoming) chunks.push(chunk as Buffer)
    } catch {
      return
    }
    const request: ServiceRequest = {
      method: incoming.method!,
      url: incoming.url!,
      headers: incoming.headers,
      body: Buffer.concat(chunks).toString(),
      ...certificateOf(incoming.socket)
    }
    requests.push(request)
    const playing = options.affects?.(request) === false ? undefined : fault
    if (playing === 'black-hole') return
    await deliver(await service(request, playing), playing, response)
  }
  const server =
    options.tls === undefined
      ? http.createServer(listener)
      : https.createServer(options.tls, listener)
  const sockets = new Set<Socket>()
  server.on('connection', socket => {
    sockets.add(socket)
    socket.on('close', () => sockets.delete(socket))
    socket.on('error', () => {})
  })
  const listen = async (port: number): Promise<void> => {
    server.listen(port, '127.0.0.1')
    await once(server, 'listening')
  }
  const stop = async (): Promise<void> => {
    const stopped = server.listening
      ? new Promise(resolve => server.close(resolve))
      : Promise.resolve()
    for (const socket of sockets) socket.destroy()
    await stopped
  }
  await listen(0)
  const { port } = server.address() as AddressInfo
  return {
    url: `${options.tls === undefined ? 'http' : 'https'}://127.0.0.1:${port}`,
    port,
    requests,
    get connections() {
      return sockets.size
    },
    async fault(kind) {
      if (kind === 'refused') await stop()
      else if (!server.listening) await listen(port)
      // What a fault before held back ends with it.
      if (fault === 'black-hole' || fault === 'slow') for (const socket of sockets) socket.destroy()
      fault = kind
    },
    close: stop
  }
}

function certificateOf(socket: Socket | TLSSocket): Pick<ServiceRequest, 'certificate'> {
  const raw = 'encrypted' in socket ? socket.getPeerCertificate()?.raw : undefined
  return raw === undefined ? {} : { certificate: raw }
}

async function deliver(
  answer: ServiceAnswer,
  fault: Fault | undefined,
  response: ServerResponse
): Promise<void> {
  const { status = 200, headers = {}, body = '' } = answer
  const json = typeof body !== 'string'
  const whole = Buffer.from(json ? JSON.stringify(body) : body)
  const head = { ...(json ? { 'Content-Type': 'application/json' } : {}), ...headers }
  const half = whole.subarray(0, Math.ceil(whole.length / 2))
  response.on('error', () => {})
  switch (fault) {
    case 'reset':
    case 'half':
      response.writeHead(status, { ...head, 'Content-Length': whole.length })
      response.write(half, () => {
        const { socket } = response
        if (fault === 'half') socket?.destroySoon()
        // A TLS socket cannot be reset; ended without its closing alert, it looks the same.
        else if (socket instanceof TLSSocket) socket.destroy()
        else socket?.resetAndDestroy()
      })
      return
    case 'garbage':
      response.writeHead(status, { ...head, 'Content-Length': half.length })
      response.end(half)
      return
    case 'huge':
      response.writeHead(status, head)
      // Still well-formed JSON where the answer is: only its size is wrong.
      response.end(Buffer.concat([Buffer.alloc(HUGE, ' '), whole]))
      return
    case 'slow':
      response.writeHead(status, { ...head, 'Content-Length': HUGE })
      await drip(half, response)
      return
    default:
      response.writeHead(status, { ...head, 'Content-Length': whole.length })
      response.end(whole)
  }
}

/** A byte now and then, for as long as the client stays. */
async function drip(bytes: Buffer, response: ServerResponse): Promise<void> {
  for (let i = 0; !response.destroyed && response.socket?.destroyed === false; i++) {
    response.write(bytes.subarray(i % bytes.length, (i % bytes.length) + 1))
    await new Promise(resolve => setTimeout(resolve, 20))
  }
}
