import { once } from 'node:events'
import { mkdtemp, rename, rm, writeFile } from 'node:fs/promises'
import http, { type IncomingMessage, type RequestListener, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Agent, request } from 'undici'
import { type Gateway, startGateway as start } from '../src/gateway.ts'

/** One request an upstream of a test received. */
export interface Received {
  readonly method: string
  readonly url: string
  readonly headers: IncomingMessage['headers']
  readonly rawHeaders: readonly string[]
  readonly body: string
}

export interface TestUpstream {
  readonly host: string
  readonly port: number
  readonly url: string
  /** Every request it has received whole, in order. */
  readonly requests: Received[]
  close(): Promise<void>
  [Symbol.asyncDispose](): Promise<void>
}

type Handler = (
  received: Received,
  response: ServerResponse,
  request: IncomingMessage
) => void | Promise<void>

/** An HTTP upstream on a free port that answers 200 with what it received, or as `handler` does. */
export async function startUpstream(handler: Handler = echo): Promise<TestUpstream> {
  const requests: Received[] = []
  const listener: RequestListener = async (request, response) => {
    const chunks: Buffer[] = []
    try {
      for await (const chunk of request) chunks.push(chunk as Buffer)
    } catch {
      return
    }
    const received = {
      method: request.method!,
      url: request.url!,
      headers: request.headers,
      rawHeaders: request.rawHeaders,
      body: Buffer.concat(chunks).toString()
    }
    requests.push(received)
    await handler(received, response, request)
  }
  const server = http.createServer({ keepAliveTimeout: 60_000 }, listener)
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  const close = async () => {
    server.closeAllConnections()
    if (server.listening) await new Promise(resolve => server.close(resolve))
  }
  return {
    host: '127.0.0.1',
    port,
    url: `http://127.0.0.1:${port}`,
    requests,
    close,
    [Symbol.asyncDispose]: close
  }
}

function echo(received: Received, response: ServerResponse): void {
  response.setHeader('Content-Type', 'application/json')
  response.end(JSON.stringify(received))
}

export interface TestResponse {
  readonly status: number
  /** Lower-case names; repeated fields are arrays. */
  readonly headers: Record<string, string | string[] | undefined>
  readonly body: string
  // biome-ignore lint/suspicious/noExplicitAny: tests look into answers of any shape
  json(): any
}

export interface FetchOptions {
  readonly method?: string
  readonly headers?: Record<string, string | string[]> | string[]
  readonly body?: string | Buffer
}

export interface TestGateway {
  readonly gateway: Gateway
  /** Of the first plain listener. */
  readonly url: string
  readonly port: number
  /** Of the first TLS listener; undefined without one. */
  readonly tlsUrl: string | undefined
  readonly statusUrl: string
  readonly directory: string
  fetch(path: string, options?: FetchOptions): Promise<TestResponse>
  status(path: string, options?: FetchOptions): Promise<TestResponse>
  /** Writes a new configuration to the file and has it loaded; rejects with what is wrong with it. */
  reload(config: object | string): Promise<void>
  close(): Promise<void>
  [Symbol.asyncDispose](): Promise<void>
}

export interface StartOptions {
  readonly env?: Record<string, string>
  readonly workers?: number
}

/** Sends one request on a connection of a shared pool and reads the answer whole. */
export async function send(
  agent: Agent,
  url: string,
  options: FetchOptions = {}
): Promise<TestResponse> {
  const response = await request(url, {
    dispatcher: agent,
    method: (options.method ?? 'GET') as 'GET',
    headers: options.headers ?? {},
    body: options.body ?? null
  })
  const body = await response.body.text()
  return {
    status: response.statusCode,
    headers: response.headers,
    body,
    json: () => JSON.parse(body)
  }
}

/**
 * A gateway on free ports in this process, on a file holding `config` (an object is given the format
 * version when it has none). Quiet unless POSTERN_TEST_LOG is set.
 */
export async function startGateway(
  config: object | string,
  options: StartOptions = {}
): Promise<TestGateway> {
  const directory = await mkdtemp(join(tmpdir(), 'postern-test-'))
  const file = join(directory, 'postern.yaml')
  await writeFile(file, textOf(config))
  const gateway = await start({
    POSTERN_CONFIG: file,
    POSTERN_PROXY_LISTEN: '127.0.0.1:0',
    POSTERN_STATUS_LISTEN: '127.0.0.1:0',
    POSTERN_WORKERS: String(options.workers ?? 1),
    POSTERN_LOG_LEVEL: process.env.POSTERN_TEST_LOG ?? 'silent',
    POSTERN_SHUTDOWN_TIMEOUT: '2',
    ...options.env
  }).catch(async error => {
    await rm(directory, { recursive: true, force: true })
    throw error
  })
  const agent = new Agent({ connect: { rejectUnauthorized: false }, keepAliveTimeout: 1000 })
  const plain = gateway.listeners.find(listener => !listener.ssl)
  const tls = gateway.listeners.find(listener => listener.ssl)
  const url = plain === undefined ? '' : `http://127.0.0.1:${plain.port}`
  const close = async () => {
    await agent.destroy()
    await gateway.close()
    await rm(directory, { recursive: true, force: true })
  }
  return {
    gateway,
    url,
    port: plain?.port ?? 0,
    tlsUrl: tls === undefined ? undefined : `https://127.0.0.1:${tls.port}`,
    statusUrl: gateway.statusUrl ?? '',
    directory,
    fetch: (path, init) => send(agent, url + path, init),
    status: (path, init) => send(agent, gateway.statusUrl + path, init),
    async reload(next) {
      await writeFile(`${file}.next`, textOf(next))
      await rename(`${file}.next`, file)
      await gateway.reload()
    },
    close,
    [Symbol.asyncDispose]: close
  }
}

function textOf(config: object | string): string {
  if (typeof config === 'string') return config
  return JSON.stringify({ _format_version: '3.0', ...config }, null, 2)
}

/** Polls until `condition` gives a truthy value, which it returns; fails after a generous bound. */
export async function until<T>(
  condition: () => T | Promise<T>,
  what: string,
  bound = 15_000
): Promise<NonNullable<T>> {
  const end = Date.now() + bound
  for (;;) {
    const value = await condition()
    if (value) return value as NonNullable<T>
    if (Date.now() > end) throw new Error(`never happened: ${what}`)
    await new Promise(resolve => setTimeout(resolve, 20))
  }
}
