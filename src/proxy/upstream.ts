import { hash } from 'node:crypto'
import { isIP } from 'node:net'
import createError from '@fastify/error'
import type { Dispatcher } from 'undici'
import type { Kept } from '../plugins/instance.ts'
import type { CaCertificate, Certificate, Service, Target, Upstream } from '../schema/entities.ts'
import type { BalancedRequest } from './balancer.ts'
import { endpointOf } from './endpoints.ts'
import type { Failure } from './health.ts'
import { openPool, type PoolOptions, type PoolTarget, type TlsMaterial } from './pools.ts'
import { type TargetAddress, Targets, type TargetsEnvironment, Unresolved } from './targets.ts'

const NameNotResolved = createError('POSTERN_DNS_FAILED', 'The name %s does not resolve: %s', 503)
const MaterialMissing = createError(
  'POSTERN_SECRET_UNAVAILABLE',
  'A certificate or key for the connection to service %s has no value',
  503
)

export interface UpstreamEnvironment extends TargetsEnvironment {
  readonly options: PoolOptions
  /** Pools by what they connect to, so that a reload keeps connections of what did not change. */
  readonly pools: Kept
}

/** One address requests of one service can be sent to. */
export class Peer {
  readonly address: TargetAddress
  readonly ip: string
  readonly port: number
  /** What `Host` says unless the route preserves the client's. */
  readonly authority: string
  readonly pool: Dispatcher
  readonly #targets: Targets

  constructor(address: TargetAddress, authority: string, pool: Dispatcher, targets: Targets) {
    this.address = address
    this.ip = address.ip
    this.port = address.port
    this.authority = authority
    this.pool = pool
    this.#targets = targets
  }

  /** An attempt begins; {@link end} must follow once. */
  begin(): void {
    this.#targets.begin(this.address)
  }

  end(): void {
    this.#targets.end(this.address)
  }

  /** It answered with a status, `milliseconds` after the attempt began. */
  answered(status: number, milliseconds: number): void {
    this.#targets.answered(this.address, status, milliseconds)
  }

  /** It gave no answer. */
  failed(kind: Failure): void {
    this.#targets.failed(this.address, kind)
  }
}

/** Where the requests of one service go, and how they are sent there. */
export class ServiceUpstream {
  readonly service: Service
  readonly scheme: 'http' | 'https'
  readonly #targets: Targets
  readonly #hostHeader: string | undefined
  readonly #tls: TlsMaterial | undefined
  readonly #environment: UpstreamEnvironment
  readonly #peers = new Map<TargetAddress, { readonly peer: Peer; readonly key: string }>()
  #generation = -1

  /** `tls` undefined: a part of it has no value, so that requests cannot be sent. */
  constructor(
    service: Service,
    targets: Targets,
    hostHeader: string | undefined,
    tls: TlsMaterial | undefined,
    environment: UpstreamEnvironment
  ) {
    this.service = service
    this.scheme = service.protocol === 'https' || service.protocol === 'grpcs' ? 'https' : 'http'
    this.#targets = targets
    this.#hostHeader = hostHeader
    this.#tls = tls
    this.#environment = environment
  }

  /**
   * The next peer for a request, avoiding those already tried while there are others; undefined when
   * none is available. Throws or rejects with POSTERN_DNS_FAILED when the service's name has no
   * address, and throws POSTERN_SECRET_UNAVAILABLE. Synchronous once names are known.
   */
  pick(
    request: BalancedRequest,
    tried: ReadonlySet<TargetAddress> | undefined
  ): Peer | undefined | Promise<Peer | undefined> {
    if (this.#tls === undefined) {
      throw new MaterialMissing(this.service.name ?? this.service.id)
    }
    try {
      const address = this.#targets.pick(request, tried)
      if (!(address instanceof Promise)) return this.#peerOf(address)
      return address.then(
        found => this.#peerOf(found),
        error => {
          throw explain(error)
        }
      )
    } catch (error) {
      throw explain(error)
    }
  }

  #peerOf(address: TargetAddress | undefined): Peer | undefined {
    if (this.#generation !== this.#targets.generation) this.#prune()
    if (address === undefined) return undefined
    let entry = this.#peers.get(address)
    if (entry === undefined) {
      entry = this.#open(address)
      this.#peers.set(address, entry)
    }
    return entry.peer
  }

  /** Lets go of the pools of addresses that are gone; what is under way there ends undisturbed. */
  #prune(): void {
    this.#generation = this.#targets.generation
    if (this.#peers.size === 0) return
    const { addresses } = this.#targets
    for (const [address, { key }] of this.#peers) {
      if (addresses.has(address)) continue
      this.#peers.delete(address)
      void this.#environment.pools.release(key)
    }
  }

  #open(address: TargetAddress) {
    const { options, pools } = this.#environment
    const { service, scheme } = this
    const { ip, port } = address
    const { protocol } = service
    const authority = withPort(this.#hostHeader ?? address.host, port, scheme)
    const name = authority.replace(/:\d+$/, '')
    const target: PoolTarget = {
      scheme,
      ip,
      port,
      // RFC 6066 §3: SNI carries names only, never addresses.
      servername: isIP(name.replace(/^\[|\]$/g, '')) === 0 ? name : '',
      http2: protocol.startsWith('grpc')
        ? 'always'
        : options.http2 && protocol === 'https'
          ? 'offer'
          : 'never',
      verify: service.tls_verify ?? options.tlsVerify,
      verifyDepth: service.tls_verify_depth,
      sans: service.tls_sans,
      connectTimeout: service.connect_timeout
    }
    const tls = this.#tls!
    const key = JSON.stringify([target, tls.identity])
    const pool = pools.acquire(key, () => openPool(target, tls, options))
    return { peer: new Peer(address, authority, pool, this.#targets), key }
  }

  async release(): Promise<void> {
    await Promise.all(
      [...this.#peers.values()].map(({ key }) => this.#environment.pools.release(key))
    )
  }
}

/** `host:port` as `Host` has it: without the port that the scheme implies (RFC 9110 §7.2). */
function withPort(host: string, port: number, scheme: 'http' | 'https'): string {
  if (isIP(host) === 6) return withPort(`[${host}]`, port, scheme)
  const hasPort = /:\d+$/.test(host.replace(/^\[.*\]/, ''))
  return hasPort || port === (scheme === 'https' ? 443 : 80) ? host : `${host}:${port}`
}

function explain(error: unknown): unknown {
  return error instanceof Unresolved ? new NameNotResolved(error.host, error.failure) : error
}

/** What of a configuration the upstreams are made of; entities whose references have no value are left out. */
export interface UpstreamsConfig {
  readonly services: readonly Service[]
  readonly upstreams: readonly Upstream[]
  readonly targets: readonly Target[]
  readonly certificates: readonly Certificate[]
  readonly ca_certificates: readonly CaCertificate[]
}

/** The upstreams of every service of a configuration. */
export class Upstreams {
  readonly #byService = new Map<string, ServiceUpstream>()
  readonly #targets: Targets[] = []
  #holders = 0

  constructor(config: UpstreamsConfig, environment: UpstreamEnvironment) {
    const upstreams = new Map(config.upstreams.map(upstream => [upstream.name, upstream]))
    const materials = materialsOf(config)
    const byUpstream = Map.groupBy(config.targets, target => target.upstream.id)
    const shared = new Map<Upstream, Targets>()
    for (const service of config.services) {
      const upstream = upstreams.get(service.host)
      let targets = upstream === undefined ? undefined : shared.get(upstream)
      if (targets === undefined) {
        const endpoints =
          upstream === undefined
            ? [{ host: service.host, port: service.port, weight: 100, failover: false }]
            : (byUpstream.get(upstream.id) ?? []).map(endpointOf)
        targets = new Targets(endpoints, upstream, environment)
        this.#targets.push(targets)
        if (upstream !== undefined) shared.set(upstream, targets)
      }
      this.#byService.set(
        service.id,
        new ServiceUpstream(
          service,
          targets,
          upstream?.host_header,
          materials(service, upstream),
          environment
        )
      )
    }
  }

  of(service: Service): ServiceUpstream {
    return this.#byService.get(service.id)!
  }

  acquire(): void {
    this.#holders++
  }

  async release(): Promise<void> {
    if (--this.#holders > 0) return
    for (const targets of this.#targets) targets.release()
    await Promise.all([...this.#byService.values()].map(upstream => upstream.release()))
  }
}

const NO_MATERIAL: TlsMaterial = { ca: undefined, cert: undefined, key: undefined, identity: '' }

/** Gives each service what its connections show and trust. */
function materialsOf({ certificates, ca_certificates }: UpstreamsConfig) {
  const pairs = new Map(certificates.map(certificate => [certificate.id, certificate]))
  const authorities = new Map(ca_certificates.map(authority => [authority.id, authority]))
  return (service: Service, upstream: Upstream | undefined): TlsMaterial | undefined => {
    const id = service.client_certificate?.id ?? upstream?.client_certificate?.id
    const pair = id === undefined ? undefined : pairs.get(id)
    const trusted = service.ca_certificates?.map(each => authorities.get(each))
    if ((id !== undefined && pair === undefined) || trusted?.includes(undefined)) return undefined
    if (pair === undefined && trusted === undefined) return NO_MATERIAL
    const ca = trusted?.map(authority => authority!.cert.reveal())
    const cert = pair?.cert.reveal()
    const key = pair?.key.reveal()
    return { ca, cert, key, identity: hash('sha256', JSON.stringify([cert, key, ca])) }
  }
}
