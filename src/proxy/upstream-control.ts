import { getCACertificates } from 'node:tls'
import type { Logger } from '../plugins/plugin.ts'
import type { CaCertificate, Certificate, Service, Target, Upstream } from '../schema/entities.ts'
import { type UpstreamStatus, UpstreamWatch } from './active-checks.ts'
import type { NameServer } from './dns/client.ts'
import { HostsFile, readResolvConf } from './dns/system.ts'
import { type Answer, type DnsOrder, NameService } from './dns.ts'
import { parseTarget } from './endpoints.ts'
import { createHealthMemory, HealthTable } from './health.ts'

export interface UpstreamControlOptions {
  /** Name servers; undefined takes those of the system. */
  readonly servers: readonly NameServer[] | undefined
  readonly hostsFile: string
  readonly order: DnsOrder
  readonly log: Logger
  /** Told of a name whose addresses changed, for the data-plane threads. */
  onNameChange(host: string, answer: Answer): void
}

/** What of a configuration the control thread watches, references resolved. */
export interface WatchedConfig {
  readonly services: readonly Service[]
  readonly upstreams: readonly Upstream[]
  readonly targets: readonly Target[]
  readonly certificates: readonly Certificate[]
  readonly ca_certificates: readonly CaCertificate[]
}

/** Milliseconds a name server has to answer, and rounds through them. */
const DNS_TIMEOUT = 2000
const DNS_ATTEMPTS = 2

/**
 * What the control thread does for upstreams, once for the node: it resolves names, probes targets
 * and tells their health.
 */
export class UpstreamControl {
  /** The memory of health, for every thread. */
  readonly memory = createHealthMemory()
  readonly #table = new HealthTable(this.memory)
  readonly #names: NameService
  readonly #log: Logger
  #watches = new Map<string, UpstreamWatch>()

  constructor(options: UpstreamControlOptions) {
    const conf = readResolvConf()
    this.#log = options.log
    this.#names = new NameService({
      conf,
      client: {
        servers: options.servers ?? conf.servers,
        timeout: DNS_TIMEOUT,
        attempts: DNS_ATTEMPTS
      },
      hosts: new HostsFile(options.hostsFile),
      order: options.order,
      log: options.log,
      onChange: (host, answer) => {
        options.onNameChange(host, answer)
        for (const watch of this.#watches.values()) watch.follow()
      }
    })
  }

  resolve(host: string): Answer | Promise<Answer> {
    return this.#names.resolve(host)
  }

  /** What is known of names now. */
  get known(): ReadonlyMap<string, Answer> {
    return this.#names.known
  }

  /** Watches the upstreams of a configuration; those that did not change are not disturbed. */
  adopt(config: WatchedConfig): void {
    const { services, upstreams, targets, certificates } = config
    const before = this.#watches
    const byUpstream = Map.groupBy(targets, target => target.upstream.id)
    const pairs = new Map(certificates.map(certificate => [certificate.id, certificate]))
    const trustedBy = trustOf(config)
    const environment = { resolver: this.#names, health: this.#table, log: this.#log }
    this.#watches = new Map()
    for (const upstream of upstreams) {
      const own = byUpstream.get(upstream.id) ?? []
      const id = upstream.client_certificate?.id
      const certificate = id === undefined ? undefined : pairs.get(id)
      const trusted = trustedBy(upstream)
      const key = JSON.stringify([upstream, own, certificate?.cert.reveal(), trusted])
      const watched = { upstream, targets: own, certificate, trusted }
      this.#watches.set(key, before.get(key) ?? new UpstreamWatch(watched, environment))
    }
    for (const [key, watch] of before) if (!this.#watches.has(key)) watch.close()
    this.#names.retain(
      new Set([
        ...services.map(({ host }) => host),
        ...targets.map(({ target }) => parseTarget(target).host)
      ])
    )
  }

  status(): readonly UpstreamStatus[] {
    return [...this.#watches.values()].map(watch => watch.status())
  }

  /**
   * Sets the state of an upstream's targets, or of one; gives how many addresses changed, undefined
   * when there is no such upstream.
   */
  turn(name: string, target: string | undefined, healthy: boolean): number | undefined {
    for (const watch of this.#watches.values()) {
      if (watch.name === name) return watch.turn(target, healthy)
    }
    return undefined
  }

  close(): void {
    for (const watch of this.#watches.values()) watch.close()
    this.#names.close()
  }
}

/**
 * Gives the authorities that probes of an upstream trust: those its services trust, since a target
 * that serves them is not to be taken out for a certificate they accept. Undefined when no service has
 * authorities of its own.
 */
function trustOf({ services, ca_certificates }: WatchedConfig) {
  const authorities = new Map(ca_certificates.map(({ id, cert }) => [id, cert]))
  const byHost = Map.groupBy(services, ({ host }) => host)
  return ({ name }: Upstream): readonly string[] | undefined => {
    const users = byHost.get(name) ?? []
    const own = new Set(users.flatMap(service => service.ca_certificates ?? []))
    if (own.size === 0) return undefined
    const trusted = [...own].flatMap(id => authorities.get(id)?.reveal() ?? [])
    const others = users.some(service => service.ca_certificates === undefined)
    return others ? [...getCACertificates('default'), ...trusted] : trusted
  }
}
