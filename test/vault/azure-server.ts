import { createHash, randomBytes, verify, X509Certificate } from 'node:crypto'
import type https from 'node:https'
import { getCACertificates, setDefaultCACertificates } from 'node:tls'
import type { BackendEnvironment } from '../../src/vault/backend.ts'
import { certificateFor } from '../certificates.ts'
import { SecretStore } from './azure/secrets.ts'
import {
  type Fault,
  type FaultServer,
  RETRY_AFTER,
  type ServiceAnswer,
  type ServiceRequest,
  startFaultServer
} from './fault-server.ts'
import { startInterceptingProxy } from './intercepting-proxy.ts'

export const VAULT_DOMAIN = '.vault.azure.net'
export const VAULT_HOST = `postern-test${VAULT_DOMAIN}`
export const LOGIN_HOST = 'login.microsoftonline.com'
export const TENANT = '11111111-2222-3333-4444-555555555555'
export const CLIENT = '66666666-7777-8888-9999-000000000000'
export const CLIENT_SECRET = 'the~client.secret_of-the-application'
export const FEDERATED_TOKEN = 'the.federated.token'
const RESOURCE = 'https://vault.azure.net'

/** Key Vault, Entra ID and the metadata service of a virtual machine, on one port, by host. */
export interface FakeAzure extends FaultServer {
  readonly secrets: SecretStore
  /** Access tokens that are accepted. */
  readonly tokens: Set<string>
  /** PEM of the certificate that is registered with the application. */
  registered: string | undefined
  /** `code/innererror code` of a refusal by the vault, with its status: `[403, 'Forbidden', 'AccessDenied']`. */
  refusal: readonly [number, string, string?] | undefined
  /** AADSTS number with which Entra ID refuses. */
  entra: string | undefined
  /** Requests to one of `vault`, `login`, `metadata`. */
  count(part: string): number
  [Symbol.asyncDispose](): Promise<void>
}

const FAULTS: Partial<Record<Fault, readonly [number, string, string?]>> = {
  denied: [403, 'Forbidden', 'AccessDenied'],
  absent: [404, 'SecretNotFound'],
  throttled: [429, 'Throttled'],
  unavailable: [503, 'ServiceUnavailable']
}

/** Starts it. Faults are played by Key Vault alone. */
export async function startFakeAzure(tls?: https.ServerOptions): Promise<FakeAzure> {
  const secrets = new SecretStore()
  const tokens = new Set<string>()
  const state: Pick<FakeAzure, 'registered' | 'refusal' | 'entra'> = {
    registered: undefined,
    refusal: undefined,
    entra: undefined
  }

  const issue = () => {
    const token = `eyJ.${randomBytes(16).toString('hex')}`
    tokens.add(token)
    return token
  }

  function login({ url, body }: ServiceRequest): ServiceAnswer {
    const base = `https://${LOGIN_HOST}/${TENANT}`
    if (url.includes('/.well-known/openid-configuration')) {
      return {
        body: {
          token_endpoint: `${base}/oauth2/v2.0/token`,
          authorization_endpoint: `${base}/oauth2/v2.0/authorize`,
          issuer: `${base}/v2.0`,
          jwks_uri: `${base}/discovery/v2.0/keys`
        }
      }
    }
    if (!url.startsWith(`/${TENANT}/oauth2/v2.0/token`)) return { status: 404 }
    const form = new URLSearchParams(body)
    const refused =
      state.entra ??
      (form.get('client_id') === CLIENT && form.get('scope')?.startsWith(RESOURCE)
        ? refusalOf(form, state.registered)
        : '700016')
    if (refused !== undefined) return entraRefusal(refused)
    return {
      body: { token_type: 'Bearer', expires_in: 3599, ext_expires_in: 3599, access_token: issue() }
    }
  }

  function metadata({ url, headers }: ServiceRequest): ServiceAnswer {
    const { searchParams } = new URL(url, 'http://metadata')
    if (headers.metadata !== 'true') {
      const error_description = 'Required metadata header not specified'
      return { status: 400, body: { error: 'invalid_request', error_description } }
    }
    if (searchParams.get('resource') !== RESOURCE) {
      const error_description = 'AADSTS500011: The resource principal was not found in the tenant.'
      return { status: 400, body: { error: 'invalid_resource', error_description } }
    }
    const wanted = searchParams.get('client_id')
    if (wanted !== null && wanted !== CLIENT) {
      return {
        status: 400,
        body: { error: 'invalid_request', error_description: 'Identity not found' }
      }
    }
    return {
      body: {
        access_token: issue(),
        client_id: CLIENT,
        expires_in: '86399',
        expires_on: String(Math.floor(Date.now() / 1000) + 86399),
        ext_expires_in: '86399',
        not_before: String(Math.floor(Date.now() / 1000) - 300),
        resource: RESOURCE,
        token_type: 'Bearer'
      }
    }
  }

  function vault(request: ServiceRequest, fault: Fault | undefined): ServiceAnswer {
    const presented = request.headers.authorization?.replace(/^Bearer /, '')
    if (presented === undefined || !tokens.has(presented)) {
      const challenge = `Bearer authorization="https://${LOGIN_HOST}/${TENANT}", resource="${RESOURCE}"`
      const invalid =
        ', error="invalid_token", error_description="Error validating token: IDX10223"'
      const message =
        presented === undefined
          ? 'AKV10000: Request is missing a Bearer or PoP token.'
          : '[BearerReadAccessTokenFailed] Error validating token: IDX10223: canary'
      return {
        status: 401,
        headers: { 'WWW-Authenticate': presented === undefined ? challenge : challenge + invalid },
        body: { error: { code: 'Unauthorized', message } }
      }
    }
    const refusal = FAULTS[fault ?? 'huge'] ?? state.refusal
    if (refusal !== undefined) return failure(...refusal)
    const { pathname, searchParams } = new URL(request.url, `https://${VAULT_HOST}`)
    const [, kind, name, id] = pathname.split('/')
    if (kind !== 'secrets' || !searchParams.has('api-version')) return failure(400, 'BadParameter')
    const version = secrets.find(name!, id || undefined)
    if (version === undefined) return failure(404, 'SecretNotFound')
    if (!version.enabled) return failure(403, 'Forbidden', 'SecretDisabled')
    const { value, contentType } = version
    return {
      body: {
        value,
        ...(contentType === undefined ? {} : { contentType }),
        id: `https://${VAULT_HOST}/secrets/${name}/${version.id}`,
        attributes: { enabled: true, created: 1, updated: 1, recoveryLevel: 'Recoverable' }
      }
    }
  }

  const server = await startFaultServer(
    (request, fault) => {
      const part = partOf(request)
      if (part === 'vault') return vault(request, fault)
      return part === 'login' ? login(request) : metadata(request)
    },
    { affects: request => partOf(request) === 'vault', ...(tls === undefined ? {} : { tls }) }
  )
  const settable = (name: keyof typeof state): PropertyDescriptor => ({
    get: () => state[name],
    set: value => Object.assign(state, { [name]: value })
  })
  return Object.defineProperties(server as FakeAzure, {
    secrets: { value: secrets },
    tokens: { value: tokens },
    registered: settable('registered'),
    refusal: settable('refusal'),
    entra: settable('entra'),
    count: {
      value: (part: string) => server.requests.filter(request => partOf(request) === part).length
    },
    [Symbol.asyncDispose]: { value: () => server.close() }
  })
}

/** The fake behind Azure's own names: what the vault is lent, and how many tunnels led there. */
export interface AzureCloud {
  readonly azure: FakeAzure
  readonly environment: BackendEnvironment
  /** With other variables besides. */
  environmentWith(env: Readonly<Record<string, string>>): BackendEnvironment
  [Symbol.asyncDispose](): Promise<void>
}

let certificate: Promise<{ cert: string; key: string }> | undefined

/** A certificate for Azure's names that this process trusts from now on. */
export function trustedCertificate(): Promise<{ cert: string; key: string }> {
  certificate ??= certificateFor(VAULT_HOST, LOGIN_HOST).then(made => {
    setDefaultCACertificates([...getCACertificates('default'), made.cert])
    return made
  })
  return certificate
}

/** Starts it under a certificate that this process trusts from now on. */
export async function startAzureCloud(): Promise<AzureCloud> {
  const azure = await startFakeAzure(await trustedCertificate())
  const proxy = await startInterceptingProxy(azure.port)
  const log = { info() {}, warn() {} }
  const environmentWith = (env: Readonly<Record<string, string>>): BackendEnvironment => ({
    env: { HTTPS_PROXY: proxy.url, ...env },
    log
  })
  return {
    azure,
    environment: environmentWith({}),
    environmentWith,
    async [Symbol.asyncDispose]() {
      await proxy[Symbol.asyncDispose]()
      await azure.close()
    }
  }
}

/** Settings of a vault that proves itself by its secret. */
export const BY_SECRET = {
  vault_uri: `https://${VAULT_HOST}`,
  tenant_id: TENANT,
  client_id: CLIENT,
  client_secret: CLIENT_SECRET
} as const

function partOf({ headers, url }: ServiceRequest): 'vault' | 'login' | 'metadata' {
  if (headers.host?.endsWith(VAULT_DOMAIN)) return 'vault'
  return url.startsWith('/metadata/') ? 'metadata' : 'login'
}

/** What Entra ID answers with an AADSTS number: its status and the error by OAuth's name. */
const ENTRA: Readonly<Record<string, readonly [number, string]>> = {
  '700016': [400, 'unauthorized_client'],
  '90002': [400, 'invalid_request'],
  '90033': [503, 'temporarily_unavailable'],
  '90036': [500, 'server_error'],
  '90055': [429, 'temporarily_unavailable']
}

function entraRefusal(number: string): ServiceAnswer {
  const [status, error] = ENTRA[number] ?? [401, 'invalid_client']
  return {
    status,
    headers: status === 429 ? { 'Retry-After': String(RETRY_AFTER) } : {},
    body: {
      error,
      error_description: `AADSTS${number}: canary. Trace ID: t-1 Correlation ID: c-1 Timestamp: 2026-01-01 00:00:00Z`,
      error_codes: [Number(number)],
      timestamp: '2026-01-01 00:00:00Z',
      trace_id: 't-1',
      correlation_id: 'c-1',
      error_uri: `https://${LOGIN_HOST}/error?code=${number}`
    }
  }
}

/** What Key Vault says; the rest of its texts hold a name, as the real ones do. */
const TEXTS: Readonly<Record<string, string>> = {
  SecretNotFound: 'A secret with (name/id) canary was not found in this key vault.',
  SecretDisabled: 'Operation get is not allowed on a disabled secret.',
  Throttled:
    'Request was not processed because too many requests were received. Reason: VaultRequestTypeLimitReached'
}

function failure(status: number, code: string, inner?: string): ServiceAnswer {
  return {
    status,
    headers: {
      'x-ms-keyvault-region': 'westeurope',
      ...(status === 429 ? { 'Retry-After': String(RETRY_AFTER) } : {})
    },
    body: {
      error: {
        code,
        message: TEXTS[inner ?? code] ?? 'canary: refused',
        ...(inner === undefined ? {} : { innererror: { code: inner } })
      }
    }
  }
}

/** The AADSTS number of what is wrong with a client's proof; undefined when it is right. */
function refusalOf(form: URLSearchParams, registered: string | undefined): string | undefined {
  const secret = form.get('client_secret')
  if (secret !== null) return secret === CLIENT_SECRET ? undefined : '7000215'
  const assertion = form.get('client_assertion') ?? ''
  if (assertion === FEDERATED_TOKEN) return undefined
  const [header = '', claims = '', signature = ''] = assertion.split('.')
  if (registered === undefined) return '70021'
  const certificate = new X509Certificate(registered)
  const thumbprint = createHash('sha256').update(certificate.raw).digest('base64url')
  const { alg, 'x5t#S256': presented } = JSON.parse(Buffer.from(header, 'base64url').toString())
  const signed = verify(
    'sha256',
    Buffer.from(`${header}.${claims}`),
    alg === 'PS256'
      ? { key: certificate.publicKey, padding: 6, saltLength: 32 }
      : certificate.publicKey,
    Buffer.from(signature, 'base64url')
  )
  return signed && presented === thumbprint ? undefined : '700027'
}
