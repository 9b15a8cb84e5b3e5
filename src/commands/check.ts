import { styleText } from 'node:util'
import type { Config } from '../config.ts'
import { ConfigError, type Problem } from '../errors.ts'
import { renderProblems } from '../report.ts'
import {
  collect,
  type Loaded,
  openVaults,
  problemsOf,
  readConfig,
  resolveAll,
  resolvedSource,
  unresolvedUses,
  withFileProblems
} from '../resolve.ts'
import { type Collected, configSource, parseSettings } from '../settings.ts'
import { parseReference } from '../vault/reference.ts'
import type { Outcome, Vaults } from '../vault/vaults.ts'
import { atMost, type Call, withFile } from './command.ts'
import { type ReferenceRow, type Resolution, referenceRows, showReferences } from './references.ts'

/**
 * `postern check [FILE]`: validates the environment and the file, offline; with `--resolve` reads
 * every reference too.
 */
export async function check(call: Call): Promise<number> {
  const { env, words, options, output } = call
  atMost(words, 1)
  let loaded: Loaded | undefined
  let vaults: Vaults | undefined
  try {
    const source = withFile(env, words[0])
    const collected = await collect(source)
    vaults = openVaults(source, collected)
    const from = options.resolve ? await resolvedSource(collected, vaults) : configSource(collected)
    loaded = await readConfig(from, vaults, !options.resolve)
    const warnings = [...collected.warnings, ...loaded.config.warnings]
    const uses = [...collected.references, ...loaded.config.uses]
    if (!options.resolve) {
      const problems = unknownToVaults(collected, vaults)
      const unset = settingsToCome(loaded.config, vaults)
      return report(loaded, problems, [...warnings, ...unset], referenceRows(loaded, uses), call)
    }
    const resolution = await resolve(collected, loaded)
    const rows = referenceRows(loaded, uses, resolution)
    return report(loaded, resolution.problems, warnings, rows, call, resolution)
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error
    const all = await withFileProblems(error, withFile(env, words[0]))
    if (!options.json) throw all
    output.outJson({ valid: false, problems: all.problems, warnings: [], references: [] })
    return 1
  } finally {
    loaded?.set.close()
    await vaults?.close()
  }
}

/** Reads every reference of the file and of the environment, and checks the values. */
export async function resolve(collected: Collected, loaded: Loaded): Promise<Resolution> {
  const outcomes = await resolveAll(loaded, collected.references)
  const problems = [
    ...unresolvedUses(collected.references, outcomes),
    ...problemsOf(loaded.uses, outcomes)
  ]
  const value = (text: string): string | undefined => textOf(outcomes.get(text))
  try {
    // References without a value are told already; the others stand for what they resolve to.
    const known = collected.references.filter(({ references }) =>
      references.every(text => value(text) !== undefined)
    )
    const names = new Set(collected.references.map(({ name }) => name))
    for (const { name } of known) names.delete(name)
    const authored = new Map([...collected.authored].filter(([name]) => !names.has(name)))
    const { settings } = parseSettings({ ...collected, references: known, authored }, value)
    return { outcomes, problems, fingerprintKey: settings.fingerprintKey }
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error
    return { outcomes, problems: [...error.problems, ...problems], fingerprintKey: undefined }
  }
}

function textOf(outcome: Outcome | undefined): string | undefined {
  return outcome?.state === 'ok' ? outcome.value : undefined
}

/** References of the environment that no vault can have; those of the file are checked as it is read. */
function unknownToVaults(collected: Collected, vaults: Vaults): readonly Problem[] {
  return collected.references.flatMap(({ references, place }) =>
    references.flatMap(reference => {
      const complaint = vaults.check(parseReference(reference), [])
      if (complaint === undefined || complaint.environment) return []
      const { message, fix } = complaint
      return [{ code: 'POSTERN_CONFIG_REFERENCE', message, fix, place, reference }]
    })
  )
}

/** One warning for each setting of a default vault that this environment lacks. */
function settingsToCome(config: Config, vaults: Vaults): readonly Problem[] {
  const told = new Map<string, Problem>()
  for (const { references, place } of config.uses) {
    for (const reference of references) {
      const complaint = vaults.check(parseReference(reference), config.vaults)
      if (complaint?.environment !== true || told.has(complaint.message)) continue
      const { message, fix } = complaint
      const code = 'POSTERN_SETTING_UNSET'
      told.set(message, {
        code,
        message,
        fix: `${fix.slice(0, -1)} where it is served.`,
        place,
        reference
      })
    }
  }
  return [...told.values()]
}

function report(
  { config }: Loaded,
  problems: readonly Problem[],
  warnings: readonly Problem[],
  references: readonly ReferenceRow[],
  { options, output }: Call,
  resolution?: Resolution
): number {
  const code = problems.length === 0 ? 0 : 1
  if (options.json) {
    output.outJson({ valid: code === 0, problems, warnings, references })
    return code
  }
  const color = output.tellColor
  const named = warnings.map(warning => ({ ...warning, message: `warning: ${warning.message}` }))
  if (warnings.length > 0)
    output.tell(renderProblems(named, { color, source: config.text, noun: 'warning' }))
  if (references.length > 0 && resolution !== undefined)
    showReferences(references, resolution, output)
  if (code !== 0) output.tell(renderProblems(problems, { color, source: config.text }))
  else {
    const { services, routes, plugins } = config
    const resolved = resolution === undefined ? '' : ' resolved'
    const verdict = `${config.file}: valid, ${services.length} services, ${routes.length} routes, ${plugins.length} plugins, ${references.length} references${resolved}`
    output.out(output.color ? styleText('green', verdict, { validateStream: false }) : verdict)
  }
  return code
}
