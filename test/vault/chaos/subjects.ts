import { join } from 'node:path'
import { getCACertificates, setDefaultCACertificates } from 'node:tls'
import { certificateFor } from '../../certificates.ts'
import { OWNER, ROLE, startFakeAws } from '../aws-server.ts'
import { BY_SECRET, LOGIN_HOST, startFakeAzure, VAULT_DOMAIN } from '../azure-server.ts'
import { ACCOUNT, API_KEY, LOGIN, startFakeConjur } from '../conjur-server.ts'
import { startTestVault } from '../fault-backend.ts'
import { startFaultProxy } from '../fault-proxy.ts'
import { PROJECT, startFakeGcp } from '../gcp-server.ts'
import { appRole } from '../hcv/scenarios.ts'
import { pathOf, startFakeVault } from '../hcv-server.ts'
import { startInterceptingProxy } from '../intercepting-proxy.ts'
import type { ChaosSubject } from './chaos.ts'

/** HashiCorp Vault: key-value v2 by AppRole. */
export async function hcv(): Promise<ChaosSubject> {
  const vault = await startFakeVault()
  const { settings } = await appRole(vault)
  return {
    type: 'hcv',
    url: vault.url,
    // As policies do, a refusal leaves the token its look at itself.
    proxy: { affects: ({ url }) => pathOf(url).startsWith('secret/') },
    requestsPerRead: 8,
    settings: proxy => ({ ...settings, port: proxy.port }),
    put: (resource, data) => vault.call('POST', `secret/data/${resource}`, { data }),
    expire: () => vault.tokens.revokeAll(),
    [Symbol.asyncDispose]: () => vault[Symbol.asyncDispose]()
  }
}

/** AWS with a role to assume. */
export async function aws(): Promise<ChaosSubject> {
  const aws = await startFakeAws()
  return {
    type: 'aws',
    url: aws.url,
    proxy: { affects: ({ headers }) => headers['x-amz-target'] !== undefined },
    requestsPerRead: 6,
    settings: proxy => ({
      region: 'eu-central-1',
      endpoint_url: proxy.url,
      access_key_id: OWNER.id,
      secret_access_key: OWNER.secret,
      assume_role_arn: ROLE,
      sts_endpoint_url: proxy.url
    }),
    put: (resource, pair) => aws.secrets.put(resource, JSON.stringify(pair)),
    expire() {
      for (const key of aws.keys.values()) if (key.sessionToken !== undefined) key.expiresAt = 1
    },
    [Symbol.asyncDispose]: () => aws.close()
  }
}

/** Google as the service account of a machine. */
export async function gcp(): Promise<ChaosSubject> {
  const gcp = await startFakeGcp()
  return {
    type: 'gcp',
    url: gcp.url,
    env: { GCE_METADATA_HOST: gcp.url },
    requestsPerRead: 4,
    settings: proxy => ({
      project_id: PROJECT,
      endpoint_url: proxy.url,
      auth_method_order: 'legacy'
    }),
    put: (resource, pair) => gcp.secrets.put(`secrets/${resource}`, JSON.stringify(pair)),
    expire: () => gcp.tokens.clear(),
    [Symbol.asyncDispose]: () => gcp.close()
  }
}

/** Conjur by an API key; a pair is a policy of two variables. */
export async function conjur(): Promise<ChaosSubject> {
  const conjur = await startFakeConjur()
  return {
    type: 'conjur',
    url: conjur.url,
    proxy: { affects: ({ url }) => !url.startsWith('/authn') },
    requestsPerRead: 8,
    settings: proxy => ({
      endpoint_url: proxy.url,
      account: ACCOUNT,
      login: LOGIN,
      api_key: API_KEY
    }),
    put(policy, pair) {
      for (const [name, value] of Object.entries(pair)) conjur.put(`${policy}/${name}`, value)
    },
    expire: () => conjur.revokeTokens(),
    [Symbol.asyncDispose]: () => conjur.close()
  }
}

/** A type of vault from a module. */
export async function custom(): Promise<ChaosSubject> {
  const vault = await startTestVault()
  return {
    type: 'http',
    url: vault.url,
    env: { POSTERN_VAULT_BACKENDS: join(import.meta.dirname, '../fault-backend.ts') },
    requestsPerRead: 4,
    settings: proxy => ({ url: proxy.url }),
    put: (resource, pair) => vault.put(resource, pair),
    expire() {
      // This store knows no tokens.
    },
    [Symbol.asyncDispose]: () => vault.close()
  }
}

/** Key Vaults with secrets. */
export function azure(): Promise<ChaosSubject> {
  return keyVaults('azure', pair => [JSON.stringify(pair)])
}

/** Key Vaults with certificates. */
export function azureCerts(): Promise<ChaosSubject> {
  return keyVaults('azure-certs', ({ cert, key }) => [`${key}\n${cert}`, 'application/x-pem-file'])
}

/** Vaults of one Azure, each behind its own proxy under its own name. */
async function keyVaults(
  type: string,
  stored: (pair: Readonly<Record<string, string>>) => readonly [value: string, contentType?: string]
): Promise<ChaosSubject> {
  const tls = await certificateFor(`*${VAULT_DOMAIN}`, LOGIN_HOST)
  setDefaultCACertificates([...getCACertificates('default'), tls.cert])
  const azure = await startFakeAzure()
  const login = await startFaultProxy(azure.url, { tls })
  const ports = new Map<string, number>([[LOGIN_HOST, login.port]])
  const intercepting = await startInterceptingProxy(host => ports.get(host) ?? 0)
  return {
    type,
    url: azure.url,
    env: { HTTPS_PROXY: intercepting.url },
    trust: tls.cert,
    proxy: { tls },
    requestsPerRead: 6,
    settings(proxy, name) {
      ports.set(`${name}${VAULT_DOMAIN}`, proxy.port)
      return { ...BY_SECRET, vault_uri: `https://${name}${VAULT_DOMAIN}` }
    },
    put: (resource, pair) => azure.secrets.put(resource, ...stored(pair)),
    expire: () => azure.tokens.clear(),
    async [Symbol.asyncDispose]() {
      await intercepting[Symbol.asyncDispose]()
      await login.close()
      await azure.close()
    }
  }
}
