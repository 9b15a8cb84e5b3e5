import { isIP } from 'node:net'
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
