import type { OutgoingHttpHeaders } from 'node:http'
import type { ClientSecretCredentialOptions } from '@azure/identity'
import type { Transport, TransportAnswer } from '../transport.ts'

/** As the pipeline of the SDKs has it. */
export type HttpClient = NonNullable<ClientSecretCredentialOptions['httpClient']>
type PipelineRequest = Parameters<HttpClient['sendRequest']>[0]
type HttpHeaders = PipelineRequest['headers']

/**
 * Carries requests of the SDKs over the transport. `judge` is shown each answer and may throw; it and
 * the network's errors are what the SDK's caller gets.
 */
export function httpClientOver(
  transport: Transport,
  judge: (answer: TransportAnswer) => void = () => {}
): HttpClient {
  return {
    async sendRequest(request) {
      const headers: OutgoingHttpHeaders = request.headers.toJSON()
      // Bodies are taken as they are.
      delete headers['accept-encoding']
      const answer = await transport.send({
        method: request.method,
        url: new URL(request.url),
        headers,
        body: (request.body as string | null | undefined) ?? undefined,
        ...(request.abortSignal === undefined ? {} : { signal: request.abortSignal as AbortSignal })
      })
      judge(answer)
      return {
        request,
        status: answer.status,
        headers: headersOf(answer),
        bodyAsText: answer.body
      }
    }
  }
}

function headersOf({ headers }: TransportAnswer): HttpHeaders {
  const map = new Map(Object.entries(headers).map(([name, value]) => [name, String(value)]))
  return {
    get: name => map.get(name.toLowerCase()),
    has: name => map.has(name.toLowerCase()),
    set: (name, value) => void map.set(name.toLowerCase(), String(value)),
    delete: name => void map.delete(name.toLowerCase()),
    toJSON: () => Object.fromEntries(map),
    [Symbol.iterator]: () => map.entries()
  }
}
