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
  'endless',
  'slow',
  'redirect',
  'bad-gateway',
  'denied',
  'absent',
  'throttled',
  'unavailable'
] as const

export type Fault = (typeof faults)[number]

/** Faults that are answers of the service itself; a {@link FaultServer} plays the others on the wire. */
export const served: ReadonlySet<Fault> = new Set(['denied', 'absent', 'throttled', 'unavailable'])

/** Seconds that every fake says in Retry-After when it throttles. */
export const RETRY_AFTER = 7

/** Names the fault that a proxy before a fake wants the service to play for one request. */
export const PLAY = 'x-play-fault'

const HUGE = 10 * 1024 * 1024
/** What a client that never gives up would get of an endless answer. */
const ENDLESS = 256 * 1024 * 1024
const SPACES = Buffer.alloc(64 * 1024, ' ')

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
  /** Where a redirect leads; to itself when left out. */
  readonly elsewhere?: string
}

/** An HTTP server on a free port whose answers can be made to fail on the wire. */
export interface FaultServer {
  readonly url: string
  readonly port: number
  /** Every request, in order. */
  readonly requests: ServiceRequest[]
  /** Connections open now. */
  readonly connections: number
  /** The most bytes that a client took of one answer that was too large. */
  readonly taken: number
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
  let taken = 0
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
    const asked = incoming.headers[PLAY] as Fault | undefined
    const playing = options.affects?.(request) === false ? undefined : (fault ?? asked)
    if (playing === 'black-hole') return
    if (playing === 'redirect') {
      const location = (options.elsewhere ?? '') + request.url
      response.writeHead(307, { location }).end()
      return
    }
    if (playing === 'bad-gateway') {
      response.writeHead(502, { 'Content-Type': 'text/html' }).end('<h1>canary: 502</h1>')
      return
    }
    const answer = await service(request, playing)
    if (request.method !== 'HEAD' && (playing === 'huge' || playing === 'endless')) {
      const size = playing === 'huge' ? HUGE : ENDLESS
      taken = Math.max(taken, await flood(size, answer, response))
      return
    }
    await deliver(answer, playing, response)
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
    get taken() {
      return taken
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
    case 'slow':
      response.writeHead(status, { ...head, 'Content-Length': HUGE })
      await drip(half, response)
      return
    default:
      response.writeHead(status, { ...head, 'Content-Length': whole.length })
      response.end(whole)
  }
}

/** Spaces, no faster than they are taken, and the answer behind them; gives how many bytes went. */
async function flood(
  size: number,
  { status = 200, headers = {}, body = '' }: ServiceAnswer,
  response: ServerResponse
): Promise<number> {
  const gone = new Promise<void>(resolve => response.once('close', resolve))
  response.on('error', () => {})
  response.writeHead(status, { 'Content-Type': 'application/json', ...headers })
  let sent = 0
  while (sent < size && !response.destroyed) {
    sent += SPACES.length
    if (response.write(SPACES)) continue
    await Promise.race([gone, new Promise<void>(resolve => response.once('drain', resolve))])
  }
  // Still well-formed JSON where the answer is: only its size is wrong.
  if (!response.destroyed) response.end(typeof body === 'string' ? body : JSON.stringify(body))
  return sent
}

/** A byte now and then, for as long as the client stays. */
async function drip(bytes: Buffer, response: ServerResponse): Promise<void> {
  for (let i = 0; !response.destroyed && response.socket?.destroyed === false; i++) {
    response.write(bytes.subarray(i % bytes.length, (i % bytes.length) + 1))
    await new Promise(resolve => setTimeout(resolve, 20))
  }
}
