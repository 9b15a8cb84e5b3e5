import { createPrivateKey, type KeyObject, X509Certificate } from 'node:crypto'
import type { FieldViolation } from './referenceable.ts'

/** Whether the certificates of an entity belong to its keys; plain PEM texts, each well formed. */
export function checkKeyPair(
  certificate: Readonly<Record<string, unknown>>
): readonly FieldViolation[] {
  const found: FieldViolation[] = []
  const types: (string | undefined)[] = []
  for (const [cert, key] of [
    ['cert', 'key'],
    ['cert_alt', 'key_alt']
  ] as const) {
    const pem = certificate[cert]
    const secret = certificate[key]
    if (typeof pem !== 'string' || typeof secret !== 'string') continue
    const parsed = parsePair(pem, secret)
    if (parsed === undefined) continue
    types.push(parsed.key.asymmetricKeyType)
    if (parsed.certificate.checkPrivateKey(parsed.key)) continue
    const message = 'certificate does not match key'
    const fix = `Give the ${key} that ${cert} was made with`
    found.push({ path: `/${key}`, message, fix }, { path: `/${cert}`, message, fix })
  }
  if (types.length === 2 && types[0] === types[1]) {
    const message = 'certificate and alternative certificate have the same key type'
    const fix = 'Give one RSA and one ECDSA certificate'
    found.push({ path: '/cert_alt', message, fix })
  }
  return found
}

function parsePair(
  cert: string,
  key: string
): { readonly certificate: X509Certificate; readonly key: KeyObject } | undefined {
  try {
    return { certificate: new X509Certificate(cert), key: createPrivateKey(key) }
  } catch {
    return undefined
  }
}
