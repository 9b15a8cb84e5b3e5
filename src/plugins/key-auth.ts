import type { Static } from 'typebox'
import * as Type from 'typebox'
import { oneOf } from '../schema/fields.ts'
import type { Authored } from '../schema/referenceable.ts'
import {
  type Authenticated,
  challengeOf,
  conclude,
  isExempt,
  type Rejection
} from './authentication.ts'
import { type BodyFormat, bodyFormat } from './body-field.ts'
import { findParameter, type ParameterValues, removeParameter } from './parameters.ts'
import { type Complaint, definePlugin, type Exchange } from './plugin.ts'

const strict = { additionalProperties: false } as const

const schema = Type.Object(
  {
    key_names: Type.Array(Type.String({ minLength: 1, format: 'postern-header-name' }), {
      minItems: 1,
      default: ['apikey']
    }),
    key_in_header: Type.Boolean({ default: true }),
    key_in_query: Type.Boolean({ default: true }),
    key_in_body: Type.Boolean({ default: false }),
    hide_credentials: Type.Boolean({ default: false }),
    anonymous: Type.Optional(Type.String({ minLength: 1 })),
    run_on_preflight: Type.Boolean({ default: true }),
    realm: Type.Optional(Type.String({ pattern: String.raw`^[\t\x20-\x7e]*$` })),
    identity_realms: Type.Optional(
      Type.Array(
        Type.Object(
          {
            scope: oneOf(['cp', 'realm'], { default: 'cp' }),
            id: Type.Optional(Type.String()),
            region: Type.Optional(Type.String())
          },
          strict
        )
      )
    ),
    principals: Type.Optional(
      Type.Object(
        {
          enabled: Type.Boolean({ default: false }),
          directory: Type.String({ default: 'default' }),
          error_on_miss: Type.Boolean({ default: true })
        },
        strict
      )
    )
  },
  strict
)

interface KeyName {
  /** Names fields of query and body. */
  readonly exact: string
  /** Names the header field. */
  readonly lower: string
}

/** Where keys are looked for, in the order header, query, body. */
interface Places {
  readonly names: readonly KeyName[]
  readonly header: boolean
  readonly query: boolean
  readonly hide: boolean
}

const NONE: ParameterValues = []

/** Authenticates consumers by an API key in a header, the query or the body. */
export default definePlugin({
  name: 'key-auth',
  priority: 1250,
  consumerScope: false,
  schema,
  check,
  setup(config, { log }) {
    const challenge = challengeOf('Key', config.realm)
    const places: Places = {
      names: config.key_names.map(name => ({ exact: name, lower: name.toLowerCase() })),
      header: config.key_in_header,
      query: config.key_in_query,
      hide: config.hide_credentials
    }
    const decide = (exchange: Exchange, body?: ReadBody): void =>
      conclude(exchange, authenticate(exchange, places, body), config, challenge, log)

    if (!config.key_in_body) {
      return {
        access(exchange) {
          if (!isExempt(exchange, config)) decide(exchange)
        }
      }
    }
    return {
      access(exchange) {
        if (isExempt(exchange, config)) return
        const format = bodyFormat(exchange.request.headers['content-type'])
        if (format === undefined) return decide(exchange)
        return exchange.body().then(content => decide(exchange, { format, content }))
      }
    }
  }
})

interface ReadBody {
  readonly format: BodyFormat
  readonly content: Buffer
}

function authenticate(
  exchange: Exchange,
  places: Places,
  body: ReadBody | undefined
): Authenticated | Rejection {
  const { directory } = exchange
  for (const name of places.names) {
    const values = valuesOf(exchange, places, name, body)
    if (values.length > 1) return 'Duplicate API key found'
    const key = values[0]
    if (typeof key !== 'string') continue
    if (places.hide) hide(exchange, places, name, body)
    if (key === '') break
    const credential = directory.keyAuth(key)
    const consumer = credential && directory.consumer(credential.consumer.id)
    if (credential === undefined || consumer === undefined) return 'Unauthorized'
    return { consumer, credential, identifier: credential.id }
  }
  return 'No API key found in request'
}

function valuesOf(
  exchange: Exchange,
  places: Places,
  name: KeyName,
  body: ReadBody | undefined
): ParameterValues {
  let values = places.header ? headerValues(exchange, name.lower) : NONE
  if (values.length === 0 && places.query)
    values = findParameter(exchange.request.query, name.exact)
  if (isAbsent(values) && body !== undefined) values = body.format.find(body.content, name.exact)
  return values
}

/** A parameter without `=` holds no key, so the search goes on. */
function isAbsent(values: ParameterValues): boolean {
  return values.length === 0 || (values.length === 1 && values[0] === true)
}

/** Each field line on its own: node joins repeated fields with commas, or drops all but the first. */
function headerValues(exchange: Exchange, lower: string): ParameterValues {
  const { headers, rawHeaders } = exchange.request
  if (headers[lower] === undefined) return NONE
  const values: string[] = []
  for (let i = 0; i < rawHeaders.length; i += 2) {
    const name = rawHeaders[i]!
    if (name.length === lower.length && name.toLowerCase() === lower)
      values.push(rawHeaders[i + 1]!)
  }
  return values
}

/** Takes the key out of every place that is looked at, so that no copy of it goes upstream. */
function hide(exchange: Exchange, places: Places, name: KeyName, body: ReadBody | undefined): void {
  const { upstream } = exchange
  if (places.header) upstream.removeHeader(name.exact)
  if (places.query && upstream.query !== undefined) {
    upstream.query = removeParameter(upstream.query, name.exact)
  }
  if (body !== undefined && body.format.find(body.content, name.exact).length > 0) {
    upstream.body = body.format.remove(body.content, name.exact)
  }
}

function check(config: Authored<Static<typeof schema>>): readonly Complaint[] {
  const complaints: Complaint[] = []
  const realms = config.identity_realms ?? []
  if (realms.some(({ scope }) => scope !== 'cp')) {
    complaints.push({
      path: '/identity_realms',
      message: 'identity realms are not supported',
      fix: 'Leave them out, and list the keys as keyauth_credentials'
    })
  }
  if (config.principals?.enabled === true) {
    complaints.push({
      path: '/principals/enabled',
      message: 'principals are not supported',
      fix: 'Leave it out, and list the keys as keyauth_credentials'
    })
  }
  return complaints
}
