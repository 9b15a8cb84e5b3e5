import { globSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import { loadConfig } from '../../src/config.ts'
import { ConfigError } from '../../src/errors.ts'
import { plugins } from '../../src/plugins/index.ts'
import type { Plugin } from '../../src/plugins/plugin.ts'
import { kinds } from '../../src/schema/kinds.ts'
import { backendTypes } from '../../src/vault/backends/index.ts'
import { type Budget, explore, mutated } from './budget.ts'

type VaultTypes = readonly { readonly name: string; readonly schema: never }[]

/** Milliseconds in which any text of some thousand bytes is read, however slow the machine. */
const LONGEST = 20_000

const PROTOTYPES = [Object.prototype, Array.prototype, Function.prototype, String.prototype]
const members = () => PROTOTYPES.map(prototype => Reflect.ownKeys(prototype).length).join()
const untouched = members()

/**
 * Loads a text. Throws unless it is a configuration or a ConfigError whose every problem has a place
 * within the text, a code and a fix; and if a prototype was changed on the way.
 */
export function loadsOrTells(
  text: string,
  known: readonly Plugin[] = plugins,
  vaultTypes: VaultTypes = backendTypes as unknown as VaultTypes
): void {
  const began = performance.now()
  try {
    loadConfig(text, { file: 'any.yml', plugins: known, vaultTypes })
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error
    if (error.problems.length === 0) throw new Error('no problem told')
    const lines = text.split(/\r\n|\r|\n/).length
    for (const { code, place, fix } of error.problems) {
      if (place.line < 1 || place.line > lines || place.column < 1) throw new Error('no such place')
      if (fix === '' || !code.startsWith('POSTERN_')) throw new Error('no fix or no code')
    }
  }
  if (members() !== untouched) throw new Error('a prototype was changed')
  if (performance.now() - began > LONGEST) throw new Error('it takes for ever')
}

const examples = globSync('config/examples/*.yaml', { cwd: join(import.meta.dirname, '../..') })
  .sort()
  .map(file => readFileSync(join(import.meta.dirname, '../..', file), 'utf8'))

const TOKENS = [
  ...kinds.map(kind => `\n${kind.name}:\n  - `),
  '\n__proto__:\n  polluted: true\n',
  'constructor: { prototype: { polluted: true } }\n',
  '&a ',
  '*a',
  '<<: *a\n',
  '!!binary ',
  '? ',
  ': ',
  '- ',
  '[[[[',
  '{',
  '}',
  '"',
  "'",
  '|\n',
  '\n---\n',
  '\t',
  '\0',
  '\uFEFF',
  '0x7fffffffffffffff',
  '.inf',
  '~',
  '{vault://env/A}',
  '"{vault://env/A}"',
  '{vault://'
]

/** The examples of the configuration, changed in a few places. */
export function fuzzConfig(budget: Budget): Promise<number> {
  return explore(
    fc.property(mutated(fc.constantFrom(...examples), TOKENS), text => loadsOrTells(text)),
    budget
  )
}
