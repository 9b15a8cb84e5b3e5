import { createPrivateKey, X509Certificate } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import type { TokenCredential } from '@azure/identity'
import { VaultMisconfigured } from '../../../errors.ts'
import type { HttpClient } from './http.ts'
import type { AzureSettings } from './settings.ts'

/** Authorities of the public and sovereign clouds. */
const PUBLIC = new Set([
  'login.microsoftonline.com',
  'login.microsoftonline.us',
  'login.partner.microsoftonline.cn',
  'login.chinacloudapi.cn'
])

/** The credential that the settings name, and never another. Asks nothing yet. */
export async function createCredential(
  settings: AzureSettings,
  http: { readonly remote: HttpClient; readonly local: HttpClient }
): Promise<TokenCredential> {
  const identity = await import('@azure/identity')
  const { tenant_id: tenant, client_id: client, authority_host: authority } = settings
  const options = {
    httpClient: http.remote,
    retryOptions: { maxRetries: 0 },
    // An authority of one's own need not be known to the public cloud, which would be asked.
    ...(authority === undefined
      ? {}
      : {
          authorityHost: authority,
          disableInstanceDiscovery: !PUBLIC.has(new URL(authority).host)
        })
  }
  const { client_certificate: certificate = '', client_certificate_password: secret } = settings
  const password = secret === undefined ? {} : { certificatePassword: secret }
  switch (settings.auth_method) {
    case 'client_secret':
      return new identity.ClientSecretCredential(tenant!, client!, settings.client_secret!, options)
    case 'client_certificate': {
      const inline = certificate.includes('-----BEGIN')
      const source = inline ? { certificate } : { certificatePath: certificate }
      const credential = new identity.ClientCertificateCredential(
        tenant!,
        client!,
        { ...source, ...password } as { certificate: string },
        options
      )
      return {
        // Looked at here, since the SDK would not say what is wrong with it.
        async getToken(scopes, asked) {
          check(inline ? certificate : await readFile(certificate, 'utf8'), secret)
          return credential.getToken(scopes, asked)
        }
      }
    }
    case 'workload_identity': {
      const file = settings.federated_token_file!
      let assertion = ''
      const credential = new identity.ClientAssertionCredential(
        tenant!,
        client!,
        async () => assertion,
        options
      )
      return {
        // Read here, and anew for each token: Kubernetes renews it, and the SDK would hide why it
        // cannot be read.
        async getToken(scopes, asked) {
          assertion = (await readFile(file, 'utf8')).trim()
          return credential.getToken(scopes, asked)
        }
      }
    }
    case 'managed_identity':
      return new identity.ManagedIdentityCredential({
        retryOptions: { maxRetries: 0 },
        httpClient: http.local,
        ...(client === undefined ? {} : { clientId: client })
      })
  }
}

/** Throws VaultMisconfigured unless this is a certificate and a key that the password opens. */
function check(pem: string, passphrase: string | undefined): void {
  try {
    new X509Certificate(pem)
  } catch {
    throw new VaultMisconfigured(
      'client_certificate holds no certificate',
      'Give it certificate and key as PEM'
    )
  }
  try {
    createPrivateKey({ key: pem, ...(passphrase === undefined ? {} : { passphrase }) })
  } catch {
    throw passphrase === undefined
      ? new VaultMisconfigured(
          'client_certificate holds no key that can be read without a password',
          'Give it certificate and key as PEM, and client_certificate_password if the key has one'
        )
      : new VaultMisconfigured(
          'client_certificate_password does not open the key in client_certificate',
          'Correct one of them'
        )
  }
}
