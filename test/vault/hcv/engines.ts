import { randomUUID } from 'node:crypto'
import {
  type Body,
  type Call,
  type Engine,
  NO_CONTENT,
  Refusal,
  type Reply,
  seconds
} from './call.ts'
import { DEFAULT_TTL, type TokenEntry } from './tokens.ts'

/** The key-value engine, version 1. */
export class PlainStore implements Engine {
  readonly #secrets = new Map<string, Body>()

  handle({ method, path, body }: Call): Reply {
    if (method === 'POST' || method === 'PUT') {
      this.#secrets.set(path, body)
      return NO_CONTENT
    }
    if (method === 'DELETE') {
      this.#secrets.delete(path)
      return NO_CONTENT
    }
    const data = this.#secrets.get(path)
    if (data === undefined) throw new Refusal(404)
    return { data, lease_duration: DEFAULT_TTL }
  }
}

interface Version {
  readonly data: Body
  readonly created_time: string
  deletion_time: string
  destroyed: boolean
}

/** The key-value engine, version 2. */
export class VersionedStore implements Engine {
  readonly #secrets = new Map<string, Map<number, Version>>()
  /** Milliseconds after which versions of a secret are deleted by themselves. */
  readonly #lives = new Map<string, number>()

  handle(call: Call): Reply {
    const [operation, ...rest] = call.path.split('/')
    const path = rest.join('/')
    const of = { ...call, path }
    if (operation === 'data') return this.#data(of)
    if (operation === 'metadata') return this.#metadata(of)
    const versions = this.#secrets.get(path)
    for (const number of (call.body.versions ?? []) as number[]) {
      const version = versions?.get(Number(number))
      if (version === undefined) continue
      if (operation === 'destroy') version.destroyed = true
      else version.deletion_time = operation === 'undelete' ? '' : now()
    }
    if (['destroy', 'undelete', 'delete'].includes(operation!)) return NO_CONTENT
    return {
      status: 404,
      data: null,
      warnings: [
        "Invalid path for a versioned K/V secrets engine. See the API docs for the appropriate API endpoints to use. If using the OpenBao CLI, use 'bao kv get' for this operation."
      ]
    }
  }

  #data({ method, path, query, body }: Call): Reply {
    const versions = this.#secrets.get(path) ?? new Map<number, Version>()
    const newest = Math.max(0, ...versions.keys())
    if (method === 'POST' || method === 'PUT') {
      const life = this.#lives.get(path)
      const version = {
        data: body.data,
        created_time: now(),
        deletion_time: life === undefined ? '' : new Date(Date.now() + life).toISOString(),
        destroyed: false
      }
      this.#secrets.set(path, versions.set(newest + 1, version))
      return { data: metadataOf(newest + 1, version) }
    }
    const number = Number(query.get('version') ?? 0) || newest
    const version = versions.get(number)
    if (version === undefined) throw new Refusal(404)
    if (method === 'DELETE') {
      version.deletion_time = now()
      return NO_CONTENT
    }
    const gone = version.destroyed || Date.parse(version.deletion_time) <= Date.now()
    return {
      ...(gone ? { status: 404 } : {}),
      data: { data: gone ? null : version.data, metadata: metadataOf(number, version) }
    }
  }

  #metadata({ method, path, body }: Call): Reply {
    const versions = this.#secrets.get(path)
    if (method === 'POST') {
      this.#lives.set(path, seconds(body.delete_version_after)! * 1000)
      return NO_CONTENT
    }
    if (method === 'DELETE') {
      this.#secrets.delete(path)
      return NO_CONTENT
    }
    if (versions === undefined) throw new Refusal(404)
    const [oldest] = versions.values()
    const newest = Math.max(...versions.keys())
    return {
      data: {
        cas_required: false,
        created_time: oldest!.created_time,
        current_metadata_version: 0,
        current_version: newest,
        custom_metadata: null,
        delete_version_after: '0s',
        max_versions: 0,
        metadata_cas_required: false,
        oldest_version: 0,
        updated_time: versions.get(newest)!.created_time,
        versions: Object.fromEntries(
          [...versions].map(([number, { created_time, deletion_time, destroyed }]) => [
            number,
            { created_time, deletion_time, destroyed }
          ])
        )
      }
    }
  }
}

function metadataOf(version: number, { created_time, deletion_time, destroyed }: Version): object {
  return { created_time, custom_metadata: null, deletion_time, destroyed, version }
}

/** Nanoseconds, as the real server has them: versions made within a millisecond differ. */
function now(): string {
  const fraction = String(process.hrtime.bigint() % 1_000_000n).padStart(6, '0')
  return `${new Date().toISOString().slice(0, -1)}${fraction}Z`
}

interface Lease {
  readonly mount: string
  readonly ttl: number
  readonly endsAt: number
  readonly token: TokenEntry
  expiresAt: number
}

/** Leases of every engine, as `sys/leases` knows them. */
export class Leases {
  readonly #leases = new Map<string, Lease>()

  take(mount: string, path: string, ttl: number, maxTtl: number, token: TokenEntry): string {
    const id = `${mount}${path}/${randomUUID().replaceAll('-', '').slice(0, 24)}`
    const now = Date.now()
    this.#leases.set(id, {
      mount,
      ttl,
      endsAt: now + maxTtl * 1000,
      token,
      expiresAt: now + ttl * 1000
    })
    return id
  }

  /** Seconds granted. */
  renew(id: string, increment: number | undefined): number {
    const lease = this.#leases.get(id)
    if (lease === undefined || Date.now() >= lease.expiresAt)
      throw new Refusal(400, 'lease not found')
    lease.expiresAt = Math.min(Date.now() + (increment ?? lease.ttl) * 1000, lease.endsAt)
    return Math.round((lease.expiresAt - Date.now()) / 1000)
  }

  revoke(id: string): void {
    this.#leases.delete(id)
  }

  get ids(): readonly string[] {
    return [...this.#leases.keys()]
  }
}

/** The database engine without a database: roles, and users on lease. */
export class Database implements Engine {
  readonly #roles = new Map<string, Body>()
  readonly #leases: Leases
  readonly #mount: string
  #users = 0

  constructor(mount: string, leases: Leases) {
    this.#mount = mount
    this.#leases = leases
  }

  handle({ method, path, body, token }: Call): Reply {
    const [kind, name = ''] = path.split('/')
    if (method === 'POST') {
      if (kind === 'roles') this.#roles.set(name, body)
      return NO_CONTENT
    }
    const role = this.#roles.get(name)
    if (role === undefined) throw new Refusal(400, `unknown role: ${name}`)
    const ttl = seconds(role.default_ttl) ?? DEFAULT_TTL
    const id = this.#leases.take(
      this.#mount,
      path,
      ttl,
      seconds(role.max_ttl) ?? DEFAULT_TTL,
      token!
    )
    const username = `v-${name}-${++this.#users}`
    return {
      lease_id: id,
      lease_duration: ttl,
      renewable: true,
      data: { username, password: randomUUID() }
    }
  }
}
