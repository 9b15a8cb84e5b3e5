import type { Entities, ReferenceUse } from './config.ts'
import { PluginSetupFailed } from './errors.ts'
import { type Generation, missingReason, resolvable, resolveTemplate } from './generation.ts'
import { Chains } from './plugins/chain.ts'
import { createDirectory } from './plugins/directory.ts'
import { Instance, type InstanceEnvironment } from './plugins/instance.ts'
import type { Directory, Plugin } from './plugins/plugin.ts'
import type { Serving } from './proxy/handler.ts'
import { compileRouter, type Router } from './proxy/router.ts'
import { type CertificateStore, type ContextPolicy, compileCertificates } from './proxy/tls.ts'
import { type UpstreamEnvironment, Upstreams } from './proxy/upstream.ts'
import {
  BasicAuthCredentialSchema,
  CaCertificateSchema,
  type Certificate,
  CertificateSchema,
  KeyAuthCredentialSchema,
  type PluginEntity
} from './schema/entities.ts'
import { resolveFields } from './schema/referenceable.ts'

export interface SnapshotEnvironment {
  readonly plugins: readonly Plugin[]
  readonly instances: InstanceEnvironment
  readonly upstreams: UpstreamEnvironment
  /** What TLS with clients is held to, but for the authorities of their certificates. */
  readonly tlsPolicy: ContextPolicy
}

/**
 * Everything compiled from one generation, immutable. Requests pin it; parts that a later one did
 * not change are shared with it, and each part closes after the last snapshot that holds it.
 */
export class Snapshot implements Serving {
  readonly generation: Generation
  readonly router: Router
  readonly chains: Chains
  readonly upstreams: Upstreams
  readonly directory: Directory
  readonly certificates: CertificateStore
  #pins = 1

  constructor(
    generation: Generation,
    parts: Pick<Snapshot, 'router' | 'chains' | 'upstreams' | 'directory' | 'certificates'>
  ) {
    this.generation = generation
    this.router = parts.router
    this.chains = parts.chains
    this.upstreams = parts.upstreams
    this.directory = parts.directory
    this.certificates = parts.certificates
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

/**
 * Compiles a generation. With `previous` and `changed` (references with a new state, the
 * configuration being the same) only what those references or other TLS settings touch is built
 * anew. Rejects when a
 * plugin's set-up refuses its configuration; nothing of `previous` is touched then.
 */
export async function buildSnapshot(
  generation: Generation,
  environment: SnapshotEnvironment,
  previous?: Snapshot,
  changed?: ReadonlySet<string>
): Promise<Snapshot> {
  const { config, tls } = generation
  const uses = Map.groupBy(config.uses, use => use.id)
  const touched = new Set<string>()
  const kinds = new Set<keyof Entities>()
  if (changed !== undefined) {
    for (const use of config.uses) {
      if (use.references.some(reference => changed.has(reference))) {
        touched.add(use.id)
        kinds.add(use.kind)
      }
    }
  }
  const fresh = previous === undefined || changed === undefined
  const created: Instance[] = []
  try {
    const instances = await buildInstances(
      generation,
      environment,
      uses,
      created,
      fresh ? undefined : previous,
      touched
    )
    const credentialsChanged =
      kinds.has('keyauth_credentials') || kinds.has('basicauth_credentials')
    const certificatesChanged = kinds.has('certificates') || kinds.has('ca_certificates')
    const resolved = (): readonly Certificate[] =>
      resolvable(
        config.certificates,
        CertificateSchema,
        uses,
        generation.secrets
      ) as readonly Certificate[]
    return new Snapshot(generation, {
      router: fresh
        ? compileRouter(
            config.routes,
            new Map(config.services.map(service => [service.id, service]))
          )
        : previous.router,
      chains: fresh || touched.size > 0 ? new Chains(instances) : previous.chains,
      upstreams:
        fresh || certificatesChanged
          ? new Upstreams(
              {
                services: config.services,
                upstreams: config.upstreams,
                targets: config.targets,
                certificates: resolved(),
                ca_certificates: resolvable(
                  config.ca_certificates,
                  CaCertificateSchema,
                  uses,
                  generation.secrets
                )
              },
              environment.upstreams
            )
          : previous.upstreams,
      directory:
        fresh || credentialsChanged
          ? createDirectory({
              transform: config.transform,
              consumers: config.consumers,
              keyauth_credentials: resolvable(
                config.keyauth_credentials,
                KeyAuthCredentialSchema,
                uses,
                generation.secrets
              ),
              basicauth_credentials: resolvable(
                config.basicauth_credentials,
                BasicAuthCredentialSchema,
                uses,
                generation.secrets
              ),
              acls: config.acls
            })
          : previous.directory,
      certificates:
        fresh || certificatesChanged || tls !== previous.generation.tls
          ? compileCertificates(resolved(), config.snis, tls, {
              ...environment.tlsPolicy,
              ...(tls.clientCa === undefined ? {} : { ca: tls.clientCa })
            })
          : previous.certificates
    })
  } catch (error) {
    for (const instance of created) {
      instance.acquire()
      await instance.release()
    }
    throw error
  }
}

async function buildInstances(
  generation: Generation,
  environment: SnapshotEnvironment,
  uses: ReadonlyMap<string, readonly ReferenceUse[]>,
  created: Instance[],
  previous: Snapshot | undefined,
  touched: ReadonlySet<string>
): Promise<readonly Instance[]> {
  const byName = new Map(environment.plugins.map(plugin => [plugin.name, plugin]))
  const standing = new Map(
    previous?.chains.instances.map(instance => [instance.scope.id, instance])
  )
  const instances: Instance[] = []
  for (const entity of generation.config.plugins) {
    if (!entity.enabled) continue
    const kept = touched.has(entity.id) ? undefined : standing.get(entity.id)
    if (kept !== undefined) {
      instances.push(kept)
      continue
    }
    const plugin = byName.get(entity.name)!
    const missing = missingReason(uses.get(entity.id), generation.secrets)
    const instance =
      missing === undefined
        ? await setUp(plugin, entity, generation, environment.instances)
        : Instance.unavailable(plugin, entity, missing, environment.instances)
    created.push(instance)
    instances.push(instance)
  }
  return instances
}

/** Rejects with POSTERN_PLUGIN_SETUP, which tells where the instance stands. */
async function setUp(
  plugin: Plugin,
  entity: PluginEntity,
  { config, secrets }: Generation,
  environment: InstanceEnvironment
): Promise<Instance> {
  const resolved = resolveFields(plugin.schema, entity.config, template =>
    resolveTemplate(template, secrets)
  )
  try {
    return await Instance.create(plugin, entity, resolved, environment)
  } catch (error) {
    const place = config.uses.find(use => use.id === entity.id)?.place
    const at = place === undefined ? '' : ` at ${place.file}:${place.line}:${place.column}`
    const name = `${plugin.name} ${entity.instance_name ?? entity.id}${at}`
    throw Object.assign(new PluginSetupFailed(name, (error as Error).message), { cause: error })
  }
}
