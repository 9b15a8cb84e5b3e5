import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { parse } from 'yaml'

const examples = join(import.meta.dirname, '../../../config/examples')
/** Where the vault of an example is, which a test has elsewhere. */
const CONNECTION = ['protocol', 'host', 'port', 'ssl_ca', 'namespace']

/**
 * The settings of the vault in `config/examples/vault-hcv-NAME.yaml`, connected as `settings` say,
 * which also stand for the references and files of the example.
 */
export function example(
  name: string,
  settings: Readonly<Record<string, unknown>>
): Readonly<Record<string, unknown>> {
  const file = readFileSync(join(examples, `vault-hcv-${name}.yaml`), 'utf8')
  const authored: Record<string, unknown> = parse(file).vaults[0].config
  const rest = Object.entries(authored).filter(([field]) => !CONNECTION.includes(field))
  const config = { ...Object.fromEntries(rest), ...settings }
  for (const [field, value] of Object.entries(config)) {
    if (String(value).includes('{vault:')) throw new Error(`${name} needs a value for ${field}`)
  }
  return config
}
