import { randomUUID } from 'node:crypto'
import { authMethod, TokenAuth } from './auth.ts'
import { type Body, type Call, type Engine, NO_CONTENT, Refusal, type Reply } from './call.ts'
import { Database, type Leases, PlainStore, VersionedStore } from './engines.ts'
import { authOf, type TokenEntry, type Tokens } from './tokens.ts'

interface Wrapped {
  readonly reply: Reply
  readonly path: string
  readonly createdAt: Date
  readonly ttl: number
}

/** What the spaces of one server share. */
export interface Vault {
  readonly tokens: Tokens
  readonly leases: Leases
  readonly wrapped: Map<string, Wrapped>
  sealed: boolean
}

interface Rule {
  readonly path: RegExp
  readonly capabilities: readonly string[]
}

const CAPABILITY: Readonly<Record<string, string>> = { GET: 'read', DELETE: 'delete' }

/** One namespace: its mounts, auth methods and policies. */
export class Space {
  readonly name: string
  readonly #vault: Vault
  readonly #engines = new Map<string, Engine>()
  readonly #policies = new Map<string, readonly Rule[]>()

  constructor(name: string, vault: Vault) {
    this.name = name
    this.#vault = vault
    this.#engines.set('auth/token/', new TokenAuth(vault.tokens))
    this.#policies.set(
      'default',
      [
        ...['auth/token/lookup-self', 'auth/token/renew-self', 'auth/token/revoke-self'],
        'sys/leases/renew'
      ].map(path => rule(path, ['read', 'update']))
    )
    if (name === '') this.#mount('secret/', { type: 'kv', options: { version: '2' } })
  }

  /** Answers what is asked below `/v1/`. */
  async answer(call: Call): Promise<Reply> {
    if (call.path.startsWith('sys/')) return this.#system({ ...call, path: call.path.slice(4) })
    const mount = [...this.#engines.keys()]
      .filter(prefix => call.path.startsWith(prefix))
      .sort((a, b) => b.length - a.length)[0]
    if (mount === undefined) {
      // Who has no token, as at a login, does not learn what is mounted.
      if (call.token === undefined) throw new Refusal(403, 'permission denied')
      throw new Refusal(404, `no handler for route "${call.path}". route entry not found.`)
    }
    return this.#engines.get(mount)!.handle({ ...call, path: call.path.slice(mount.length) })
  }

  /** Whether the policies of a token allow a call. */
  allows(token: TokenEntry, method: string, path: string): boolean {
    if (token.policies.includes('root')) return true
    const wanted = CAPABILITY[method] ?? 'update'
    return token.policies
      .flatMap(policy => this.#policies.get(policy) ?? [])
      .some(rule => rule.path.test(path) && rule.capabilities.includes(wanted))
  }

  #mount(prefix: string, { type, options }: Body): void {
    const engine =
      type === 'database'
        ? new Database(prefix, this.#vault.leases)
        : type === 'kv' && String(options?.version ?? 1) === '2'
          ? new VersionedStore()
          : new PlainStore()
    this.#engines.set(prefix, engine)
  }

  #system({ method, path, body, token }: Call): Reply {
    const [kind, ...rest] = path.split('/')
    const name = rest.join('/')
    switch (kind) {
      case 'mounts':
        this.#mount(`${name}/`, body)
        return NO_CONTENT
      case 'auth':
        this.#engines.set(
          `auth/${name}/`,
          authMethod(body.type, terms => this.#grant(terms))
        )
        return NO_CONTENT
      case 'policies':
        this.#policies.set(rest[1]!, rulesOf(body.policy))
        return NO_CONTENT
      case 'seal':
        this.#vault.sealed = true
        return NO_CONTENT
      case 'leases':
        if (name === 'renew') {
          return {
            lease_id: body.lease_id,
            lease_duration: this.#vault.leases.renew(body.lease_id, body.increment),
            renewable: true,
            data: null
          }
        }
        if (name.startsWith('revoke-prefix/auth/')) this.#vault.tokens.revokeAll()
        else this.#vault.leases.revoke(body.lease_id)
        return NO_CONTENT
      case 'internal':
        return { data: { auth: {}, secret: {} } }
      case 'wrapping':
        return this.#unwrap(name, body.token ?? token?.id)
      default:
        throw new Refusal(405, `unsupported operation ${method}`)
    }
  }

  #grant(terms: object): Reply {
    const entry = this.#vault.tokens.create({ ...terms, path: 'auth/login' }, this.name)
    return { auth: authOf(entry) }
  }

  #unwrap(operation: string, token: string): Reply {
    const wrapped = this.#vault.wrapped.get(token)
    if (wrapped === undefined || Date.now() > wrapped.createdAt.getTime() + wrapped.ttl * 1000) {
      throw new Refusal(400, 'wrapping token is not valid or does not exist')
    }
    if (operation === 'unwrap') {
      this.#vault.wrapped.delete(token)
      return wrapped.reply
    }
    return {
      data: {
        creation_path: wrapped.path,
        creation_time: wrapped.createdAt.toISOString(),
        creation_ttl: wrapped.ttl
      }
    }
  }

  /** The answer under a token that gives it once. */
  wrap(reply: Reply, path: string, ttl: number): object {
    const token = `s.${randomUUID().replaceAll('-', '').slice(0, 24)}`
    const createdAt = new Date()
    this.#vault.wrapped.set(token, { reply, path, createdAt, ttl })
    return { token, ttl, creation_time: createdAt.toISOString(), creation_path: path }
  }
}

function rule(path: string, capabilities: readonly string[]): Rule {
  const source = path
    .replace(/[.?^$()|[\]{}]/g, '\\$&')
    .replaceAll('+', '[^/]+')
    .replace(/\*$/, '.*')
  return { path: new RegExp(`^${source}$`), capabilities }
}

/** Reads the part of HCL that policies use. */
function rulesOf(policy: string): readonly Rule[] {
  return [...policy.matchAll(/path\s+"([^"]+)"\s*\{\s*capabilities\s*=\s*\[([^\]]*)\]/g)].map(
    ([, path, list]) =>
      rule(
        path!,
        [...list!.matchAll(/"([a-z]+)"/g)].map(([, name]) => name!)
      )
  )
}
