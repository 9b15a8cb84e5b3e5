import { X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import { connect } from 'node:tls'
import { certificateFor } from '../../certificates.ts'
import type { TestGateway } from '../../harness.ts'
import { type Proof, type Scenario, scenarios } from './chaos.ts'

/** Pairs made in advance for each scenario. */
const PAIRS = 4

/**
 * Pairs of a certificate and its key that listeners serve: a handshake proves that the key is that of
 * the certificate, whose name tells which pair it is.
 */
export async function certificates(): Promise<Proof> {
  const pairs = new Map<Scenario, readonly { readonly cert: string; readonly key: string }[]>()
  for (const scenario of scenarios) {
    pairs.set(
      scenario,
      await Promise.all(
        Array.from({ length: PAIRS }, (_, i) => certificateFor(`${scenario}.${i + 1}.example`))
      )
    )
  }
  let shown = 0
  /** Number of the pair that a new connection is shown. */
  const handshake = async (gateway: TestGateway, scenario: Scenario): Promise<number> => {
    const socket = connect({
      host: '127.0.0.1',
      port: Number(new URL(gateway.tlsUrl!).port),
      servername: `${scenario}.example`,
      rejectUnauthorized: false
    })
    try {
      await once(socket, 'secureConnect')
      const { subject } = new X509Certificate(socket.getPeerCertificate().raw)
      shown++
      return Number(new RegExp(`CN=${scenario}\\.(\\d)\\.example`).exec(subject)?.[1])
    } finally {
      socket.destroy()
    }
  }
  return {
    pair: (scenario, n) => pairs.get(scenario)![n - 1]!,
    entities: (reference, upstream) => ({
      services: [{ name: 'echo', url: upstream.url, routes: [{ name: 'echo', paths: ['/'] }] }],
      certificates: scenarios.map(scenario => ({
        cert: reference(scenario, 'cert'),
        key: reference(scenario, 'key'),
        snis: [{ name: `${scenario}.example` }]
      }))
    }),
    async request(gateway, scenario, n) {
      try {
        const given = await handshake(gateway, scenario)
        return given >= n ? undefined : `was shown pair ${given}`
      } catch (error) {
        return String(error)
      }
    },
    inForce: async (gateway, scenario, n) => (await handshake(gateway, scenario)) === n,
    // A key that is not that of its certificate fails the handshake, and so the request.
    halves: () => [],
    get uses() {
      return shown
    },
    async [Symbol.asyncDispose]() {}
  }
}
