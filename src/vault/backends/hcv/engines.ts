import { SecretMalformed, VaultDenied } from '../../../errors.ts'
import type { Backend, Fetched } from '../../backend.ts'
import type { Answer, VaultClient } from './client.ts'
import { classify, VaultAnswerError } from './failure.ts'
import { Leases } from './leases.ts'
import type { Session, Token } from './session.ts'
import { type HcvSettings, hasDotSegment } from './settings.ts'

type Engine = Pick<Backend, 'fetch' | 'probe'>

/** A 404 that tells of the mount instead of the secret. */
const NO_SUCH_MOUNT = /no handler for route|versioned K\/V/i

interface Read {
  readonly answer: Answer
  readonly token: Token
}

/** Reads below one mount with a session. */
class Reader {
  readonly mount: string
  readonly #client: VaultClient
  readonly #session: Session

  constructor(settings: HcvSettings, client: VaultClient, session: Session) {
    this.mount = encodePath(settings.mount)
    this.#client = client
    this.#session = session
  }

  /** Undefined when nothing is there. Throws the coded errors of a fetch. */
  async get(path: string, resource: string, signal: AbortSignal): Promise<Read | undefined> {
    try {
      return await this.#session.run(
        async token => ({
          answer: await this.#client.call({
            method: 'GET',
            path: `${this.mount}/${path}`,
            token: token.value,
            signal
          }),
          token
        }),
        signal
      )
    } catch (error) {
      const absent = error instanceof VaultAnswerError && error.own && error.status === 404
      if (absent && !NO_SUCH_MOUNT.test(error.errors)) return undefined
      throw classify(error, resource)
    }
  }
}

/** Key-value version 1 and every other engine that answers a GET, with their leases. */
export function plainEngine(settings: HcvSettings, client: VaultClient, session: Session): Engine {
  const reader = new Reader(settings, client, session)
  const leases = new Leases(client, session)
  return {
    async fetch(resource, version, signal): Promise<Fetched | undefined> {
      if (version !== undefined) {
        throw new SecretMalformed(resource, 'this engine keeps no versions; kv v2 does')
      }
      const path = encodeResource(resource)
      const renewed = await renew(leases, session, resource, signal)
      if (renewed !== undefined) return leased(renewed.data, resource, renewed.id, renewed.ttl)
      const read = await reader.get(path, resource, signal)
      if (read === undefined) return undefined
      const taken = leases.take(resource, read.answer, read.token)
      if (taken !== undefined) return leased(taken.data, resource, taken.id, taken.ttl)
      return { value: membersOf(read.answer.data, resource) }
    }
  }
}

async function renew(leases: Leases, session: Session, resource: string, signal: AbortSignal) {
  const { token } = session
  if (token === undefined) return undefined
  try {
    return await leases.renew(resource, token, signal)
  } catch (error) {
    throw classify(error, resource)
  }
}

/** A lease's id ends in what tells it from others; the whole is what revokes it. */
function leased(data: unknown, resource: string, id: string, ttl: number): Fetched {
  return { value: membersOf(data, resource), version: id.slice(id.lastIndexOf('/') + 1), ttl }
}

/** Key-value version 2. */
export function versionedEngine(
  settings: HcvSettings,
  client: VaultClient,
  session: Session
): Engine {
  const reader = new Reader(settings, client, session)
  /** Whether this identity may read metadata; the policies of many let it read data alone. */
  let metadataAllowed = true

  const fetch: Engine['fetch'] = async (resource, version, signal) => {
    const query = version === undefined ? '' : `?version=${versionNumber(version, resource)}`
    const read = await reader.get(`data/${encodeResource(resource)}${query}`, resource, signal)
    const data = read?.answer.data as { data?: unknown; metadata?: VersionMetadata } | undefined
    if (data?.data === undefined || data.data === null) return undefined
    const { version: number, created_time: created } = data.metadata ?? {}
    return {
      value: membersOf(data.data, resource),
      ...(number === undefined ? {} : { version: versionName(number, created) })
    }
  }

  return {
    fetch,
    async probe(resource, version, signal) {
      if (version !== undefined) versionNumber(version, resource)
      if (metadataAllowed) {
        try {
          const read = await reader.get(`metadata/${encodeResource(resource)}`, resource, signal)
          const found = versionOf(read?.answer.data as Metadata | undefined, version)
          if (found !== MAY_BE_GONE) return found
        } catch (error) {
          if (!(error instanceof VaultDenied)) throw error
          // When the data is refused, too, the refusal tells nothing about metadata.
          const read = await fetch(resource, version, signal)
          metadataAllowed = false
          return read?.version
        }
      }
      return (await fetch(resource, version, signal))?.version
    }
  }
}

interface VersionMetadata {
  readonly version?: number
  readonly created_time?: string
  readonly deletion_time?: string
  readonly destroyed?: boolean
}

interface Metadata {
  readonly current_version?: number
  readonly versions?: Readonly<Record<string, VersionMetadata>>
}

/** Of a version with a time of deletion, which only the vault's clock can tell to have come. */
const MAY_BE_GONE = Symbol('it may be gone')

/** The version a read would give by a secret's metadata; undefined when it would find nothing. */
function versionOf(
  metadata: Metadata | undefined,
  wanted: string | undefined
): string | typeof MAY_BE_GONE | undefined {
  const number = Number(wanted ?? metadata?.current_version ?? 0) || metadata?.current_version || 0
  const version = metadata?.versions?.[number]
  if (version === undefined || version.destroyed === true) return undefined
  const { deletion_time: deleted } = version
  if (deleted !== undefined && deleted !== '') return MAY_BE_GONE
  return versionName(number, version.created_time)
}

/** The time too, since a secret that was deleted and made anew counts from 1 again. */
function versionName(number: number, created: string | undefined): string {
  return created === undefined ? String(number) : `${number}@${created}`
}

function versionNumber(version: string, resource: string): string {
  if (/^\d{1,15}$/.test(version)) return version
  throw new SecretMalformed(resource, 'versions of a kv v2 engine are numbers')
}

function membersOf(data: unknown, resource: string): Readonly<Record<string, unknown>> {
  if (typeof data === 'object' && data !== null && !Array.isArray(data)) {
    return data as Record<string, unknown>
  }
  throw new SecretMalformed(resource, 'the answer holds no data')
}

/** Throws VaultDenied for a resource that would lead out of its mount. */
function encodeResource(resource: string): string {
  if (hasDotSegment(resource)) throw new VaultDenied(resource, 'it lies outside the mount')
  return encodePath(resource)
}

function encodePath(path: string): string {
  return path.split('/').map(encodeURIComponent).join('/')
}
