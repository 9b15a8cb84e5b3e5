import { type Static, Type } from 'typebox'
import { oneOf } from '../../schema/fields.ts'
import { type Authored, referenceable } from '../../schema/referenceable.ts'
import type { Complaint } from '../plugin.ts'

/** RFC 6265 §4.1.1: a token. */
const COOKIE_NAME = "^[!#$%&'*+\\-.^_`|~0-9A-Za-z]+$"
/** RFC 6265 §4.1.1: any character but controls and the semicolon. */
const COOKIE_PATH = '^[\\x20-\\x3a\\x3c-\\x7e]*$'
const COOKIE_DOMAIN = '^\\.?[0-9A-Za-z]([0-9A-Za-z.-]*[0-9A-Za-z])?$'

const headerNames = [
  'id',
  'audience',
  'subject',
  'timeout',
  'idling-timeout',
  'rolling-timeout',
  'absolute-timeout'
] as const

const seconds = (standard: number) => Type.Number({ minimum: 0, default: standard })
const cookieName = (standard: string) =>
  Type.String({ pattern: COOKIE_NAME, maxLength: 128, default: standard })
const headerList = () => Type.Optional(Type.Array(oneOf(headerNames), { uniqueItems: true }))

export const SessionSchema = Type.Object(
  {
    /** Random for each node and instance when unset. */
    secret: Type.Optional(referenceable(Type.String({ minLength: 1 }))),
    storage: oneOf(['cookie', 'kong'], { default: 'cookie' }),
    audience: Type.String({ minLength: 1, default: 'default' }),
    /** Timeouts in seconds; 0 is off. */
    absolute_timeout: seconds(86_400),
    rolling_timeout: seconds(3600),
    idling_timeout: seconds(900),
    stale_ttl: seconds(10),
    cookie_name: cookieName('session'),
    cookie_path: Type.String({ pattern: COOKIE_PATH, default: '/' }),
    cookie_domain: Type.Optional(Type.String({ pattern: COOKIE_DOMAIN })),
    cookie_same_site: oneOf(['Strict', 'Lax', 'None', 'Default'], { default: 'Strict' }),
    cookie_http_only: Type.Boolean({ default: true }),
    cookie_secure: Type.Boolean({ default: true }),
    remember: Type.Boolean({ default: false }),
    remember_cookie_name: cookieName('remember'),
    remember_rolling_timeout: seconds(604_800),
    remember_absolute_timeout: seconds(2_592_000),
    logout_methods: Type.Array(oneOf(['DELETE', 'GET', 'POST']), {
      uniqueItems: true,
      default: ['DELETE', 'POST']
    }),
    logout_query_arg: Type.String({ minLength: 1, default: 'session_logout' }),
    logout_post_arg: Type.String({ minLength: 1, default: 'session_logout' }),
    read_body_for_logout: Type.Boolean({ default: false }),
    request_headers: headerList(),
    response_headers: headerList(),
    bind: Type.Optional(Type.Array(oneOf(['ip', 'scheme', 'user-agent']), { uniqueItems: true })),
    store_metadata: Type.Boolean({ default: false }),
    hash_subject: Type.Boolean({ default: false })
  },
  { additionalProperties: false }
)

export type SessionConfig = Static<typeof SessionSchema>
export type HeaderKind = (typeof headerNames)[number]

/** Fields as they were called before, to what they are called now. */
const RENAMED: Readonly<Record<string, string>> = {
  cookie_lifetime: 'rolling_timeout',
  cookie_idletime: 'idling_timeout',
  cookie_discard: 'stale_ttl',
  cookie_samesite: 'cookie_same_site',
  cookie_httponly: 'cookie_http_only',
  cookie_persistent: 'remember'
}

/** Deprecated names become the present ones; `cookie_renew` has had no meaning since. */
export function translate(config: Record<string, unknown>): Record<string, unknown> {
  const translated: Record<string, unknown> = {}
  for (const [name, value] of Object.entries(config)) {
    if (name === 'cookie_renew') continue
    const present = Object.hasOwn(RENAMED, name) ? RENAMED[name]! : name
    if (present !== name && (value === null || value === undefined)) continue
    translated[present] = name === 'cookie_samesite' && value === 'off' ? 'Lax' : value
  }
  return translated
}

/** Rules across fields. */
export function check(config: Authored<SessionConfig>): readonly Complaint[] {
  const { cookie_name: name, remember_cookie_name: remember } = config
  const complaints: Complaint[] = []
  const isPart = (whole: string, part: string): boolean =>
    part.startsWith(whole) && /^[2-9]?$/.test(part.slice(whole.length))
  if (config.remember && (isPart(name, remember) || isPart(remember, name))) {
    complaints.push({
      path: '/remember_cookie_name',
      message: 'cannot be cookie_name, nor one of the two followed by a digit',
      fix: 'Give the two cookies names of their own'
    })
  }
  for (const [field, cookie] of [
    ['cookie_name', name],
    ['remember_cookie_name', remember]
  ] as const) {
    const fix = prefixFix(cookie, config)
    if (fix !== undefined) {
      complaints.push({ path: `/${field}`, message: 'clients refuse a cookie of this name', fix })
    }
  }
  return complaints
}

/** What the prefix of a cookie's name asks of its attributes (RFC 6265bis §4.1.3). */
function prefixFix(name: string, config: Authored<SessionConfig>): string | undefined {
  const secure = config.cookie_secure || config.cookie_same_site === 'None'
  if (/^__secure-/i.test(name)) return secure ? undefined : 'Set cookie_secure'
  if (!/^__host-/i.test(name)) return undefined
  if (secure && config.cookie_path === '/' && config.cookie_domain === undefined) return undefined
  return 'Set cookie_secure and cookie_path: /, and leave cookie_domain out'
}
