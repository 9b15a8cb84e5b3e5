import {
  type Fault,
  type FaultServer,
  type ServiceAnswer,
  type ServiceRequest,
  startFaultServer
} from '../vault/fault-server.ts'

/** Headers of one connection, which a proxy does not pass on. */
const OF_THE_CONNECTION = new Set(['connection', 'content-length', 'host', 'transfer-encoding'])

/** How the service of a {@link startFaultProxy} fails. */
export interface Failing {
  /** Answers of the service itself in a fault that is not one of the wire. */
  readonly refusals: Partial<Record<Fault, ServiceAnswer>>
  /** Which requests a fault is played on; all of them when left out. */
  readonly affects?: (request: ServiceRequest) => boolean
}

/** A proxy before the real server at `target` that can make its answers fail. */
export function startFaultProxy(
  target: string,
  { refusals, affects }: Failing
): Promise<FaultServer> {
  return startFaultServer(
    async ({ method, url, headers, body }, fault) => {
      const refusal = fault && refusals[fault]
      if (refusal !== undefined) return refusal
      const answer = await fetch(target + url, {
        method,
        redirect: 'manual',
        headers: Object.entries(headers).filter(
          (header): header is [string, string] => !OF_THE_CONNECTION.has(header[0])
        ),
        ...(body === '' ? {} : { body })
      })
      const type = answer.headers.get('content-type')
      return {
        status: answer.status,
        headers: type === null ? {} : { 'Content-Type': type },
        body: await answer.text()
      }
    },
    affects === undefined ? {} : { affects }
  )
}
