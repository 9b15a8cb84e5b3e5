import { isIP } from 'node:net'
import { checkServerIdentity, type DetailedPeerCertificate, type PeerCertificate } from 'node:tls'
import createError from '@fastify/error'
import { buildConnector, type Dispatcher } from 'undici'
import type { Service } from '../schema/entities.ts'
import { AlpnPool } from './alpn-pool.ts'
import { Http1Pool } from './http1/pool.ts'
import { Http2Pool } from './http2/pool.ts'
import { sharedReadConnector } from './read-memory.ts'

const CertificateRefused = createError(
  'POSTERN_UPSTREAM_CERTIFICATE',
  'The certificate of the upstream is not the one wanted: %s',
  502
)

/** Limits and verification of connections to upstreams. */
export interface PoolOptions {
  /** Most connections per peer. */
  readonly connections: number
  /** Milliseconds an idle connection is kept. */
  readonly idleTimeout: number
  /** Verify upstream certificates where the service does not say. */
  readonly tlsVerify: boolean
  /** Offer HTTP/2 to upstreams of protocol https. */
  readonly http2: boolean
}

/** What connections of a service show and trust. */
export interface TlsMaterial {
  readonly ca: readonly string[] | undefined
  readonly cert: string | undefined
  readonly key: string | undefined
  /** Identifies the material in a pool's key without being it. */
  readonly identity: string
}

/** What the connections of a pool have in common besides their TLS material. */
export interface PoolTarget {
  readonly scheme: 'http' | 'https'
  readonly ip: string
  readonly port: number
  /** Name for SNI and verification; `''` goes by the address. */
  readonly servername: string
  /** HTTP/2 from the first byte, or by ALPN over TLS. */
  readonly http2: 'always' | 'offer' | 'never'
  readonly verify: boolean
  readonly verifyDepth: number | undefined
  readonly sans: Service['tls_sans']
  /** Milliseconds. */
  readonly connectTimeout: number
}

/** Requests that may wait for a connection; more are refused. */
const MAX_WAITING = 4096
/** Requests over one connection, after which it is replaced. */
const MAX_REQUESTS = 10_000
/** Bytes of a response head. */
const MAX_HEAD = 65_536

/** Opens the pool of connections to one address; nothing is connected yet. */
export function openPool(target: PoolTarget, tls: TlsMaterial, options: PoolOptions): Dispatcher {
  const { scheme, ip, port, servername, http2, verify, connectTimeout } = target
  const origin = new URL(`${scheme}://${isIP(ip) === 6 ? `[${ip}]` : ip}:${port}`)
  const connect = (offerHttp2: boolean): buildConnector.BuildOptions =>
    ({
      allowH2: offerHttp2,
      preferH2: offerHttp2,
      useH2c: offerHttp2 && scheme === 'http',
      timeout: connectTimeout,
      rejectUnauthorized: verify,
      checkServerIdentity: identityCheck(target),
      ...(servername === '' ? {} : { servername }),
      ...(tls.ca === undefined ? {} : { ca: [...tls.ca] }),
      ...(tls.cert === undefined ? {} : { cert: tls.cert, key: tls.key })
    }) as buildConnector.BuildOptions
  const bounds = {
    connections: options.connections,
    maxWaiting: MAX_WAITING,
    idleTimeout: options.idleTimeout,
    maxRequests: MAX_REQUESTS,
    maxHeadSize: MAX_HEAD,
    // A connection that comes free counts as much as one that comes about.
    waitTimeout: connectTimeout
  }
  switch (http2) {
    case 'always':
      return new Http2Pool(origin, { ...bounds, connect: buildConnector(connect(true)) })
    case 'offer':
      return new AlpnPool(
        origin,
        { ...bounds, connect: buildConnector(connect(false)) },
        buildConnector(connect(true))
      )
    default:
      return new Http1Pool(origin, {
        ...bounds,
        connect: (scheme === 'http' ? sharedReadConnector : buildConnector)(connect(false))
      })
  }
}

/** What is checked of a verified certificate: its name, and what the service says besides. */
function identityCheck({ verifyDepth, sans }: PoolTarget) {
  return (hostname: string, certificate: PeerCertificate): Error | undefined => {
    const mismatch = checkServerIdentity(hostname, certificate)
    if (mismatch !== undefined) return mismatch
    if (verifyDepth !== undefined) {
      const depth = intermediates(certificate as DetailedPeerCertificate)
      if (depth > verifyDepth) {
        return new CertificateRefused(
          `${depth} intermediate certificates, tls_verify_depth allows ${verifyDepth}`
        )
      }
    }
    const { dnsnames = [], uris = [] } = sans ?? {}
    if (dnsnames.length + uris.length === 0) return undefined
    const names = alternativeNames(certificate.subjectaltname ?? '')
    const found =
      dnsnames.some(name => names.has(`DNS:${name.toLowerCase()}`)) ||
      uris.some(uri => names.has(`URI:${uri}`))
    return found ? undefined : new CertificateRefused('it has none of the names in tls_sans')
  }
}

/** How many certificates stand between a leaf and its trust anchor (as OpenSSL counts depth). */
function intermediates(leaf: DetailedPeerCertificate): number {
  let count = 0
  for (
    let at = leaf;
    at.issuerCertificate !== undefined && at.issuerCertificate.fingerprint256 !== at.fingerprint256;
    at = at.issuerCertificate
  ) {
    count++
  }
  return Math.max(0, count - 1)
}

/** The subject alternative names as `TYPE:value`; values that could be misread come quoted. */
function alternativeNames(text: string): ReadonlySet<string> {
  const names = new Set<string>()
  for (const [, type, value = ''] of text.matchAll(/([A-Za-z][\w ]*):("(?:[^"\\]|\\.)*"|[^,]*)/g)) {
    const plain = value.startsWith('"') ? (JSON.parse(value) as string) : value
    names.add(`${type}:${type === 'DNS' ? plain.toLowerCase() : plain}`)
  }
  return names
}
