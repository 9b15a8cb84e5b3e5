import type { TSchema } from 'typebox'
import { PluginSetupFailed } from './errors.ts'
import {
  type Generation,
  type ListenerTls,
  MissingSecret,
  resolveEntity,
  resolveTemplate,
  type SecretLookup,
  type ServedConfig
} from './generation.ts'
import { inSlices } from './pace.ts'
import { Chains } from './plugins/chain.ts'
import { type CompiledDirectory, createDirectory } from './plugins/directory.ts'
import { Instance, type InstanceEnvironment } from './plugins/instance.ts'
import type { Plugin } from './plugins/plugin.ts'
import type { Serving } from './proxy/handler.ts'
import { unpackRoute } from './proxy/packed-routes.ts'
import { Router } from './proxy/router.ts'
import { type CertificateStore, type ContextPolicy, compileCertificates } from './proxy/tls.ts'
import { type UpstreamEnvironment, Upstreams } from './proxy/upstream.ts'
import {
  type BasicAuthCredential,
  BasicAuthCredentialSchema,
  type CaCertificate,
  CaCertificateSchema,
  type Certificate,
  CertificateSchema,
  type KeyAuthCredential,
  KeyAuthCredentialSchema,
  type PluginEntity
} from './schema/entities.ts'
import { resolveFields } from './schema/referenceable.ts'
import type { Touched } from './uses.ts'

export interface SnapshotEnvironment {
  readonly plugins: readonly Plugin[]
  readonly instances: InstanceEnvironment
  readonly upstreams: UpstreamEnvironment
  /** What TLS with clients is held to, but for the authorities of their certificates. */
  readonly tlsPolicy: ContextPolicy
}

/** Schemas of the entities besides plugins that hold references and are served from. */
const SCHEMAS = {
  keyauth_credentials: KeyAuthCredentialSchema,
  basicauth_credentials: BasicAuthCredentialSchema,
  certificates: CertificateSchema,
  ca_certificates: CaCertificateSchema
} as const satisfies Partial<Record<keyof ServedConfig, TSchema>>

/** Entities in the places they have in the configuration; undefined where a reference has no value. */
export interface ResolvedEntities {
  readonly keyauth_credentials: readonly (KeyAuthCredential | undefined)[]
  readonly basicauth_credentials: readonly (BasicAuthCredential | undefined)[]
  readonly certificates: readonly (Certificate | undefined)[]
  readonly ca_certificates: readonly (CaCertificate | undefined)[]
}

/**
 * Everything compiled from one generation, immutable. Requests pin it; parts that a later one did
 * not change are shared with it, and each part closes after the last snapshot that holds it.
 */
export class Snapshot implements Serving {
  readonly config: ServedConfig
  readonly tls: ListenerTls
  readonly router: Router
  readonly chains: Chains
  readonly upstreams: Upstreams
  readonly directory: CompiledDirectory
  readonly certificates: CertificateStore
  /** What the directory, the upstreams and the certificates are made of. */
  readonly resolved: ResolvedEntities
  #pins = 1

  constructor(
    { config, tls }: Pick<Generation, 'config' | 'tls'>,
    parts: Pick<
      Snapshot,
      'router' | 'chains' | 'upstreams' | 'directory' | 'certificates' | 'resolved'
    >
  ) {
    this.config = config
    this.tls = tls
    this.router = parts.router
    this.chains = parts.chains
    this.upstreams = parts.upstreams
    this.directory = parts.directory
    this.certificates = parts.certificates
    this.resolved = parts.resolved
    for (const instance of this.chains.instances) instance.acquire()
    this.upstreams.acquire()
  }

  acquire(): void {
    this.#pins++
  }

  release(): void {
    if (--this.#pins === 0) void this.#close()
  }

  /** Resolves when everything only this snapshot held is closed. */
  async #close(): Promise<void> {
    await Promise.allSettled([
      ...this.chains.instances.map(instance => instance.release()),
      this.upstreams.release()
    ])
    this.#closed.resolve()
  }

  readonly #closed = Promise.withResolvers<void>()

  /** Resolves once the last pin is gone and every part is released. */
  get closed(): Promise<void> {
    return this.#closed.promise
  }
}

/** What is compiled: of secrets it is enough that they can be looked up. */
type Built = Omit<Generation, 'secrets'> & { readonly secrets: SecretLookup }

/**
 * Compiles a generation. With `previous` and `touched` (entities whose references have a new state,
 * the configuration being the same) only what those or other TLS settings touch is built anew.
 * Rejects when a plugin's set-up refuses its configuration; nothing of `previous` is touched then.
 */
export async function buildSnapshot(
  generation: Built,
  environment: SnapshotEnvironment,
  previous?: Snapshot,
  touched: Touched = new Map()
): Promise<Snapshot> {
  const { config, tls } = generation
  const changed = (...kinds: readonly (keyof ServedConfig)[]): boolean =>
    previous === undefined || kinds.some(kind => touched.has(kind as never))
  const created: Instance[] = []
  try {
    const chains = changed('plugins')
      ? new Chains(
          await buildInstances(generation, environment, created, previous, touched),
          config.routing.table.count
        )
      : previous!.chains
    const resolved = await resolveEntities(generation, previous?.resolved, touched)
    const certificates = (): readonly Certificate[] => present(resolved.certificates)
    const { consumers, acls, transform } = config
    return new Snapshot(generation, {
      resolved,
      chains,
      router: previous?.router ?? routerOf(config),
      upstreams: changed('certificates', 'ca_certificates')
        ? new Upstreams(
            {
              services: config.services,
              upstreams: config.upstreams,
              targets: config.targets,
              certificates: certificates(),
              ca_certificates: present(resolved.ca_certificates)
            },
            environment.upstreams
          )
        : previous!.upstreams,
      directory: changed('keyauth_credentials', 'basicauth_credentials')
        ? await createDirectory(
            {
              transform,
              consumers,
              acls,
              keyauth_credentials: present(resolved.keyauth_credentials),
              basicauth_credentials: present(resolved.basicauth_credentials)
            },
            previous?.directory
          )
        : previous!.directory,
      certificates:
        changed('certificates', 'ca_certificates') || tls !== previous!.tls
          ? compileCertificates(certificates(), config.snis, tls, {
              ...environment.tlsPolicy,
              ...(tls.clientCa === undefined ? {} : { ca: tls.clientCa })
            })
          : previous!.certificates
    })
  } catch (error) {
    for (const instance of created) {
      instance.acquire()
      await instance.release()
    }
    throw error
  }
}

function routerOf({ routing: { table, routes }, services }: ServedConfig): Router {
  const byId = new Map(services.map(service => [service.id, service]))
  return new Router(table, place => unpackRoute(routes, place), byId)
}

function present<T>(entities: readonly (T | undefined)[]): readonly T[] {
  return entities.filter(entity => entity !== undefined)
}

/** Resolves what is touched, or everything; the rest is that of `standing`. */
async function resolveEntities(
  { config, secrets }: Built,
  standing: ResolvedEntities | undefined,
  touched: Touched
): Promise<ResolvedEntities> {
  const resolved: Record<string, readonly unknown[]> = { ...standing }
  for (const [name, schema] of Object.entries(SCHEMAS)) {
    const kind = name as keyof typeof SCHEMAS
    const places = standing === undefined ? config[kind].keys() : touched.get(kind)
    if (places === undefined) continue
    const entities: unknown[] = [...(standing?.[kind] ?? [])]
    await inSlices(places, place => {
      entities[place] = resolveEntity(schema, config[kind][place]!, secrets)
    })
    resolved[kind] = entities
  }
  return resolved as unknown as ResolvedEntities
}

async function buildInstances(
  { config, secrets }: Built,
  environment: SnapshotEnvironment,
  created: Instance[],
  previous: Snapshot | undefined,
  touched: Touched
): Promise<readonly Instance[]> {
  const byName = new Map(environment.plugins.map(plugin => [plugin.name, plugin]))
  const standing = new Map(
    previous?.chains.instances.map(instance => [instance.scope.id, instance])
  )
  const anew = new Set(touched.get('plugins'))
  const instances: Instance[] = []
  for (const [index, entity] of config.plugins.entries()) {
    if (!entity.enabled) continue
    const kept = anew.has(index) ? undefined : standing.get(entity.id)
    if (kept !== undefined) {
      instances.push(kept)
      continue
    }
    const plugin = byName.get(entity.name)!
    const at = config.places.get(entity.id)
    const instance = await setUp(plugin, entity, at, secrets, environment.instances)
    created.push(instance)
    instances.push(instance)
  }
  return instances
}

/** Rejects with POSTERN_PLUGIN_SETUP, which tells where the instance stands. */
async function setUp(
  plugin: Plugin,
  entity: PluginEntity,
  place: string | undefined,
  secrets: SecretLookup,
  environment: InstanceEnvironment
): Promise<Instance> {
  let resolved: unknown
  try {
    resolved = resolveFields(plugin.schema, entity.config, template =>
      resolveTemplate(template, secrets)
    )
  } catch (error) {
    if (!(error instanceof MissingSecret)) throw error
    return Instance.unavailable(plugin, entity, error.message, environment)
  }
  try {
    return await Instance.create(plugin, entity, resolved, environment)
  } catch (error) {
    const at = place === undefined ? '' : ` at ${place}`
    const name = `${plugin.name} ${entity.instance_name ?? entity.id}${at}`
    throw Object.assign(new PluginSetupFailed(name, (error as Error).message), { cause: error })
  }
}
