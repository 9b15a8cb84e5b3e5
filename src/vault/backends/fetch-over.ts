import type { Transport } from './transport.ts'

/**
 * The `fetch` that libraries are given to carry their requests over a transport: bodies are text or
 * bytes, redirects are not followed, and an answer arrives whole.
 */
export function fetchOver(transport: Transport): typeof fetch {
  return async (input, init = {}) => {
    const { method = 'GET', headers, body, signal } = init
    const answer = await transport.send({
      method,
      url: new URL(input instanceof Request ? input.url : input),
      headers: Object.fromEntries(new Headers(headers)),
      body: body instanceof Uint8Array ? body : body ? String(body) : undefined,
      ...(signal ? { signal } : {})
    })
    return new Response(answer.body === '' ? null : answer.body, {
      status: answer.status,
      headers: Object.entries(answer.headers).map(([name, value]) => [name, String(value)])
    })
  }
}
