import { hash, timingSafeEqual } from 'node:crypto'
import { inSlices } from '../pace.ts'
import type { Acl, BasicAuthCredential, Consumer, KeyAuthCredential } from '../schema/entities.ts'
import type { Credential, Directory } from './plugin.ts'

/** The entities a directory is made of, referenceable fields resolved. */
export interface DirectoryEntities {
  /** Whether the file holds passwords in plain text; else they are hashed already. */
  readonly transform: boolean
  readonly consumers: readonly Consumer[]
  readonly keyauth_credentials: readonly KeyAuthCredential[]
  readonly basicauth_credentials: readonly BasicAuthCredential[]
  readonly acls: readonly Acl[]
}

/** Digests of the passwords that hold; both the same when there is but one. */
type Digests = readonly [Buffer, Buffer]

/** How to recognise one password: what a candidate is salted and hashed with, and what must result. */
interface Verifier {
  readonly algorithm: 'sha1' | 'sha256'
  readonly salt: string
  /** The current name of the user. */
  readonly username: string
  /** What holds with the current name. */
  readonly current: Digests
  /** What holds with the former name. */
  readonly former: Digests
}

const NO_GROUPS: readonly string[] = []

/** Stands in for the verifier of an unknown user, so that both cases do the same work. */
const NOBODY: Readonly<Record<'plain' | 'hashed', Verifier>> = {
  plain: verifierOfNobody('sha256'),
  hashed: verifierOfNobody('sha1')
}

/** A key credential with what presented keys are compared with. */
interface KnownKey {
  readonly credential: KeyAuthCredential
  readonly digest: string
  /** Of the key before, while it still holds. */
  readonly former: string | undefined
}

interface KnownUser {
  readonly credential: BasicAuthCredential
  readonly verifier: Verifier
}

/**
 * Indexes consumers and credentials for look-up while serving; built once per change. Where two
 * credentials claim one name or key the first keeps it, and a current one always wins over a former.
 * The `ttl` of a key is not counted: the file is the truth about which keys exist. What was worked
 * out for credentials that `previous` has too is taken from it.
 */
export async function createDirectory(
  entities: DirectoryEntities,
  previous?: CompiledDirectory
): Promise<CompiledDirectory> {
  const { transform, keyauth_credentials, basicauth_credentials } = entities
  const keys = new Map<string, KnownKey>()
  await inSlices(keyauth_credentials, credential => {
    keys.set(credential.id, knownKey(credential, previous?.keys.get(credential.id)))
  })
  const users = new Map<string, KnownUser>()
  await inSlices(basicauth_credentials, credential => {
    const before = previous?.users.get(credential.id)
    const same = before?.credential === credential
    users.set(
      credential.id,
      same ? before : { credential, verifier: verifierOf(credential, transform) }
    )
  })
  return new CompiledDirectory(entities, keys, users, previous)
}

function knownKey(credential: KeyAuthCredential, before: KnownKey | undefined): KnownKey {
  if (before?.credential === credential) return before
  const former = credential.key.revealPrevious()
  return {
    credential,
    digest: digest(credential.key.reveal()),
    former:
      former === undefined
        ? undefined
        : before?.credential.key.reveal() === former
          ? before.digest
          : digest(former)
  }
}

/** Consumers, credentials and groups of one generation. */
export class CompiledDirectory implements Directory {
  readonly keys: ReadonlyMap<string, KnownKey>
  readonly users: ReadonlyMap<string, KnownUser>
  readonly #entities: DirectoryEntities
  readonly #byId: ReadonlyMap<string, Consumer>
  readonly #byUsername: ReadonlyMap<string, Consumer>
  readonly #groups: ReadonlyMap<string, readonly string[]>
  readonly #byKey = new Map<string, KeyAuthCredential>()
  readonly #byUser = new Map<string, BasicAuthCredential>()
  readonly #nobody: Verifier

  constructor(
    entities: DirectoryEntities,
    keys: ReadonlyMap<string, KnownKey>,
    users: ReadonlyMap<string, KnownUser>,
    previous?: CompiledDirectory
  ) {
    this.keys = keys
    this.users = users
    this.#entities = entities
    const { transform, consumers, acls } = entities
    const same = (kind: 'consumers' | 'acls'): boolean =>
      previous !== undefined && previous.#entities[kind] === entities[kind]
    this.#byId = same('consumers')
      ? previous!.#byId
      : new Map(consumers.map(consumer => [consumer.id, consumer]))
    this.#byUsername = same('consumers') ? previous!.#byUsername : byUsername(consumers)
    this.#groups = same('acls') ? previous!.#groups : groupsOf(acls)
    for (const { credential, digest } of keys.values()) claim(this.#byKey, digest, credential)
    for (const { credential, former } of keys.values()) {
      if (former !== undefined) claim(this.#byKey, former, credential)
    }
    for (const { credential } of users.values()) {
      claim(this.#byUser, credential.username.reveal(), credential)
    }
    for (const { credential } of users.values()) {
      const former = credential.username.revealPrevious()
      if (former !== undefined) claim(this.#byUser, former, credential)
    }
    this.#nobody = transform ? NOBODY.plain : NOBODY.hashed
  }

  consumer(idOrUsername: string): Consumer | undefined {
    return this.#byId.get(idOrUsername) ?? this.#byUsername.get(idOrUsername)
  }

  keyAuth(key: string): KeyAuthCredential | undefined {
    return this.#byKey.get(digest(key))
  }

  basicAuth(username: string): BasicAuthCredential | undefined {
    return this.#byUser.get(username)
  }

  passwordHolds(
    credential: BasicAuthCredential | undefined,
    username: string,
    password: string
  ): boolean {
    const known = credential === undefined ? undefined : this.users.get(credential.id)?.verifier
    const holds = verify(known ?? this.#nobody, username, password)
    return holds && known !== undefined
  }

  credential(id: string): Credential | undefined {
    return (this.users.get(id) ?? this.keys.get(id))?.credential
  }

  groups(consumerId: string): readonly string[] {
    return this.#groups.get(consumerId) ?? NO_GROUPS
  }
}

function byUsername(consumers: readonly Consumer[]): ReadonlyMap<string, Consumer> {
  const names = new Map<string, Consumer>()
  for (const consumer of consumers) {
    if (consumer.username !== undefined) claim(names, consumer.username, consumer)
  }
  return names
}

function groupsOf(acls: readonly Acl[]): ReadonlyMap<string, readonly string[]> {
  const groups = new Map<string, string[]>()
  for (const { consumer, group } of acls) {
    const list = groups.get(consumer.id)
    if (list === undefined) groups.set(consumer.id, [group])
    else list.push(group)
  }
  return groups
}

function claim<T>(index: Map<string, T>, name: string, owner: T): void {
  if (!index.has(name)) index.set(name, owner)
}

function digest(text: string): string {
  return hash('sha256', text, 'base64')
}

function verifierOf(credential: BasicAuthCredential, transform: boolean): Verifier {
  const { username, password } = credential
  const salt = credential.consumer.id
  const stored = password.reveal()
  // 40 hexadecimal digits are SHA-1, 64 are SHA-256; the two kinds may not be mixed in one rotation.
  const algorithm = transform || stored.length === 64 ? 'sha256' : 'sha1'
  const digestOf = (text: string): Buffer =>
    transform ? hash(algorithm, text + salt, 'buffer') : Buffer.from(text, 'hex')
  const now = digestOf(stored)
  const previous = password.revealPrevious()
  const before = previous === undefined ? undefined : digestOf(previous)
  const former = before?.length === now.length ? before : undefined
  // A former password holds with the current name only if the name was that when the password changed,
  // and a former name with the current password likewise: halves that never met are no pair.
  const withFormer = username.since < password.since ? former : undefined
  const stillCurrent = password.since < username.since ? now : undefined
  const nothing = Buffer.alloc(now.length)
  return {
    algorithm,
    salt,
    username: username.reveal(),
    current: [now, withFormer ?? now],
    former: [stillCurrent ?? nothing, former ?? nothing]
  }
}

function verifierOfNobody(algorithm: Verifier['algorithm']): Verifier {
  const unmatched = Buffer.alloc(algorithm === 'sha1' ? 20 : 32)
  const none = [unmatched, unmatched] as const
  return { algorithm, salt: '', username: '', current: none, former: none }
}

/** Constant-time. A stored text that is no digest of its algorithm matches nothing. */
function verify(verifier: Verifier, username: string, password: string): boolean {
  const { algorithm, salt, current, former } = verifier
  const given = hash(algorithm, password + salt, 'buffer')
  const [one, other] = username === verifier.username ? current : former
  if (given.length !== one.length) return false
  const holds = timingSafeEqual(given, one)
  return timingSafeEqual(given, other) || holds
}
