import { readFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { ConfigError } from '../errors.ts'
import { renderProblems } from '../report.ts'
import type { Environment } from '../settings.ts'
import { version } from '../version.ts'
import { atMost, type Call, type Output, UsageError, withFile } from './command.ts'
import { briefUsageOf, commandOf, usageOf, usages } from './usage.ts'

const OPTIONS = {
  config: { type: 'string', short: 'c' },
  resolve: { type: 'boolean' },
  json: { type: 'boolean' },
  reveal: { type: 'boolean' },
  help: { type: 'boolean', short: 'h' }
} as const
/** Options that every command takes. */
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
      output.tell(`${error.message}\n\n${briefUsageOf(argv.filter(word => !word.startsWith('-')))}`)
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
  const { values, positionals } = await parse(argv)
  const [command = 'help', ...words] = positionals
  const asked = command === 'help' ? words : positionals
  if (values.help || command === 'help') {
    if (asked.length > 0 && usageOf(asked) === usageOf([])) throw await unknownCommand(asked[0]!)
    output.out(usageOf(asked))
    return 0
  }
  const name = commandOf(positionals)
  if (name !== undefined) {
    const stray = Object.keys(values).find(
      option => !usages[name]!.call.includes(`--${option}`) && !COMMON_OPTIONS.includes(option)
    )
    if (stray !== undefined) throw new UsageError(`postern ${name} takes no --${stray}.`)
  }
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
      atMost(words, 0)
      return (await import('./ask.ts')).ask(call, 'POST', '/reload')
    case 'healthcheck':
      atMost(words, 0)
      return (await import('./ask.ts')).ask(call, 'GET', '/status/ready')
    case 'version':
      atMost(words, 0)
      output.out(version)
      return 0
    default:
      throw await unknownCommand(command)
  }
}

async function parse(argv: readonly string[]) {
  try {
    return parseArgs({ args: [...argv], allowPositionals: true, options: OPTIONS })
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException
    const [, name] = /'(--?[^']*)'/.exec(message) ?? []
    if (code !== 'ERR_PARSE_ARGS_UNKNOWN_OPTION' || name === undefined)
      throw new UsageError(`${message.split('. ')[0]!.replace(/\.$/, '')}.`)
    const options = Object.keys(OPTIONS).map(option => `--${option}`)
    throw new UsageError(`There is no option ${name}.${await meant(name, options)}`)
  }
}

async function unknownCommand(word: string): Promise<UsageError> {
  const known = [...new Set(Object.keys(usages).map(name => name.split(' ')[0]!))]
  return new UsageError(`There is no command "${word}".${await meant(word, known)}`)
}

async function meant(word: string, known: readonly string[]): Promise<string> {
  const { nearest } = await import('../schema/validator.ts')
  const near = nearest(word, known)
  return near === undefined ? '' : ` Did you mean ${near}?`
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
