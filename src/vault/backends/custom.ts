import { createRequire } from 'node:module'
import { join, resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import { SecretMalformed, VaultMisconfigured } from '../../errors.ts'
import type { Backend, BackendType, Fetched } from '../backend.ts'

/** A module of POSTERN_VAULT_BACKENDS that cannot be used, and what to do about it. */
export class UnusableBackend extends Error {
  readonly fix: string

  constructor(message: string, fix: string) {
    super(message)
    this.name = 'UnusableBackend'
    this.fix = fix
  }
}

/** Milliseconds a module may take to load: its top level can wait for something that never comes. */
const PATIENCE = 10_000
const NAME = /^[a-z][a-z0-9-]*$/

/**
 * Types of vaults from modules: each names a file, from the working directory, or a package. Its
 * default export is one type or a list. Throws UnusableBackend; `known` are the names taken.
 */
export async function loadBackends(
  modules: readonly string[],
  known: readonly string[],
  patience = PATIENCE
): Promise<readonly BackendType[]> {
  const types: BackendType[] = []
  for (const name of modules) {
    for (const type of [(await load(name, patience)) as BackendType].flat()) {
      check(name, type)
      if ([...known, ...types.map(each => each.name)].includes(type.name)) {
        throw new UnusableBackend(
          `${name}: there is a type of vault "${type.name}" already`,
          'Give it another name.'
        )
      }
      types.push(guarded(type))
    }
  }
  return types
}

async function load(name: string, patience: number): Promise<unknown> {
  const late = Promise.withResolvers<never>()
  const timer = setTimeout(() => {
    const message = `${name}: the module was not loaded within ${patience / 1000} s`
    late.reject(new UnusableBackend(message, 'Let its top level wait for nothing; open may.'))
  }, patience)
  try {
    const { default: loaded } = await Promise.race([import(locate(name)), late.promise])
    return loaded
  } catch (error) {
    if (error instanceof UnusableBackend) throw error
    const { code, message } = errorOf(error) as NodeJS.ErrnoException
    throw new UnusableBackend(
      `${name}: the module cannot be loaded (${code ?? message.split('\n')[0]})`,
      'Name an ES module by its path, or a package that is installed.'
    )
  } finally {
    clearTimeout(timer)
  }
}

/** Whatever was thrown, as an error. */
function errorOf(thrown: unknown): Error {
  return thrown instanceof Error ? thrown : new Error(String(thrown))
}

/**
 * The type with what its vaults give checked: they are written without a compiler at times, and what
 * the rest of the gateway would stumble over would not say whose it is.
 */
function guarded(type: BackendType): BackendType {
  const { name, schema, protectedFields, local } = type
  return {
    name,
    schema,
    protectedFields,
    ...(local === undefined ? {} : { local }),
    ...(type.load === undefined ? {} : { load: config => type.load!(config) }),
    async open(config, environment) {
      let backend: Backend | undefined
      try {
        backend = await type.open(config, environment)
      } catch (error) {
        throw errorOf(error)
      }
      if (typeof backend?.fetch === 'function') return guardedVault(backend)
      throw new VaultMisconfigured(
        `open of the module's type "${name}" gave nothing with a fetch`,
        'Correct the module'
      )
    }
  }
}

// Members are called on what the module gave: it may be of a class with private fields.
function guardedVault(backend: Backend): Backend {
  return {
    async fetch(resource, version, signal) {
      try {
        return fetchedOf(await backend.fetch(resource, version, signal), resource)
      } catch (error) {
        throw errorOf(error)
      }
    },
    ...(backend.probe === undefined ? {} : { probe: (...what) => backend.probe!(...what) }),
    ...(backend.watch === undefined ? {} : { watch: (...what) => backend.watch!(...what) }),
    ...(backend.health === undefined ? {} : { health: () => backend.health!() }),
    ...(backend.close === undefined ? {} : { close: () => backend.close!() })
  }
}

/** Null is as good as undefined, and a version may be a number; all else is what it should be. */
function fetchedOf(given: unknown, resource: string): Fetched | undefined {
  if (given === undefined || given === null) return undefined
  const { value, version, ttl } = given as Partial<Fetched>
  const fits =
    (typeof value === 'string' || (typeof value === 'object' && value !== null)) &&
    (ttl === undefined || (Number.isFinite(ttl) && ttl >= 0))
  if (!fits) {
    const needed = '{ value, version, ttl } with a text or an object as value, and seconds as ttl'
    throw new SecretMalformed(resource, `the module did not give ${needed}`)
  }
  return version === undefined || typeof version === 'string'
    ? (given as Fetched)
    : { ...(given as Fetched), version: String(version) }
}

function locate(name: string): string {
  if (/^(\.{0,2}\/|[A-Za-z]:[\\/])/.test(name)) return pathToFileURL(resolve(name)).href
  return pathToFileURL(createRequire(join(process.cwd(), 'package.json')).resolve(name)).href
}

function check(name: string, type: Partial<BackendType> | undefined): void {
  const lacking =
    typeof type?.name !== 'string' || !NAME.test(type.name)
      ? 'name (lower case letters, digits and dashes)'
      : typeof type.schema !== 'object'
        ? 'schema'
        : !Array.isArray(type.protectedFields)
          ? 'protectedFields'
          : typeof type.open !== 'function'
            ? 'open'
            : undefined
  if (lacking === undefined) return
  throw new UnusableBackend(
    `${name}: its default export is no type of vault, it lacks ${lacking}`,
    'Export what defineBackend gives; docs/vaults.md shows how.'
  )
}
