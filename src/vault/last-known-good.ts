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
  /** Seals what is kept with another key from now on; gives whether it is another. */
  useKey(key: Buffer): boolean
  /** Why the file that was there is not used; undefined when it is, or when there was none. */
  readonly refused: Error | undefined
  /** Why some of what was asked for is not used, though the file is; undefined when that is not so. */
  readonly outdated: Error | undefined
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
  /** Of one line of files, each written over the one before. */
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
 * authenticated, so that no part can be exchanged, added or taken out. It counts how often it was
 * written, and a record beside it holds the count, so that an older copy put back is known for one. A
 * file that is damaged, older, of another key or of another format is refused: `refused` says why, and
 * nothing of it is used.
 */
export async function openLastKnownGood(options: LastKnownGoodOptions): Promise<LastKnownGood> {
  try {
    const text = await readWhole(options.file)
    if (text === undefined) return new KnownGoodFile(options, undefined)
    const before = parse(text, options)
    refuseOlder(before, await readRecord(options), options.file)
    return new KnownGoodFile(options, before)
  } catch (error) {
    return new KnownGoodFile(options, undefined, error as Error)
  }
}

/** The record of how often a file was written. */
function recordOf(file: string): string {
  return `${file}.generation`
}

/** What the record says; undefined when there is none, `damaged` when it is none of this key. */
async function readRecord({
  file,
  key
}: LastKnownGoodOptions): Promise<Written | undefined | 'damaged'> {
  const text = await readWhole(recordOf(file))
  if (text === undefined) return undefined
  const { salt, generation, proof } = attempt(() => JSON.parse(text)) ?? {}
  if (typeof salt !== 'string' || !Number.isSafeInteger(generation)) return 'damaged'
  const keys = keysOf(key, Buffer.from(salt, 'base64'))
  return equal(proofOf(keys, recorded(generation)), proof) ? { salt, generation } : 'damaged'
}

/** What the proof of a record is of; no file has such a text. */
function recorded(generation: number): string {
  return `generation ${generation}`
}

/**
 * A file is written before its record, so a crash between the two leaves a file that is newer, which
 * is sound. One that is older than its record was put back, and one without was torn from it.
 */
function refuseOlder(
  { keys, generation }: Sealed,
  record: Written | undefined | 'damaged',
  file: string
): void {
  const refuse = (reason: string): never => {
    throw new KnownGoodRefused(file, reason)
  }
  const beside = recordOf(file)
  if (record === 'damaged') refuse(`${beside}, which tells an older copy of it, is damaged`)
  else if (record === undefined) {
    // Releases before the record wrote neither; what they kept ends with its maximum age.
    if (generation > 0) refuse(`${beside}, which tells an older copy of it, is missing`)
  } else if (record.salt !== keys.salt.toString('base64'))
    refuse(`it is not the file that ${beside} is about, but one from before it`)
  else if (generation < record.generation)
    refuse(
      `it is an older copy, of generation ${generation}, and ${beside} knows of ${record.generation}`
    )
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

/** How often the files of one line were written. */
interface Written {
  readonly salt: string
  readonly generation: number
}

interface Sealed {
  readonly keys: Keys
  readonly generation: number
  readonly entries: Readonly<Record<string, string>>
}

/** Three lines: what it is, the sealed entries, and the proof that both are whole. */
function parse(text: string, { file, key }: LastKnownGoodOptions): Sealed {
  const [head = '', body = '', proof = ''] = text.split('\n')
  const { format, version, salt, check, generation = 0 } = attempt(() => JSON.parse(head)) ?? {}
  if (format !== FORMAT || typeof salt !== 'string')
    throw new KnownGoodRefused(file, 'it is damaged, or no such file at all')
  if (version !== VERSION)
    throw new KnownGoodRefused(file, `its format is ${version}, and this release reads ${VERSION}`)
  const keys = keysOf(key, Buffer.from(salt, 'base64'))
  if (!equal(proofOf(keys, 'check'), check))
    throw new KnownGoodRefused(file, 'it was written with another POSTERN_VAULT_CACHE_KEY')
  if (!equal(proofOf(keys, `${head}\n${body}`), proof))
    throw new KnownGoodRefused(file, 'it is damaged: what it holds is not what was written')
  return { keys, generation, entries: JSON.parse(body) }
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

/** Writes a file whole or not at all. */
async function replace(file: string, text: string): Promise<void> {
  const next = `${file}.${process.pid}.next`
  try {
    // Readable by its owner alone from its first byte on; a left-over of a crash gives way.
    await rm(next, { force: true })
    {
      await using handle = await open(next, 'wx', 0o600)
      await handle.writeFile(text)
      await handle.sync()
    }
    await rename(next, file)
    await using directory = await open(dirname(file), 'r')
    await directory.sync()
  } catch (error) {
    await rm(next, { force: true }).catch(() => {})
    throw error
  }
}

class KnownGoodFile implements LastKnownGood {
  readonly refused: Error | undefined
  #options: LastKnownGoodOptions
  readonly #now: () => number
  #before: Sealed | undefined
  /** Named by the keyed hash, as in the file that was there. */
  readonly #dropped = new Set<string>()
  /** Identities by the same name. */
  readonly #asked = new Map<string, string>()
  /** Ages of those that were asked for and are too old, in seconds. */
  readonly #tooOld = new Map<string, number>()
  readonly #kept = new Map<string, Entry>()
  #keys: Keys
  #writing: Promise<void> | undefined
  #timer: NodeJS.Timeout | undefined
  #dirty = false
  #generation: number

  constructor(options: LastKnownGoodOptions, before: Sealed | undefined, refused?: Error) {
    this.#options = options
    this.#now = options.now ?? Date.now
    this.#before = before
    this.refused = refused
    this.#keys = before?.keys ?? keysOf(options.key, randomBytes(16))
    this.#generation = before?.generation ?? 0
  }

  get(identity: string): { readonly fetched: Fetched; readonly age: number } | undefined {
    const entry = this.#kept.get(identity) ?? this.#unseal(identity)
    if (entry === undefined) return undefined
    const age = this.#ageOf(entry)
    // A lease that ended is a credential that does not work.
    if (age > Math.min(this.#options.maxAge, entry.fetched.ttl ?? Number.POSITIVE_INFINITY)) {
      this.#tooOld.set(identity, age)
      return undefined
    }
    return { fetched: entry.fetched, age }
  }

  get outdated(): Error | undefined {
    const { size } = this.#tooOld
    if (size === 0) return undefined
    const { file, maxAge } = this.#options
    const oldest = Math.round(Math.max(...this.#tooOld.values()))
    return new KnownGoodRefused(
      file,
      `${size} of them ${size === 1 ? 'is' : 'are'} past the maximum age of ${maxAge} s or the end of a lease, the oldest from ${oldest} s ago`
    )
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
    this.#asked.set(name, identity)
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
    // Either way: a clock that was ahead and set right left a time that nothing would come after.
    if (before?.fetched === fetched && Math.abs(entry.at - before.at) < renewal) return
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

  useKey(key: Buffer): boolean {
    if (key.equals(this.#options.key)) return false
    // What an earlier process kept is needed on, and nobody can read it under the new key.
    for (const identity of this.#asked.values()) {
      const entry = this.#kept.get(identity) ?? this.#unseal(identity)
      if (entry !== undefined) this.#kept.set(identity, entry)
    }
    this.#options = { ...this.#options, key }
    this.#keys = keysOf(key, randomBytes(16))
    this.#generation = 0
    this.#before = undefined
    this.#asked.clear()
    this.#dropped.clear()
    this.#writeSoon()
    return true
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
    try {
      const record = await readRecord(this.#options)
      if (typeof record === 'object' && record.salt === this.#keys.salt.toString('base64'))
        // Another process may write here, too: one that ends while this one starts.
        this.#generation = Math.max(this.#generation, record.generation)
      // From the first file on there is a record of its line, whenever the process ends.
      else await replace(recordOf(file), this.#record())
      this.#generation++
      await replace(file, this.#text())
      await replace(recordOf(file), this.#record())
    } catch (error) {
      failed(error as Error)
    }
  }

  #record(): string {
    const salt = this.#keys.salt.toString('base64')
    const proof = proofOf(this.#keys, recorded(this.#generation)).toString('base64')
    return `${JSON.stringify({ salt, generation: this.#generation, proof })}\n`
  }

  #text(): string {
    const { salt } = this.#keys
    const entries: Record<string, string> = {}
    // Of what an earlier process kept, that stays which this one needs and has not read yet.
    for (const name of this.#asked.keys()) {
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
      generation: this.#generation,
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
