import { isIP } from 'node:net'
import forge from 'node-forge'
import { generate } from 'selfsigned'

/** A self-signed certificate for these names and addresses, PEM. */
export async function certificateFor(...names: string[]): Promise<{ cert: string; key: string }> {
  const { cert, private: key } = await generate([{ name: 'commonName', value: names[0]! }], {
    keyType: 'ec',
    curve: 'P-256',
    algorithm: 'sha256',
    extensions: [
      {
        name: 'subjectAltName',
        altNames: names.map(value =>
          isIP(value) ? { type: 7 as const, ip: value } : { type: 2 as const, value }
        )
      }
    ]
  })
  return { cert, key }
}

/** The same with an RSA key, for one name; the two texts may be put together. */
export async function rsaCertificateFor(name: string): Promise<{ cert: string; key: string }> {
  const { cert, private: key } = await generate([{ name: 'commonName', value: name }], {
    keySize: 2048,
    algorithm: 'sha256'
  })
  return { cert: `${cert}\n`, key: `${key}\n` }
}

/** A certificate and its key, PEM. */
export interface Issued {
  readonly cert: string
  readonly key: string
}

let serial = 1

/** A certificate of this name, signed by `issuer` or by itself. */
export function issue(name: string, issuer?: Issued, ca = false, altNames: object[] = []): Issued {
  const keys = forge.pki.rsa.generateKeyPair(2048)
  const certificate = forge.pki.createCertificate()
  certificate.publicKey = keys.publicKey
  certificate.serialNumber = `0${serial++}`
  certificate.validity.notBefore = new Date(Date.now() - 60_000)
  certificate.validity.notAfter = new Date(Date.now() + 3_600_000)
  const subject = [{ name: 'commonName', value: name }]
  certificate.setSubject(subject)
  const parent = issuer === undefined ? undefined : forge.pki.certificateFromPem(issuer.cert)
  certificate.setIssuer(parent === undefined ? subject : parent.subject.attributes)
  certificate.setExtensions([
    { name: 'basicConstraints', cA: ca, critical: true },
    ...(altNames.length > 0 ? [{ name: 'subjectAltName', altNames }] : [])
  ])
  const signer = issuer === undefined ? keys.privateKey : forge.pki.privateKeyFromPem(issuer.key)
  certificate.sign(signer, forge.md.sha256.create())
  return {
    cert: forge.pki.certificateToPem(certificate),
    key: forge.pki.privateKeyToPem(keys.privateKey)
  }
}
