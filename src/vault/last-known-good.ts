import {
  createCipheriv,
  createDecipheriv,
  createHmac,
  hkdfSync,
  randomBytes,
  timingSafeEqual
} from 'node:crypto'
import { open, readFile, rename, rm } from 'node:fs/promises'
import { dirname } from 'node:path'
import { KnownGoodRefused } from '../errors.ts'
import type { Fetched } from './backend.ts'

/** Values that were in force, kept for a start during an outage. */
export interface LastKnownGood {
  /** What was kept of a resource and how many seconds ago it was read, unless that is too long. */
  get(identity: string): { readonly fetched: Fetched; readonly age: number } | undefined
  /** Keeps what is in force; `age` as before. */
  keep(identity: string, fetched: Fetched, age: number): void
  /** Forgets a resource: the vault says that there is nothing, or nothing for the gateway. */
  drop(identity: string): void
  /** Why the file that was there is not used; undefined when it is, or when there was none. */
  readonly refused: Error | undefined
  /** Resolves when everything is on disk. */
  close(): Promise<void>
}

export interface LastKnownGoodOptions {
  readonly file: string
  /** 32 bytes. */
  readonly key: Buffer
  /** Seconds after which a value is no longer used. */
  readonly maxAge: number
  /** Told when the file cannot be written; gateways serve on without it. */
  readonly failed: (error: Error) => void
  /** Unix milliseconds: ages count across processes. */
  readonly now?: () => number
}

const FORMAT = 'postern-last-known-good'
const VERSION = 1
const NONCE = 12
const TAG = 16
/** Milliseconds between two writes. */
const WRITE_PAUSE = 1000
/** Part of the maximum age after which a confirmed value is written again. */
const RENEWAL = 1 / 8
/** Bytes of a file at most. */
const MAX_SIZE = 256 * 1024 * 1024

interface Entry {
  readonly fetched: Fetched
  /** Unix milliseconds at which the vault said that this is current. */
  readonly at: number
}

interface Keys {
  readonly salt: Buffer
  readonly seal: Buffer
  readonly name: Buffer
  readonly proof: Buffer
}

function keysOf(key: Buffer, salt: Buffer): Keys {
  const derive = (purpose: string): Buffer =>
    Buffer.from(hkdfSync('sha256', key, salt, `${FORMAT} ${VERSION} ${purpose}`, 32))
  return { salt, seal: derive('seal'), name: derive('name'), proof: derive('proof') }
}

function proofOf(keys: Keys, text: string): Buffer {
  return createHmac('sha256', keys.proof).update(text).digest()
}

/**
 * Opens the file. Each resource is sealed with AES-256-GCM, bound to its reference and its vault's
 * configuration (which are its additional data, and named by a keyed hash), and the whole file is
 * authenticated, so that no part can be exchanged, added or taken out. A file that is damaged, of
 * another key or of another format is refused: `refused` says why, and nothing of it is used.
 */
export async function openLastKnownGood(options: LastKnownGoodOptions): Promise<LastKnownGood> {
  try {
    const text = await readWhole(options.file)
    return new KnownGoodFile(options, text === undefined ? undefined : parse(text, options))
  } catch (error) {
    return new KnownGoodFile(options, undefined, error as Error)
  }
}

async function readWhole(file: string): Promise<string | undefined> {
  try {
    await using handle = await open(file, 'r')
    const { size } = await handle.stat()
    if (size > MAX_SIZE) return ''
    return await readFile(handle, 'utf8')
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'ENOENT') return undefined
    throw new KnownGoodRefused(file, `it cannot be read (${code})`)
  }
}

interface Sealed {
  readonly keys: Keys
  readonly entries: Readonly<Record<string, string>>
}

/** Three lines: what it is, the sealed entries, and the proof that both are whole. */
function parse(text: string, { file, key }: LastKnownGoodOptions): Sealed {
  const [head = '', body = '', proof = ''] = text.split('\n')
  const { format, version, salt, check } = attempt(() => JSON.parse(head)) ?? {}
  if (format !== FORMAT || typeof salt !== 'string')
    throw new KnownGoodRefused(file, 'it is damaged, or no such file at all')
  if (version !== VERSION)
    throw new KnownGoodRefused(file, `its format is ${version}, and this release reads ${VERSION}`)
  const keys = keysOf(key, Buffer.from(salt, 'base64'))
  if (!equal(proofOf(keys, 'check'), check))
    throw new KnownGoodRefused(file, 'it was written with another POSTERN_VAULT_CACHE_KEY')
  if (!equal(proofOf(keys, `${head}\n${body}`), proof))
    throw new KnownGoodRefused(file, 'it is damaged: what it holds is not what was written')
  return { keys, entries: JSON.parse(body) }
}

function attempt<T>(read: () => T): T | undefined {
  try {
    return read()
  } catch {
    return undefined
  }
}

function equal(expected: Buffer, given: unknown): boolean {
  const actual = Buffer.from(String(given), 'base64')
  return actual.length === expected.length && timingSafeEqual(actual, expected)
}

class KnownGoodFile implements LastKnownGood {
  readonly refused: Error | undefined
  readonly #options: LastKnownGoodOptions
  readonly #now: () => number
  readonly #before: Sealed | undefined
  /** Named by the keyed hash, as in the file that was there. */
  readonly #dropped = new Set<string>()
  readonly #asked = new Set<string>()
  readonly #kept = new Map<string, Entry>()
  readonly #keys: Keys
  #writing: Promise<void> | undefined
  #timer: NodeJS.Timeout | undefined
  #dirty = false

  constructor(options: LastKnownGoodOptions, before: Sealed | undefined, refused?: Error) {
    this.#options = options
    this.#now = options.now ?? Date.now
    this.#before = before
    this.refused = refused
    this.#keys = before?.keys ?? keysOf(options.key, randomBytes(16))
  }

  get(identity: string): { readonly fetched: Fetched; readonly age: number } | undefined {
    const entry = this.#kept.get(identity) ?? this.#unseal(identity)
    if (entry === undefined) return undefined
    const age = this.#ageOf(entry)
    // A lease that ended is a credential that does not work.
    if (age > Math.min(this.#options.maxAge, entry.fetched.ttl ?? Number.POSITIVE_INFINITY))
      return undefined
    return { fetched: entry.fetched, age }
  }

  /** Seconds; a clock that was set back makes nothing younger than now. */
  #ageOf({ at }: Entry): number {
    return Math.max(0, (this.#now() - at) / 1000)
  }

  #nameOf(identity: string): string {
    return createHmac('sha256', this.#keys.name).update(identity).digest('base64')
  }

  #unseal(identity: string): Entry | undefined {
    const name = this.#nameOf(identity)
    this.#asked.add(name)
    const text = this.#dropped.has(name) ? undefined : this.#before?.entries[name]
    if (text === undefined) return undefined
    const sealed = Buffer.from(text, 'base64')
    const decipher = createDecipheriv('aes-256-gcm', this.#keys.seal, sealed.subarray(0, NONCE))
    decipher.setAAD(Buffer.from(identity))
    decipher.setAuthTag(sealed.subarray(NONCE, NONCE + TAG))
    try {
      const plain = Buffer.concat([decipher.update(sealed.subarray(NONCE + TAG)), decipher.final()])
      return JSON.parse(plain.toString('utf8'))
    } catch {
      return undefined
    }
  }

  #seal(identity: string, entry: Entry): string {
    const nonce = randomBytes(NONCE)
    const cipher = createCipheriv('aes-256-gcm', this.#keys.seal, nonce)
    cipher.setAAD(Buffer.from(identity))
    const sealed = Buffer.concat([cipher.update(JSON.stringify(entry), 'utf8'), cipher.final()])
    return Buffer.concat([nonce, cipher.getAuthTag(), sealed]).toString('base64')
  }

  keep(identity: string, fetched: Fetched, age: number): void {
    const before = this.#kept.get(identity)
    const entry = { fetched, at: this.#now() - age * 1000 }
    const renewal = this.#options.maxAge * 1000 * RENEWAL
    if (before?.fetched === fetched && entry.at - before.at < renewal) return
    this.#kept.set(identity, entry)
    this.#writeSoon()
  }

  drop(identity: string): void {
    const name = this.#nameOf(identity)
    const known = this.#kept.delete(identity) || this.#before?.entries[name] !== undefined
    if (!known || this.#dropped.has(name)) {
      if (known) this.#writeSoon()
      return
    }
    this.#dropped.add(name)
    this.#writeSoon()
  }

  /** At most once a second, and never two at a time. */
  #writeSoon(): void {
    this.#dirty = true
    if (this.#timer !== undefined || this.#writing !== undefined) return
    this.#timer = setTimeout(() => {
      this.#timer = undefined
      this.#writing = this.#write().finally(() => {
        this.#writing = undefined
        if (this.#dirty) this.#writeSoon()
      })
    }, WRITE_PAUSE)
    this.#timer.unref()
  }

  async #write(): Promise<void> {
    this.#dirty = false
    const { file, failed } = this.#options
    const next = `${file}.${process.pid}.next`
    try {
      // Readable by its owner alone from its first byte on; a left-over of a crash gives way.
      await rm(next, { force: true })
      {
        await using handle = await open(next, 'wx', 0o600)
        await handle.writeFile(this.#text())
        await handle.sync()
      }
      await rename(next, file)
      await using directory = await open(dirname(file), 'r')
      await directory.sync()
    } catch (error) {
      await rm(next, { force: true }).catch(() => {})
      failed(error as Error)
    }
  }

  #text(): string {
    const { salt } = this.#keys
    const entries: Record<string, string> = {}
    // Of what an earlier process kept, that stays which this one needs and has not read yet.
    for (const name of this.#asked) {
      const sealed = this.#before?.entries[name]
      if (sealed !== undefined && !this.#dropped.has(name)) entries[name] = sealed
    }
    for (const [identity, entry] of this.#kept)
      entries[this.#nameOf(identity)] = this.#seal(identity, entry)
    const check = proofOf(this.#keys, 'check').toString('base64')
    const head = JSON.stringify({
      format: FORMAT,
      version: VERSION,
      salt: salt.toString('base64'),
      check
    })
    const whole = `${head}\n${JSON.stringify(entries)}`
    return `${whole}\n${proofOf(this.#keys, whole).toString('base64')}\n`
  }

  async close(): Promise<void> {
    clearTimeout(this.#timer)
    this.#timer = undefined
    await this.#writing
    clearTimeout(this.#timer)
    if (this.#dirty) await this.#write()
  }
}
