import { X509Certificate } from 'node:crypto'
import { createSecureContext, type SecureContext, type SecureContextOptions } from 'node:tls'
import type { Certificate, Sni } from '../schema/entities.ts'

/** A certificate chain and its private key, both PEM. */
export interface KeyPair {
  readonly cert: string
  readonly key: string
}

/** A certificate as TLS servers take it: chains and keys in the same order. */
export interface Material {
  readonly cert: readonly string[]
  readonly key: readonly string[]
}

/** The certificates of a configuration by the names they are for. */
export interface CertificateStore {
  /** The certificate of clients that name no server, which TLS servers want as material. */
  readonly unnamed: Material
  /** The best certificate for the name a client asked for; undefined is {@link unnamed}. */
  context(servername: string): SecureContext | undefined
}

/** The name that stands for every other one. */
const DEFAULT = '*'

function materialOf(certificate: Certificate): Material {
  const pairs = [[certificate.cert.reveal(), certificate.key.reveal()] as const]
  if (certificate.cert_alt !== undefined && certificate.key_alt !== undefined) {
    pairs.push([certificate.cert_alt.reveal(), certificate.key_alt.reveal()])
  }
  // For a name that was asked for, Node serves the last of a pair alone: RSA, which every client speaks.
  if (pairs.length > 1 && isRsa(pairs[0]![0])) pairs.reverse()
  return { cert: pairs.map(([cert]) => cert), key: pairs.map(([, key]) => key) }
}

const isRsa = (certificate: string): boolean =>
  new X509Certificate(certificate).publicKey.asymmetricKeyType === 'rsa'

/** What TLS with clients is held to, besides the certificates. */
export type ContextPolicy = Pick<
  SecureContextOptions,
  'minVersion' | 'maxVersion' | 'ciphers' | 'ca'
>

function contextOf({ cert, key }: Material, policy: ContextPolicy): SecureContext {
  return createSecureContext({ ...policy, cert: [...cert], key: [...key] })
}

/**
 * Makes each certificate's TLS context once. Throws what OpenSSL says of material it does not take.
 * Look-up goes from the exact name over a wildcard for its first label and one for its last to `*`
 * and then `fallback`.
 */
export function compileCertificates(
  certificates: readonly Certificate[],
  snis: readonly Sni[],
  fallback: KeyPair,
  policy: ContextPolicy = { minVersion: 'TLSv1.2' }
): CertificateStore {
  const materials = new Map(
    certificates.map(certificate => [certificate.id, materialOf(certificate)])
  )
  const contexts = new Map(
    [...materials].map(([id, material]) => [id, contextOf(material, policy)])
  )
  const byName = new Map<string, SecureContext>()
  let unnamed: Material =
    fallback.cert === '' ? { cert: [], key: [] } : { cert: [fallback.cert], key: [fallback.key] }
  for (const { name, certificate } of snis) {
    const context = contexts.get(certificate.id)
    if (context === undefined) continue
    byName.set(name.toLowerCase(), context)
    if (name === DEFAULT) {
      unnamed = materials.get(certificate.id)!
    }
  }
  return {
    unnamed,
    context(servername) {
      const name = servername.toLowerCase()
      const exact = byName.get(name)
      if (exact !== undefined) return exact
      const first = name.indexOf('.')
      const end = name.lastIndexOf('.')
      if (first === -1) return undefined
      // A wildcard stands for one label below a domain, never for a domain below a top-level one.
      const wildcard = first === end ? undefined : byName.get(`*${name.slice(first)}`)
      return wildcard ?? byName.get(`${name.slice(0, end)}.*`)
    }
  }
}

/** A fresh self-signed certificate for `localhost`, for listeners that were given none. */
export async function selfSigned(): Promise<KeyPair> {
  const { generate } = await import('selfsigned')
  const { cert, private: key } = await generate([{ name: 'commonName', value: 'localhost' }], {
    keyType: 'ec',
    curve: 'P-256',
    algorithm: 'sha256',
    extensions: [
      { name: 'basicConstraints', cA: false },
      {
        name: 'subjectAltName',
        altNames: [
          { type: 2, value: 'localhost' },
          { type: 7, ip: '127.0.0.1' }
        ]
      }
    ]
  })
  return { cert, key }
}
