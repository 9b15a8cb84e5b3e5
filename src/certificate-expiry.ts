import { X509Certificate } from 'node:crypto'
import type { Config } from './config.ts'
import { resolveTemplate, type Secrets } from './generation.ts'

/** When a configured certificate ends. */
export interface CertificateExpiry {
  /** Id of the entity, or `default` for that of the settings. */
  readonly certificate: string
  /** The SNIs it serves. */
  readonly names: string
  /** Unix milliseconds. */
  readonly notAfter: number
}

/** The expiry of every certificate of a configuration that has a value now, and of the default one. */
export function certificateExpiries(
  config: Config,
  secrets: Secrets,
  standard: string | undefined
): readonly CertificateExpiry[] {
  const found: CertificateExpiry[] = []
  const add = (certificate: string, names: string, template: string): void => {
    try {
      const { validTo } = new X509Certificate(resolveTemplate(template, secrets).value)
      found.push({ certificate, names, notAfter: Date.parse(validTo) })
    } catch {
      // It has no value now, which the state of its reference tells.
    }
  }
  if (standard !== undefined) add('default', '', standard)
  const names = Map.groupBy(config.snis, ({ certificate }) => certificate.id)
  for (const { id, cert, cert_alt } of config.certificates) {
    const served = (names.get(id) ?? []).map(({ name }) => name).join(' ')
    add(id, served, cert)
    if (cert_alt !== undefined) add(`${id} alt`, served, cert_alt)
  }
  for (const { id, cert } of config.ca_certificates) add(id, '', cert)
  return found
}
