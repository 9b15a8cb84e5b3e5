import { createHash, createHmac, type Hash, type Hmac } from 'node:crypto'
import { createCredentials, importCredentials } from '../aws/credentials.ts'
import { classify } from '../aws/failure.ts'
import { Handler } from '../aws/handler.ts'
import { type LoginContext, type LoginRequest, loginPath } from './login.ts'
import type { HcvSettings } from './settings.ts'
import { inquire } from './third-party.ts'

const LOGIN_PATH = '/v1/auth/aws/login'
const METADATA_HOST = 'http://169.254.169.254'
const IDENTITY_CALL = 'Action=GetCallerIdentity&Version=2011-06-15'

/** Logs in as this EC2 instance, by its signed identity document and the nonce of its first login. */
export async function ec2Login({ settings, env, signal }: LoginContext): Promise<LoginRequest> {
  const base = env.AWS_EC2_METADATA_SERVICE_ENDPOINT ?? METADATA_HOST
  const ask = (path: string, method: string, headers: Record<string, string>) =>
    inquire({ whom: 'the instance metadata service', url: base + path, method, headers, signal })
  const session = await ask('/latest/api/token', 'PUT', {
    'x-aws-ec2-metadata-token-ttl-seconds': '60'
  })
  const pkcs7 = await ask('/latest/dynamic/instance-identity/pkcs7', 'GET', {
    'x-aws-ec2-metadata-token': session
  })
  return {
    path: loginPath(settings.aws_login_path ?? LOGIN_PATH),
    body: {
      role: settings.aws_auth_role,
      pkcs7: pkcs7.replaceAll('\n', ''),
      nonce: settings.aws_auth_nonce
    }
  }
}

/** What signs requests to AWS, and where it takes credentials from. */
export function importSigner(): Promise<unknown> {
  return Promise.all([import('@smithy/signature-v4'), importCredentials()])
}

/** Logs in with a signed GetCallerIdentity request, which the vault sends to STS itself. */
export async function iamLogin({ settings, env, signal }: LoginContext): Promise<LoginRequest> {
  const { SignatureV4 } = await import('@smithy/signature-v4')
  // Its own, so that the end of this login ends what credentials are asked for, too.
  const handler = new Handler(env)
  signal.addEventListener('abort', () => handler.close(), { once: true })
  const region = settings.aws_auth_region!
  const host = stsHost(region)
  const serverId = settings.aws_iam_server_id
  const credentials = await credentialsOf(settings, handler)
  const signer = new SignatureV4({ credentials, region, service: 'sts', sha256: Sha256 })
  const signed = await signer
    .sign({
      method: 'POST',
      protocol: 'https:',
      hostname: host,
      path: '/',
      query: {},
      headers: {
        host,
        'content-type': 'application/x-www-form-urlencoded; charset=utf-8',
        'content-length': String(IDENTITY_CALL.length),
        ...(serverId === undefined ? {} : { 'x-vault-aws-iam-server-id': serverId })
      },
      body: IDENTITY_CALL
    })
    .catch(error => {
      throw classify(error, 'a login')
    })
    .finally(() => handler.close())
  return {
    path: loginPath(settings.aws_login_path ?? LOGIN_PATH),
    body: {
      role: settings.aws_auth_role,
      iam_http_request_method: 'POST',
      iam_request_url: base64(`https://${host}/`),
      iam_request_body: base64(IDENTITY_CALL),
      iam_request_headers: base64(JSON.stringify(signed.headers))
    }
  }
}

/** The endpoint a vault without settings of its own asks: the global one signs for us-east-1. */
function stsHost(region: string): string {
  if (region === 'us-east-1') return 'sts.amazonaws.com'
  return `sts.${region}.amazonaws.com${region.startsWith('cn-') ? '.cn' : ''}`
}

async function credentialsOf(settings: HcvSettings, handler: Handler) {
  const ignore = (): void => {}
  const logger = { trace: ignore, debug: ignore, info: ignore, warn: ignore, error: ignore }
  const own = {
    access_key_id: settings.aws_access_key_id,
    secret_access_key: settings.aws_secret_access_key,
    assume_role_arn: settings.aws_assume_role_arn,
    role_session_name: settings.aws_role_session_name,
    sts_endpoint_url: settings.aws_sts_endpoint_url
  }
  const given = Object.entries(own).filter(([, value]) => value !== undefined)
  const { provider } = await createCredentials(
    Object.fromEntries(given),
    settings.aws_auth_region!,
    handler,
    logger
  )
  return provider
}

/** SHA-256 as the signer wants it. */
class Sha256 {
  #hash: Hash | Hmac
  readonly #key: Uint8Array | undefined

  constructor(secret?: string | ArrayBuffer | ArrayBufferView) {
    this.#key = secret === undefined ? undefined : bytes(secret)
    this.#hash = this.#fresh()
  }

  #fresh(): Hash | Hmac {
    return this.#key === undefined ? createHash('sha256') : createHmac('sha256', this.#key)
  }

  update(data: string | ArrayBuffer | ArrayBufferView): void {
    this.#hash.update(bytes(data))
  }

  async digest(): Promise<Uint8Array> {
    return this.#hash.digest()
  }

  reset(): void {
    this.#hash = this.#fresh()
  }
}

function bytes(data: string | ArrayBuffer | ArrayBufferView): Uint8Array {
  if (typeof data === 'string') return Buffer.from(data)
  return ArrayBuffer.isView(data)
    ? new Uint8Array(data.buffer, data.byteOffset, data.byteLength)
    : new Uint8Array(data)
}

function base64(text: string): string {
  return Buffer.from(text).toString('base64')
}
