import { createRequire } from 'node:module'
import { join, resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import type { BackendType } from '../backend.ts'

/** A module of POSTERN_VAULT_BACKENDS that cannot be used, and what to do about it. */
export class UnusableBackend extends Error {
  readonly fix: string

  constructor(message: string, fix: string) {
    super(message)
    this.name = 'UnusableBackend'
    this.fix = fix
  }
}

const NAME = /^[a-z][a-z0-9-]*$/

/**
 * Types of vaults from modules: each names a file, from the working directory, or a package. Its
 * default export is one type or a list. Throws UnusableBackend; `known` are the names taken.
 */
export async function loadBackends(
  modules: readonly string[],
  known: readonly string[]
): Promise<readonly BackendType[]> {
  const types: BackendType[] = []
  for (const name of modules) {
    for (const type of [(await load(name)) as BackendType].flat()) {
      check(name, type)
      if ([...known, ...types.map(each => each.name)].includes(type.name)) {
        throw new UnusableBackend(
          `${name}: there is a type of vault "${type.name}" already`,
          'Give it another name.'
        )
      }
      types.push(type)
    }
  }
  return types
}

async function load(name: string): Promise<unknown> {
  try {
    const { default: loaded } = await import(locate(name))
    return loaded
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException
    throw new UnusableBackend(
      `${name}: the module cannot be loaded (${code ?? message.split('\n')[0]})`,
      'Name an ES module by its path, or a package that is installed.'
    )
  }
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
