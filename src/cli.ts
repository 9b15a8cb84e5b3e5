#!/usr/bin/env node
import { hash } from 'node:crypto'
import { parseArgs, styleText } from 'node:util'
import { request } from 'undici'
import { ConfigError } from './errors.ts'
import { prepareSettings, problemsOf, readConfig, resolveAll, startGateway } from './gateway.ts'
import { plugins } from './plugins/index.ts'
import { renderProblems, renderTable } from './report.ts'
import { describeSchema } from './schema/describe.ts'
import { backendTypes } from './vault/backends/index.ts'
import { parseReference } from './vault/reference.ts'
import { version } from './version.ts'

const USAGE = `postern ${version}: an HTTP gateway whose configuration holds no secret

Usage
  postern start [-c FILE]                 serve (FILE: default config/postern.yaml)
  postern check [FILE] [--resolve] [--json]
                                          validate FILE offline; --resolve asks the vaults too
  postern vault get REFERENCE [--reveal]  look a reference up; --reveal prints the value alone
  postern vault list [-c FILE] [--json]   every reference of FILE, where it stands and its state
  postern vault refresh [PREFIX]          make the running gateway re-read its references
  postern schema [plugin|vault NAME]      JSON Schema of a plugin or vault; names without NAME
  postern reload                          make the running gateway load its file again
  postern healthcheck                     0 when the running gateway is ready
  postern version | help

Exit codes
  0 done   1 the configuration, a reference or the gateway is not all right   2 wrong usage

Settings are environment variables, POSTERN_CONFIG and others: docs/operations.md.
`

/** A wrong call: its message, then where to read how it is done. Exit code 2. */
class UsageError extends Error {}

const out = (text: string): void =>
  void process.stdout.write(text.endsWith('\n') ? text : `${text}\n`)
const fail = (text: string): void =>
  void process.stderr.write(text.endsWith('\n') ? text : `${text}\n`)
const colorOf = (stream: NodeJS.WriteStream): boolean =>
  stream.isTTY === true && process.env.NO_COLOR === undefined

type Options = {
  readonly config?: string
  readonly resolve?: boolean
  readonly json?: boolean
  readonly reveal?: boolean
}

async function main(argv: readonly string[]): Promise<number> {
  const { values, positionals } = parse(argv)
  if (values.help) {
    out(USAGE)
    return 0
  }
  const [command = 'help', ...rest] = positionals
  const env =
    values.config === undefined ? process.env : { ...process.env, POSTERN_CONFIG: values.config }
  switch (command) {
    case 'start':
      return start(env, rest)
    case 'check':
      return check(env, rest, values)
    case 'vault':
      return vault(env, rest, values)
    case 'schema':
      return schema(rest)
    case 'reload':
      return ask(env, 'POST', '/reload')
    case 'healthcheck':
      return ask(env, 'GET', '/status/ready')
    case 'version':
      out(version)
      return 0
    case 'help':
      out(USAGE)
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

async function start(env: NodeJS.ProcessEnv, rest: readonly string[]): Promise<number> {
  const gateway = await startGateway(
    rest[0] === undefined ? env : { ...env, POSTERN_CONFIG: rest[0] }
  )
  const ended = Promise.withResolvers<number>()
  const stop = (): void => {
    gateway.close().then(
      () => ended.resolve(0),
      error => ended.reject(error)
    )
  }
  process.once('SIGTERM', stop)
  process.once('SIGINT', stop)
  process.on('SIGHUP', () => void gateway.reload().catch(() => {}))
  return ended.promise
}

async function check(
  env: NodeJS.ProcessEnv,
  rest: readonly string[],
  options: Options
): Promise<number> {
  const source = rest[0] === undefined ? env : { ...env, POSTERN_CONFIG: rest[0] }
  const { settings, vaults } = await prepareSettings(source)
  const loaded = await readConfig(settings, vaults)
  const { config } = loaded
  try {
    const outcomes = options.resolve ? await resolveAll(loaded) : undefined
    const problems = outcomes === undefined ? [] : problemsOf(config, outcomes)
    const references = config.uses.flatMap(use =>
      use.references.map(reference => {
        const outcome = outcomes?.get(reference)
        const invalid = problems.some(
          problem => problem.place === use.place && problem.code === 'POSTERN_CONFIG_INVALID_VALUE'
        )
        return {
          reference,
          place: `${use.place.file}:${use.place.line}:${use.place.column}`,
          path: use.place.path,
          vault: parseReference(reference).vault,
          state: outcome === undefined ? 'not asked' : invalid ? 'invalid' : outcome.state,
          ...(outcome?.state === 'ok'
            ? { version: outcome.version ?? '', fingerprint: fingerprint(outcome.value) }
            : { version: '', fingerprint: '' })
        }
      })
    )
    if (options.json) {
      out(
        JSON.stringify(
          { valid: problems.length === 0, problems, warnings: config.warnings, references },
          null,
          2
        )
      )
      return problems.length === 0 ? 0 : 1
    }
    if (config.warnings.length > 0)
      fail(renderProblems(config.warnings, { color: colorOf(process.stderr), source: config.text }))
    if (references.length > 0 && options.resolve) {
      out(
        renderTable(
          ['reference', 'place', 'vault', 'version', 'state', 'fingerprint'],
          references.map(row => [
            row.reference,
            row.place,
            row.vault,
            row.version,
            row.state,
            row.fingerprint
          ])
        )
      )
    }
    if (problems.length > 0) {
      fail(renderProblems(problems, { color: colorOf(process.stderr), source: config.text }))
      return 1
    }
    const verdict = `${config.file}: valid, ${config.services.length} services, ${config.routes.length} routes, ${config.plugins.length} plugins, ${references.length} references${options.resolve ? ' resolved' : ''}`
    out(colorOf(process.stdout) ? styleText('green', verdict) : verdict)
    return 0
  } finally {
    await loaded.set.close()
    await vaults.close()
  }
}

async function vault(
  env: NodeJS.ProcessEnv,
  rest: readonly string[],
  options: Options
): Promise<number> {
  const [action, argument] = rest
  switch (action) {
    case 'get':
      if (argument === undefined)
        throw new UsageError('vault get needs a reference, such as {vault://env/name}.')
      return vaultGet(env, argument, options)
    case 'list':
      return vaultList(env, options)
    case 'refresh':
      return ask(
        env,
        'POST',
        `/vaults/refresh${argument === undefined ? '' : `?prefix=${encodeURIComponent(argument)}`}`
      )
    default:
      throw new UsageError('vault needs one of get, list, refresh.')
  }
}

async function vaultGet(
  env: NodeJS.ProcessEnv,
  argument: string,
  options: Options
): Promise<number> {
  const reference = parseReference(argument.startsWith('{') ? argument : `{vault://${argument}}`)
  const { settings, vaults } = await prepareSettings(env)
  // A default vault needs no file; a prefix of the file's own vaults does.
  const set = backendTypes.some(type => type.name === reference.vault)
    ? await vaults.prepare([])
    : (await readConfig(settings, vaults)).set
  try {
    const complaint = set.check(reference)
    if (complaint !== undefined) {
      fail(`${reference.text}: ${complaint.message}. ${complaint.fix}`)
      return 1
    }
    const outcome = (await set.load([reference])).get(reference.text)!
    if (outcome.state !== 'ok') {
      fail(`${reference.text}: ${outcome.state}: ${outcome.message}`)
      return 1
    }
    if (options.reveal) out(outcome.value)
    else if (options.json)
      out(
        JSON.stringify(
          {
            reference: reference.text,
            vault: reference.vault,
            version: outcome.version,
            length: outcome.value.length,
            fingerprint: fingerprint(outcome.value)
          },
          null,
          2
        )
      )
    else {
      out(
        renderTable(
          ['vault', 'version', 'length', 'fingerprint'],
          [
            [
              reference.vault,
              outcome.version ?? '',
              String(outcome.value.length),
              fingerprint(outcome.value)
            ]
          ]
        )
      )
    }
    return 0
  } finally {
    await set.close()
    await vaults.close()
  }
}

async function vaultList(env: NodeJS.ProcessEnv, options: Options): Promise<number> {
  const { settings, vaults } = await prepareSettings(env)
  const loaded = await readConfig(settings, vaults)
  try {
    const outcomes = await resolveAll(loaded)
    const rows = loaded.config.uses.flatMap(use =>
      use.references.map(reference => {
        const outcome = outcomes.get(reference)!
        return {
          reference,
          place: `${use.place.file}:${use.place.line}:${use.place.column}`,
          path: use.place.path,
          state: outcome.state
        }
      })
    )
    if (options.json) out(JSON.stringify(rows, null, 2))
    else
      out(
        renderTable(
          ['reference', 'place', 'path', 'state'],
          rows.map(row => [row.reference, row.place, row.path, row.state])
        )
      )
    return rows.every(row => row.state === 'ok') ? 0 : 1
  } finally {
    await loaded.set.close()
    await vaults.close()
  }
}

/**
 * Tells values apart without giving them away: the first 8 hex digits of SHA-256 over a fixed label
 * and the value. Short secrets can be guessed from it, so they get none.
 */
function fingerprint(value: string): string {
  return value.length < 12
    ? '(too short to show)'
    : hash('sha256', `postern fingerprint\0${value}`).slice(0, 8)
}

function schema(rest: readonly string[]): number {
  const [first, second] = rest
  if (first === undefined) {
    out(
      `plugins: ${plugins.map(({ name }) => name).join(', ')}\nvaults: ${backendTypes.map(({ name }) => name).join(', ')}`
    )
    return 0
  }
  const [kind, name] = first === 'plugin' || first === 'vault' ? [first, second] : ['plugin', first]
  if (name === undefined) throw new UsageError(`schema ${kind} needs a name.`)
  const found =
    kind === 'vault'
      ? backendTypes.find(type => type.name === name)
      : plugins.find(plugin => plugin.name === name)
  if (found === undefined) {
    fail(`There is no ${kind} "${name}". "postern schema" lists the names.`)
    return 1
  }
  out(JSON.stringify(describeSchema(found.schema), null, 2))
  return 0
}

/** Calls the status API of the gateway that runs with these settings. */
async function ask(env: NodeJS.ProcessEnv, method: 'GET' | 'POST', path: string): Promise<number> {
  const { settings, vaults } = await prepareSettings(env)
  await vaults.close()
  const { statusListen } = settings
  if (statusListen === undefined) {
    fail('The status API is off (POSTERN_STATUS_LISTEN), so the running gateway cannot be reached.')
    return 1
  }
  const host =
    statusListen.host === '0.0.0.0'
      ? '127.0.0.1'
      : statusListen.host === '::'
        ? '::1'
        : statusListen.host
  const origin = `http://${host.includes(':') ? `[${host}]` : host}:${statusListen.port}`
  try {
    const response = await request(origin + path, {
      method,
      headersTimeout: 10_000,
      bodyTimeout: 10_000
    })
    const text = await response.body.text()
    if (response.statusCode < 300) {
      out(text)
      return 0
    }
    fail(text)
    return 1
  } catch (error) {
    fail(`No gateway answers at ${origin}: ${(error as Error).message}`)
    return 1
  }
}

try {
  process.exitCode = await main(process.argv.slice(2))
} catch (error) {
  if (error instanceof UsageError) {
    fail(`${error.message}\n\n${USAGE}`)
    process.exitCode = 2
  } else if (error instanceof ConfigError) {
    fail(renderProblems(error.problems, { color: colorOf(process.stderr) }))
    process.exitCode = 1
  } else {
    const { code, message, stack } = error as Error & { code?: string }
    fail(code === undefined ? (stack ?? message) : `${message} [${code}]`)
    process.exitCode = 1
  }
}
