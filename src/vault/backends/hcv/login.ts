import { readFile } from 'node:fs/promises'
import { VaultUnreachable } from '../../../errors.ts'
import type { BackendEnvironment } from '../../backend.ts'
import type { Answer, VaultClient } from './client.ts'
import { type HcvSettings, type SettingName, trimSlashes } from './settings.ts'

/** What a login method works with. */
export interface LoginContext {
  readonly settings: HcvSettings
  readonly env: BackendEnvironment['env']
  readonly client: VaultClient
  readonly signal: AbortSignal
}

/** The request that logs in: `path` below `/v1/`. */
export interface LoginRequest {
  readonly path: string
  readonly body: object
}

/** Makes the request of one login; may hold what outlives it (an unwrapped secret id). */
export type LoginMethod = (context: LoginContext) => LoginRequest | Promise<LoginRequest>

/** How a vault is logged into. */
export interface Login {
  readonly method: string
  /** Whether a token that has ended can be followed by another. */
  readonly repeatable: boolean
  /** Whether the token is the gateway's own, to be given back. */
  readonly revocable: boolean
  /** Gives an answer with `auth`. Rejects with what `classify` understands. */
  perform(client: VaultClient, signal: AbortSignal): Promise<Answer>
}

/** The path that logs in of an auth method mounted at `mount`. */
export function authPath(mount: string): string {
  return `auth/${trimSlashes(mount)}/login`
}

/** A full path such as `/v1/auth/aws/login` as a call takes it. */
export function loginPath(full: string): string {
  return trimSlashes(full).replace(/^v1\//, '')
}

/** A file's text without white space around it. Throws VaultUnreachable naming file and setting. */
export async function textOfFile(path: string, setting: SettingName): Promise<string> {
  try {
    return (await readFile(path, 'utf8')).trim()
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    throw new VaultUnreachable('a login', `${path} (${setting}) cannot be read: ${code}`)
  }
}
