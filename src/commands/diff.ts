import { styleText } from 'node:util'
import type { Config } from '../config.ts'
import { type ConfigDiff, diffConfigs } from '../diff.ts'
import { ConfigError } from '../errors.ts'
import { plugins } from '../plugins/index.ts'
import { collect, openVaults, readConfig } from '../resolve.ts'
import { type Call, UsageError } from './command.ts'

/** `postern diff OLD NEW`: 0 when both serve the same, 1 when they do not, 2 when one is not valid. */
export async function diff({ env, words, options, output }: Call): Promise<number> {
  const [old, next, ...more] = words
  if (old === undefined || next === undefined || more.length > 0)
    throw new UsageError('diff needs two files: OLD NEW.')
  const vaults = openVaults(env, await collect(env))
  try {
    const read = async (config: string): Promise<Config> =>
      (await readConfig({ config, configString: undefined }, vaults, true)).config
    const found = diffConfigs(await read(old), await read(next), plugins)
    if (options.json) output.outJson(found)
    else output.out(render(found, output.color))
    return found.equal ? 0 : 1
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error
    if (options.json) output.outJson({ valid: false, problems: error.problems })
    output.tell(
      `${error.message}\nOnly valid files are compared; "postern check FILE" shows each place.`
    )
    return 2
  } finally {
    await vaults.close()
  }
}

const MARKS = { added: '+', removed: '-', changed: '~' } as const
const COLORS = { added: 'green', removed: 'red', changed: 'yellow' } as const

function render({ equal, entities, references }: ConfigDiff, color: boolean): string {
  if (equal) return 'Both serve the same.'
  const line = (change: keyof typeof MARKS, text: string): string =>
    color
      ? styleText(COLORS[change], `${MARKS[change]} ${text}`, { validateStream: false })
      : `${MARKS[change]} ${text}`
  const lines = entities.flatMap(({ kind, name, change, fields }) => [
    line(change, `${kind} ${name}`.trimEnd()),
    ...fields.map(field => `    ${field.path}: ${text(field.old)} → ${text(field.new)}`)
  ])
  for (const reference of references.added) lines.push(line('added', `reference ${reference}`))
  for (const reference of references.removed) lines.push(line('removed', `reference ${reference}`))
  return lines.join('\n')
}

function text(value: unknown): string {
  return value === undefined ? 'unset' : typeof value === 'string' ? value : JSON.stringify(value)
}
