import { unwatchFile, watchFile } from 'node:fs'
import { open, realpath } from 'node:fs/promises'
import { join, sep } from 'node:path'
import * as Type from 'typebox'
import { SecretAbsent, SecretMalformed, VaultDenied, VaultUnreachable } from '../../errors.ts'
import type { Backend, BackendType, Fetched } from '../backend.ts'
import { textOf } from './payload.ts'

/** Bytes of a secret at most: a larger file is something else. */
const MAX_SIZE = 1024 * 1024
/** Milliseconds between looks at a watched file. */
const WATCH_INTERVAL = 400

const ABSENT = new Set(['ENOENT', 'ENOTDIR', 'ELOOP', 'ENAMETOOLONG'])
const DENIED = new Set(['EACCES', 'EPERM'])

/**
 * Secrets from files below a root: Docker and Kubernetes secret mounts, systemd credentials. One
 * newline at a file's end is not part of the secret. Nothing outside the root is ever read, whatever
 * a resource or a symbolic link says; links that stay inside (Kubernetes `..data`) are followed. A
 * file that is replaced, swapped or rewritten is noticed within a second.
 */
export const fsBackend: BackendType = {
  name: 'fs',
  schema: Type.Object(
    { prefix: Type.String({ minLength: 1, description: 'The root: a directory.' }) },
    { additionalProperties: false }
  ),
  // Overriding the root would let a reference read any file.
  protectedFields: ['prefix'],
  local: true,
  open(config): Backend {
    const root = config.prefix as string
    /** What was read last of each resource. */
    const seen = new Map<string, string | undefined>()
    return {
      async fetch(resource, _version, signal) {
        signal.throwIfAborted()
        const fetched = await readSecret(root, resource)
        seen.set(resource, fetched?.version)
        if (fetched === undefined)
          throw new SecretAbsent(`${join(root, resource)} (there is no such file)`)
        return fetched
      },
      watch(resource, changed) {
        if (!isInside(resource)) return () => {}
        const path = join(root, resource)
        const listener = (): void => changed()
        watchFile(path, { interval: WATCH_INTERVAL, persistent: false }, listener)
        // The watch compares with what it found at first, which may be newer than what was read.
        const first = setTimeout(async () => {
          const now = await readSecret(root, resource).catch(() => undefined)
          if (now?.version !== seen.get(resource)) changed()
        }, WATCH_INTERVAL).unref()
        return () => {
          clearTimeout(first)
          unwatchFile(path, listener)
        }
      }
    }
  }
}

function isInside(resource: string): boolean {
  return !resource.includes('\0') && !resource.split(/[/\\]/).includes('..')
}

async function readSecret(root: string, resource: string): Promise<Fetched | undefined> {
  if (!isInside(resource)) throw new VaultDenied(resource, 'it lies outside the root of the vault')
  try {
    const realRoot = await realpath(root)
    const path = await realpath(join(realRoot, resource))
    if (!path.startsWith(realRoot.endsWith(sep) ? realRoot : realRoot + sep)) {
      throw new VaultDenied(resource, 'it lies outside the root of the vault')
    }
    return await readWhole(path, resource)
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException
    if (code?.startsWith('POSTERN_')) throw error
    if (ABSENT.has(code ?? '')) return undefined
    if (DENIED.has(code ?? ''))
      throw new VaultDenied(resource, `the file may not be read (${code})`)
    throw new VaultUnreachable(resource, code ?? message)
  }
}

async function readWhole(path: string, resource: string): Promise<Fetched> {
  await using file = await open(path, 'r')
  const stat = await file.stat({ bigint: true })
  if (!stat.isFile()) throw new SecretMalformed(resource, 'it is no regular file')
  if (stat.size > MAX_SIZE)
    throw new SecretMalformed(resource, `it is larger than ${MAX_SIZE} bytes`)
  const text = textOf(await file.readFile(), resource)
  const value = text.endsWith('\r\n')
    ? text.slice(0, -2)
    : text.endsWith('\n')
      ? text.slice(0, -1)
      : text
  // Tells versions apart without telling anything of the value.
  return { value, version: `${stat.ino}-${stat.mtimeNs}` }
}
