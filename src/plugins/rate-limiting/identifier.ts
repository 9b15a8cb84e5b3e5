import { hash } from 'node:crypto'
import type { Exchange } from '../plugin.ts'

/** Gives what a request is counted for. */
export type Identify = (exchange: Exchange) => string

/** Identifiers beyond this many characters are counted by their digest, so that keys stay small. */
const MAX_LENGTH = 256

/** What is counted by, and the header or path of those kinds. */
export interface Counted {
  readonly limit_by: string
  readonly header_name?: string
  readonly path?: string
}

/** The way to identify requests; whatever lacks what it is to be counted by is by client address. */
export function identifyBy({ limit_by, header_name, path }: Counted): Identify {
  switch (limit_by) {
    case 'consumer':
      return ({ consumer, credential, request }) =>
        consumer?.id ?? credential?.id ?? request.clientIp
    case 'credential':
      return ({ credential, request }) => credential?.id ?? request.clientIp
    case 'service':
      return ({ service, request }) => service?.id ?? request.clientIp
    case 'path':
      return ({ request }) => (request.path === path ? path : request.clientIp)
    case 'header': {
      const name = header_name!.toLowerCase()
      return ({ request }) => {
        const value = request.headers[name]
        return value === undefined ? request.clientIp : shortened(String(value))
      }
    }
    default:
      return ({ request }) => request.clientIp
  }
}

function shortened(value: string): string {
  return value.length > MAX_LENGTH ? `sha256:${hash('sha256', value)}` : value
}
