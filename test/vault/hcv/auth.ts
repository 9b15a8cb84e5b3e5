import {
  createHash,
  createHmac,
  createPublicKey,
  randomUUID,
  verify,
  X509Certificate
} from 'node:crypto'
import {
  type Body,
  type Call,
  type Engine,
  NO_CONTENT,
  Refusal,
  type Reply,
  termsOf
} from './call.ts'
import { authOf, type TokenEntry, type Tokens, type TokenTerms } from './tokens.ts'

type Grant = (terms: Omit<TokenTerms, 'path'>) => Reply

/** What a login proved, and the role that says what for. */
type LoginCheck = (call: Call, roles: ReadonlyMap<string, Body>) => Body | Promise<Body>

/** An auth method of roles at `role/NAME` and a login at `login`. */
class RoleAuth implements Engine {
  readonly roles = new Map<string, Body>()
  readonly #grant: Grant
  readonly #check: LoginCheck

  constructor(grant: Grant, check: LoginCheck) {
    this.#grant = grant
    this.#check = check
  }

  async handle(call: Call): Promise<Reply> {
    const [kind, name = '', ...rest] = call.path.split('/')
    if (kind === 'login') return this.#grant(termsOf(await this.#check(call, this.roles)))
    if (kind === 'config') {
      this.roles.set(' config', call.body)
      return NO_CONTENT
    }
    return this.manage(call, name, rest)
  }

  manage(call: Call, name: string, _rest: readonly string[]): Reply {
    this.roles.set(name, call.body)
    return NO_CONTENT
  }
}

class AppRole extends RoleAuth {
  readonly #ids = new Map<string, string>()
  /** Secret ids by themselves: the role, and the logins left; 0 for any number. */
  readonly #secrets = new Map<string, { readonly role: string; left: number }>()

  constructor(grant: Grant) {
    super(grant, ({ body }) => this.#login(body))
  }

  #login({ role_id: roleId, secret_id: secretId }: Body): Body {
    const name = this.#ids.get(roleId)
    const secret = this.#secrets.get(secretId)
    if (name === undefined || secret?.role !== name) {
      throw new Refusal(400, 'invalid role or secret ID')
    }
    if (secret.left > 0 && --secret.left === 0) this.#secrets.delete(secretId)
    return this.roles.get(name)!
  }

  override manage(call: Call, name: string, [part]: readonly string[]): Reply {
    if (part === 'role-id') {
      const known = [...this.#ids].find(([, role]) => role === name)
      return { data: { role_id: known![0] } }
    }
    if (part === 'secret-id') {
      const id = randomUUID()
      const uses = Number(this.roles.get(name)!.secret_id_num_uses ?? 0)
      this.#secrets.set(id, { role: name, left: uses })
      return { data: { secret_id: id, secret_id_accessor: randomUUID(), secret_id_num_uses: uses } }
    }
    if (!this.roles.has(name)) this.#ids.set(randomUUID(), name)
    this.roles.set(name, call.body)
    return NO_CONTENT
  }
}

const userpass: LoginCheck = ({ path, body }, users) => {
  const user = users.get(decodeURIComponent(path.split('/')[1] ?? ''))
  if (user === undefined || user.password !== body.password) {
    throw new Refusal(400, 'invalid username or password')
  }
  return user
}

const cert: LoginCheck = ({ peer, body }, roles) => {
  if (peer === undefined) throw new Refusal(400, 'no client certificate found')
  for (const [name, role] of roles) {
    if (role.certificate === undefined || (body.name ?? name) !== name) continue
    const trusted = new X509Certificate(role.certificate)
    if (peer.raw.equals(trusted.raw) || peer.verify(trusted.publicKey)) return role
  }
  throw new Refusal(400, 'failed to match all constraints for this login certificate')
}

/** The claims of a JWT whose signature is that of one of these keys. */
export function claimsOf(jwt: unknown, keys: readonly string[]): Body {
  const [header, payload, signature] = String(jwt).split('.')
  const good = keys.some(pem => {
    const key = createPublicKey(pem)
    return verify(
      'sha256',
      Buffer.from(`${header}.${payload}`),
      key.asymmetricKeyType === 'ec' ? { key, dsaEncoding: 'ieee-p1363' } : key,
      Buffer.from(signature ?? '', 'base64url')
    )
  })
  if (!good)
    throw new Refusal(
      400,
      'error validating token: no known key successfully validated the token signature'
    )
  const claims = JSON.parse(Buffer.from(payload!, 'base64url').toString())
  if (claims.exp !== undefined && claims.exp * 1000 < Date.now()) {
    throw new Refusal(400, 'error validating token: token is expired')
  }
  return claims
}

const jwt: LoginCheck = ({ body }, roles) => {
  const config = roles.get(' config')
  if (config === undefined) throw new Refusal(400, 'could not load configuration')
  const role = roles.get(body.role)
  if (role === undefined) throw new Refusal(400, `role "${body.role}" could not be found`)
  const claims = claimsOf(body.jwt, config.jwt_validation_pubkeys)
  const audiences = [claims.aud].flat()
  if (!(role.bound_audiences as string[]).some(audience => audiences.includes(audience))) {
    throw new Refusal(400, 'error validating token: invalid audience (aud) claim')
  }
  return role
}

/** Asks the API server that is configured whose token this is, as the real method does. */
const kubernetes: LoginCheck = async ({ body }, roles) => {
  const role = roles.get(body.role)
  if (role === undefined) throw new Refusal(400, `invalid role name "${body.role}"`)
  const { kubernetes_host: host, token_reviewer_jwt: reviewer } = roles.get(' config')!
  const response = await fetch(`${host}/apis/authentication.k8s.io/v1/tokenreviews`, {
    method: 'POST',
    headers: { authorization: `Bearer ${reviewer}`, 'content-type': 'application/json' },
    body: JSON.stringify({ spec: { token: body.jwt } })
  })
  const { status } = (await response.json()) as Body
  if (status.authenticated !== true) throw new Refusal(403, 'permission denied')
  return role
}

/** A JWT signed by Google, of an instance or a service account. */
const gcp: LoginCheck = ({ body }, roles) => {
  const role = roles.get(body.role)
  if (role === undefined) throw new Refusal(400, `role "${body.role}" not found`)
  const claims = claimsOf(body.jwt, roles.get(' config')!.keys)
  if (!String(claims.aud).endsWith(`vault/${body.role}`)) throw new Refusal(400, 'invalid audience')
  if (role.type === 'iam' && !role.bound_service_accounts.includes(claims.sub)) {
    throw new Refusal(400, 'permission denied')
  }
  return role
}

const azure: LoginCheck = ({ body }, roles) => {
  const role = roles.get(body.role)
  if (role === undefined) throw new Refusal(400, `invalid role name "${body.role}"`)
  const claims = claimsOf(body.jwt, roles.get(' config')!.keys)
  if (claims.aud !== roles.get(' config')!.resource) throw new Refusal(400, 'invalid audience')
  if (!role.bound_subscription_ids.includes(body.subscription_id)) {
    throw new Refusal(400, 'subscription not authorized')
  }
  return role
}

/** By an identity document, or by a request that STS would accept: its signature is made anew here. */
const aws: LoginCheck = ({ body }, roles) => {
  const role = roles.get(body.role)
  if (role === undefined) throw new Refusal(400, `entry for role ${body.role} not found`)
  const config = roles.get(' config')!
  if (role.auth_type === 'ec2') {
    if (body.pkcs7 !== config.pkcs7) throw new Refusal(400, 'failed to verify PKCS#7')
    config.nonce ??= body.nonce
    if (config.nonce !== body.nonce) throw new Refusal(400, 'client nonce mismatch')
    return role
  }
  const decode = (text: string) => Buffer.from(text, 'base64').toString()
  const headers = JSON.parse(decode(body.iam_http_request_headers ?? body.iam_request_headers))
  const parameters = {
    method: body.iam_http_request_method,
    url: new URL(decode(body.iam_request_url)),
    headers,
    body: decode(body.iam_request_body)
  }
  if (config.server_id !== undefined && headers['x-vault-aws-iam-server-id'] !== config.server_id) {
    throw new Refusal(400, 'error validating X-Vault-AWS-IAM-Server-ID header')
  }
  if (!sigV4Holds(parameters, config.keys)) throw new Refusal(400, 'error making upstream request')
  return role
}

interface SignedRequest {
  readonly method: string
  readonly url: URL
  readonly headers: Readonly<Record<string, string>>
  readonly body: string
}

const sha256 = (text: string) => createHash('sha256').update(text).digest('hex')
const hmac = (key: string | Buffer, text: string) => createHmac('sha256', key).update(text).digest()

function sigV4Holds(request: SignedRequest, keys: Readonly<Record<string, string>>): boolean {
  const { authorization = '', ...headers } = request.headers
  const match =
    /^AWS4-HMAC-SHA256 Credential=([^/]+)\/((\d{8})\/([^/]+)\/sts\/aws4_request), SignedHeaders=([^,]+), Signature=([0-9a-f]{64})$/.exec(
      authorization
    )
  if (match === null) return false
  const [, id, scope, date, region, names, signature] = match as unknown as string[]
  const secret = keys[id!]
  if (secret === undefined || headers.host !== request.url.host) return false
  const canonical = [
    request.method,
    request.url.pathname,
    '',
    ...names!.split(';').map(name => `${name}:${headers[name]}`),
    '',
    names,
    sha256(request.body)
  ].join('\n')
  const text = ['AWS4-HMAC-SHA256', headers['x-amz-date'], scope, sha256(canonical)].join('\n')
  const key = [date!, region!, 'sts', 'aws4_request'].reduce<Buffer | string>(hmac, `AWS4${secret}`)
  return hmac(key, text).toString('hex') === signature
}

/** Makes an auth method of a type; `grant` makes the token of a login. */
export function authMethod(type: string, grant: Grant): Engine {
  if (type === 'approle') return new AppRole(grant)
  const check = { userpass, cert, jwt, kubernetes, gcp, azure, aws }[type]
  if (check === undefined) throw new Refusal(400, `plugin not found in the catalog: ${type}`)
  return new RoleAuth(grant, check)
}

/** `auth/token`. */
export class TokenAuth implements Engine {
  readonly #tokens: Tokens

  constructor(tokens: Tokens) {
    this.#tokens = tokens
  }

  handle({ method, path, body, token, namespace }: Call): Reply {
    const own = token!
    switch (`${method} ${path}`) {
      case 'POST create': {
        const made = this.#tokens.create(
          {
            ...termsOf({
              token_ttl: body.ttl,
              token_max_ttl: body.explicit_max_ttl,
              token_num_uses: body.num_uses
            }),
            policies: body.policies ?? own.policies,
            renewable: body.renewable ?? true,
            orphan: false,
            path: 'auth/token/create'
          },
          namespace
        )
        return { auth: authOf(made) }
      }
      case 'GET lookup-self':
        return { data: describe(own) }
      case 'POST renew-self': {
        if (!own.renewable) throw new Refusal(400, 'lease is not renewable')
        return { auth: authOf(own, this.#tokens.renew(own)) }
      }
      case 'POST revoke-self':
        this.#tokens.revoke(own.id)
        return NO_CONTENT
      case 'POST revoke':
        this.#tokens.revoke(body.token)
        return NO_CONTENT
      default:
        throw new Refusal(405, 'unsupported operation')
    }
  }
}

function describe(token: TokenEntry): object {
  const left = Number.isFinite(token.expiresAt)
    ? Math.floor((token.expiresAt - Date.now()) / 1000)
    : 0
  return {
    accessor: token.accessor,
    creation_time: Math.floor(token.createdAt / 1000),
    creation_ttl: token.ttl,
    id: token.id,
    num_uses: token.usesLeft,
    path: token.terms.path,
    policies: token.policies,
    renewable: token.renewable,
    ttl: left,
    type: 'service'
  }
}
