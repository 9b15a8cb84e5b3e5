const SLASH = 47
const DOT = 46
const PERCENT = 37

/** Character classes of a path byte. */
const SAFE = 1
const RESERVED = 2

const CLASS = new Uint8Array(256)
for (const char of 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~') {
  CLASS[char.charCodeAt(0)] = SAFE
}
// RFC 3986 §2.2, and `%` itself: encoded they mean something else than bare.
for (const char of "!*'();:@&=+$,/?%#[]") CLASS[char.charCodeAt(0)] = RESERVED

const HEX = '0123456789ABCDEF'

function hexValue(code: number): number {
  if (code >= 48 && code <= 57) return code - 48
  const lower = code | 32
  return lower >= 97 && lower <= 102 ? lower - 87 : -1
}

/** Whether a path is in normal form already, which most are. */
function isNormal(path: string): boolean {
  let before = 0
  for (let i = 0; i < path.length; i++) {
    const code = path.charCodeAt(i)
    if (code > 255 || CLASS[code] === 0 || code === PERCENT) return false
    if (before === SLASH && (code === SLASH || code === DOT)) return false
    before = code
  }
  return path.charCodeAt(0) === SLASH
}

/**
 * The normal form of a path, on which routing decides and which the upstream sees (RFC 3986 §6.2.2):
 * escapes of bytes that need none are decoded, those of reserved ones kept in upper case, dot
 * segments removed, repeated slashes merged, and bytes no path may hold bare escaped. `raw` has one
 * character per byte. Idempotent; never leaves the root.
 */
export function normalizePath(raw: string): string {
  if (isNormal(raw)) return raw
  return encode(removeDotSegments(decode(raw)))
}

/** Decodes escapes of unreserved and other bytes; what stays escaped is marked by its upper-case form. */
function decode(raw: string): string {
  let out = ''
  for (let i = 0; i < raw.length; i++) {
    const code = raw.charCodeAt(i)
    if (code === PERCENT && i + 2 < raw.length) {
      const high = hexValue(raw.charCodeAt(i + 1))
      const low = hexValue(raw.charCodeAt(i + 2))
      if (high >= 0 && low >= 0) {
        const byte = high * 16 + low
        out += CLASS[byte] === RESERVED ? `%${HEX[high]}${HEX[low]}` : String.fromCharCode(byte)
        i += 2
        continue
      }
    }
    out += code === PERCENT ? '%25' : raw[i]
  }
  return out
}

function removeDotSegments(path: string): string {
  const segments: string[] = []
  const parts = path.split('/')
  for (const [index, part] of parts.entries()) {
    const last = index === parts.length - 1
    if (part === '..') {
      segments.pop()
      if (last) segments.push('')
    } else if (part === '.') {
      if (last) segments.push('')
    } else if (part !== '' || last) {
      segments.push(part)
    }
  }
  return `/${segments.join('/')}`
}

function encode(path: string): string {
  let out = ''
  for (let i = 0; i < path.length; i++) {
    const code = path.charCodeAt(i)
    if (code > 255) {
      out += encodeURIComponent(String.fromCodePoint(path.codePointAt(i)!))
      if (path.codePointAt(i)! > 0xffff) i++
    } else if (CLASS[code] === 0) {
      out += `%${HEX[code >> 4]}${HEX[code & 15]}`
    } else {
      out += path[i]
    }
  }
  return out
}

/**
 * A normal path as patterns of routes see it: escapes of bytes that are not reserved are text (UTF-8
 * where they are that), those of reserved ones stay.
 */
export function decodePath(path: string): string {
  if (!path.includes('%')) return path
  let text = ''
  let run = ''
  for (let i = 0; i < path.length; i++) {
    if (path.charCodeAt(i) !== PERCENT) {
      text += decodeRun(run) + path[i]
      run = ''
      continue
    }
    const escaped = path.slice(i, i + 3)
    i += 2
    if (CLASS[Number.parseInt(escaped.slice(1), 16)] === RESERVED) {
      text += decodeRun(run) + escaped
      run = ''
    } else {
      run += escaped
    }
  }
  return text + decodeRun(run)
}

/** Decodes consecutive escapes; as they are when they are no UTF-8. */
function decodeRun(escapes: string): string {
  if (escapes === '') return ''
  try {
    return decodeURIComponent(escapes)
  } catch {
    return escapes
  }
}

/** The inverse of {@link decodePath}, of a part of its result too. */
export function encodePath(text: string): string {
  return isNormal(text) ? text : encode(Buffer.from(text, 'utf8').toString('latin1'))
}

/**
 * A request target (RFC 9112 §3.2) split into path and query, both as received; of an absolute form
 * also the authority. Undefined for forms that name no path.
 */
export function splitTarget(
  target: string
):
  | { readonly path: string; readonly query: string | undefined; readonly authority?: string }
  | undefined {
  if (target.charCodeAt(0) === SLASH) {
    const mark = target.indexOf('?')
    if (mark === -1) return { path: target, query: undefined }
    return { path: target.slice(0, mark), query: target.slice(mark + 1) }
  }
  const scheme = /^https?:\/\//i.exec(target)
  if (scheme === null) return undefined
  const rest = target.slice(scheme[0].length)
  const end = rest.search(/[/?]/)
  const authority = end === -1 ? rest : rest.slice(0, end)
  const origin = end === -1 ? '/' : rest[end] === '?' ? `/${rest.slice(end)}` : rest.slice(end)
  return { ...splitTarget(origin)!, authority }
}

/** Gives the path sent upstream from the request's normal path and the prefix the route matched. */
export type UpstreamPath = (requestPath: string, prefix: string | undefined) => string

/** Takes what a stripped prefix leaves; dot segments at its start must not climb out of the service. */
function remainder(requestPath: string, prefix: string): string {
  const rest = requestPath.slice(prefix.length)
  if (rest === '.' || rest === '..') return ''
  if (rest.startsWith('./')) return rest.slice(2)
  if (rest.startsWith('../')) return rest.slice(3)
  return rest
}

/**
 * Compiles how a route joins its service's path with a request's: `v0` puts them together with one
 * slash between, `v1` concatenates.
 */
export function compileUpstreamPath(
  servicePath: string | undefined,
  stripPath: boolean,
  handling: 'v0' | 'v1'
): UpstreamPath {
  const base = servicePath ?? '/'
  if (handling === 'v1') return concatenating(base, stripPath)
  return base.endsWith('/') ? joiningAfterSlash(base, stripPath) : joining(base, stripPath)
}

function concatenating(base: string, stripPath: boolean): UpstreamPath {
  return (requestPath, prefix) => {
    const rest =
      stripPath && prefix !== undefined ? remainder(requestPath, prefix) : requestPath.slice(1)
    return base.endsWith('/') && rest.startsWith('/') ? base + rest.slice(1) : base + rest
  }
}

function joiningAfterSlash(base: string, stripPath: boolean): UpstreamPath {
  const bare = base.slice(0, -1)
  return (requestPath, prefix) => {
    if (!stripPath || prefix === undefined) return bare + requestPath
    const rest = remainder(requestPath, prefix)
    if (rest === '') return base === '/' || requestPath.endsWith('/') ? base : bare
    return rest.startsWith('/') ? bare + rest : base + rest
  }
}

function joining(base: string, stripPath: boolean): UpstreamPath {
  return (requestPath, prefix) => {
    if (!stripPath || prefix === undefined) return requestPath === '/' ? base : base + requestPath
    const rest = remainder(requestPath, prefix)
    if (rest === '') return requestPath.length > 1 && requestPath.endsWith('/') ? `${base}/` : base
    return rest.startsWith('/') ? base + rest : `${base}/${rest}`
  }
}
