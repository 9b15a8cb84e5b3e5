import { hash } from 'node:crypto'
import { isIP } from 'node:net'
import { buildConnector, type Dispatcher } from 'undici'
import type { Kept } from '../plugins/instance.ts'
import type { CaCertificate, Certificate, Service, Target, Upstream } from '../schema/entities.ts'
import { type Balancer, roundRobin } from './balancer.ts'
import type { Address, Resolver } from './dns.ts'
import { Http1Pool } from './http1/pool.ts'

/** One address requests can be sent to. */
export interface Peer {
  readonly ip: string
  readonly port: number
  /** What `Host` says unless the route preserves the client's. */
  readonly authority: string
  readonly pool: Dispatcher
}

/** Limits and verification of connections to upstreams. */
export interface PoolOptions {
  /** Most connections per peer. */
  readonly connections: number
  /** Milliseconds an idle connection is kept. */
  readonly idleTimeout: number
  /** Verify upstream certificates where the service does not say. */
  readonly tlsVerify: boolean
}

export interface UpstreamEnvironment {
  readonly options: PoolOptions
  readonly resolver: Resolver
  /** Pools by what they connect to, so that a reload keeps connections of what did not change. */
  readonly pools: Kept
}

interface Endpoint {
  readonly host: string
  readonly port: number
  readonly weight: number
}

interface TlsMaterial {
  readonly ca: readonly string[] | undefined
  readonly cert: string | undefined
  readonly key: string | undefined
  /** Identifies the material in a pool's key without being it. */
  readonly identity: string
}

const DEFAULT_TARGET_PORT = 8000

/** Splits `host`, `host:port`, `1.2.3.4:80`, `[::1]:80` of a target. */
export function parseTarget(text: string): { host: string; port: number } {
  if (text.startsWith('[')) {
    const end = text.indexOf(']')
    const port = text.slice(end + 2)
    return { host: text.slice(1, end), port: port === '' ? DEFAULT_TARGET_PORT : Number(port) }
  }
  const colon = text.indexOf(':')
  if (colon === -1 || isIP(text) === 6) return { host: text, port: DEFAULT_TARGET_PORT }
  return { host: text.slice(0, colon), port: Number(text.slice(colon + 1)) }
}

/** Where the requests of one service go: its own host, or the targets of the upstream it names. */
export class ServiceUpstream {
  readonly service: Service
  readonly scheme: 'http' | 'https'
  readonly #endpoints: readonly Endpoint[]
  readonly #hostHeader: string | undefined
  readonly #tls: TlsMaterial
  readonly #environment: UpstreamEnvironment
  readonly #keys = new Set<string>()
  readonly #peers = new Map<string, Peer>()
  #answers: readonly (readonly Address[])[] = []
  #balancer: Balancer<Peer> | undefined

  constructor(
    service: Service,
    endpoints: readonly Endpoint[],
    hostHeader: string | undefined,
    tls: TlsMaterial,
    environment: UpstreamEnvironment
  ) {
    this.service = service
    this.scheme = service.protocol === 'https' || service.protocol === 'grpcs' ? 'https' : 'http'
    this.#endpoints = endpoints
    this.#hostHeader = hostHeader
    this.#tls = tls
    this.#environment = environment
  }

  /**
   * The next peer, avoiding those already tried where there are others; undefined when every weight
   * is 0. Rejects or throws when a name does not resolve. Synchronous once names are known.
   */
  pick(tried: ReadonlySet<Peer> | undefined): Peer | undefined | Promise<Peer | undefined> {
    let waiting = false
    let changed = this.#balancer === undefined
    const answers: (readonly Address[] | Promise<readonly Address[]>)[] = []
    for (let i = 0; i < this.#endpoints.length; i++) {
      const answer = this.#environment.resolver.resolve(this.#endpoints[i]!.host)
      if (answer instanceof Promise) waiting = true
      if (answer !== this.#answers[i]) changed = true
      answers.push(answer)
    }
    if (waiting) return Promise.all(answers).then(known => this.#rebuild(known).pick(tried))
    if (changed) this.#rebuild(answers as (readonly Address[])[])
    return this.#balancer!.pick(tried)
  }

  #rebuild(answers: readonly (readonly Address[])[]): Balancer<Peer> {
    const entries: { peer: Peer; weight: number }[] = []
    for (const [index, { host, port, weight }] of this.#endpoints.entries()) {
      for (const { address } of answers[index]!) {
        entries.push({ peer: this.#peer(host, address, port), weight })
      }
    }
    this.#answers = answers
    this.#balancer = roundRobin(entries)
    return this.#balancer
  }

  #peer(host: string, ip: string, port: number): Peer {
    const name = `${host} ${ip} ${port}`
    let peer = this.#peers.get(name)
    if (peer === undefined) {
      peer = this.#open(host, ip, port)
      this.#peers.set(name, peer)
    }
    return peer
  }

  #open(host: string, ip: string, port: number): Peer {
    const { options, pools } = this.#environment
    const { service, scheme } = this
    const bracketed = isIP(host) === 6 ? `[${host}]` : host
    const defaultPort = scheme === 'https' ? 443 : 80
    const authority =
      this.#hostHeader ?? (port === defaultPort ? bracketed : `${bracketed}:${port}`)
    // RFC 6066 §3: SNI carries names only, never addresses.
    const sniHost = authority.replace(/:\d+$/, '')
    const servername = isIP(sniHost.replace(/^\[|\]$/g, '')) === 0 ? sniHost : ''
    const verify = service.tls_verify ?? options.tlsVerify
    const key = [
      scheme,
      ip,
      port,
      servername,
      verify,
      service.connect_timeout,
      this.#tls.identity
    ].join('|')
    this.#keys.add(key)
    const pool = pools.acquire(key, () => {
      const ipText = isIP(ip) === 6 ? `[${ip}]` : ip
      return new Http1Pool(new URL(`${scheme}://${ipText}:${port}`), {
        connections: options.connections,
        maxWaiting: 4096,
        idleTimeout: options.idleTimeout,
        maxRequests: 10_000,
        maxHeadSize: 65_536,
        connect: buildConnector({
          allowH2: false,
          timeout: service.connect_timeout,
          rejectUnauthorized: verify,
          ...(servername === '' ? {} : { servername }),
          ...(this.#tls.ca === undefined ? {} : { ca: [...this.#tls.ca] }),
          ...(this.#tls.cert === undefined ? {} : { cert: this.#tls.cert, key: this.#tls.key })
        })
      })
    })
    return { ip, port, authority, pool }
  }

  async release(): Promise<void> {
    await Promise.all([...this.#keys].map(key => this.#environment.pools.release(key)))
  }
}

/** The upstreams of every service of a configuration. */
export class Upstreams {
  readonly #byService = new Map<string, ServiceUpstream>()
  #holders = 0

  constructor(
    config: {
      readonly services: readonly Service[]
      readonly upstreams: readonly Upstream[]
      readonly targets: readonly Target[]
      readonly certificates: readonly Certificate[]
      readonly ca_certificates: readonly CaCertificate[]
    },
    environment: UpstreamEnvironment
  ) {
    const upstreams = new Map(config.upstreams.map(upstream => [upstream.name, upstream]))
    const certificates = new Map(
      config.certificates.map(certificate => [certificate.id, certificate])
    )
    const authorities = new Map(config.ca_certificates.map(authority => [authority.id, authority]))
    const targets = Map.groupBy(config.targets, target => target.upstream.id)
    for (const service of config.services) {
      const upstream = upstreams.get(service.host)
      const certificateId = service.client_certificate?.id ?? upstream?.client_certificate?.id
      const certificate = certificateId === undefined ? undefined : certificates.get(certificateId)
      const ca = service.ca_certificates?.map(id => authorities.get(id)!.cert.reveal())
      const tls: TlsMaterial = {
        ca,
        cert: certificate?.cert.reveal(),
        key: certificate?.key.reveal(),
        identity:
          certificate === undefined && ca === undefined
            ? ''
            : hash(
                'sha256',
                JSON.stringify([certificate?.cert.reveal(), certificate?.key.reveal(), ca])
              )
      }
      const endpoints =
        upstream === undefined
          ? [{ host: service.host, port: service.port, weight: 100 }]
          : (targets.get(upstream.id) ?? []).map(target => ({
              ...parseTarget(target.target),
              weight: target.weight
            }))
      this.#byService.set(
        service.id,
        new ServiceUpstream(service, endpoints, upstream?.host_header, tls, environment)
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
    await Promise.all([...this.#byService.values()].map(upstream => upstream.release()))
  }
}
