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
  /** The most resources that may be listed at a time; no limit when undefined. */
  listLimit: number | undefined
  /** A variable that this identity may see and not read. */
  forbidden: string | undefined
  /** Seconds the tokens live that are given out from now on; 480 as in Conjur. */
  life: number
  readonly logins: number
}

const json = (body: object): ServiceAnswer => ({ body })
/** Conjur says no more than the status of what is not allowed. */
const bare = (status: number): ServiceAnswer => ({ status, body: '' })
const told = (status: number, code: string, message: string): ServiceAnswer => ({
  status,
  body: { error: { code, message } }
})
/** Of a resource that is not there, or that this identity may not see. */
const unknown = (id: string): ServiceAnswer => ({
  status: 404,
  body: {
    error: {
      code: 'not_found',
      message: `Variable '${id}' not found in account '${ACCOUNT}'`,
      target: 'variable',
      details: { code: 'not_found', target: 'id', message: `${ACCOUNT}:variable:${id}` }
    }
  }
})
const valueless = (id: string): ServiceAnswer =>
  told(404, 'not_found', `CONJ00076E Variable ${id} is empty or not found.`)
/** Base64 as Ruby's encode64 writes it: a newline after every 60 characters and at the end. */
const encode64 = (value: Buffer): string =>
  value.toString('base64').replace(/.{1,60}/g, line => `${line}\n`)

export async function startFakeConjur(options: FaultServerOptions = {}): Promise<FakeConjur> {
  const variables = new Map<string, Buffer[]>()
  let tokens = new Set<string>()
  let logins = 0
  const limits: { list: number | undefined; forbidden: string | undefined; life: number } = {
    list: undefined,
    forbidden: undefined,
    life: 480
  }

  const describe = (id: string): object => ({
    created_at: '2026-01-01T00:00:00.000+00:00',
    id: `${ACCOUNT}:variable:${id}`,
    owner: `${ACCOUNT}:policy:root`,
    policy: `${ACCOUNT}:policy:root`,
    permissions: [],
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
    if (!admitted) return bare(401)
    const iat = Math.floor(Date.now() / 1000)
    const claims = { sub: LOGIN, iat, exp: iat + limits.life, jti: logins }
    const payload = Buffer.from(JSON.stringify(claims)).toString('base64url')
    const text = JSON.stringify({ protected: 'e30=', payload, signature: 's' })
    const token = Buffer.from(text).toString('base64')
    tokens.add(token)
    const encoded = request.headers['accept-encoding'] === 'base64'
    return encoded
      ? { headers: { 'content-encoding': 'base64', 'content-type': 'text/plain' }, body: token }
      : { body: text }
  }

  const service = (request: ServiceRequest, fault: Fault | undefined): ServiceAnswer => {
    if (fault === 'denied') return bare(403)
    if (fault === 'absent') return unknown('canary')
    if (fault === 'throttled') {
      return { status: 429, headers: { 'retry-after': String(RETRY_AFTER) }, body: '' }
    }
    if (fault === 'unavailable') return bare(503)
    const url = new URL(request.url, 'http://conjur')
    if (url.pathname.startsWith('/authn')) return login(request, url.pathname)
    const token = /^Token token="([^"]+)"$/.exec(request.headers.authorization ?? '')?.[1]
    if (token === undefined || !tokens.has(token)) {
      return { status: 401, headers: { 'content-type': 'text/plain' }, body: 'Invalid token' }
    }
    if (url.pathname === '/secrets') return batch(url, request)
    const [, kind, account, type, name] = url.pathname.split('/').map(decodeURIComponent)
    if (account !== ACCOUNT || type !== 'variable') return unknown(name ?? '')
    if (kind === 'resources' && name === undefined) {
      const limit = Number(url.searchParams.get('limit'))
      if (limits.list !== undefined && limit > limits.list) {
        const message = `'Limit' parameter must not exceed ${limits.list}`
        return told(422, 'unprocessable_entity', message)
      }
      const offset = Number(url.searchParams.get('offset'))
      return json(
        [...variables.keys()]
          .sort()
          .slice(offset, offset + limit)
          .map(describe)
      )
    }
    const versions = variables.get(name ?? '')
    if (versions === undefined) return unknown(name ?? '')
    if (kind === 'resources') return json(describe(name!))
    const asked = url.searchParams.get('version')
    if (name === limits.forbidden) return bare(403)
    const value = versions[asked === null ? versions.length - 1 : Number(asked) - 1]
    return value === undefined
      ? valueless(`${ACCOUNT}:variable:${name}`)
      : { headers: { 'content-type': 'application/octet-stream' }, body: value.toString() }
  }

  const batch = (url: URL, request: ServiceRequest): ServiceAnswer => {
    const ids = url.searchParams.get('variable_ids')!.split(',')
    const values: Record<string, string> = {}
    const base64 = request.headers['accept-encoding'] === 'base64'
    for (const each of ids) {
      const value = variables.get(each.slice(`${ACCOUNT}:variable:`.length))?.at(-1)
      if (value === undefined) return valueless(each)
      if (each === `${ACCOUNT}:variable:${limits.forbidden}`) return bare(403)
      values[each] = base64 ? encode64(value) : value.toString()
    }
    return { headers: base64 ? { 'content-encoding': 'base64' } : {}, body: values }
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
    listLimit: {
      set: (limit: number | undefined) => {
        limits.list = limit
      }
    },
    forbidden: {
      set: (id: string | undefined) => {
        limits.forbidden = id
      }
    },
    life: {
      set: (life: number) => {
        limits.life = life
      }
    },
    logins: { get: () => logins }
  }) as FakeConjur
}
