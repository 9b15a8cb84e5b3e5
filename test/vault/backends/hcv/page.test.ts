import { globSync, readFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import t from 'tap'
import { hcvBackend } from '../../../../src/vault/backends/hcv.ts'

const root = join(import.meta.dirname, '../../../..')
const page = readFileSync(join(root, 'docs/vaults.md'), 'utf8')
const section = /^## hcv\n([\s\S]*?)^## /m.exec(page)![1]!
const examples = globSync('config/examples/vault-hcv*.yaml', { cwd: root }).map(file => ({
  name: basename(file),
  lines: readFileSync(join(root, file), 'utf8')
    .split('\n')
    .map(line => line.trim())
}))

await t.test('every setting is in the section, and no other', async t => {
  const { properties } = hcvBackend.schema as unknown as { properties: object }
  const rows = [...section.matchAll(/^\| ((?:`\w+`(?:, )?)+) \|/gm)]
  const documented = rows.flatMap(([, names]) => [...names!.matchAll(/`(\w+)`/g)].map(m => m[1]!))
  for (const name of Object.keys(properties)) t.ok(documented.includes(name), name)
  for (const name of documented) t.ok(name in properties, name)
})

await t.test('every auth method has an example, which the section shows as it is', async t => {
  const { properties } = hcvBackend.schema as unknown as {
    properties: Record<string, { enum: string[] }>
  }
  const methods = properties.auth_method!.enum.filter(name => name !== 'oauth2')
  for (const method of methods) {
    t.match(section, `### auth_method: ${method}\n`)
    const shown = examples.some(({ lines }) => lines.includes(`auth_method: ${method}`))
    t.ok(shown || method === 'token', method)
  }
  for (const { name } of examples) t.match(section, `(../config/examples/${name})`)
  for (const [, block] of section.matchAll(/```yaml\n([\s\S]*?)```/g)) {
    const wanted = block!
      .trim()
      .split('\n')
      .map(line => line.trim())
    const source = examples.find(({ lines }) => wanted.every(line => lines.includes(line)))
    t.ok(source, wanted[0]!)
  }
})
