import { globSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import t from 'tap'

/** What each file may import: what stands in its own row or in one before (docs/architecture.md). */
const RANKS: readonly RegExp[] = [
  /^(errors|events|version|pace|memory|vault\/secret|vault\/reference)$/,
  /^schema\//,
  /^vault\//,
  /^plugins\//,
  /^listener\//,
  /^proxy\//,
  /^(settings|setting-values|config|config-values|uses|graces|certificate-expiry|live-settings|overview|snapshot|generation|packing|resolve|log|loop-delay|redaction|metrics|watch|report|diff|fingerprint|calls|store)$/,
  /^(server|status|worker|threads|webhooks\/.*)$/,
  /^(gateway|index|cli|commands\/.*)$/
]
const IMPORT = /(?:\bfrom|\bimport|\bimport\()\s*'(\.[^']+)\.ts'/g
const src = join(import.meta.dirname, '../src')
const rank = (file: string): number => RANKS.findIndex(row => row.test(file))
const files = globSync('**/*.ts', { cwd: src }).map(file => file.slice(0, -'.ts'.length))
const importsOf = (file: string): readonly string[] =>
  [...readFileSync(join(src, `${file}.ts`), 'utf8').matchAll(IMPORT)].map(([, to]) =>
    join(dirname(file), to!)
  )

await t.test('every file has a rank, and imports its own rank or one before', async t => {
  t.ok(files.length > 20)
  for (const file of files) {
    t.ok(rank(file) >= 0, `${file} has a rank`)
    for (const to of importsOf(file)) t.ok(rank(to) <= rank(file), `${file} imports ${to}`)
  }
})

await t.test('no file imports itself by way of others', async t => {
  const done = new Set<string>()
  const visit = (file: string, path: readonly string[]): void => {
    if (path.includes(file)) t.fail([...path.slice(path.indexOf(file)), file].join(' → '))
    else if (!done.has(file)) for (const to of importsOf(file)) visit(to, [...path, file])
    done.add(file)
  }
  for (const file of files) visit(file, [])
  t.equal(done.size, files.length)
})

await t.test(
  'the control thread loads no HTTP library and no SDK of a vault before it needs one',
  async t => {
    const heavy = [
      'undici',
      'fastify',
      '@fastify/http-proxy',
      '@redis/client',
      'node-vault',
      '@aws-sdk/client-secrets-manager',
      '@aws-sdk/credential-providers',
      '@azure/identity',
      '@azure/keyvault-secrets',
      '@google-cloud/secret-manager',
      'google-auth-library'
    ]
    const statically = /^import (?!type\b)[^;]*?from '([^']+)'/gm
    const reached = new Set<string>()
    const visit = (file: string): void => {
      if (reached.has(file)) return
      reached.add(file)
      for (const [, to] of readFileSync(join(src, `${file}.ts`), 'utf8').matchAll(statically)) {
        if (to!.startsWith('.')) visit(join(dirname(file), to!.slice(0, -'.ts'.length)))
        else t.notOk(heavy.includes(to!), `${file} imports ${to}`)
      }
    }
    visit('gateway')
    t.ok(reached.has('vault/rotation'))
    t.notOk(reached.has('proxy/upstream'))
  }
)
