import { createHmac } from 'node:crypto'
import { parseCookie } from 'cookie'
import { bodyFormat } from '../body-field.ts'
import { findParameter } from '../parameters.ts'
import type { Consumer, Context, Credential, Exchange, Hooks } from '../plugin.ts'
import type { SessionConfig } from './config.ts'
import type { CookieAttributes } from './cookies.ts'
import { SessionHeaders } from './headers.ts'
import { type Carrier, type Identity, Jar, newId, type Session } from './jar.ts'
import { Keys, nodeSecret } from './keys.ts'
import { type Upkeep, upkeep } from './timeouts.ts'

const AS_THEY_CAME = { decode: (text: string) => text }
const BODY_METHODS: ReadonlySet<string> = new Set(['POST', 'PUT', 'PATCH', 'DELETE'])
const GROUPS_HEADER = 'X-Authenticated-Groups'

/** What the access phase found of a request's session, for the response phase. */
interface Visit {
  readonly carrier: Carrier
  /** As it stands once its upkeep is done. */
  readonly session: Session
  /** Towards this audience; undefined when the session only knows others. */
  readonly identity: Identity | undefined
  readonly upkeep: Upkeep | 'end'
}

type MaybePromise<T> = T | Promise<T>

/** The hooks of one instance. Nothing waits unless sessions are kept in the store. */
export class Sessions implements Hooks {
  readonly #config: SessionConfig
  readonly #log: Context['log']
  readonly #main: Jar
  readonly #remember: Jar | undefined
  readonly #requestHeaders: SessionHeaders
  readonly #responseHeaders: SessionHeaders
  /** Fields only this plugin may set towards the upstream: lower-case name, name. */
  readonly #claims: readonly (readonly [string, string])[]

  constructor(config: SessionConfig, context: Context) {
    this.#config = config
    this.#log = context.log
    const common = {
      keys: keysOf(config, context),
      store: config.storage === 'kong' ? context.store : undefined,
      indexed: config.store_metadata ? (config.hash_subject ? 'hashed' : 'plain') : undefined
    } as const
    const attributes = attributesOf(config)
    this.#main = new Jar({
      ...common,
      attributes,
      name: config.cookie_name,
      timeouts: {
        absolute: config.absolute_timeout,
        rolling: config.rolling_timeout,
        idling: config.idling_timeout
      },
      persistent: false,
      staleTtl: config.stale_ttl
    })
    if (config.remember) {
      this.#remember = new Jar({
        ...common,
        attributes,
        name: config.remember_cookie_name,
        timeouts: {
          absolute: config.remember_absolute_timeout,
          rolling: config.remember_rolling_timeout,
          idling: 0
        },
        persistent: true,
        // Used once: what is left of it is only of use to whoever took a copy.
        staleTtl: 0
      })
    }
    this.#requestHeaders = new SessionHeaders(config.request_headers)
    this.#responseHeaders = new SessionHeaders(config.response_headers)
    this.#claims = [GROUPS_HEADER, ...this.#requestHeaders.names].map(
      name => [name.toLowerCase(), name] as const
    )
  }

  access(exchange: Exchange): void | Promise<void> {
    const { headers } = exchange.request
    for (const [lower, name] of this.#claims) {
      if (headers[lower] !== undefined) exchange.upstream.removeHeader(name)
    }
    if (headers.cookie === undefined) return
    const carrier = this.#carrierOf(exchange, headers.cookie)
    return after(this.#find(exchange, carrier), visit => {
      if (visit === undefined) return
      if (visit.identity === undefined) {
        exchange.notes.set(this, visit)
        return
      }
      return after(this.#leaves(exchange), leaves =>
        leaves ? this.#logOut(exchange, carrier) : this.#resume(exchange, visit, visit.identity!)
      )
    })
  }

  response(exchange: Exchange): void | Promise<void> {
    try {
      const pending = this.#settle(exchange)
      if (pending instanceof Promise) {
        return pending.catch(error => this.#reportUnsaved(exchange, error))
      }
    } catch (error) {
      this.#reportUnsaved(exchange, error)
    }
  }

  #carrierOf({ request }: Exchange, cookies: string): Carrier {
    let binding = ''
    for (const attribute of this.#config.bind ?? []) {
      const value =
        attribute === 'ip'
          ? request.clientIp
          : attribute === 'scheme'
            ? request.scheme
            : (request.headers['user-agent'] ?? '')
      binding += `${attribute}=${value}\n`
    }
    return { cookies: parseCookie(cookies, AS_THEY_CAME), binding, now: Date.now() }
  }

  /** The session of the request's cookies, with the upkeep it needs. */
  #find(exchange: Exchange, carrier: Carrier): MaybePromise<Visit | undefined> {
    const found = after(this.#main.open(carrier), session =>
      session !== undefined ? this.#kept(carrier, session) : this.#recall(carrier)
    )
    if (!(found instanceof Promise)) return found
    return found.catch((error: Error & { code?: string }) => {
      this.#log.error(
        { request_id: exchange.id, plugin: 'session', code: error.code },
        `a session could not be read: ${error.message}`
      )
      return undefined
    })
  }

  #kept(carrier: Carrier, session: Session): Visit {
    const need = session.outdated
      ? 'renew'
      : upkeep(session.times, this.#main.timeouts, carrier.now)
    return this.#visit(carrier, session, need, session.times.created)
  }

  /** A new session of the one that the remember cookie stands for. */
  #recall(carrier: Carrier): MaybePromise<Visit | undefined> {
    return after(this.#remember?.open(carrier), session =>
      session === undefined ? undefined : this.#visit(carrier, session, 'renew', carrier.now)
    )
  }

  #visit(carrier: Carrier, session: Session, need: Upkeep, created: number): Visit {
    const { now } = carrier
    const identity = session.identities.find(({ audience }) => audience === this.#config.audience)
    const next =
      need === 'none'
        ? session
        : need === 'touch'
          ? { ...session, times: { ...session.times, touched: now } }
          : { ...session, id: newId(), times: { created, renewed: now, touched: now } }
    return { carrier, session: next, identity, upkeep: need }
  }

  /** Whether the request asks for the end of its session. */
  #leaves(exchange: Exchange): MaybePromise<boolean> {
    const { request } = exchange
    const config = this.#config
    if (!(config.logout_methods as readonly string[]).includes(request.method)) return false
    if (findParameter(request.query, config.logout_query_arg).length > 0) return true
    if (!config.read_body_for_logout || !BODY_METHODS.has(request.method)) return false
    const format = bodyFormat(request.headers['content-type'])
    if (format === undefined) return false
    return exchange.body().then(body => format.has(body, config.logout_post_arg))
  }

  /** A store that fails makes this fail too: nobody is told to be logged out who is not. */
  #logOut(exchange: Exchange, carrier: Carrier): void | Promise<void> {
    return after(this.#end(carrier), lines => {
      exchange.exit(200)
      append(exchange, lines)
    })
  }

  #resume(exchange: Exchange, visit: Visit, identity: Identity): void {
    const { directory, upstream } = exchange
    const consumer = directory.consumer(identity.consumerId)
    const credential = credentialOf(exchange, identity)
    if (consumer === undefined || credential === undefined) {
      exchange.notes.set(this, { ...visit, upkeep: 'end' })
      return
    }
    exchange.notes.set(this, visit)
    const { groups } = identity
    exchange.authenticate(consumer, credential, credential.id, groups)
    if (groups !== undefined) upstream.setHeader(GROUPS_HEADER, groups.join(', '))
    this.#tell(this.#requestHeaders, upstream, visit.session, visit.carrier)
  }

  #settle(exchange: Exchange): void | Promise<void> {
    const visit = exchange.notes.get(this) as Visit | undefined
    const { consumer, credential } = exchange
    if (consumer === undefined || credential === undefined) {
      if (visit?.upkeep !== 'end') return
      return after(this.#end(visit.carrier), lines => append(exchange, lines))
    }
    if (visit === undefined || !isOf(visit, consumer, identifierOf(exchange, credential))) {
      return this.#begin(exchange, visit, consumer, credential)
    }
    const { session, carrier } = visit
    if (visit.upkeep === 'none') {
      this.#tell(this.#responseHeaders, exchange.response, session, carrier)
      return
    }
    const written =
      visit.upkeep === 'touch'
        ? this.#main.touch(session, carrier)
        : this.#save(session, carrier, this.#remember?.created(carrier))
    return after(written, lines => {
      append(exchange, lines)
      this.#tell(this.#responseHeaders, exchange.response, session, carrier)
    })
  }

  /** Opens a session for whoever another plugin authenticated. */
  #begin(
    exchange: Exchange,
    visit: Visit | undefined,
    consumer: Consumer,
    credential: Credential
  ): void | Promise<void> {
    const { audience } = this.#config
    const carrier =
      visit?.carrier ?? this.#carrierOf(exchange, exchange.request.headers.cookie ?? '')
    const identity = {
      audience,
      consumerId: consumer.id,
      credentialId: identifierOf(exchange, credential),
      groups: exchange.groups,
      subject: consumer.username ?? consumer.custom_id ?? consumer.id
    }
    const others =
      visit === undefined || visit.upkeep === 'end'
        ? []
        : visit.session.identities.filter(other => other.audience !== audience)
    const { now } = carrier
    const created = others.length > 0 ? visit!.session.times.created : now
    const session: Session = {
      id: newId(),
      times: { created, renewed: now, touched: now },
      identities: [identity, ...others],
      outdated: false
    }
    return after(this.#save(session, carrier, undefined), lines => {
      append(exchange, lines)
      this.#tell(this.#responseHeaders, exchange.response, session, carrier)
    })
  }

  /** Stores the session, and what remembers it, as created then; undefined is now. */
  #save(
    session: Session,
    carrier: Carrier,
    created: number | undefined
  ): MaybePromise<readonly string[]> {
    const main = this.#main.save(session, carrier)
    if (this.#remember === undefined) return main
    const { now } = carrier
    const times = { created: created ?? now, renewed: now, touched: now }
    const remembered = this.#remember.save({ ...session, id: newId(), times }, carrier)
    return both(main, remembered)
  }

  #end(carrier: Carrier): MaybePromise<readonly string[]> {
    const main = this.#main.end(carrier)
    return this.#remember === undefined ? main : both(main, this.#remember.end(carrier))
  }

  #tell(
    headers: SessionHeaders,
    target: { setHeader(name: string, value: string): void },
    session: Session,
    { now }: Carrier
  ): void {
    headers.set(target, session, this.#config.audience, this.#main.timeouts, now)
  }

  #reportUnsaved(exchange: Exchange, error: unknown): void {
    const { code, message } = error as { code?: string; message?: string }
    this.#log.error(
      { request_id: exchange.id, plugin: 'session', code },
      `a session could not be saved: ${message}`
    )
  }
}

function keysOf(config: SessionConfig, { log, shared, scope }: Context): Keys {
  const { secret } = config
  if (secret !== undefined) return new Keys(secret.reveal(), secret.revealPrevious())
  log.warn(
    { plugin: 'session', instance: scope.instanceName ?? scope.id },
    'sessions have no secret: they are encrypted with a random one and end with this process'
  )
  return new Keys(createHmac('sha256', nodeSecret(shared!)).update(scope.id).digest('base64'))
}

function attributesOf(config: SessionConfig): CookieAttributes {
  const { cookie_domain: domain, cookie_same_site: sameSite } = config
  return {
    path: config.cookie_path,
    httpOnly: config.cookie_http_only,
    // Clients refuse SameSite=None without Secure (RFC 6265bis §4.1.2.7).
    secure: config.cookie_secure || sameSite === 'None',
    ...(domain === undefined || domain === 'localhost' ? {} : { domain }),
    ...(sameSite === 'Default'
      ? {}
      : { sameSite: sameSite.toLowerCase() as Lowercase<typeof sameSite> })
  }
}

/** What stands for a credential in a session: its id if it can be looked up, else the consumer's. */
function identifierOf({ directory }: Exchange, { id, consumer }: Credential): string {
  return directory.credential(id) === undefined ? consumer.id : id
}

/** The credential of a session; undefined once it was taken out of the configuration. */
function credentialOf({ directory }: Exchange, identity: Identity): Credential | undefined {
  const { credentialId: id, consumerId } = identity
  if (id === consumerId) return { id, consumer: { id } }
  const credential = directory.credential(id)
  return credential?.consumer.id === consumerId ? credential : undefined
}

function isOf({ identity, upkeep }: Visit, consumer: Consumer, credentialId: string): boolean {
  return (
    upkeep !== 'end' &&
    identity?.consumerId === consumer.id &&
    identity.credentialId === credentialId
  )
}

function append({ response }: Exchange, lines: readonly string[]): void {
  for (const line of lines) response.appendHeader('Set-Cookie', line)
}

function after<T, R>(value: MaybePromise<T>, then: (value: T) => R): R | Promise<Awaited<R>> {
  return value instanceof Promise ? (value.then(then) as Promise<Awaited<R>>) : then(value)
}

function both(
  a: MaybePromise<readonly string[]>,
  b: MaybePromise<readonly string[]>
): MaybePromise<readonly string[]> {
  if (a instanceof Promise || b instanceof Promise) {
    return Promise.all([a, b]).then(lists => lists.flat())
  }
  return [...a, ...b]
}
