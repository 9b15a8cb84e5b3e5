import { X509Certificate } from 'node:crypto'
import { createSecureContext, type SecureContext, type SecureContextOptions } from 'node:tls'
import { CertificateUnavailable } from '../errors.ts'
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
  /** What TLS is held to, with any certificate. */
  readonly policy: ContextPolicy
  /**
   * The best certificate for the name a client asked for; undefined is {@link unnamed}. Throws
   * POSTERN_CERTIFICATE_UNAVAILABLE for a name whose own certificate has no value now.
   */
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

/** Stands for the context of a certificate that has no value now. */
const UNAVAILABLE = Symbol('unavailable')
const NO_CERTIFICATE: Material = { cert: [], key: [] }

/**
 * Makes each certificate's TLS context once. Throws what OpenSSL says of material it does not take.
 * Look-up goes from the exact name over a wildcard for its first label and one for its last to `*`
 * and then `fallback`. A name of `snis` whose certificate is not among `certificates` fails closed:
 * another certificate would tell its clients that this is another server.
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
  const byName = new Map<string, SecureContext | typeof UNAVAILABLE>()
  let unnamed: Material =
    fallback.cert === '' ? NO_CERTIFICATE : { cert: [fallback.cert], key: [fallback.key] }
  for (const { name, certificate } of snis) {
    byName.set(name.toLowerCase(), contexts.get(certificate.id) ?? UNAVAILABLE)
    // Without any, every handshake that comes to it fails.
    if (name === DEFAULT) unnamed = materials.get(certificate.id) ?? NO_CERTIFICATE
  }
  const find = (name: string) => {
    const exact = byName.get(name)
    if (exact !== undefined) return exact
    const first = name.indexOf('.')
    const end = name.lastIndexOf('.')
    if (first === -1) return undefined
    // A wildcard stands for one label below a domain, never for a domain below a top-level one.
    const wildcard = first === end ? undefined : byName.get(`*${name.slice(first)}`)
    return wildcard ?? byName.get(`${name.slice(0, end)}.*`)
  }
  return {
    unnamed,
    policy,
    context(servername) {
      const found = find(servername.toLowerCase())
      if (found === UNAVAILABLE) throw new CertificateUnavailable(servername)
      return found
    }
  }
}
