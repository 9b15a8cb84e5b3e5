import { plugins } from '../plugins/index.ts'
import { vaultTypes } from '../resolve.ts'
import { describeSchema } from '../schema/describe.ts'
import { vaultConfigSchema } from '../schema/vault-config.ts'
import { atMost, type Call, UsageError } from './command.ts'

/** `postern schema [plugin|vault NAME]`: names, or one JSON Schema. */
export async function schema({ env, words, output }: Call): Promise<number> {
  const [first, second] = words
  if (first === undefined) {
    const names = (list: readonly { readonly name: string }[]): string =>
      list.map(({ name }) => name).join(', ')
    output.out(`plugins: ${names(plugins)}\nvaults: ${names(await vaultTypes(env))}`)
    return 0
  }
  const chosen = first === 'plugin' || first === 'vault'
  atMost(words, chosen ? 2 : 1)
  const kind = chosen ? first : 'plugin'
  const name = chosen ? second : first
  if (name === undefined) throw new UsageError(`schema ${kind} needs a name.`)
  const found =
    kind === 'vault'
      ? (await vaultTypes(env)).find(type => type.name === name)
      : plugins.find(plugin => plugin.name === name)
  if (found === undefined) {
    output.tell(`There is no ${kind} "${name}". "postern schema" lists the names.`)
    return 1
  }
  output.outJson(describeSchema(kind === 'vault' ? vaultConfigSchema(found.schema) : found.schema))
  return 0
}
