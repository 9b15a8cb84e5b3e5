import { readFileSync } from 'node:fs'
import http from 'node:http'
import https from 'node:https'
import { createProxyServer } from 'http-proxy-3'

// http-proxy-3 as its README shows it, with the keep-alive agent it recommends.
const [port, target, cert, key] = process.argv.slice(2)
const proxy = createProxyServer({ target: target!, agent: new http.Agent({ keepAlive: true }) })
proxy.on('error', (_error, _request, response) => {
  if ('writeHead' in response) response.writeHead(502).end()
})
const serve = (request: http.IncomingMessage, response: http.ServerResponse): void => {
  void proxy.web(request, response)
}
const server =
  cert === undefined
    ? http.createServer(serve)
    : https.createServer({ cert: readFileSync(cert), key: readFileSync(key!) }, serve)
server.listen(Number(port), '127.0.0.1')
