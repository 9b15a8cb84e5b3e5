import { type Fault, startFaultServer } from '../vault/fault-server.ts'
import { type FakeVault, type HcvServer, pathOf, REFUSALS } from '../vault/hcv-server.ts'

/** Headers of one connection, which a proxy does not pass on. */
const OF_THE_CONNECTION = new Set(['connection', 'content-length', 'host', 'transfer-encoding'])

/** A real server behind a proxy that can make its answers fail. */
export async function behindFaults(
  server: HcvServer
): Promise<HcvServer & Pick<FakeVault, 'fault' | 'connections'>> {
  let affected: RegExp | undefined
  const proxy = await startFaultServer(
    async ({ method, url, headers, body }, fault: Fault | undefined) => {
      const refusal = fault && REFUSALS[fault]
      if (refusal !== undefined) return refusal
      const answer = await fetch(server.url + url, {
        method,
        redirect: 'manual',
        headers: Object.entries(headers).filter(
          (header): header is [string, string] => !OF_THE_CONNECTION.has(header[0])
        ),
        ...(body === '' ? {} : { body })
      })
      return { status: answer.status, body: await answer.text() }
    },
    { affects: ({ url }) => affected?.test(pathOf(url)) !== false }
  )
  return {
    port: proxy.port,
    url: proxy.url,
    get connections() {
      return proxy.connections
    },
    call: (method, path, body, headers) => server.call(method, path, body, headers),
    fault(kind, path) {
      affected = path
      return proxy.fault(kind)
    },
    async [Symbol.asyncDispose]() {
      await proxy.close()
      await server[Symbol.asyncDispose]()
    }
  }
}
