import { randomUUID } from 'node:crypto'
import type { Upstream } from '../schema/entities.ts'
import type { BalancedRequest } from './balancer.ts'

type Input = (request: BalancedRequest) => string | undefined

/** The value of a cookie the client sent; undefined when it sent none of this name. */
export function cookieOf({ request }: BalancedRequest, name: string): string | undefined {
  const { cookie } = request.headers
  if (cookie === undefined) return undefined
  for (const pair of cookie.split(';')) {
    const equals = pair.indexOf('=')
    if (equals !== -1 && pair.slice(0, equals).trim() === name) return pair.slice(equals + 1).trim()
  }
  return undefined
}

/** The decoded values of a query argument, sorted and joined by commas; undefined when there is none. */
function queryArgument({ request }: BalancedRequest, name: string): string | undefined {
  if (request.query === undefined) return undefined
  const values = new URLSearchParams(request.query).getAll(name)
  return values.length === 0 ? undefined : values.sort().join(',')
}

/** The same cookie with the value that a client without it is given. */
function boundCookie(request: BalancedRequest, name: string, path: string): string {
  const sent = cookieOf(request, name)
  if (sent !== undefined && sent !== '') return sent
  const value = randomUUID()
  // `Same-Site` is how the format has always spelt it; browsers take Lax as the default anyway.
  request.affinityCookie = `${name}=${value}; Path=${path}; Same-Site=Lax; HttpOnly`
  return value
}

function inputOf(upstream: Upstream, which: 'on' | 'fallback'): Input | undefined {
  const kind = which === 'on' ? upstream.hash_on : upstream.hash_fallback
  const named = (field: 'header' | 'query_arg' | 'uri_capture'): string =>
    (which === 'on' ? upstream[`hash_on_${field}`] : upstream[`hash_fallback_${field}`]) ?? ''
  switch (kind) {
    case 'none':
      return undefined
    case 'consumer':
      return ({ consumer, credential }) => consumer?.id ?? credential?.id
    case 'ip':
      return ({ request }) => request.clientIp
    case 'path':
      return ({ request }) => request.path
    case 'header': {
      const name = named('header').toLowerCase()
      return ({ request }) => {
        const value = request.headers[name]
        return Array.isArray(value) ? value.join(', ') : value
      }
    }
    case 'cookie': {
      const name = upstream.hash_on_cookie ?? ''
      return request => boundCookie(request, name, upstream.hash_on_cookie_path)
    }
    case 'query_arg': {
      const name = named('query_arg')
      return request => queryArgument(request, name)
    }
    case 'uri_capture': {
      const name = named('uri_capture')
      return ({ request }) => request.captures?.[name]
    }
  }
}

/** Compiles what an upstream hashes of a request; `''` for a request that has none of it. */
export function compileHashInput(upstream: Upstream): (request: BalancedRequest) => string {
  const first = inputOf(upstream, 'on')
  const second = inputOf(upstream, 'fallback')
  return request => first?.(request) ?? second?.(request) ?? ''
}
