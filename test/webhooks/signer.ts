import { createHmac, generateKeyPairSync, type KeyObject, sign } from 'node:crypto'
import { startUpstream, type TestUpstream } from '../harness.ts'

/** An issuer of signed tokens with its key set on a server. */
export interface Issuer extends AsyncDisposable {
  readonly url: string
  readonly server: TestUpstream
  /** Changes the signing key; tokens of the one before are still issued with `old`. */
  rotate(): void
  /** What the server answers instead of the keys. */
  fault: ((response: import('node:http').ServerResponse) => void) | undefined
  token(
    claims: object,
    options?: { readonly kid?: string; readonly alg?: string; readonly key?: KeyObject }
  ): string
}

export async function startIssuer(): Promise<Issuer> {
  let pair = generateKeyPairSync('rsa', { modulusLength: 2048 })
  let kid = 'key-1'
  const server = await startUpstream((_received, response) => {
    if (issuer.fault !== undefined) {
      issuer.fault(response)
      return
    }
    const jwk = { ...pair.publicKey.export({ format: 'jwk' }), kid, use: 'sig' }
    response.end(
      JSON.stringify({ keys: [{ kid: 'ec', kty: 'EC' }, { kid: 'bad', kty: 'RSA' }, jwk] })
    )
  })
  const issuer: Issuer = {
    url: `${server.url}/keys`,
    server,
    fault: undefined,
    rotate() {
      pair = generateKeyPairSync('rsa', { modulusLength: 2048 })
      kid = `key-${Number(kid.slice(4)) + 1}`
    },
    token(claims, options = {}) {
      const encode = (part: object): string =>
        Buffer.from(JSON.stringify(part)).toString('base64url')
      const head = encode({ typ: 'JWT', alg: options.alg ?? 'RS256', kid: options.kid ?? kid })
      const signed = `${head}.${encode(claims)}`
      const signature = sign('RSA-SHA256', Buffer.from(signed), options.key ?? pair.privateKey)
      return `${signed}.${signature.toString('base64url')}`
    },
    [Symbol.asyncDispose]: () => server.close()
  }
  return issuer
}

export const inSeconds = (seconds: number): number => Math.floor(Date.now() / 1000) + seconds

/** The headers of a delivery by the Standard Webhooks specification. */
export function signed(
  secret: string | Buffer,
  body: string,
  { id = 'msg_1', at = inSeconds(0) }: { readonly id?: string; readonly at?: number } = {}
): Record<string, string> {
  const digest = createHmac('sha256', secret).update(`${id}.${at}.${body}`).digest('base64')
  return {
    'webhook-id': id,
    'webhook-timestamp': String(at),
    'webhook-signature': `v1,${digest}`
  }
}
