import type { HttpHandlerOptions, HttpRequest, HttpResponse } from '@smithy/types'
import { Transport } from '../transport.ts'

/** What a handler of the SDK takes for its configuration: this one has none. */
type NoConfig = Readonly<Record<string, never>>

/** Carries requests of the SDK's clients over the transport: bounded, through the proxy of the environment. */
export class Handler {
  readonly metadata = { handlerProtocol: 'http/1.1' }
  readonly #transport: Transport

  constructor(env: Readonly<Record<string, string | undefined>>) {
    this.#transport = new Transport({}, env)
  }

  async handle(
    request: HttpRequest,
    { abortSignal }: HttpHandlerOptions = {}
  ): Promise<{ response: HttpResponse }> {
    const { status, headers, body } = await this.#transport.send({
      method: request.method,
      url: urlOf(request),
      headers: request.headers,
      body: request.body as string | Uint8Array | undefined,
      // Every request of these clients reads, or takes out credentials that end by themselves.
      repeatable: true,
      ...(abortSignal === undefined ? {} : { signal: abortSignal as AbortSignal })
    })
    return {
      response: {
        statusCode: status,
        headers: Object.fromEntries(
          Object.entries(headers).map(([name, value]) => [name, String(value)])
        ),
        body: Buffer.from(body)
      }
    }
  }

  updateHttpClientConfig(): void {
    // The transport is what it was made as.
  }

  httpHandlerConfigs(): NoConfig {
    return {}
  }

  /** The SDK ends a handler with each client, so also with the short-lived ones for credentials. */
  destroy(): void {}

  close(): void {
    this.#transport.close()
  }
}

function urlOf({ protocol, hostname, port, path, query }: HttpRequest): URL {
  const url = new URL(`${protocol}//${hostname}${port === undefined ? '' : `:${port}`}${path}`)
  for (const [name, value] of Object.entries(query ?? {})) {
    for (const each of [value].flat()) url.searchParams.append(name, each ?? '')
  }
  return url
}
