import { Type } from 'typebox'
import { Agent, request } from 'undici'
import { SecretMalformed, VaultDenied, VaultThrottled, VaultUnreachable } from '../../src/errors.ts'
import type { Backend, BackendType } from '../../src/vault/backend.ts'
import { type FaultServer, RETRY_AFTER, startFaultServer } from './fault-server.ts'

/** A small secret store over HTTP with switches for everything that can go wrong. */
export interface TestVault extends FaultServer {
  readonly secrets: Map<string, { value: unknown; version: number }>
  put(resource: string, value: unknown): string
  /** Reads of a resource so far, probes not counted. */
  reads(resource?: string): number
  probes(resource?: string): number
  [Symbol.asyncDispose](): Promise<void>
}

const STATUS = { denied: 403, absent: 404, throttled: 429, unavailable: 503 } as const

/** Starts the store that {@link httpBackend} reads. */
export async function startTestVault(): Promise<TestVault> {
  const secrets: TestVault['secrets'] = new Map()
  const server = await startFaultServer(({ url, method }, fault) => {
    if (fault !== undefined && fault in STATUS) {
      return {
        status: STATUS[fault as keyof typeof STATUS],
        headers: { 'Retry-After': String(RETRY_AFTER) },
        body: { error: fault }
      }
    }
    const found = secrets.get(decodeURIComponent(url.slice(1)))
    if (found === undefined) return { status: 404 }
    const headers = { ETag: String(found.version) }
    return method === 'HEAD' ? { headers } : { headers, body: { value: found.value } }
  })
  const count = (method: string, resource?: string): number =>
    server.requests.filter(
      request =>
        request.method === method &&
        (resource === undefined || request.url === `/${encodeURIComponent(resource)}`)
    ).length
  return {
    get connections() {
      return server.connections
    },
    get taken() {
      return server.taken
    },
    url: server.url,
    port: server.port,
    requests: server.requests,
    fault: kind => server.fault(kind),
    close: () => server.close(),
    [Symbol.asyncDispose]: () => server.close(),
    secrets,
    put(resource, value) {
      const version = (secrets.get(resource)?.version ?? 0) + 1
      secrets.set(resource, { value, version })
      return String(version)
    },
    reads: resource => count('GET', resource),
    probes: resource => count('HEAD', resource)
  }
}

const LIMIT = 1024 * 1024

/** The backend of a {@link TestVault}; `url` is its address. */
export const httpBackend: BackendType = {
  name: 'http',
  schema: Type.Object(
    {
      url: Type.String(),
      token: Type.Optional(Type.String()),
      path: Type.Optional(Type.String())
    },
    { additionalProperties: false }
  ),
  protectedFields: ['url', 'token'],
  open: config => openHttp(config.url as string)
}

/** The same store through a backend that can look at versions alone. */
export const probingBackend: BackendType = {
  ...httpBackend,
  name: 'probing',
  open: config => {
    const { probe, ...rest } = openHttp(config.url as string)
    return { ...rest, probe: probe! }
  }
}

function openHttp(url: string): Backend {
  const agent = new Agent({ maxResponseSize: LIMIT, connections: 16 })
  const ask = async (method: 'GET' | 'HEAD', resource: string, signal: AbortSignal) => {
    let status: number
    let headers: Record<string, string | string[] | undefined>
    let text: string
    try {
      const response = await request(`${url}/${encodeURIComponent(resource)}`, {
        method,
        signal,
        dispatcher: agent
      })
      status = response.statusCode
      headers = response.headers
      text = await response.body.text()
    } catch (error) {
      const { code, message } = error as Error & { code?: string }
      if (code === 'UND_ERR_RES_EXCEEDED_MAX_SIZE')
        throw new SecretMalformed(resource, `it is larger than ${LIMIT} bytes`)
      throw new VaultUnreachable(resource, code ?? message)
    }
    if (status === 404) return undefined
    if (status === 401 || status === 403) throw new VaultDenied(resource, `it answered ${status}`)
    if (status === 429)
      throw new VaultThrottled(resource, 'it answered 429', Number(headers['retry-after']))
    if (status !== 200) throw new VaultUnreachable(resource, `it answered ${status}`)
    return { version: headers.etag as string, text }
  }
  return {
    async fetch(resource, _version, signal) {
      const answer = await ask('GET', resource, signal)
      if (answer === undefined) return undefined
      try {
        return { value: JSON.parse(answer.text).value, version: answer.version }
      } catch {
        throw new SecretMalformed(resource, 'the answer is not JSON')
      }
    },
    probe: async (resource, _version, signal) => (await ask('HEAD', resource, signal))?.version,
    close: () => agent.destroy()
  }
}

/** As a module of POSTERN_VAULT_BACKENDS this file gives both. */
export default [httpBackend, probingBackend]
