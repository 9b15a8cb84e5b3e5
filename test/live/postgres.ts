import { execFileSync } from 'node:child_process'
import { chownSync, mkdtempSync, realpathSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { freePort } from '../ports.ts'
import { findServer, type LiveServer, startServer } from './server.ts'

const PASSWORD = 'postern'

/** A real PostgreSQL with one superuser, `postgres`. */
export interface Postgres extends LiveServer {
  readonly port: number
  readonly password: string
}

/** Starts one on a free port and a temporary folder; as the system's `postgres` user under root. */
export async function startPostgres(): Promise<Postgres> {
  const programs = dirname(realpathSync(findServer('initdb')!))
  const directory = mkdtempSync(join(tmpdir(), 'postern-postgres-'))
  const owner = ownerOf(directory)
  const passwordFile = join(directory, 'password')
  writeFileSync(passwordFile, PASSWORD)
  execFileSync(
    join(programs, 'initdb'),
    [
      '-D',
      join(directory, 'data'),
      '-U',
      'postgres',
      '-A',
      'scram-sha-256',
      '--pwfile',
      passwordFile
    ],
    { ...owner, cwd: directory, stdio: ['ignore', 'ignore', 'pipe'] }
  )
  const port = await freePort()
  const server = await startServer({
    command: join(programs, 'postgres'),
    args: ['-D', join(directory, 'data'), '-p', String(port), '-k', directory, '-c', 'fsync=off'],
    ...owner,
    cwd: directory,
    ready: async () => {
      execFileSync(join(programs, 'pg_isready'), ['-h', '127.0.0.1', '-p', String(port)], {
        stdio: 'ignore'
      })
      return true
    }
  })
  return {
    port,
    password: PASSWORD,
    kill: server.kill,
    async [Symbol.asyncDispose]() {
      await server.kill()
      rmSync(directory, { recursive: true, force: true })
    }
  }
}

/** PostgreSQL refuses to run as root. */
function ownerOf(directory: string): { readonly uid?: number } {
  if (process.getuid?.() !== 0) return {}
  const uid = Number(execFileSync('id', ['-u', 'postgres']).toString())
  chownSync(directory, uid, 0)
  return { uid }
}
