import { hash, randomBytes } from 'node:crypto'
import { LRUCache } from 'lru-cache'
import type { Store } from '../plugin.ts'
import {
  type CookieAttributes,
  type Cookies,
  deleteCookie,
  readCookie,
  writeCookie
} from './cookies.ts'
import { ID_BYTES, type Keys } from './keys.ts'
import { isExpired, type Timeouts, type Times, timeLeft } from './timeouts.ts'

/** Who was authenticated towards one audience. */
export interface Identity {
  readonly audience: string
  readonly consumerId: string
  /** The consumer's id when the credential has no id that could be looked up. */
  readonly credentialId: string
  readonly groups: readonly string[] | undefined
  /** Username, else custom id, else id of the consumer. */
  readonly subject: string
}

/** A session as it stands in a cookie and, with server storage, in the store. */
export interface Session {
  readonly id: Buffer
  readonly times: Times
  /** One for each audience that shares the cookie. */
  readonly identities: readonly Identity[]
  /** Sealed with the secret before the last rotation. */
  readonly outdated: boolean
}

/** A cookie's own content: with server storage the identities are elsewhere. */
type Ticket = Omit<Session, 'identities'> & {
  readonly identities: Session['identities'] | undefined
}

/** A cookie that was found authentic for clients with these attributes. */
interface Known {
  readonly text: string
  readonly binding: string
  readonly ticket: Ticket
  /** The last note of its use. */
  touch: Touch | undefined
}

/** A note of a session's use: when, in Unix milliseconds, and the content of its cookie since. */
interface Touch {
  readonly at: number
  readonly value: string
}

/** What a jar needs of its request. */
export interface Carrier {
  readonly cookies: Cookies
  /** Attributes of the client the session is bound to, as text. */
  readonly binding: string
  /** Unix milliseconds. */
  readonly now: number
}

export interface JarOptions {
  readonly name: string
  readonly keys: Keys
  readonly timeouts: Timeouts
  readonly attributes: CookieAttributes
  /** Whether clients keep the cookie when they end, as long as its timeouts allow. */
  readonly persistent: boolean
  /** Where identities are kept; undefined keeps them in the cookie. */
  readonly store: Store | undefined
  /** Seconds an entry of the store outlives its renewal. */
  readonly staleTtl: number
  /** How the store's index names a subject; undefined keeps no index. */
  readonly indexed: 'plain' | 'hashed' | undefined
}

const VERSION = 1
/** Characters of the cookies whose content is remembered. */
const KNOWN_SIZE = 1024 * 1024
/** Characters of a cookie's end that it is found by: hashing all of each is 3 % of a request. */
const KEY_LENGTH = 24
/** Milliseconds within which requests with one cookie share a note of its use. */
const TOUCH_SHARED = 1000
/** Seconds an entry without any timeout is kept. */
const LONGEST_TTL = 365 * 86_400

type Lines = readonly string[]
type Stored = readonly [
  consumerId: string,
  credentialId: string,
  groups: readonly string[] | null,
  audience: string,
  subject: string
]

/** A new session id. */
export function newId(): Buffer {
  return randomBytes(ID_BYTES)
}

/**
 * Keeps sessions under one cookie name. Without a store nothing waits; with one, what asks it gives
 * promises, which reject when the store fails. What is to be sent is given as `Set-Cookie` values.
 */
export class Jar {
  readonly timeouts: Timeouts
  readonly #options: JarOptions
  readonly #context: string
  /**
   * Cookies that were opened, by the end of their text: clients send the same one with every request,
   * and opening it costs more than the rest of a request's authentication. A rotated secret makes a new
   * jar.
   */
  readonly #known = new LRUCache<string, Known>({
    maxSize: KNOWN_SIZE,
    sizeCalculation: ({ text }) => text.length
  })

  constructor(options: JarOptions) {
    this.#options = options
    this.timeouts = options.timeouts
    const place = options.store === undefined ? 'cookie' : 'store'
    this.#context = `${VERSION}\n${place}\n${options.name}\n`
  }

  /** The session of a request; undefined when there is none that is authentic and alive. */
  open(carrier: Carrier): Session | undefined | Promise<Session | undefined> {
    const ticket = this.#unseal(carrier)
    if (ticket === undefined) return undefined
    return isWhole(ticket) ? ticket : this.#load(ticket, carrier)
  }

  /** When the session of a request was created; undefined as {@link open}, without asking the store. */
  created(carrier: Carrier): number | undefined {
    return this.#unseal(carrier)?.times.created
  }

  /** Stores a session under its new id; that of the request lives on for as long as it may be stale. */
  save(session: Session, carrier: Carrier): Lines | Promise<Lines> {
    const { store } = this.#options
    if (store === undefined) return this.#write(session, carrier)
    return this.#store(store, session, carrier).then(() => this.#write(session, carrier))
  }

  /**
   * Notes a session's use. A client sends many requests at once, and all until the first answer with
   * the cookie before it: they get the same new one, since sealing each costs half of such a request.
   */
  touch(session: Session, carrier: Carrier): Lines | Promise<Lines> {
    const { store } = this.#options
    const known = this.#recall(readCookie(carrier.cookies, this.#options.name) ?? '')
    const recent = known?.touch
    if (recent !== undefined && Math.abs(carrier.now - recent.at) < TOUCH_SHARED) {
      return this.#lines(recent.value, session, carrier)
    }
    const value = this.#seal(session, carrier)
    if (known !== undefined) known.touch = { at: carrier.now, value }
    const lines = this.#lines(value, session, carrier)
    if (store === undefined) return lines
    const ttl = this.#ttl(session, carrier)
    return Promise.all(this.#keysOf(session).map(key => store.expire(key, ttl))).then(() => lines)
  }

  /** Deletes the session of a request wherever it is. */
  end(carrier: Carrier): Lines | Promise<Lines> {
    const { name, attributes, store } = this.#options
    const lines = deleteCookie(name, attributes, carrier.cookies)
    if (store === undefined) return lines
    return this.#discard(store, carrier, 0).then(() => lines)
  }

  #unseal(carrier: Carrier): Ticket | undefined {
    const text = readCookie(carrier.cookies, this.#options.name)
    if (text === undefined || text === '') return undefined
    const known = this.#recall(text)
    const ticket = known?.binding === carrier.binding ? known.ticket : this.#read(text, carrier)
    if (ticket === undefined || isExpired(ticket.times, this.timeouts, carrier.now)) {
      return undefined
    }
    return ticket
  }

  #recall(text: string): Known | undefined {
    const known = this.#known.get(text.slice(-KEY_LENGTH))
    // How long this takes tells nothing: whoever gets here knows the tag that the cookie ends with.
    return known?.text === text ? known : undefined
  }

  /** What a cookie says; undefined when it is not authentic. */
  #read(text: string, { binding }: Carrier): Ticket | undefined {
    const bytes = Buffer.from(text, 'base64url')
    const id = bytes.subarray(0, ID_BYTES)
    const opened = this.#options.keys.open(id, this.#context + binding, bytes.subarray(ID_BYTES))
    if (opened === undefined) return undefined
    const [created, renewed, touched, stored] = JSON.parse(opened.text) as [
      number,
      number,
      number,
      Stored[]?
    ]
    const ticket = {
      id,
      times: { created, renewed, touched },
      identities: stored?.map(restore),
      outdated: opened.outdated
    }
    this.#known.set(text.slice(-KEY_LENGTH), { text, binding, ticket, touch: undefined })
    return ticket
  }

  #write(session: Session, carrier: Carrier): Lines {
    return this.#lines(this.#seal(session, carrier), session, carrier)
  }

  #seal({ id, times, identities }: Session, { binding }: Carrier): string {
    const { keys, store } = this.#options
    const content: unknown[] = [times.created, times.renewed, times.touched]
    if (store === undefined) content.push(identities.map(flatten))
    const sealed = keys.seal(id, this.#context + binding, JSON.stringify(content))
    return Buffer.concat([id, sealed]).toString('base64url')
  }

  #lines(value: string, session: Session, carrier: Carrier): Lines {
    const { name, persistent } = this.#options
    let { attributes } = this.#options
    if (persistent) {
      const maxAge = Math.floor(this.#ttl(session, carrier))
      attributes = { ...attributes, maxAge, expires: new Date(carrier.now + maxAge * 1000) }
    }
    return writeCookie(name, value, attributes, carrier.cookies)
  }

  async #load(ticket: Ticket, carrier: Carrier): Promise<Session | undefined> {
    const text = await this.#options.store!.get(this.#key(ticket.id))
    if (text === undefined) return undefined
    const sealed = Buffer.from(text, 'base64url')
    const opened = this.#options.keys.open(ticket.id, this.#context + carrier.binding, sealed)
    if (opened === undefined) return undefined
    const identities = (JSON.parse(opened.text) as Stored[]).map(restore)
    return { ...ticket, identities, outdated: ticket.outdated || opened.outdated }
  }

  async #store(store: Store, session: Session, carrier: Carrier): Promise<void> {
    const text = JSON.stringify(session.identities.map(flatten))
    const sealed = this.#options.keys.seal(session.id, this.#context + carrier.binding, text)
    const ttl = this.#ttl(session, carrier)
    const [key, ...index] = this.#keysOf(session)
    await store.set(key!, sealed.toString('base64url'), ttl)
    await Promise.all(index.map(entry => store.set(entry, '', ttl)))
    await this.#discard(store, carrier, this.#options.staleTtl)
  }

  /** Ends the life of the request's entry in `ttl` seconds. */
  async #discard(store: Store, carrier: Carrier, ttl: number): Promise<void> {
    const old = this.#unseal(carrier)
    if (old === undefined) return
    const { indexed } = this.#options
    const session = indexed === undefined ? undefined : await this.#load(old, carrier)
    const keys = session === undefined ? [this.#key(old.id)] : this.#keysOf(session)
    await Promise.all(keys.map(key => (ttl > 0 ? store.expire(key, ttl) : store.delete(key))))
  }

  #ttl({ times }: Session, { now }: Carrier): number {
    return timeLeft(times, this.timeouts, now).shortest ?? LONGEST_TTL
  }

  #key(id: Buffer): string {
    return `session:${this.#options.name}:${id.toString('base64url')}`
  }

  /** The session's own entry, and those that index it. */
  #keysOf({ id, identities }: Session): string[] {
    const { name, indexed } = this.#options
    const keys = [this.#key(id)]
    if (indexed === undefined) return keys
    for (const { audience, subject } of identities) {
      const parts = [audience, indexed === 'hashed' ? hash('sha256', subject) : subject]
      const path = parts.map(part => encodeURIComponent(part.toWellFormed())).join(':')
      keys.push(`session-index:${name}:${path}:${id.toString('base64url')}`)
    }
    return keys
  }
}

function isWhole(ticket: Ticket): ticket is Session {
  return ticket.identities !== undefined
}

function flatten({ consumerId, credentialId, groups, audience, subject }: Identity): Stored {
  return [consumerId, credentialId, groups ?? null, audience, subject]
}

function restore([consumerId, credentialId, groups, audience, subject]: Stored): Identity {
  return { consumerId, credentialId, groups: groups ?? undefined, audience, subject }
}
