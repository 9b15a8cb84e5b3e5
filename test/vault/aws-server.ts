import { randomBytes } from 'node:crypto'
import { type Asked, SecretStore, ServiceFault } from './aws/secrets.ts'
import { type AccessKey, refusalOf } from './aws/signature.ts'
import {
  type Fault,
  type FaultServer,
  RETRY_AFTER,
  type ServiceAnswer,
  type ServiceRequest,
  startFaultServer
} from './fault-server.ts'

/** The key that owns the account of a {@link FakeAws}. */
export const OWNER = {
  id: 'AKIAFAKEOWNER0000000',
  secret: 'the/secret+access/key/of/the/owner000000'
} as const
export const ROLE = 'arn:aws:iam::123456789012:role/gateway'
export const WEB_IDENTITY_TOKEN = 'a.web-identity.token'
export const CONTAINER_TOKEN = 'the-token-of-the-container'
export const SSO_TOKEN = 'the-token-of-the-single-sign-on'

/** Secrets Manager, STS, single sign-on and both metadata services of one account, on one port. */
export interface FakeAws extends FaultServer {
  readonly secrets: SecretStore
  /** Access keys that are accepted, by id; credentials that were given out are added. */
  readonly keys: Map<string, AccessKey>
  /** Actions answered with AccessDeniedException. */
  readonly denied: Set<string>
  /** Milliseconds the clock of the service is ahead of ours. */
  skew: number
  /** Seconds the credentials live that are given out from now on. */
  life: number
  /** Requests for one action, or to one path where there is none. */
  count(action: string): number
  [Symbol.asyncDispose](): Promise<void>
}

/** What the service says it is, which a client must not go by: all but the first come with 400. */
const STATUS: Readonly<Record<string, number>> = { InternalServiceError: 500 }

/** How Secrets Manager itself answers in a fault. */
export const refusals: Partial<Record<Fault, ServiceAnswer>> = {
  denied: failure(
    'AccessDeniedException',
    'User: arn:aws:sts::123456789012:assumed-role/gateway/postern is not authorized to perform: secretsmanager:GetSecretValue on resource: canary'
  ),
  absent: failure('ResourceNotFoundException', "Secrets Manager can't find the specified secret."),
  throttled: failure('ThrottlingException', 'Rate exceeded', {
    'Retry-After': String(RETRY_AFTER)
  }),
  unavailable: failure('InternalServiceError', 'canary: try again')
}

/** Starts it. Faults are played by Secrets Manager alone. */
export async function startFakeAws(): Promise<FakeAws> {
  const secrets = new SecretStore()
  const keys = new Map<string, AccessKey>([[OWNER.id, { secret: OWNER.secret }]])
  const denied = new Set<string>()
  const state = { skew: 0, life: 3600 }
  const now = () => Date.now() + state.skew
  let imdsTokens = 0

  const issue = () => {
    const id = `ASIA${randomBytes(8).toString('hex').toUpperCase()}`
    const expiresAt = now() + state.life * 1000
    const key = {
      secret: randomBytes(20).toString('hex'),
      sessionToken: randomBytes(30).toString('base64'),
      expiresAt
    }
    keys.set(id, key)
    return { id, ...key }
  }

  const services: readonly (readonly [
    RegExp,
    (request: ServiceRequest, fault: Fault | undefined) => ServiceAnswer
  ])[] = [
    [/^\/latest\/api\/token$/, ({ method }) => imdsToken(method)],
    [/^\/latest\/meta-data\//, request => instance(request)],
    [/^\/container-credentials$/, ({ headers }) => container(headers.authorization)],
    [/^\/federation\/credentials/, ({ headers }) => signedOn(headers)],
    [/^\/$/, (request, fault) => (isSts(request) ? sts(request) : manager(request, fault))]
  ]

  function imdsToken(method: string): ServiceAnswer {
    if (method !== 'PUT') return { status: 405 }
    imdsTokens++
    return { body: `imds-token-${imdsTokens}` }
  }

  function instance({ url, headers }: ServiceRequest): ServiceAnswer {
    if (headers['x-aws-ec2-metadata-token'] !== `imds-token-${imdsTokens}`) return { status: 401 }
    if (url.endsWith('/security-credentials/')) return { body: 'gateway' }
    return { body: { Code: 'Success', Type: 'AWS-HMAC', ...metadataOf(issue()) } }
  }

  function container(authorization: string | undefined): ServiceAnswer {
    return authorization === CONTAINER_TOKEN
      ? { body: metadataOf(issue()) }
      : { status: 401, body: { Code: 'AccessDenied' } }
  }

  function signedOn(headers: ServiceRequest['headers']): ServiceAnswer {
    if (headers['x-amz-sso_bearer_token'] !== SSO_TOKEN) {
      return {
        status: 401,
        headers: { 'x-amzn-ErrorType': 'UnauthorizedException' },
        body: { message: 'Session token not found or invalid' }
      }
    }
    const { id, secret, sessionToken, expiresAt } = issue()
    const roleCredentials = {
      accessKeyId: id,
      secretAccessKey: secret,
      sessionToken,
      expiration: expiresAt
    }
    return { body: { roleCredentials } }
  }

  function sts(request: ServiceRequest): ServiceAnswer {
    const form = new URLSearchParams(request.body)
    const action = form.get('Action')!
    if (action === 'AssumeRoleWithWebIdentity') {
      if (form.get('WebIdentityToken') !== WEB_IDENTITY_TOKEN) {
        return stsError('InvalidIdentityToken', 'The web identity token is not valid.')
      }
    } else {
      const refusal = refusalOf(request, keys, now())
      if (refusal !== undefined) return stsError(refusal.replace('Exception', ''), 'refused')
    }
    const role = form.get('RoleArn')!
    if (denied.has(action) || role !== ROLE) {
      return stsError('AccessDenied', `User: ${role} is not authorized to perform: sts:${action}`)
    }
    const { id, secret, sessionToken, expiresAt } = issue()
    return {
      headers: { 'Content-Type': 'text/xml' },
      body: `<${action}Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><${action}Result>
<AssumedRoleUser><AssumedRoleId>AROA:${form.get('RoleSessionName')}</AssumedRoleId><Arn>${role}</Arn></AssumedRoleUser>
<Credentials><AccessKeyId>${id}</AccessKeyId><SecretAccessKey>${secret}</SecretAccessKey><SessionToken>${sessionToken}</SessionToken><Expiration>${new Date(expiresAt).toISOString()}</Expiration></Credentials>
</${action}Result></${action}Response>`
    }
  }

  function manager(request: ServiceRequest, fault: Fault | undefined): ServiceAnswer {
    const action = actionOf(request)
    const date = { Date: new Date(now()).toUTCString() }
    const refusal = refusalOf(request, keys, now())
    if (refusal !== undefined) {
      return failure(refusal, 'The security token included in the request is invalid.', date)
    }
    if (fault === 'denied' || denied.has(action)) {
      return failure(
        'AccessDeniedException',
        `User: arn:aws:sts::123456789012:assumed-role/gateway/postern is not authorized to perform: secretsmanager:${action} on resource: canary because no identity-based policy allows the secretsmanager:${action} action`,
        date
      )
    }
    if (fault === 'throttled') {
      const headers = { ...date, 'Retry-After': String(RETRY_AFTER) }
      return failure('ThrottlingException', 'Rate exceeded', headers)
    }
    if (fault === 'unavailable') return failure('InternalServiceError', 'canary: try again', date)
    try {
      const asked = JSON.parse(request.body) as Asked
      if (fault === 'absent') secrets.get({ SecretId: 'a secret that was never stored' })
      return {
        headers: { 'Content-Type': 'application/x-amz-json-1.1', ...date },
        body: JSON.stringify(
          action === 'DescribeSecret' ? secrets.describe(asked) : secrets.get(asked)
        )
      }
    } catch (error) {
      if (!(error instanceof ServiceFault)) throw error
      return failure(error.name, error.message, date)
    }
  }

  const server = await startFaultServer(
    (request, fault) => {
      const path = request.url.split('?')[0]!
      return (
        services.find(([pattern]) => pattern.test(path))?.[1](request, fault) ?? { status: 404 }
      )
    },
    { affects: request => request.url === '/' && !isSts(request) }
  )
  return Object.defineProperties(server as FakeAws, {
    secrets: { value: secrets },
    keys: { value: keys },
    denied: { value: denied },
    skew: { get: () => state.skew, set: (skew: number) => Object.assign(state, { skew }) },
    life: { get: () => state.life, set: (life: number) => Object.assign(state, { life }) },
    count: {
      value: (action: string) =>
        server.requests.filter(
          request => actionOf(request) === action || request.url.split('?')[0] === action
        ).length
    },
    [Symbol.asyncDispose]: { value: () => server.close() }
  })
}

function isSts({ headers, body }: ServiceRequest): boolean {
  return headers['x-amz-target'] === undefined && body.includes('Version=2011-06-15')
}

function actionOf(request: ServiceRequest): string {
  return isSts(request)
    ? new URLSearchParams(request.body).get('Action')!
    : String(request.headers['x-amz-target']).replace(/^secretsmanager\./, '')
}

function failure(
  type: string,
  message: string,
  headers: Readonly<Record<string, string>> = {}
): ServiceAnswer {
  return {
    status: STATUS[type] ?? 400,
    headers: { 'Content-Type': 'application/x-amz-json-1.1', ...headers },
    body: JSON.stringify({ __type: type, Message: message })
  }
}

function stsError(code: string, message: string): ServiceAnswer {
  return {
    status: 403,
    headers: { 'Content-Type': 'text/xml' },
    body: `<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type><Code>${code}</Code><Message>${message}</Message></Error></ErrorResponse>`
  }
}

function metadataOf(issued: {
  id: string
  secret: string
  sessionToken: string
  expiresAt: number
}): object {
  return {
    AccessKeyId: issued.id,
    SecretAccessKey: issued.secret,
    Token: issued.sessionToken,
    Expiration: new Date(issued.expiresAt).toISOString()
  }
}
