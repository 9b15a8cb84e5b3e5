import { generateKeyPairSync, randomBytes, verify } from 'node:crypto'
import type https from 'node:https'
import {
  type Fault,
  type FaultServer,
  RETRY_AFTER,
  type ServiceAnswer,
  type ServiceRequest,
  startFaultServer
} from './fault-server.ts'
import { ApiFault, SecretStore } from './gcp/secrets.ts'

export const PROJECT = 'postern-test'
export const SUBJECT_TOKEN = 'the-subject-token-of-the-workload'
export const REFRESH_TOKEN = 'the-refresh-token-of-a-user'

const { publicKey, privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 })

/** What Google hands out as the key file of a service account. */
export const SERVICE_ACCOUNT = {
  type: 'service_account',
  project_id: PROJECT,
  private_key_id: 'key-1',
  private_key: privateKey.export({ type: 'pkcs8', format: 'pem' }) as string,
  client_email: `gateway@${PROJECT}.iam.gserviceaccount.com`,
  client_id: '1',
  token_uri: 'https://oauth2.googleapis.com/token'
}

/** HTTP status of each google.rpc.Code. */
const STATUS: Readonly<Record<string, number>> = {
  INVALID_ARGUMENT: 400,
  FAILED_PRECONDITION: 400,
  UNAUTHENTICATED: 401,
  PERMISSION_DENIED: 403,
  NOT_FOUND: 404,
  RESOURCE_EXHAUSTED: 429,
  UNAVAILABLE: 503
}
const FAULTS: Partial<Record<Fault, string>> = {
  denied: 'PERMISSION_DENIED',
  absent: 'NOT_FOUND',
  throttled: 'RESOURCE_EXHAUSTED',
  unavailable: 'UNAVAILABLE'
}

/** Secret Manager over REST, the token services and a metadata server, on one port. */
export interface FakeGcp extends FaultServer {
  readonly secrets: SecretStore
  /** Access tokens that are accepted. */
  readonly tokens: Set<string>
  /** Calls answered with an error: `access`, `token` or `metadata`, and its status. */
  readonly refused: Map<string, string>
  /** Changes what is sent of a payload, as a broken network would. */
  damage: ((data: string) => string) | undefined
  /** Requests to one of `access`, `token`, `metadata`. */
  count(call: string): number
  [Symbol.asyncDispose](): Promise<void>
}

/** Starts it. Faults are played by Secret Manager alone. */
export async function startFakeGcp(tls?: https.ServerOptions): Promise<FakeGcp> {
  const secrets = new SecretStore()
  const tokens = new Set<string>()
  const refused = new Map<string, string>()
  let damage: FakeGcp['damage']

  const issue = (): ServiceAnswer => {
    const token = `ya29.${randomBytes(16).toString('hex')}`
    tokens.add(token)
    return { body: { access_token: token, expires_in: 3599, token_type: 'Bearer' } }
  }

  function token({ body, url }: ServiceRequest): ServiceAnswer {
    const form = new URLSearchParams(body)
    const granted =
      url === '/v1/token'
        ? form.get('subject_token') === SUBJECT_TOKEN
        : form.get('grant_type') === 'refresh_token'
          ? form.get('refresh_token') === REFRESH_TOKEN
          : isSigned(form.get('assertion') ?? '')
    if (granted && !refused.has('token')) return issue()
    return {
      status: 400,
      body: { error: 'invalid_grant', error_description: 'Invalid JWT Signature. canary' }
    }
  }

  function metadata({ url, headers }: ServiceRequest): ServiceAnswer {
    if (headers['metadata-flavor'] !== 'Google') {
      return { status: 403, body: 'Missing required header "Metadata-Flavor": "Google"' }
    }
    if (refused.has('metadata')) return { status: Number(refused.get('metadata')) }
    const answer = url.endsWith('/token') ? issue() : { body: SERVICE_ACCOUNT.client_email }
    return { ...answer, headers: { 'Metadata-Flavor': 'Google' } }
  }

  function api(request: ServiceRequest, fault: Fault | undefined): ServiceAnswer {
    const presented = request.headers.authorization?.replace(/^Bearer /, '') ?? ''
    if (!tokens.has(presented)) return failure('UNAUTHENTICATED')
    const status = FAULTS[fault ?? 'huge'] ?? refused.get(callOf(request))
    if (status !== undefined) return failure(status)
    const [, project, path, version, call] =
      /^\/v1\/projects\/([^/]+)\/((?:locations\/[^/]+\/)?secrets\/[^/]+)\/versions\/([^/:?]+)(:access)?/.exec(
        request.url
      ) ?? []
    if (project !== undefined && project !== PROJECT) return failure('PERMISSION_DENIED')
    try {
      if (call === undefined) {
        const html = { 'Content-Type': 'text/html; charset=UTF-8' }
        return { status: 404, headers: html, body: '<!DOCTYPE html><title>Error 404</title>' }
      }
      const body = JSON.stringify(secrets.access(path!, version!))
      return {
        headers: JSON_TYPE,
        body: damage?.(body) ?? body
      }
    } catch (error) {
      if (!(error instanceof ApiFault)) throw error
      return failure(error.name, error.message)
    }
  }

  const server = await startFaultServer(
    (request, fault) => {
      const call = callOf(request)
      if (call === 'token') return token(request)
      if (call === 'metadata') return metadata(request)
      return api(request, fault)
    },
    {
      affects: request => callOf(request) === 'access',
      ...(tls === undefined ? {} : { tls })
    }
  )
  return Object.defineProperties(server as FakeGcp, {
    secrets: { value: secrets },
    tokens: { value: tokens },
    refused: { value: refused },
    damage: {
      set(change: FakeGcp['damage']) {
        damage = change
      }
    },
    count: {
      value: (call: string) => server.requests.filter(request => callOf(request) === call).length
    },
    [Symbol.asyncDispose]: { value: () => server.close() }
  })
}

function callOf({ url, method }: ServiceRequest): string {
  if (url.startsWith('/computeMetadata/')) return 'metadata'
  if (method === 'POST') return 'token'
  return 'access'
}

const JSON_TYPE = { 'Content-Type': 'application/json; charset=UTF-8' }
const SERVICE = 'secretmanager.googleapis.com'

/** What the API says besides the status; its texts hold names, as the real ones do. */
const TEXTS: Readonly<Record<string, string>> = {
  UNAUTHENTICATED:
    'Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other valid authentication credential.',
  PERMISSION_DENIED:
    "Permission 'secretmanager.versions.access' denied for resource 'projects/canary' (or it may not exist).",
  NOT_FOUND: 'Secret [projects/1/secrets/canary] not found or has no versions.',
  RESOURCE_EXHAUSTED: `Quota exceeded for quota metric 'Access requests' and limit 'Access requests per minute' of service '${SERVICE}' for consumer 'project_number:1'.`,
  UNAVAILABLE: 'The service is currently unavailable.'
}
const REASONS: Readonly<Record<string, readonly [string, string]>> = {
  UNAUTHENTICATED: ['ACCESS_TOKEN_EXPIRED', 'googleapis.com'],
  PERMISSION_DENIED: ['IAM_PERMISSION_DENIED', 'iam.googleapis.com'],
  RESOURCE_EXHAUSTED: ['RATE_LIMIT_EXCEEDED', 'googleapis.com']
}

/** A google.rpc.Status as the API writes it in JSON; how long to wait stands in its details. */
function failure(status: string, message = TEXTS[status] ?? 'canary: refused'): ServiceAnswer {
  const [reason, domain] = REASONS[status] ?? []
  const info = { '@type': 'type.googleapis.com/google.rpc.ErrorInfo', reason, domain }
  const retry = {
    '@type': 'type.googleapis.com/google.rpc.RetryInfo',
    retryDelay: `${RETRY_AFTER}s`
  }
  const details = [
    ...(reason === undefined ? [] : [info]),
    ...(status === 'RESOURCE_EXHAUSTED' ? [retry] : [])
  ]
  const challenge = 'Bearer realm="https://accounts.google.com/", error="invalid_token"'
  return {
    status: STATUS[status]!,
    headers: {
      ...JSON_TYPE,
      ...(status === 'UNAUTHENTICATED' ? { 'WWW-Authenticate': challenge } : {})
    },
    body: JSON.stringify({
      error: {
        code: STATUS[status],
        message,
        status,
        ...(details.length === 0 ? {} : { details })
      }
    })
  }
}

/** Whether a JWT is signed by the service account and meant for the token service (RFC 7523). */
function isSigned(assertion: string): boolean {
  const [header = '', claims = '', signature = ''] = assertion.split('.')
  const signed = verify(
    'sha256',
    Buffer.from(`${header}.${claims}`),
    publicKey,
    Buffer.from(signature, 'base64url')
  )
  if (!signed) return false
  const { iss, aud, scope } = JSON.parse(Buffer.from(claims, 'base64url').toString())
  return (
    iss === SERVICE_ACCOUNT.client_email &&
    aud === SERVICE_ACCOUNT.token_uri &&
    scope === 'https://www.googleapis.com/auth/cloud-platform'
  )
}
