import { isIP } from 'node:net'
import type { Target } from '../schema/entities.ts'
import type { Address } from './dns.ts'

/** Where requests are to go, before names are resolved. */
export interface Endpoint {
  readonly host: string
  readonly port: number
  /** Share of the requests; 0 gets none. */
  readonly weight: number
  /** Stands in only when no other can serve. */
  readonly failover: boolean
}

/** One address of an endpoint. */
export interface Place {
  /** What `Host` names. */
  readonly host: string
  readonly ip: string
  readonly port: number
  readonly weight: number
  readonly failover: boolean
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

/** The endpoint a target stands for. */
export function endpointOf(target: Target): Endpoint {
  const { weight, failover = false } = target
  return { ...parseTarget(target.target), weight, failover }
}

/**
 * The place one of an endpoint's addresses is. An SRV record overrides port and weight (its port 0
 * says nothing), and the name where `useServiceName`.
 */
export function placeOf(endpoint: Endpoint, address: Address, useServiceName: boolean): Place {
  const { ip, service } = address
  return {
    host: useServiceName && service !== undefined ? service.name : endpoint.host,
    ip,
    port: service?.port || endpoint.port,
    weight: service?.weight ?? endpoint.weight,
    failover: endpoint.failover
  }
}
