import { type SetCookie, stringifySetCookie } from 'cookie'
import { SessionTooLarge } from '../../errors.ts'

/** Cookies of a request by name, values as they came. */
export type Cookies = Readonly<Record<string, string | undefined>>
export type CookieAttributes = Omit<SetCookie, 'name' | 'value'>

/** RFC 6265 §6.1: what clients take at least, with name and attributes. */
const MAX_BYTES = 4096
/** Cookies one value may be split over; two such values still fit into a request's head. */
const MAX_PARTS = 3
const AS_IT_IS = { encode: (text: string) => text }

/** The first part has the cookie's own name, the second ends in 2, and so on. */
function partName(name: string, index: number): string {
  return index === 0 ? name : `${name}${index + 1}`
}

/** How many cookies a request's value is split over: its first character says it; 0 without one. */
function partsOf(cookies: Cookies, name: string): number {
  const parts = (cookies[name] ?? '').charCodeAt(0) - 48
  return parts >= 1 && parts <= MAX_PARTS ? parts : 0
}

/** The value whose parts a request carries; undefined without them all. */
export function readCookie(cookies: Cookies, name: string): string | undefined {
  const parts = partsOf(cookies, name)
  if (parts === 0) return undefined
  let value = cookies[name]!.slice(1)
  for (let i = 1; i < parts; i++) {
    const part = cookies[partName(name, i)]
    if (part === undefined) return undefined
    value += part
  }
  return value
}

/**
 * `Set-Cookie` values that store a value, and that delete parts of a longer one which the request
 * carried. Throws POSTERN_SESSION_TOO_LARGE when it does not fit.
 */
export function writeCookie(
  name: string,
  value: string,
  attributes: CookieAttributes,
  cookies: Cookies
): readonly string[] {
  const overhead = stringifySetCookie({ ...attributes, name: partName(name, MAX_PARTS), value: '' })
  const room = MAX_BYTES - overhead.length - 1
  const parts = Math.ceil(value.length / room)
  if (parts > MAX_PARTS) throw new SessionTooLarge(value.length)
  const lines: string[] = []
  for (let i = 0; i < parts; i++) {
    const part = (i === 0 ? `${parts}` : '') + value.slice(i * room, (i + 1) * room)
    lines.push(
      stringifySetCookie({ ...attributes, name: partName(name, i), value: part }, AS_IT_IS)
    )
  }
  return [...lines, ...deletions(name, parts, attributes, cookies)]
}

/** `Set-Cookie` values that delete what the request carried. */
export function deleteCookie(
  name: string,
  attributes: CookieAttributes,
  cookies: Cookies
): readonly string[] {
  return deletions(name, 0, attributes, cookies)
}

function deletions(
  name: string,
  from: number,
  attributes: CookieAttributes,
  cookies: Cookies
): string[] {
  const lines: string[] = []
  const parts = partsOf(cookies, name)
  for (let i = from; i < parts; i++) {
    const expired = { ...attributes, expires: new Date(1000), maxAge: 0 }
    lines.push(stringifySetCookie({ ...expired, name: partName(name, i), value: '' }))
  }
  return lines
}
