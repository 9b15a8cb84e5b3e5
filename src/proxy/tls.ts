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
  /** Whether any name has a pair: {@link pair} gives none otherwise. */
  readonly hasPairs: boolean
  /**
   * The best certificate for the name a client asked for; undefined is {@link unnamed}. Of a pair it
   * is the RSA one, since Node takes one certificate of a context over into a connection. Throws
   * POSTERN_CERTIFICATE_UNAVAILABLE for a name whose own certificate has no value now.
   */
  context(servername: string): SecureContext | undefined
  /**
   * The certificate for the name when that is a pair of an RSA and an ECDSA one, of which a server
   * that has both can choose for each client; the same object for every name of a pair.
   */
  pair(servername: string): Material | undefined
}

/** The name that stands for every other one. */
const DEFAULT = '*'

function materialOf(certificate: Certificate): Material {
  const pairs = [[certificate.cert.reveal(), certificate.key.reveal()] as const]
  if (certificate.cert_alt !== undefined && certificate.key_alt !== undefined) {
    pairs.push([certificate.cert_alt.reveal(), certificate.key_alt.reveal()])
  }
  // Where one must do, Node takes the last: RSA, which every client speaks.
  if (pairs.length > 1 && isRsa(pairs[0]![0])) pairs.reverse()
  return { cert: pairs.map(([cert]) => cert), key: pairs.map(([, key]) => key) }
}

const isPair = ({ cert }: Material): boolean => cert.length > 1

const isRsa = (certificate: string): boolean =>
  new X509Certificate(certificate).publicKey.asymmetricKeyType === 'rsa'

/** What TLS with clients is held to, besides the certificates. */
export type ContextPolicy = Pick<
  SecureContextOptions,
  'minVersion' | 'maxVersion' | 'ciphers' | 'ca'
>

/** A certificate and the context made of it. */
interface Named {
  readonly material: Material
  readonly context: SecureContext
}

function named(material: Material, policy: ContextPolicy): Named {
  const { cert, key } = material
  return {
    material,
    context: createSecureContext({ ...policy, cert: [...cert], key: [...key] })
  }
}

/** Stands for a certificate that has no value now. */
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
  const byId = new Map(
    certificates.map(certificate => [certificate.id, named(materialOf(certificate), policy)])
  )
  const byName = new Map<string, Named | typeof UNAVAILABLE>()
  let hasPairs = false
  let unnamed: Material =
    fallback.cert === '' ? NO_CERTIFICATE : { cert: [fallback.cert], key: [fallback.key] }
  for (const { name, certificate } of snis) {
    const found = byId.get(certificate.id)
    byName.set(name.toLowerCase(), found ?? UNAVAILABLE)
    // Without any, every handshake that comes to it fails.
    if (name === DEFAULT) unnamed = found?.material ?? NO_CERTIFICATE
    else hasPairs ||= found !== undefined && isPair(found.material)
  }
  const find = (servername: string) => {
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
  return {
    unnamed,
    policy,
    hasPairs,
    context(servername) {
      const found = find(servername)
      if (found === UNAVAILABLE) throw new CertificateUnavailable(servername)
      return found?.context
    },
    pair(servername) {
      const found = find(servername)
      if (found === undefined || found === UNAVAILABLE) return undefined
      return isPair(found.material) ? found.material : undefined
    }
  }
}
