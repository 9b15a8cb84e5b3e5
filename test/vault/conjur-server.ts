import type { Fault, FaultServer, ServiceAnswer, ServiceRequest } from './fault-server.ts'
import { type FaultServerOptions, RETRY_AFTER, startFaultServer } from './fault-server.ts'

export const ACCOUNT = 'acme'
export const LOGIN = 'host/apps/gateway'
export const API_KEY = 'canary-api-key-1'
export const JWT = 'canary.jwt.token'
/** Of authn-jwt. */
const SERVICES: ReadonlySet<string> = new Set(['gate', 'kubernetes'])

/** A fake of Conjur's REST interface: logins, resources, variables, the batch. */
export interface FakeConjur extends FaultServer {
  /** Stores a new version; gives its number. */
  put(id: string, value: string | Buffer): string
  /** A variable that was declared and never given a value. */
  declare(id: string): void
  remove(id: string): void
  /** Ends every token that was given out. */
  revokeTokens(): void
  readonly logins: number
}

const json = (body: object): ServiceAnswer => ({ body })
const status = (code: number): ServiceAnswer => ({ status: code, body: { error: { code: 'x' } } })

export async function startFakeConjur(options: FaultServerOptions = {}): Promise<FakeConjur> {
  const variables = new Map<string, Buffer[]>()
  let tokens = new Set<string>()
  let logins = 0

  const describe = (id: string): object => ({
    id: `${ACCOUNT}:variable:${id}`,
    owner: `${ACCOUNT}:policy:root`,
    policy: `${ACCOUNT}:policy:root`,
    annotations: [],
    secrets: variables.get(id)!.map((_, i) => ({ version: i + 1, expires_at: null }))
  })

  const login = (request: ServiceRequest, path: string): ServiceAnswer => {
    logins++
    const [, kind, a, b, c] = path.split('/').map(decodeURIComponent)
    const admitted =
      kind === 'authn'
        ? a === ACCOUNT && b === LOGIN && request.body === API_KEY
        : SERVICES.has(a!) &&
          b === ACCOUNT &&
          (c === LOGIN || c === 'authenticate') &&
          new URLSearchParams(request.body).get('jwt') === JWT
    if (!admitted) return status(401)
    const token = Buffer.from(JSON.stringify({ payload: `token ${logins}` })).toString('base64')
    tokens.add(token)
    return { body: token }
  }

  const service = (request: ServiceRequest, fault: Fault | undefined): ServiceAnswer => {
    if (fault === 'denied') return status(403)
    if (fault === 'absent') return status(404)
    if (fault === 'throttled') {
      return { status: 429, headers: { 'retry-after': String(RETRY_AFTER) }, body: '' }
    }
    if (fault === 'unavailable') return status(503)
    const url = new URL(request.url, 'http://conjur')
    if (url.pathname.startsWith('/authn')) return login(request, url.pathname)
    const token = /^Token token="([^"]+)"$/.exec(request.headers.authorization ?? '')?.[1]
    if (token === undefined || !tokens.has(token)) return { status: 401, body: '' }
    if (url.pathname === '/secrets') return batch(url, request)
    const [, kind, account, type, name] = url.pathname.split('/').map(decodeURIComponent)
    if (account !== ACCOUNT || type !== 'variable') return status(404)
    if (kind === 'resources' && name === undefined) {
      const limit = Number(url.searchParams.get('limit'))
      const offset = Number(url.searchParams.get('offset'))
      return json(
        [...variables.keys()]
          .sort()
          .slice(offset, offset + limit)
          .map(describe)
      )
    }
    const versions = variables.get(name ?? '')
    if (versions === undefined) return status(404)
    if (kind === 'resources') return json(describe(name!))
    const asked = url.searchParams.get('version')
    const value = versions[asked === null ? versions.length - 1 : Number(asked) - 1]
    return value === undefined ? status(404) : { body: value.toString() }
  }

  const batch = (url: URL, request: ServiceRequest): ServiceAnswer => {
    const ids = url.searchParams.get('variable_ids')!.split(',')
    const values: Record<string, string> = {}
    for (const each of ids) {
      const value = variables.get(each.slice(`${ACCOUNT}:variable:`.length))?.at(-1)
      if (value === undefined) return status(404)
      const base64 = request.headers['accept-encoding'] === 'base64'
      values[each] = value.toString(base64 ? 'base64' : 'utf8')
    }
    return json(values)
  }

  const server = await startFaultServer(service, {
    affects: ({ url }) => !url.startsWith('/authn'),
    ...options
  })
  return Object.defineProperties(server, {
    put: {
      value: (id: string, value: string | Buffer) => {
        const versions = variables.get(id) ?? []
        variables.set(id, [...versions, Buffer.from(value)])
        return String(versions.length + 1)
      }
    },
    declare: { value: (id: string) => variables.set(id, []) },
    remove: { value: (id: string) => variables.delete(id) },
    revokeTokens: {
      value: () => {
        tokens = new Set()
      }
    },
    logins: { get: () => logins }
  }) as FakeConjur
}
