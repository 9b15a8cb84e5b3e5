import { hash } from 'node:crypto'
import { SecretMalformed, VaultUnreachable } from '../../errors.ts'
import type { Backend, BackendType, Fetched } from '../backend.ts'
import { ConjurClient, jsonOf } from './conjur/client.ts'
import { conjurSchema, protectedFields, settingsOf } from './conjur/settings.ts'
import { textOf } from './payload.ts'

/** Variables of one request: their ids stand in its URL. */
const BATCH = 50
/** Variables listed at a time, and at most in all. */
const PAGE = 500
const MAX_VARIABLES = 10_000
/** How Conjur refuses a page larger than its operator allows. */
const PAGE_TOO_LARGE = 422

/** A variable and its newest version; undefined while it was given no value. */
interface Variable {
  /** Without account and kind: `BotApp/db-password`. */
  readonly id: string
  readonly version: string | undefined
}

/**
 * Secrets from Conjur (CyberArk Secrets Manager). A resource is a variable, or a policy: then its
 * variables are the members, read together, so that user and password of one policy never mix.
 */
export const conjurBackend: BackendType = {
  name: 'conjur',
  schema: conjurSchema,
  protectedFields,
  open(config, environment) {
    const settings = settingsOf(config)
    return new ConjurVault(new ConjurClient(settings, environment.env), settings.account)
  }
}

class ConjurVault implements Backend {
  readonly #client: ConjurClient
  readonly #account: string
  #page = PAGE

  constructor(client: ConjurClient, account: string) {
    this.#client = client
    this.#account = account
  }

  async fetch(
    resource: string,
    version: string | undefined,
    signal: AbortSignal
  ): Promise<Fetched | undefined> {
    const variable = await this.#variable(resource, signal)
    if (variable !== undefined) {
      return version === undefined
        ? this.#current(variable, signal)
        : this.#pinned(variable, version, signal)
    }
    const members = await this.#membersOf(resource, signal)
    if (members.length === 0) return undefined
    if (version !== undefined) throw new SecretMalformed(resource, 'a policy has no versions')
    return this.#policy(resource, members, signal)
  }

  async probe(
    resource: string,
    version: string | undefined,
    signal: AbortSignal
  ): Promise<string | undefined> {
    const variable = await this.#variable(resource, signal)
    if (variable !== undefined) return version ?? variable.version
    const members = await this.#membersOf(resource, signal)
    return members.length === 0 ? undefined : versionOf(members)
  }

  health(): { readonly tokenExpiresAt?: number } {
    const { tokenExpiresAt } = this.#client
    return tokenExpiresAt === undefined ? {} : { tokenExpiresAt }
  }

  close(): void {
    this.#client.close()
  }

  async #current(variable: Variable, signal: AbortSignal): Promise<Fetched | undefined> {
    if (variable.version === undefined) return undefined
    const values = await this.#values([variable.id], variable.id, signal)
    const value = values?.get(variable.id)
    return value === undefined ? undefined : { value, version: variable.version }
  }

  async #pinned(
    { id }: Variable,
    version: string,
    signal: AbortSignal
  ): Promise<Fetched | undefined> {
    const path = `/secrets/${this.#name(id)}?version=${encodeURIComponent(version)}`
    const answer = await this.#client.get(path, id, signal)
    if (answer === undefined) return undefined
    // What was no UTF-8 came out as the replacement character.
    if (answer.body.includes('\uFFFD')) throw new SecretMalformed(id, 'its bytes are no UTF-8 text')
    return { value: answer.body, version }
  }

  async #policy(
    policy: string,
    members: readonly Variable[],
    signal: AbortSignal
  ): Promise<Fetched | undefined> {
    const value: Record<string, string> = Object.create(null)
    for (let from = 0; from < members.length; from += BATCH) {
      const ids = members.slice(from, from + BATCH).map(({ id }) => id)
      const values = await this.#values(ids, policy, signal)
      if (values === undefined) throw new VaultUnreachable(policy, 'it changed while it was read')
      for (const [id, text] of values) value[id.slice(policy.length + 1)] = text
    }
    const version = versionOf(members)
    // Several requests are no snapshot by themselves: they are one if nothing changed meanwhile.
    if (members.length > BATCH && versionOf(await this.#membersOf(policy, signal)) !== version) {
      throw new VaultUnreachable(policy, 'it changed while it was read')
    }
    return { value: { ...value }, version }
  }

  /** Values by id, read at once; undefined when one of them is gone. */
  async #values(
    ids: readonly string[],
    resource: string,
    signal: AbortSignal
  ): Promise<ReadonlyMap<string, string> | undefined> {
    const names = ids.map(id => encodeURIComponent(`${this.#account}:variable:${id}`)).join(',')
    const answer = await this.#client.get(`/secrets?variable_ids=${names}`, resource, signal, {
      'accept-encoding': 'base64'
    })
    if (answer === undefined) return undefined
    const found = jsonOf(answer, resource) as Readonly<Record<string, unknown>>
    const values = new Map<string, string>()
    for (const id of ids) {
      const encoded = found[`${this.#account}:variable:${id}`]
      if (typeof encoded !== 'string') {
        throw new SecretMalformed(resource, 'the answer lacks a variable that was asked for')
      }
      values.set(id, textOf(Buffer.from(encoded, 'base64'), id))
    }
    return values
  }

  /** What is known of the variable with this id; undefined when there is none. */
  async #variable(id: string, signal: AbortSignal): Promise<Variable | undefined> {
    const answer = await this.#client.get(`/resources/${this.#name(id)}`, id, signal)
    return answer && this.#describe(jsonOf(answer, id), id)
  }

  /** The variables below a policy that hold a value, by id. */
  async #membersOf(policy: string, signal: AbortSignal): Promise<readonly Variable[]> {
    const members: Variable[] = []
    for (let offset = 0; offset < MAX_VARIABLES; ) {
      const limit = this.#page
      const path = `/resources/${encodeURIComponent(this.#account)}/variable?limit=${limit}&offset=${offset}`
      const answer = await this.#client.get(
        path,
        policy,
        signal,
        {},
        limit > 1 ? PAGE_TOO_LARGE : undefined
      )
      if (answer === undefined) break
      if (answer.status === PAGE_TOO_LARGE) {
        this.#page = Math.ceil(limit / 5)
        continue
      }
      const listed = jsonOf(answer, policy)
      if (!Array.isArray(listed)) throw new SecretMalformed(policy, 'the answer is no list')
      for (const each of listed) {
        const variable = this.#describe(each, policy)
        if (variable.id.startsWith(`${policy}/`) && variable.version !== undefined) {
          members.push(variable)
        }
      }
      if (listed.length < limit) break
      offset += limit
    }
    return members.sort((a, b) => (a.id < b.id ? -1 : 1))
  }

  #describe(resource: unknown, asked: string): Variable {
    const { id, secrets } = (resource ?? {}) as {
      readonly id?: unknown
      readonly secrets?: readonly { readonly version?: unknown }[]
    }
    const prefix = `${this.#account}:variable:`
    if (typeof id !== 'string' || !id.startsWith(prefix)) {
      throw new SecretMalformed(asked, 'the answer describes no variable')
    }
    const versions = (Array.isArray(secrets) ? secrets : []).map(({ version }) => Number(version))
    const newest = Math.max(...versions)
    return {
      id: id.slice(prefix.length),
      version: Number.isSafeInteger(newest) ? String(newest) : undefined
    }
  }

  #name(id: string): string {
    return `${encodeURIComponent(this.#account)}/variable/${encodeURIComponent(id)}`
  }
}

/** One version for all: it changes when a variable of the policy comes, goes or changes. */
function versionOf(members: readonly Variable[]): string {
  return hash('sha256', members.map(({ id, version }) => `${id} ${version}`).join('\n')).slice(
    0,
    16
  )
}
