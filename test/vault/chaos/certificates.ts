import { X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import { connect } from 'node:tls'
import { certificateFor } from '../../certificates.ts'
import type { Proof, Served } from './chaos.ts'

/** Pairs made in advance for each name. */
const PAIRS = 4

/**
 * Pairs of a certificate and its key that listeners serve: a handshake proves that the key is that of
 * the certificate, whose name tells which pair it is.
 */
export async function certificates(names: readonly string[]): Promise<Proof> {
  const pairs = new Map<string, readonly { readonly cert: string; readonly key: string }[]>()
  for (const name of names) {
    pairs.set(
      name,
      await Promise.all(
        Array.from({ length: PAIRS }, (_, i) => certificateFor(`${name}.${i + 1}.example`))
      )
    )
  }
  let shown = 0
  /** Number of the pair that a new connection is shown. */
  const handshake = async (gateway: Served, name: string): Promise<number> => {
    const socket = connect({
      host: '127.0.0.1',
      port: Number(new URL(gateway.tlsUrl!).port),
      servername: `${name}.example`,
      rejectUnauthorized: false
    })
    try {
      await once(socket, 'secureConnect')
      const { subject } = new X509Certificate(socket.getPeerCertificate().raw)
      shown++
      return Number(new RegExp(`CN=${name}\\.(\\d)\\.example`).exec(subject)?.[1])
    } finally {
      socket.destroy()
    }
  }
  return {
    pair: (name, n) => pairs.get(name)![n - 1]!,
    entities: (reference, upstream) => ({
      services: [{ name: 'echo', url: upstream.url, routes: [{ name: 'echo', paths: ['/'] }] }],
      certificates: names.map(name => ({
        cert: reference(name, 'cert'),
        key: reference(name, 'key'),
        snis: [{ name: `${name}.example` }]
      }))
    }),
    async request(gateway, name, n) {
      try {
        const given = await handshake(gateway, name)
        return given >= n ? undefined : `was shown pair ${given}`
      } catch (error) {
        return String(error)
      }
    },
    inForce: async (gateway, name, n) => (await handshake(gateway, name)) === n,
    // A key that is not that of its certificate fails the handshake, and so the request.
    halves: () => [],
    get uses() {
      return shown
    },
    async [Symbol.asyncDispose]() {}
  }
}
