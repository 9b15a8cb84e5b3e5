import { createPrivateKey, type KeyObject, X509Certificate } from 'node:crypto'
import { SecretMalformed } from '../../../errors.ts'

/** The chain with its leaf first, and the leaf's key; PEM. */
export interface CertificateAndKey extends Readonly<Record<string, string>> {
  readonly cert: string
  readonly key: string
}

interface Parts {
  readonly certificates: readonly X509Certificate[]
  readonly keys: readonly KeyObject[]
}

const BLOCK = /-----BEGIN ([A-Z0-9 ]+)-----[\s\S]*?-----END \1-----/g

/**
 * Takes apart what Key Vault gives for a certificate: PEM, or PKCS#12 without a password. Throws
 * SecretMalformed when it is neither, or its key is missing.
 */
export async function certificateAndKey(
  value: string,
  contentType: string | undefined,
  resource: string
): Promise<CertificateAndKey> {
  const { certificates, keys } = await partsOf(value, contentType, resource)
  if (certificates.length === 0) throw new SecretMalformed(resource, 'it holds no certificate')
  const [key] = keys
  if (key === undefined) {
    throw new SecretMalformed(resource, 'it holds no private key: was it made exportable?')
  }
  const leaf = certificates.find(each => each.checkPrivateKey(key))
  if (leaf === undefined) throw new SecretMalformed(resource, 'its key is that of no certificate')
  return {
    cert: chainOf(leaf, certificates)
      .map(each => each.toString())
      .join(''),
    key: key.export({ type: 'pkcs8', format: 'pem' }) as string
  }
}

async function partsOf(
  value: string,
  contentType: string | undefined,
  resource: string
): Promise<Parts> {
  try {
    if (value.includes('-----BEGIN')) return fromPem(value)
    if (contentType !== undefined && contentType !== 'application/x-pkcs12') {
      throw new Error('it is of another type')
    }
    return await fromPkcs12(value)
  } catch {
    // What parsers say may quote what they read.
    throw new SecretMalformed(resource, 'it is neither PEM nor PKCS#12 without a password')
  }
}

function fromPem(text: string): Parts {
  const blocks = [...text.matchAll(BLOCK)].map(([block, label]) => ({ block, label: label! }))
  return {
    certificates: blocks
      .filter(({ label }) => label === 'CERTIFICATE')
      .map(({ block }) => new X509Certificate(block)),
    keys: blocks
      .filter(({ label }) => label.endsWith('PRIVATE KEY'))
      .map(({ block }) => createPrivateKey(block))
  }
}

/** What reads PKCS #12, which most certificates of Key Vault are. */
export function importForge(): Promise<{ default: typeof import('node-forge') }> {
  return import('node-forge')
}

async function fromPkcs12(base64: string): Promise<Parts> {
  const { default: forge } = await importForge()
  const { asn1, pki, pkcs12, util } = forge
  const pfx = pkcs12.pkcs12FromAsn1(asn1.fromDer(util.decode64(base64)), false, '')
  const bags = pfx.safeContents.flatMap(({ safeBags }) => safeBags)
  // Of keys and certificates other than RSA, forge gives the ASN.1 alone; so that is taken of all.
  const der = (value: unknown): Buffer =>
    Buffer.from(asn1.toDer(value as Parameters<typeof asn1.toDer>[0]).getBytes(), 'binary')
  return {
    certificates: bags
      .filter(({ type }) => type === pki.oids.certBag)
      .map(
        ({ cert, asn1: raw }) => new X509Certificate(der(cert ? pki.certificateToAsn1(cert) : raw))
      ),
    keys: bags
      .filter(({ type }) => type === pki.oids.keyBag || type === pki.oids.pkcs8ShroudedKeyBag)
      .map(({ key, asn1: raw }) =>
        createPrivateKey({
          key: der(key ? pki.wrapRsaPrivateKey(pki.privateKeyToAsn1(key)) : raw),
          format: 'der',
          type: 'pkcs8'
        })
      )
  }
}

/** From a certificate up to the last whose issuer is there too. */
function chainOf(
  leaf: X509Certificate,
  certificates: readonly X509Certificate[]
): readonly X509Certificate[] {
  const chain = [leaf]
  for (;;) {
    const last = chain.at(-1)!
    const issuer = certificates.find(each => !chain.includes(each) && last.checkIssued(each))
    if (issuer === undefined) return chain
    chain.push(issuer)
  }
}
