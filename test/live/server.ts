import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { accessSync, constants, globSync } from 'node:fs'
import { delimiter, join } from 'node:path'
import { until } from '../harness.ts'

/** Where `.ci/live-servers` puts what it installs. */
const installed = join(import.meta.dirname, '../../.live')
const folders = [
  ...['python/bin', 'bin'].map(folder => join(installed, folder)),
  ...(process.env.PATH ?? '').split(delimiter),
  // Debian keeps the programs of its database servers out of PATH.
  ...globSync('/usr/lib/postgresql/*/bin')
]

/** Variables that name a server's path where no registry gives it. */
const VARIABLES: Readonly<Record<string, string>> = {
  'server-rest': 'POSTERN_TEST_GCP_EMULATOR',
  'lowkey-vault-app.jar': 'POSTERN_TEST_LOWKEY_VAULT'
}

/** The path of a server's executable or archive; undefined where it is not installed. */
export function findServer(name: string): string | undefined {
  const named = process.env[VARIABLES[name] ?? '']
  const paths = folders.map(folder => join(folder, name))
  for (const path of named === undefined || named === '' ? paths : [named]) {
    try {
      accessSync(path, name.endsWith('.jar') ? constants.R_OK : constants.X_OK)
      return path
    } catch {}
  }
  return undefined
}

/** A reason to skip where one of these is not installed, else false: `{ skip: missing('bao') }`. */
export function missing(...names: readonly string[]): string | false {
  const absent = names.filter(name => findServer(name) === undefined)
  const variables = absent.flatMap(name => VARIABLES[name] ?? [])
  const or = variables.length === 0 ? '' : `, or ${variables.join(', ')} names its path`
  return absent.length > 0 && `${absent.join(', ')} not found; .ci/live-servers installs it${or}`
}

/** A real server that runs for a test. */
export interface LiveServer {
  /** Ends the process at once, as a crash would, and waits until it is gone. */
  kill(): Promise<void>
  [Symbol.asyncDispose](): Promise<void>
}

export interface LiveServerOptions {
  /** A name {@link findServer} finds, or a path. */
  readonly command: string
  readonly args: readonly string[]
  /** Added to the environment of this process. */
  readonly env?: Readonly<Record<string, string>>
  readonly cwd?: string
  readonly uid?: number
  /** Whether it serves; asked until it does, and what it throws means not yet. */
  readonly ready: () => Promise<boolean>
}

/** Starts a server and waits until it serves; rejects with what it printed when it ends before. */
export async function startServer(options: LiveServerOptions): Promise<LiveServer> {
  const { command, args, env, ready, ...rest } = options
  const child = spawn(findServer(command) ?? command, args, {
    ...rest,
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'pipe']
  })
  let printed = ''
  const keep = (chunk: Buffer): void => {
    printed = (printed + chunk.toString()).slice(-4000)
  }
  child.stdout.on('data', keep)
  child.stderr.on('data', keep)
  child.on('error', error => keep(Buffer.from(error.message)))
  const atExit = () => child.kill('SIGKILL')
  process.on('exit', atExit)
  const kill = async () => {
    await end(child)
    process.off('exit', atExit)
  }
  try {
    await until(
      async () => {
        if (child.exitCode !== null || child.pid === undefined) throw new Error(printed)
        return ready().catch(() => false)
      },
      `${command} serves`,
      60_000
    )
  } catch (error) {
    await kill()
    throw new Error(`${command} did not start: ${printed}`, { cause: error })
  }
  return { kill, [Symbol.asyncDispose]: kill }
}

async function end(child: ChildProcess): Promise<void> {
  if (child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return
  child.kill('SIGKILL')
  await once(child, 'exit')
}
