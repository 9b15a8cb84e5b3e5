import { getCACertificates, setDefaultCACertificates } from 'node:tls'
import { certificateFor } from '../../certificates.ts'
import { BY_SECRET, LOGIN_HOST, startFakeAzure, VAULT_DOMAIN } from '../azure-server.ts'
import { startFaultProxy } from '../fault-proxy.ts'
import { startInterceptingProxy } from '../intercepting-proxy.ts'
import type { ChaosSubject } from './chaos.ts'

/**
 * Key Vaults of one Azure for `type`, each behind a proxy of its own under its own name;
 * `stored` gives what is stored of a pair, and its type.
 */
export async function azureSubject(
  type: string,
  stored: (pair: Readonly<Record<string, string>>) => readonly [value: string, contentType?: string]
): Promise<ChaosSubject> {
  const tls = await certificateFor(`*${VAULT_DOMAIN}`, LOGIN_HOST)
  setDefaultCACertificates([...getCACertificates('default'), tls.cert])
  const azure = await startFakeAzure()
  const login = await startFaultProxy(azure.port, { tls })
  const ports = new Map<string, number>([[LOGIN_HOST, login.port]])
  const intercepting = await startInterceptingProxy(host => ports.get(host) ?? 0)
  return {
    type,
    port: azure.port,
    env: { HTTPS_PROXY: intercepting.url },
    proxy: { tls },
    requestsPerRead: 4,
    settings(proxy, scenario) {
      ports.set(`${scenario}${VAULT_DOMAIN}`, proxy.port)
      return { ...BY_SECRET, vault_uri: `https://${scenario}${VAULT_DOMAIN}` }
    },
    put: (resource, pair) => azure.secrets.put(resource, ...stored(pair)),
    resource: scenario => `pair-${scenario}`,
    expire: () => azure.tokens.clear(),
    async [Symbol.asyncDispose]() {
      await intercepting[Symbol.asyncDispose]()
      await login.close()
      await azure.close()
    }
  }
}
