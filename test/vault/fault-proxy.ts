import http, { type IncomingMessage } from 'node:http'
import https from 'node:https'
import {
  type Fault,
  type FaultServer,
  type FaultServerOptions,
  PLAY,
  type ServiceAnswer,
  type ServiceRequest,
  served,
  startFaultServer
} from './fault-server.ts'

/** Headers of one connection, which a proxy does not pass on. */
const OF_THE_CONNECTION = new Set([
  'connection',
  'content-length',
  'keep-alive',
  'transfer-encoding',
  PLAY
])

export interface FaultProxyOptions extends FaultServerOptions {
  /** How a real service refuses; one of the fakes is told what to play and answers by itself. */
  readonly refusals?: Partial<Record<Fault, ServiceAnswer>>
  /** Seconds in Retry-After instead of those that the service says. */
  readonly retryAfter?: number
  /** Put on every request. */
  readonly headers?: Readonly<Record<string, string>>
  /** Turns what the service answers unlike the real one into what that would answer. */
  readonly amend?: (answer: ServiceAnswer) => ServiceAnswer
}

/** Starts a proxy before the service at `target` that can make its answers fail; any certificate is taken. */
export function startFaultProxy(
  target: string,
  {
    refusals = {},
    retryAfter,
    headers = {},
    amend = answer => answer,
    ...options
  }: FaultProxyOptions = {}
): Promise<FaultServer> {
  return startFaultServer(async (received, fault) => {
    const request = { ...received, headers: { ...received.headers, ...headers } }
    const answer =
      (fault && refusals[fault]) ??
      // The service cannot be asked is an answer of a proxy, too.
      (await forward(target, request, fault).then(amend, (): ServiceAnswer => ({ status: 502 })))
    if (retryAfter === undefined || answer.headers?.['retry-after'] === undefined) return answer
    return { ...answer, headers: { ...answer.headers, 'retry-after': String(retryAfter) } }
  }, options)
}

async function forward(
  target: string,
  { method, url, headers, body }: ServiceRequest,
  fault: Fault | undefined
): Promise<ServiceAnswer> {
  const answered = Promise.withResolvers<IncomingMessage>()
  const { request } = target.startsWith('https:') ? https : http
  const sent = request(target + url, {
    method,
    rejectUnauthorized: false,
    agent: false,
    headers: {
      ...passedOn(headers),
      ...(body === '' ? {} : { 'content-length': Buffer.byteLength(body) }),
      ...(fault !== undefined && served.has(fault) ? { [PLAY]: fault } : {})
    }
  })
  sent.on('response', answered.resolve)
  sent.on('error', answered.reject)
  sent.end(body)
  const answer = await answered.promise
  const chunks: Buffer[] = []
  for await (const chunk of answer) chunks.push(chunk as Buffer)
  return {
    status: answer.statusCode!,
    headers: passedOn(answer.headers),
    body: Buffer.concat(chunks).toString()
  }
}

function passedOn(headers: IncomingMessage['headers']): Record<string, string> {
  return Object.fromEntries(
    Object.entries(headers)
      .filter(([name]) => !OF_THE_CONNECTION.has(name))
      .map(([name, value]) => [name, String(value)])
  )
}
