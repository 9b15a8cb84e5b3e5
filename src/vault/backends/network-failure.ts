import { TransportError } from './transport.ts'

const UNTRUSTED =
  'its certificate is not trusted; if a private authority issued it, name that in NODE_EXTRA_CA_CERTS'

const MEANINGS: Readonly<Record<string, string>> = {
  ABORT_ERR: 'no answer in time',
  ENOTFOUND: 'its name is not known',
  EAI_AGAIN: 'its name could not be looked up',
  ECONNREFUSED: 'nothing listens there',
  ECONNRESET: 'the connection broke',
  EPROTO: 'it does not speak TLS, or not with this client',
  CERT_HAS_EXPIRED: 'its certificate has expired',
  ERR_TLS_CERT_ALTNAME_INVALID: 'its certificate is for another name',
  DEPTH_ZERO_SELF_SIGNED_CERT: UNTRUSTED,
  SELF_SIGNED_CERT_IN_CHAIN: UNTRUSTED,
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: UNTRUSTED,
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: UNTRUSTED
}
const GIVEN_UP = new Set(['AbortError', 'TimeoutError', 'CanceledError'])
const CODE = /^[A-Z][A-Z0-9_]{1,63}$/
const NAME = /^[A-Za-z][A-Za-z0-9_.]{0,63}$/

/**
 * Why a service could not be asked, for people. Messages of libraries are never passed on: those of
 * parsers quote the answer.
 */
export function networkFailure(error: unknown): string {
  if (error instanceof TransportError) return error.message
  const { code, name } = error as { code?: unknown; name?: unknown }
  if (typeof name === 'string' && GIVEN_UP.has(name)) return MEANINGS.ABORT_ERR!
  if (name === 'SyntaxError') return 'its answer cannot be read'
  if (typeof code === 'string' && CODE.test(code)) {
    const meaning = MEANINGS[code]
    if (meaning === undefined) return code
    return code === 'ABORT_ERR' ? meaning : `${meaning} (${code}${placeOf(error)})`
  }
  return plainName(name) ?? 'it failed for an unknown reason'
}

/** The address or name that was tried, which may be that of a proxy. */
function placeOf(error: unknown): string {
  // Of a name with several addresses each has its error.
  const { errors: [first = error] = [] } = error as { readonly errors?: readonly unknown[] }
  const { address, port, hostname } = first as {
    readonly address?: string
    readonly port?: number
    readonly hostname?: string
  }
  if (address !== undefined && port !== undefined) return ` ${address}:${port}`
  return hostname === undefined ? '' : ` ${hostname}`
}

/** The name of an error or code as told by a service, if it is a plain word; else undefined. */
export function plainName(name: unknown): string | undefined {
  return typeof name === 'string' && NAME.test(name) ? name : undefined
}
