import type { Backend, BackendEnvironment } from '../../backend.ts'
import { importSigner } from './aws.ts'
import { createClient, importClient, type VaultClient } from './client.ts'
import { plainEngine, versionedEngine } from './engines.ts'
import { importGoogleAuth } from './google.ts'
import { createLogin } from './methods.ts'
import { Session } from './session.ts'
import type { HcvSettings } from './settings.ts'

/** A connection and its token, shared by the vaults that differ only in what they read. */
interface Standing {
  readonly client: VaultClient
  readonly session: Session
}

interface Shared {
  readonly standing: Promise<Standing>
  holders: number
}

const shared = new WeakMap<BackendEnvironment, Map<string, Shared>>()

/** Imports the client, and what the auth method needs. */
export function importFor(method: string): Promise<unknown> {
  return Promise.all([importClient(), imports[method]?.()])
}

const imports: Readonly<Record<string, () => Promise<unknown>>> = {
  gcp_iam: importGoogleAuth,
  aws_iam: importSigner
}

/** A vault with these settings; nothing is asked of it yet. */
export async function openVault(
  settings: HcvSettings,
  environment: BackendEnvironment
): Promise<Backend> {
  const { standing, release } = await acquire(settings, environment)
  const { client, session } = standing
  const engine = settings.kv === 'v2' ? versionedEngine : plainEngine
  return {
    ...engine(settings, client, session),
    health() {
      const { tokenExpiresAt } = session
      return tokenExpiresAt === undefined ? {} : { tokenExpiresAt }
    },
    close: release
  }
}

/** One login serves all mounts of a vault: a wrapped secret id, for one, works a single time. */
async function acquire(
  settings: HcvSettings,
  environment: BackendEnvironment
): Promise<{ readonly standing: Standing; readonly release: () => Promise<void> }> {
  const all = shared.get(environment) ?? new Map<string, Shared>()
  shared.set(environment, all)
  const identity = JSON.stringify({ ...settings, mount: undefined, kv: undefined })
  const entry = all.get(identity) ?? { standing: establish(settings, environment), holders: 0 }
  all.set(identity, entry)
  entry.holders++
  const standing = await entry.standing
  let released = false
  return {
    standing,
    async release() {
      if (released) return
      released = true
      if (--entry.holders > 0) return
      all.delete(identity)
      await standing.session.close()
    }
  }
}

async function establish(
  settings: HcvSettings,
  environment: BackendEnvironment
): Promise<Standing> {
  const client = await createClient(settings, environment)
  const login = createLogin(settings, environment)
  const address = `${settings.host}:${settings.port}`
  return { client, session: new Session(client, login, environment.log, address) }
}
