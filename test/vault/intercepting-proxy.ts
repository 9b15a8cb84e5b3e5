import { once } from 'node:events'
import http from 'node:http'
import { type AddressInfo, connect, type Socket } from 'node:net'

/** A forward proxy that leads every host to a server of the test, whatever its name. */
export interface InterceptingProxy {
  readonly url: string
  /** `host:port` of each tunnel, in order. */
  readonly tunnels: string[]
  [Symbol.asyncDispose](): Promise<void>
}

/** Starts it before the server at `port` of this machine; a function gives that of a host. */
export async function startInterceptingProxy(
  port: number | ((host: string) => number)
): Promise<InterceptingProxy> {
  const tunnels: string[] = []
  const sockets = new Set<Socket>()
  const server = http.createServer((_, response) => response.writeHead(405).end())
  server.on('connect', (request, socket: Socket) => {
    tunnels.push(request.url!)
    const to = typeof port === 'number' ? port : port(request.url!.split(':')[0]!)
    const target = connect(to, '127.0.0.1', () => {
      socket.write('HTTP/1.1 200 Connection established\r\n\r\n')
      target.pipe(socket).pipe(target)
    })
    for (const each of [socket, target]) {
      sockets.add(each)
      each.on('error', () => {})
      each.on('close', () => {
        sockets.delete(each)
        socket.destroy()
        target.destroy()
      })
    }
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    tunnels,
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy()
      server.closeAllConnections()
      await new Promise(resolve => server.close(resolve))
    }
  }
}
