#!/usr/bin/env node
import { readFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { colorOf, out, tell, UsageError, withFile } from './commands/command.ts'
import { ConfigError } from './errors.ts'
import { renderProblems } from './report.ts'
import { version } from './version.ts'

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

Exit codes
  0 done   1 the configuration, a reference or the gateway is not all right   2 wrong usage
  diff: 0 equal   1 different   2 wrong usage, or a file that is not valid

Settings are environment variables, POSTERN_CONFIG and others: docs/operations.md.
`

// Each command loads what it needs: a health check runs every few seconds and must be light.
async function main(argv: readonly string[]): Promise<number> {
  const { values, positionals } = parse(argv)
  const [command = 'help', ...words] = positionals
  if (values.help || command === 'help') {
    out(USAGE)
    return 0
  }
  const env = withFile(process.env, values.config)
  switch (command) {
    case 'start':
      return (await import('./commands/start.ts')).start(env, words)
    case 'check':
      return (await import('./commands/check.ts')).check(env, words, values)
    case 'diff':
      return (await import('./commands/diff.ts')).diff(env, words, values)
    case 'vault':
      return (await import('./commands/vault.ts')).vault(env, words, values)
    case 'schema':
      return (await import('./commands/schema.ts')).schema(process.env, words)
    case 'reload':
      return (await import('./commands/ask.ts')).ask(env, 'POST', '/reload')
    case 'healthcheck':
      return (await import('./commands/ask.ts')).ask(env, 'GET', '/status/ready')
    case 'version':
      out(version)
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
function sourceOf(file: string): string | undefined {
  if (file === 'POSTERN_CONFIG_STRING')
    return process.env.POSTERN_CONFIG_STRING ?? process.env.KONG_DECLARATIVE_CONFIG_STRING
  try {
    return readFileSync(file, 'utf8')
  } catch {
    return undefined
  }
}

try {
  process.exitCode = await main(process.argv.slice(2))
} catch (error) {
  if (error instanceof UsageError) {
    tell(`${error.message}\n\n${USAGE}`)
    process.exitCode = 2
  } else if (error instanceof ConfigError) {
    tell(renderProblems(error.problems, { color: colorOf(process.stderr), source: sourceOf }))
    process.exitCode = 1
  } else {
    const { code, message, stack } = error as Error & { code?: string }
    tell(code === undefined ? (stack ?? message) : `${message} [${code}]`)
    process.exitCode = 1
  }
}
