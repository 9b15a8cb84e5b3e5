import http from 'node:http'
import { createRequire } from 'node:module'

// fast-proxy as its README shows it. It has no types.
const [port, base] = process.argv.slice(2)
const fastProxy = createRequire(import.meta.url)('fast-proxy') as (options: object) => {
  proxy(
    request: http.IncomingMessage,
    response: http.ServerResponse,
    url: string,
    options: object
  ): void
}
const { proxy } = fastProxy({ base, undici: { connections: 512, pipelining: 1 } })
http
  .createServer((request, response) => proxy(request, response, request.url!, {}))
  .listen(Number(port), '127.0.0.1')
