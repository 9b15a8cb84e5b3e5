import { hash, timingSafeEqual } from 'node:crypto'
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

/**
 * Indexes consumers and credentials for look-up while serving; built once per change. Where two
 * credentials claim one name or key the first keeps it, and a current one always wins over a former.
 * The `ttl` of a key is not counted: the file is the truth about which keys exist.
 */
export function createDirectory(entities: DirectoryEntities): Directory {
  const { transform, consumers, keyauth_credentials: keys, basicauth_credentials: users } = entities
  const byId = new Map(consumers.map(consumer => [consumer.id, consumer]))
  const byUsername = new Map<string, Consumer>()
  for (const consumer of consumers) {
    if (consumer.username !== undefined) claim(byUsername, consumer.username, consumer)
  }

  const byKey = new Map<string, KeyAuthCredential>()
  for (const credential of keys) claim(byKey, digest(credential.key.reveal()), credential)
  for (const credential of keys) {
    const previous = credential.key.revealPrevious()
    if (previous !== undefined) claim(byKey, digest(previous), credential)
  }

  const byUser = new Map<string, BasicAuthCredential>()
  const verifiers = new Map<string, Verifier>()
  for (const credential of users) {
    claim(byUser, credential.username.reveal(), credential)
    verifiers.set(credential.id, verifierOf(credential, transform))
  }
  for (const credential of users) {
    const previous = credential.username.revealPrevious()
    if (previous !== undefined) claim(byUser, previous, credential)
  }

  const credentials = new Map<string, Credential>(
    [...keys, ...users].map(credential => [credential.id, credential])
  )
  const groups = new Map<string, string[]>()
  for (const { consumer, group } of entities.acls) {
    const list = groups.get(consumer.id)
    if (list === undefined) groups.set(consumer.id, [group])
    else list.push(group)
  }
  const nobody = transform ? NOBODY.plain : NOBODY.hashed

  return {
    consumer: idOrUsername => byId.get(idOrUsername) ?? byUsername.get(idOrUsername),
    keyAuth: key => byKey.get(digest(key)),
    basicAuth: username => byUser.get(username),
    passwordHolds(credential, username, password) {
      const known = credential === undefined ? undefined : verifiers.get(credential.id)
      const holds = verify(known ?? nobody, username, password)
      return holds && known !== undefined
    },
    credential: id => credentials.get(id),
    groups: consumerId => groups.get(consumerId) ?? NO_GROUPS
  }
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
