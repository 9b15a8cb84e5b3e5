import { existsSync, globSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { parse } from 'yaml'
import { prepareSettings, readConfig } from '../src/resolve.ts'

const root = join(import.meta.dirname, '..')
const read = (file: string): string => readFileSync(join(root, file), 'utf8')

/** The Dockerfile's instructions: continued lines joined, comments left out. */
const instructions = read('Dockerfile')
  .replaceAll(/^#.*\n/gm, '')
  .replaceAll(/\\\n\s*/g, ' ')
  .split('\n')
  .filter(line => line !== '')
  .map(line => ({ name: line.split(' ')[0]!, value: line.slice(line.indexOf(' ') + 1) }))
const last = (name: string): string =>
  instructions.findLast(instruction => instruction.name === name)?.value ?? ''
const final = instructions.slice(instructions.findLastIndex(({ name }) => name === 'FROM'))

interface Service {
  readonly image: string
  readonly environment?: Record<string, string>
  readonly user?: string
  readonly read_only?: boolean
  readonly cap_drop?: string[]
  readonly security_opt?: string[]
  readonly secrets?: string[]
  readonly configs?: { readonly source: string; readonly target: string }[]
}
interface Compose {
  readonly services: Record<'postern' | 'redis' | 'echo', Service>
  readonly configs: Record<string, { readonly content: string }>
  readonly secrets: Record<string, { readonly file: string }>
}
const compose: Compose = parse(read('compose.yaml'))
const images = [
  ...instructions.filter(({ name }) => name === 'FROM').map(({ value }) => value.split(' ')[0]!),
  ...Object.values(compose.services).map(({ image }) => image)
]

await t.test('images are pinned by major version at least', async t => {
  for (const image of images) t.match(image, /:\d+/, image)
})

await t.test('the base image has a Node the package runs on', async t => {
  const { engines } = JSON.parse(read('package.json'))
  t.match(images[0], new RegExp(`^node:${/\d+/.exec(engines.node)![0]}-slim$`))
})

await t.test('the image serves as a user that is not root, told by number', async t => {
  t.match(last('USER'), /^[1-9]\d*:[1-9]\d*$/)
  t.ok(final.some(({ name }) => name === 'USER'))
})

await t.test('the image runs any command of postern, and start without one', async t => {
  t.same(JSON.parse(last('ENTRYPOINT')), ['postern'])
  t.same(JSON.parse(last('CMD')), ['start'])
  const script = final.find(
    ({ name, value }) => name === 'RUN' && value.includes('/usr/local/bin/postern')
  )!.value
  t.match(script, 'exec node --disable-sigusr1 /opt/postern/dist/cli.js "$@"')
})

await t.test('the image tells its health and where its configuration is', async t => {
  t.match(last('HEALTHCHECK'), /CMD \["postern", "healthcheck"\]$/)
  t.match(last('ENV'), /POSTERN_CONFIG=\/etc\/postern\/postern\.yaml/)
})

await t.test(
  'what the build copies exists and is not ignored; the rest of the tree stays out',
  async t => {
    const allowed = read('.dockerignore').trim().split('\n')
    t.equal(allowed[0], '*')
    const copied = instructions
      .filter(({ name, value }) => name === 'COPY' && !value.startsWith('--from='))
      .flatMap(({ value }) => value.split(' ').slice(0, -1))
    for (const file of copied) {
      t.ok(existsSync(join(root, file)), file)
      t.ok(allowed.includes(`!${file}`), `${file} is let in`)
    }
    t.same(new Set(allowed.slice(1)), new Set(copied.map(file => `!${file}`)))
  }
)

await t.test('the sources need nothing of the tree that the image lacks', async t => {
  const { dependencies } = JSON.parse(read('package.json'))
  const text = globSync('src/**/*.ts', { cwd: root }).map(read).join('\n')
  const packages = new Set(
    [
      ...text
        // Types are gone when the sources run.
        .replaceAll(/^import type [^;]*? from '[^']+'$/gm, '')
        .matchAll(/(?:from|import|import\(|\)\()\s*'([^.'][^']*)'/g)
    ].map(([, name]) => name!)
  )
  for (const name of packages) {
    if (name.startsWith('node:')) continue
    const owner = name
      .split('/')
      .slice(0, name.startsWith('@') ? 2 : 1)
      .join('/')
    t.ok(owner in dependencies, `${owner} is a dependency`)
  }
})

await t.test('every container is read-only, without capabilities and without root', async t => {
  for (const [name, { read_only, cap_drop, security_opt, user }] of Object.entries(
    compose.services
  )) {
    t.equal(read_only, true, name)
    t.same(cap_drop, ['ALL'], name)
    t.same(security_opt, ['no-new-privileges:true'], name)
    if (name !== 'postern') t.match(user, /^(?!root|0)\w+$/, name)
  }
})

await t.test(
  'the settings and the configuration of the Compose file are valid, and hold no secret',
  async t => {
    const { environment, secrets, configs } = compose.services.postern
    t.same(secrets!.toSorted(), Object.keys(compose.secrets).sort())
    t.equal(configs![0]!.target, '/etc/postern/postern.yaml')
    t.equal(environment!.POSTERN_VAULT_FS_PREFIX, '/run/secrets')
    const directory = mkdtempSync(join(tmpdir(), 'postern-secrets-'))
    t.teardown(() => rmSync(directory, { recursive: true }))
    for (const name of secrets!)
      writeFileSync(join(directory, name), `value of ${name}\n`.replaceAll(' ', '-'))
    const { settings, warnings, vaults } = await prepareSettings({
      ...environment,
      POSTERN_VAULT_FS_PREFIX: directory,
      POSTERN_CONFIG_STRING: compose.configs[configs![0]!.source]!.content
    })
    t.same(warnings, [])
    t.equal(settings.sessionRedisUrl, 'redis://:value-of-redis-password@redis:6379')
    const { config, set } = await readConfig(settings, vaults)
    t.same(config.warnings, [])
    t.same(
      new Set(config.uses.flatMap(({ references }) => references)),
      new Set(secrets!.map(name => `{vault://fs/${name}}`))
    )
    set.close()
    await vaults.close()
  }
)
