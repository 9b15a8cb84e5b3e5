import { createPrivateKey, X509Certificate } from 'node:crypto'
import { isIP } from 'node:net'
import { patternProblem } from './patterns.ts'

/** What is wrong with a text, and what to write; undefined when it is well formed. */
export type FormatCheck = (text: string) => Finding | undefined

export interface Finding {
  readonly message: string
  readonly fix: string
}

/** A text format of the configuration: how to check it and how to describe it to people. */
export interface Format {
  readonly check: FormatCheck
  readonly description: string
}

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/
const HOSTNAME =
  /^(?=.{1,253}\.?$)[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*\.?$/
// RFC 3986 §3.3: pchar and "/"; percent escapes are checked on their own.
const PATH_CHARACTERS = /^[A-Za-z0-9\-._~!$&'()*+,;=:@%/]*$/
const BAD_ESCAPE = /%(?![0-9A-Fa-f]{2}).{0,2}/s
// RFC 9110 §5.6.2
const TOKEN = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/

function matches(pattern: RegExp, message: string, fix: string): FormatCheck {
  return text => (pattern.test(text) ? undefined : { message, fix })
}

function withoutBrackets(text: string): string {
  return text.startsWith('[') && text.endsWith(']') ? text.slice(1, -1) : text
}

function checkHost(text: string): Finding | undefined {
  if (isIP(withoutBrackets(text)) !== 0 || HOSTNAME.test(text)) return undefined
  if (/^[^:]+:\d+$/.test(text) || /^\[.*\]:\d+$/.test(text)) {
    return { message: 'must not have a port', fix: 'Write the port in its own field' }
  }
  const fix = 'Write a host name such as api.internal, or an IP address'
  return { message: 'invalid hostname', fix }
}

function checkUpstreamName(text: string): Finding | undefined {
  if (isIP(withoutBrackets(text)) === 0) return checkHost(text)
  return { message: 'Invalid name; no ip addresses allowed', fix: 'Choose a name such as api-pool' }
}

function checkHostPort(text: string): Finding | undefined {
  const found = /^(\[.*\]|[^:]*)(?::(\d{1,5}))?$/.exec(text)
  const bare = isIP(text) !== 0
  if (!bare && (found === null || Number(found[2] ?? 0) > 65535)) {
    return { message: 'invalid host or port', fix: 'Write host or host:port' }
  }
  return bare ? undefined : checkHost(found![1]!)
}

function checkPath(text: string): Finding | undefined {
  if (!text.startsWith('/')) {
    return { message: 'should start with: /', fix: 'Write the path from the root, such as /api' }
  }
  if (text.includes('//')) {
    return { message: 'must not have empty segments', fix: 'Remove the doubled slash' }
  }
  const escaped = BAD_ESCAPE.exec(text)
  if (escaped !== null) {
    const message = `invalid url-encoded value: '${escaped[0]}'`
    return { message, fix: 'Write %25 for a percent sign' }
  }
  if (PATH_CHARACTERS.test(text)) return undefined
  return {
    message: 'characters outside of those a path may hold (RFC 3986)',
    fix: 'Percent-encode them'
  }
}

function checkRouteHost(text: string): Finding | undefined {
  const stars = text.split('*').length - 1
  if (stars === 0) return checkHostPort(text)
  const fix = 'Write the wildcard as the whole first or last label: *.example.com or example.*'
  if (stars > 1) return { message: 'invalid wildcard: must contain at most one *', fix }
  const bare = text.replace(/:\d{1,5}$/, '')
  const rest = bare.startsWith('*.') ? bare.slice(2) : bare.endsWith('.*') ? bare.slice(0, -2) : ''
  if (rest === '') return { message: 'invalid wildcard', fix }
  return checkHost(rest)
}

function checkSni(text: string): Finding | undefined {
  if (text === '*') return undefined
  if (isIP(withoutBrackets(text)) !== 0) {
    return {
      message: 'must not be an IP',
      fix: 'Write a host name; TLS names no addresses (RFC 6066)'
    }
  }
  const rest = text.startsWith('*.')
    ? text.slice(2)
    : text.endsWith('.*')
      ? text.slice(0, -2)
      : text
  if (rest.includes('*')) {
    const fix = 'Write the wildcard as the whole first or last label: *.example.com or example.*'
    return { message: 'invalid wildcard', fix }
  }
  return checkHost(rest)
}

const RESERVED = /[!*'();:@&=+$,/?%#[\]]/

/** Decodes escapes but those of reserved characters; bytes that are not UTF-8 stay escaped. */
function decodeSafe(path: string): string {
  return path.replace(/(?:%[0-9A-Fa-f]{2})+/g, run => {
    try {
      return decodeURIComponent(run).replace(RESERVED_GLOBAL, escapeCharacter)
    } catch {
      return run.replace(/%([0-9A-Fa-f]{2})/g, (escaped, hex: string) => {
        const code = Number.parseInt(hex, 16)
        const character = String.fromCharCode(code)
        return code >= 0x80 || RESERVED.test(character) ? escaped.toUpperCase() : character
      })
    }
  })
}

const RESERVED_GLOBAL = new RegExp(RESERVED, 'g')

function escapeCharacter(character: string): string {
  return `%${character.charCodeAt(0).toString(16).toUpperCase().padStart(2, '0')}`
}

/** A path as requests are compared with it (RFC 3986 §6.2.2): decoded where safe, no dot segments. */
export function normalisePath(path: string): string {
  const segments: string[] = []
  const parts = decodeSafe(path).split('/').slice(1)
  for (const [index, part] of parts.entries()) {
    const isLast = index === parts.length - 1
    if (part === '..') segments.pop()
    else if (part !== '.' && (part !== '' || isLast)) segments.push(part)
    if (isLast && (part === '.' || part === '..')) segments.push('')
  }
  return `/${segments.join('/')}`
}

function checkRoutePath(text: string): Finding | undefined {
  if (text.startsWith('~')) {
    if (!text.startsWith('~/') && !text.startsWith('~^/')) {
      const message = 'should start with: / (fixed path) or ~/ (regex path)'
      return { message, fix: 'Start the regular expression with ~/' }
    }
    const reason = patternProblem(text.slice(1))
    if (reason === undefined) return undefined
    return { message: `invalid regex: ${reason}`, fix: 'Correct the regular expression' }
  }
  if (!text.startsWith('/')) {
    const message = 'should start with: / (fixed path) or ~/ (regex path)'
    return { message, fix: 'Start the path with /' }
  }
  if (text.includes('//')) return checkPath(text)
  const escaped = BAD_ESCAPE.exec(text)
  if (escaped !== null) return checkPath(text)
  if (/[[\]{}^|\\?#"<>`\p{Cc}]/u.test(text)) {
    const message = 'characters outside of those a path may hold (RFC 3986)'
    return { message, fix: `For a regular expression write '~${text}'; else percent-encode them` }
  }
  // Nothing that could be written in another way.
  if (!text.includes('%') && !text.includes('/.')) return undefined
  const normal = normalisePath(text)
  if (normal === text) return undefined
  const message = `non-normalized path, consider use '${normal}' instead`
  return { message, fix: `Write ${normal}` }
}

function checkCertificate(text: string): Finding | undefined {
  try {
    new X509Certificate(text)
    return undefined
  } catch {
    return {
      message: 'invalid certificate',
      fix: 'Give a PEM certificate (-----BEGIN CERTIFICATE-----)'
    }
  }
}

function checkCaCertificate(text: string): Finding | undefined {
  const found = checkCertificate(text)
  if (found !== undefined) return found
  if (text.split('-----BEGIN CERTIFICATE-----').length > 2) {
    return {
      message: 'please submit only one certificate at a time',
      fix: 'Write one entity for each'
    }
  }
  if (new X509Certificate(text).ca) return undefined
  const message =
    'certificate does not appear to be a CA because it is missing the "CA" basic constraint'
  return { message, fix: 'Give the certificate of the authority that signs' }
}

function checkPrivateKey(text: string): Finding | undefined {
  try {
    createPrivateKey(text)
    return undefined
  } catch {
    return {
      message: 'invalid key',
      fix: 'Give an unencrypted PEM private key (-----BEGIN PRIVATE KEY-----)'
    }
  }
}

function checkUri(text: string): Finding | undefined {
  const found = /^([A-Za-z][A-Za-z0-9+.-]*):\/\/([^/?#]*)/.exec(text)
  const fix = 'Write an absolute URL such as https://host/path'
  if (found === null) return { message: 'missing scheme in url', fix }
  if (found[2] === '') return { message: 'missing host in url', fix }
  return URL.canParse(text) ? undefined : { message: 'invalid url', fix }
}

function checkTarget(text: string): Finding | undefined {
  const found = checkHostPort(text)
  if (found === undefined) return undefined
  return { message: 'Invalid target; not a valid hostname or ip address', fix: found.fix }
}

/** Every text format that schemas name, by the name in their `format` keyword. */
export const formats: Readonly<Record<string, Format>> = {
  uuid: {
    check: matches(
      UUID,
      'expected a valid UUID',
      'Write 36 lower-case characters: 8-4-4-4-12 hex digits'
    ),
    description: 'a lower-case UUID'
  },
  uri: { check: checkUri, description: 'an absolute URL' },
  'postern-name': {
    check: matches(
      /^[A-Za-z0-9.\-_~\u0080-\u{10FFFF}]+$/u,
      'invalid name',
      'Use letters, digits, dot, hyphen, underscore and tilde only'
    ),
    description: 'letters, digits, `.`, `-`, `_` and `~`'
  },
  'postern-tag': {
    check: matches(
      /^[^\p{Cc},/]+$/u,
      'invalid tag',
      'Leave out commas, slashes and control characters'
    ),
    description: 'text without commas and slashes'
  },
  'postern-host': { check: checkHost, description: 'a host name or IP address, without port' },
  'postern-host-port': { check: checkHostPort, description: 'host or host:port' },
  'postern-path': { check: checkPath, description: 'an absolute path (RFC 3986)' },
  'postern-route-path': {
    check: checkRoutePath,
    description: 'a normalised path prefix, or `~` and a regular expression'
  },
  'postern-route-host': {
    check: checkRouteHost,
    description: 'host or host:port; the first or last label may be `*`'
  },
  'postern-target': { check: checkTarget, description: 'host or host:port' },
  'postern-upstream-name': { check: checkUpstreamName, description: 'a host name, not an address' },
  'postern-sni': {
    check: checkSni,
    description: 'a TLS server name; the first or last label may be `*`'
  },
  'postern-header-name': {
    check: matches(
      TOKEN,
      'invalid header name',
      'Use the characters of an HTTP token (RFC 9110 §5.6.2)'
    ),
    description: 'an HTTP field name'
  },
  'postern-certificate': { check: checkCertificate, description: 'a PEM certificate' },
  'postern-ca-certificate': {
    check: checkCaCertificate,
    description: 'the PEM certificate of one authority'
  },
  'postern-private-key': { check: checkPrivateKey, description: 'an unencrypted PEM private key' }
}
