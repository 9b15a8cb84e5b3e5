import { readFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { ConfigError } from '../errors.ts'
import { renderProblems } from '../report.ts'
import type { Environment } from '../settings.ts'
import { version } from '../version.ts'
import { type Call, type Output, UsageError, withFile } from './command.ts'

const USAGE = `postern ${version}: an HTTP gateway whose configuration holds no secret

Usage
  postern start [FILE]                    serve (FILE: default config/postern.yaml)
  postern check [FILE] [--resolve] [--json]
                                          validate FILE offline; --resolve asks the vaults too
  postern diff OLD NEW [--json]           what a change of the file changes
  postern vault get REFERENCE [--reveal] [--json]
                                          look a reference up; --reveal prints the value alone
  postern vault list [--json]             every reference, where it stands and its state
  postern vault refresh [PREFIX]          make the running gateway re-read its references
  postern schema [plugin|vault NAME]      JSON Schema of a plugin or vault; names without NAME
  postern reload                          make the running gateway load its file again
  postern healthcheck                     0 when the running gateway is ready
  postern version | help

-c FILE, --config FILE stands for POSTERN_CONFIG in every command.

A fingerprint tells whether two values are the same: within one output, or everywhere under
POSTERN_FINGERPRINT_KEY. vault get shows one under that key alone.

Exit codes
  0 done   1 the configuration, a reference or the gateway is not all right   2 wrong usage
  diff: 0 equal   1 different   2 wrong usage, or a file that is not valid

Settings are environment variables, POSTERN_CONFIG and others: docs/operations.md.
`

/** Options of each command, besides those that all take. */
const OPTIONS: Readonly<Record<string, readonly string[]>> = {
  start: [],
  check: ['resolve', 'json'],
  diff: ['json'],
  'vault get': ['reveal', 'json'],
  'vault list': ['json'],
  'vault refresh': [],
  schema: [],
  reload: [],
  healthcheck: [],
  version: []
}
const COMMON_OPTIONS = ['config', 'help']

/** Runs what a command line asks for; gives the exit code, and tells what is wrong. Never rejects. */
export async function main(
  argv: readonly string[],
  env: Environment,
  output: Output
): Promise<number> {
  try {
    return await run(argv, env, output)
  } catch (error) {
    if (error instanceof UsageError) {
      output.tell(`${error.message}\n\n${USAGE}`)
      return 2
    }
    if (error instanceof ConfigError) {
      const source = (file: string): string | undefined => sourceOf(file, env)
      output.tell(renderProblems(error.problems, { color: output.tellColor, source }))
      return 1
    }
    const { code, message, stack } = error as Error & { code?: string }
    output.tell(code === undefined ? (stack ?? message) : `${message} [${code}]`)
    return 1
  }
}

// Each command loads what it needs: a health check runs every few seconds and must be light.
async function run(argv: readonly string[], env: Environment, output: Output): Promise<number> {
  const { values, positionals } = parse(argv)
  const [command = 'help', ...words] = positionals
  if (values.help || command === 'help') {
    output.out(USAGE)
    return 0
  }
  const name = command === 'vault' && words[0] !== undefined ? `vault ${words[0]}` : command
  const taken = OPTIONS[name]
  const stray = Object.keys(values).find(
    option => taken !== undefined && !taken.includes(option) && !COMMON_OPTIONS.includes(option)
  )
  if (stray !== undefined) throw new UsageError(`postern ${name} takes no --${stray}.`)
  const call: Call = { env: withFile(env, values.config), words, options: values, output }
  switch (command) {
    case 'start':
      return (await import('./start.ts')).start(call)
    case 'check':
      return (await import('./check.ts')).check(call)
    case 'diff':
      return (await import('./diff.ts')).diff(call)
    case 'vault':
      return (await import('./vault.ts')).vault(call)
    case 'schema':
      return (await import('./schema.ts')).schema(call)
    case 'reload':
      return (await import('./ask.ts')).ask(call, 'POST', '/reload')
    case 'healthcheck':
      return (await import('./ask.ts')).ask(call, 'GET', '/status/ready')
    case 'version':
      output.out(version)
      return 0
    default:
      throw new UsageError(`There is no command "${command}".`)
  }
}

function parse(argv: readonly string[]) {
  try {
    return parseArgs({
      args: [...argv],
      allowPositionals: true,
      options: {
        config: { type: 'string', short: 'c' },
        resolve: { type: 'boolean' },
        json: { type: 'boolean' },
        reveal: { type: 'boolean' },
        help: { type: 'boolean', short: 'h' }
      }
    })
  } catch (error) {
    throw new UsageError((error as Error).message)
  }
}

/** The text problems stand in; undefined when it cannot be had. */
function sourceOf(file: string, env: Environment): string | undefined {
  if (file === 'POSTERN_CONFIG_STRING')
    return env.POSTERN_CONFIG_STRING ?? env.KONG_DECLARATIVE_CONFIG_STRING
  try {
    return readFileSync(file, 'utf8')
  } catch {
    return undefined
  }
}
