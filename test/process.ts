import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { Output } from '../src/commands/command.ts'
import { main } from '../src/commands/main.ts'
import { until } from './harness.ts'

const CLI = join(import.meta.dirname, '../src/cli.ts')

/** How a process ended and what it wrote. */
export interface Ended {
  readonly code: number | null
  readonly stdout: string
  readonly stderr: string
}

/** The environment of this process without what could set up a gateway. */
export function cleanEnvironment(env: Readonly<Record<string, string>> = {}): NodeJS.ProcessEnv {
  const others = Object.entries(process.env).filter(
    ([name]) => !/^(POSTERN|KONG)_|^(NO_COLOR|FORCE_COLOR)$/.test(name)
  )
  return { ...Object.fromEntries(others), ...env }
}

/** Runs `postern` with these words in a process of its own to its end. */
export async function posternProcess(
  words: readonly string[],
  env: Readonly<Record<string, string>> = {}
): Promise<Ended> {
  const child = spawn(process.execPath, [CLI, ...words], { env: cleanEnvironment(env) })
  const written = collect(child)
  const [code] = await once(child, 'close')
  return { code: code as number | null, ...written() }
}

/** The same in this process, which is quicker; not for `start`. */
export async function postern(
  words: readonly string[],
  env: Readonly<Record<string, string>> = {}
): Promise<Ended> {
  let stdout = ''
  let stderr = ''
  const output = new Output(
    { write: text => (stdout += text) },
    { write: text => (stderr += text) },
    false
  )
  const code = await main(words, cleanEnvironment(env), output)
  return { code, stdout, stderr }
}

/** A gateway in a process of its own. */
export interface GatewayProcess {
  readonly child: ChildProcess
  readonly url: string
  readonly statusUrl: string
  /** What it wrote so far. */
  written(): { readonly stdout: string; readonly stderr: string }
  /** The log lines so far. */
  // biome-ignore lint/suspicious/noExplicitAny: tests look into lines of any shape
  lines(): readonly any[]
  /** Sends a signal and waits for the end. */
  end(signal?: NodeJS.Signals): Promise<Ended>
  [Symbol.asyncDispose](): Promise<void>
}

/** Runs `postern start` on `file` and free ports; resolves when it serves. */
export async function startProcess(
  file: string,
  env: Readonly<Record<string, string>> = {},
  cwd = process.cwd()
): Promise<GatewayProcess> {
  const child = spawn(process.execPath, [CLI, 'start', file], {
    cwd,
    env: cleanEnvironment({
      POSTERN_PROXY_LISTEN: '127.0.0.1:0',
      POSTERN_STATUS_LISTEN: '127.0.0.1:0',
      POSTERN_WORKERS: '1',
      ...env
    })
  })
  const written = collect(child)
  const closed = once(child, 'close').then(([code]) => code as number | null)
  const lines = () =>
    written()
      .stdout.split('\n')
      // What follows the last line end may be half a line.
      .slice(0, -1)
      .filter(line => line.startsWith('{'))
      .map(line => JSON.parse(line))
  const end = async (signal: NodeJS.Signals = 'SIGTERM'): Promise<Ended> => {
    child.kill(signal)
    return { code: await closed, ...written() }
  }
  const serving = await until(
    () => {
      if (child.exitCode !== null)
        throw new Error(`it ended: ${JSON.stringify(written()).slice(-3000)}`)
      return lines().find(line => line.msg === 'serving')
    },
    'the gateway to serve',
    60_000
  )
  return {
    child,
    url: serving.listen[0],
    statusUrl: serving.status,
    written,
    lines,
    end,
    async [Symbol.asyncDispose]() {
      if (child.exitCode === null && child.signalCode === null) await end('SIGKILL')
    }
  }
}

function collect(child: ChildProcess): () => { stdout: string; stderr: string } {
  let stdout = ''
  let stderr = ''
  child.stdout!.setEncoding('utf8').on('data', chunk => {
    stdout += chunk
  })
  child.stderr!.setEncoding('utf8').on('data', chunk => {
    stderr += chunk
  })
  return () => ({ stdout, stderr })
}
