import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import http from 'node:http'
import net, { type AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import type { TSchema } from 'typebox'
import { loadConfig } from '../src/config.ts'
import { validateUses } from '../src/config-values.ts'
import { plugins } from '../src/plugins/index.ts'
import { kinds } from '../src/schema/kinds.ts'
import { vaultConfigSchema } from '../src/schema/vault-config.ts'
import { type Setting, settingsTable } from '../src/settings.ts'
import { UseIndex } from '../src/uses.ts'
import { backendTypes } from '../src/vault/backends/index.ts'
import { checkSetting } from '../src/vault/definitions.ts'
import {
  type Canary,
  canaries,
  exampleConfigs,
  type Leaf,
  leavesOf,
  misfits,
  pairOf,
  shortCanary,
  withLiterals,
  withMember
} from './canaries.ts'
import { startUpstream, until } from './harness.ts'
import { posternProcess, startProcess } from './process.ts'

// A unique value stands behind every field that takes references. Everything the gateway does with
// them is driven, failures above all, and whatever came out is searched for any part of any of them.
t.setTimeout(300_000)

const directory = mkdtempSync(join(tmpdir(), 'postern-leak-'))
const secrets = join(directory, 'secrets')
const working = join(directory, 'cwd')
for (const each of [secrets, working]) mkdirSync(each)
t.teardown(() => rmSync(directory, { recursive: true, force: true }))

const planted = new Map<string, string>()
/** Where each secret is needed, by its reference, with a maker of the next value that fits there. */
const places = new Map<string, { readonly file: string; next(): Promise<string> }>()

/** From now on no part of this may come out: of PEM no line. */
function look({ value, core }: Canary, place: string): void {
  planted.set(core, place)
  if (!value.startsWith('-----BEGIN')) return
  for (const line of value.split('\n'))
    if (line.length >= 16 && !line.startsWith('-----')) planted.set(line, place)
}

/** Stores a value; gives the reference to it. */
function plant(canary: Canary, next: () => Promise<Canary>, where = 'an entity'): string {
  const file = `s${places.size}`
  const reference = `{vault://fs/${file}}`
  const put = (each: Canary): string => {
    look(each, where)
    return each.value
  }
  writeFileSync(join(secrets, file), put(canary))
  places.set(reference, { file, next: async () => put(await next()) })
  return reference
}

/** A server that takes no password, and repeats what it was sent. */
async function refusingRedis() {
  const server = net.createServer(socket => {
    socket.on('error', () => {})
    socket.on('data', data => {
      const sent = data.toString().replaceAll(/[\r\n]+/g, ' ')
      socket.write(`-WRONGPASS invalid username-password pair: ${sent}\r\n`)
    })
  })
  server.listen(0, '127.0.0.1')
  await new Promise(resolve => server.once('listening', resolve))
  return { port: (server.address() as AddressInfo).port, close: () => server.close() }
}

/** How {@link startReflector} answers, in turn. */
const REFUSALS = [401, 403, 404, 400, 500, 200]

/** A server that refuses all and repeats what it was sent, in the forms that vaults give errors. */
function startReflector(statuses: readonly number[]) {
  let count = 0
  return startUpstream((received, response) => {
    const sent = JSON.stringify(received)
    const told = {
      message: sent,
      __type: sent,
      errors: [sent],
      error: { code: sent, message: sent }
    }
    response.writeHead(statuses[count++ % statuses.length]!, {
      'content-type': 'application/json',
      'x-reflected': encodeURIComponent(sent).slice(0, 2000)
    })
    response.end(JSON.stringify(told))
  })
}

const upstream = await startUpstream((received, response) => {
  if (received.url.includes('cut')) response.destroy()
  else response.end('an answer that repeats nothing')
})
const collector = await startReflector([401])
const vault = await startReflector(REFUSALS)
const redis = await refusingRedis()
t.teardown(async () => {
  await upstream.close()
  await collector.close()
  await vault.close()
  redis.close()
})

/** What stands in fields that are not being tested: everything leads to servers of this test. */
const literalFor =
  (url: string, port: number) =>
  (name: string): unknown =>
    /port/.test(name)
      ? port
      : /host|address/.test(name)
        ? '127.0.0.1'
        : /endpoint|url|uri/.test(name)
          ? url
          : 'literal-of-the-file'
const literal = literalFor(collector.url, redis.port)
const vaultLiteral = literalFor(vault.url, Number(new URL(vault.url).port))

const load = (document: object, vaultTypes = backendTypes) =>
  loadConfig(JSON.stringify({ _format_version: '3.0', ...document }), {
    file: 'leak.json',
    plugins,
    vaultTypes
  })

function attempt<T>(run: () => T): T | undefined {
  try {
    return run()
  } catch {
    return undefined
  }
}

/** Configurations of a plugin with a reference in this field: to a value that fits, to a short one. */
async function placesIn(plugin: string, leaf: Leaf): Promise<readonly object[]> {
  for (const example of [{}, ...exampleConfigs(plugin)]) {
    const base = withLiterals(example, literal)
    const document = (text: unknown): object => ({
      plugins: [{ name: plugin, config: quiet(withMember(base, leaf.path, text)) }]
    })
    const config = attempt(() => load(document('{vault://fs/x}')))
    if (config === undefined) continue
    const fits = ({ value }: Canary): boolean =>
      validateUses(new UseIndex(config), plugins, () => ({ value })).length === 0
    // Where nothing fits, a number say, there is a value all the same, which is refused.
    const next = async (): Promise<Canary> => {
      const all = await canaries()
      return all.find(fits) ?? all[0]!
    }
    const where = `plugin ${plugin} ${leaf.path.join('.')}`
    const found = [document(plant(await next(), next, where))]
    if (fits(shortCanary()))
      found.push(document(plant(shortCanary(), async () => shortCanary(), where)))
    return found
  }
  return []
}

/** TLS towards the servers of this test would end before anything is refused. */
const quiet = (config: unknown): unknown =>
  JSON.parse(JSON.stringify(config), (key, value) => (key === 'ssl' ? false : value))

/** A vault of this type with a reference in this setting; undefined when no form of it takes one. */
function vaultWith(type: string, schema: object, leaf: Leaf): object | undefined {
  const settings = leavesOf(schema)
  const choices = settings.flatMap(({ path, schema: { enum: values = [] } }) =>
    (values as readonly unknown[]).map(value => ({ [path[0]!]: value }))
  )
  // Many settings are of one way to sign in: their names or descriptions say which.
  const { description = '' } = leaf.schema as { readonly description?: string }
  const [meant, others] = [[], []] as [object[], object[]]
  for (const choice of choices) {
    const value = String(Object.values(choice)[0])
    const named = description
      .split(/[:.]/)[0]!
      .split(/[`, ]+/)
      .includes(value)
    const begins = leaf.path[0]!.startsWith(value) && leaf.path[0] !== Object.keys(choice)[0]
    ;(named || begins ? meant : others).push(choice)
  }
  for (const choice of [...meant, {}, ...others]) {
    let config = withMember(choice, leaf.path, '{vault://env/x}') as Record<string, unknown>
    for (let round = 0; round < 8; round++) {
      const problems = problemsOf({ vaults: [{ name: type, prefix: 'any', config }] })
      if (problems.length === 0) return config
      const named = problems.map(({ path }) => /config\.(\w+)$/.exec(path)?.[1] ?? '')
      const lacking = named.filter(name => config[name] === undefined && name in schemaOf(schema))
      // Some addresses must be https.
      const plain = named.filter(name => /^http:/.test(String(config[name])))
      if (lacking.length + plain.length === 0) break
      config = {
        ...config,
        ...Object.fromEntries(lacking.map(name => [name, vaultLiteral(name)])),
        ...Object.fromEntries(plain.map(name => [name, 'https://127.0.0.1:9']))
      }
    }
  }
  return undefined
}

/** The settings of every form of a vault, by name. */
const schemaOf = (schema: object): object =>
  Object.fromEntries(leavesOf(schema).map(({ path }) => [path[0]!, true]))

function problemsOf(document: object): readonly { path: string; message: string }[] {
  try {
    load(document)
    return []
  } catch (error) {
    const { problems } = error as {
      readonly problems: readonly { place: { path: string }; message: string }[]
    }
    return problems.map(({ place, message }) => ({ path: place.path, message }))
  }
}

const services: object[] = []
const vaults: object[] = []
const paths: string[] = []
const env: Record<string, string> = {}
/** What could not be planted, and why that is right. */
const left: string[] = []

/** A route of its own for a plugin instance. */
function route(pluginEntities: readonly object[]): void {
  const path = `/leaf/${paths.length}`
  paths.push(path)
  services.push({
    name: `s${paths.length}`,
    url: upstream.url,
    retries: 0,
    routes: [{ name: `r${paths.length}`, paths: [path] }],
    plugins: pluginEntities
  })
}

for (const { name, schema } of plugins) {
  for (const leaf of leavesOf(schema)) {
    const found = (await placesIn(name, leaf)) as readonly { readonly plugins: readonly object[] }[]
    if (found.length === 0) left.push(`plugin ${name} ${leaf.path.join('.')}`)
    for (const { plugins } of found) route(plugins)
  }
}

/** What a setting of a vault gets: what fits, a short one too; one that does not where nothing does. */
async function valuesFor(
  schema: TSchema,
  field: string
): Promise<readonly (() => Promise<Canary>)[]> {
  const fits = ({ value }: Canary): boolean => checkSetting(schema, field, value) === undefined
  const next =
    (wanted: (all: readonly Canary[]) => Canary | undefined) => async (): Promise<Canary> => {
      const all = await canaries()
      return wanted(all.filter(fits)) ?? all[0]!
    }
  const found = [next(all => all[0])]
  if (/cert|ca$|key$/.test(field))
    found.push(next(all => all.find(({ value }) => value.startsWith('---'))))
  if (fits(shortCanary())) found.push(async () => shortCanary())
  return found
}

for (const { name, schema } of backendTypes) {
  for (const leaf of leavesOf(vaultConfigSchema(schema))) {
    const config = vaultWith(name, vaultConfigSchema(schema), leaf)
    if (config === undefined) {
      left.push(`vault ${name} ${leaf.path.join('.')}`)
      continue
    }
    for (const next of await valuesFor(schema, leaf.path[0]!)) {
      const prefix = `v${vaults.length}x`
      const reference = plant(await next(), next, `vault ${name} ${leaf.path.join('.')}`)
      vaults.push({ name, prefix, config: withMember(config, leaf.path, reference) })
      route([
        {
          name: 'http-log',
          config: {
            http_endpoint: collector.url,
            headers: { 'X-Canary': `{vault://${prefix}/x/y}` }
          }
        }
      ])
    }
  }
}

// The same settings as literals of the environment, where they are credentials.
const CREDENTIALS =
  /(password|secret|secret_id|token|api_key|access_key|nonce|jwt|^service_account)$/
for (const { name, schema } of backendTypes) {
  for (const { path, schema: field } of leavesOf(vaultConfigSchema(schema))) {
    if (field.type !== 'string' || !CREDENTIALS.test(path[0]!)) continue
    const [text] = await canaries()
    const variable = `POSTERN_VAULT_${name}_${path[0]}`.toUpperCase().replaceAll('-', '_')
    env[variable] = text!.value
    planted.set(text!.core, variable)
  }
}
const certificate = await pairOf('ec')
env.POSTERN_VAULT_AZURE_CLIENT_CERTIFICATE = certificate.cert.value + certificate.key.value
look(certificate.key, 'POSTERN_VAULT_AZURE_CLIENT_CERTIFICATE')
Object.assign(env, {
  POSTERN_VAULT_HCV_HOST: '127.0.0.1',
  POSTERN_VAULT_HCV_PORT: new URL(vault.url).port,
  POSTERN_VAULT_AWS_REGION: 'eu-central-1',
  POSTERN_VAULT_AWS_ENDPOINT_URL: vault.url,
  POSTERN_VAULT_AWS_ACCESS_KEY_ID: 'AKIDEXAMPLE',
  POSTERN_VAULT_GCP_PROJECT_ID: 'postern-test',
  POSTERN_VAULT_GCP_ENDPOINT_URL: vault.url,
  POSTERN_VAULT_AZURE_VAULT_URI: 'https://127.0.0.1:9',
  POSTERN_VAULT_AZURE_AUTH_METHOD: 'client_certificate',
  POSTERN_VAULT_AZURE_TENANT_ID: 'tenant',
  POSTERN_VAULT_AZURE_CLIENT_ID: 'client',
  POSTERN_VAULT_CONJUR_ENDPOINT_URL: vault.url,
  POSTERN_VAULT_CONJUR_ACCOUNT: 'acme',
  POSTERN_VAULT_CONJUR_LOGIN: 'host/gateway'
})
for (const name of ['hcv', 'aws', 'gcp', 'azure', 'conjur']) {
  const headers = { 'X-Canary': `{vault://${name}/x/y}` }
  route([{ name: 'http-log', config: { http_endpoint: collector.url, headers } }])
}

// Entities: what takes references is asserted to be just this.
const fitting = (index: number) => async (): Promise<Canary> => (await canaries())[index]!
const plain = async (where?: string): Promise<string> =>
  plant(await fitting(0)(), fitting(0), where)
/** The two halves of a pair change together, so that both fit in between. */
async function plantPair(keyType: 'ec' | 'rsa') {
  let pair = await pairOf(keyType)
  const cert = plant(pair.cert, async () => {
    pair = await pairOf(keyType)
    return pair.cert
  })
  const key = plant(pair.key, async () => pair.key)
  return { cert, key }
}
const ec = await plantPair('ec')
const rsa = await plantPair('rsa')
const short = (): string => plant(shortCanary(), async () => shortCanary())
const entities = {
  consumers: [
    {
      username: 'anna',
      keyauth_credentials: [{ key: await plain() }, { key: short() }],
      basicauth_credentials: [
        { username: await plain(), password: await plain() },
        { username: short(), password: short() }
      ]
    }
  ],
  certificates: [{ ...ec, cert_alt: rsa.cert, key_alt: rsa.key, snis: [{ name: 'canary.test' }] }],
  ca_certificates: [{ cert: plant(await fitting(3)(), fitting(3)) }]
}
route([{ name: 'key-auth' }])
route([{ name: 'basic-auth' }])

// Settings, secret or not: what comes out of a vault is one.
const settingsPair = await pairOf('ec')
/** What only some settings take, each with a part that is unlike anything else. */
async function settingCanaries(): Promise<readonly Canary[]> {
  const [word, net] = [(await canaries())[0]!.core, (await canaries())[0]!.core]
  const groups = net
    .match(/..../g)!
    .map(group => group.replace(/^0+(?=.)/, ''))
    .join(':')
  return [
    ...(await canaries()),
    { value: `https://127.0.0.1:9/${word}`, core: word },
    { value: `[fd00:${groups}::1]:9`, core: groups },
    { value: `fd00:${groups}::/96`, core: groups }
  ]
}
/** Settings that this test runs by; what is read of the third are modules, and a reference is none. */
const FIXED_SETTINGS: ReadonlySet<string> = new Set(['config', 'configString', 'vaultBackends'])
/** Settings that take a number, an address or one of some words, with a value they do not take. */
const misfitEnv: Record<string, string> = {}
for (const [name, row] of Object.entries(settingsTable) as [string, Setting][]) {
  if (FIXED_SETTINGS.has(name)) continue
  const takes = (canary: Canary): boolean =>
    attempt(() => row.parse(canary.value, () => {})) !== undefined
  const next = async (): Promise<Canary> => (await settingCanaries()).find(takes)!
  if (name === 'sslCert') {
    env[row.variable] = plant(settingsPair.cert, async () => settingsPair.cert, row.variable)
  } else if (name === 'sslCertKey') {
    env[row.variable] = plant(settingsPair.key, async () => settingsPair.key, row.variable)
  } else if (name === 'sessionRedisUrl') {
    env[row.variable] = `redis://user:${await plain(row.variable)}@127.0.0.1:${redis.port}`
  } else if (/Listen$/.test(name) || (await next()) === undefined) {
    misfitEnv[row.variable] = await plain(row.variable)
  } else {
    env[row.variable] = plant(await next(), next, row.variable)
  }
}

const document = (comment: string): string =>
  JSON.stringify({ _format_version: '3.0', _comment: comment, services, vaults, ...entities })

/** References of the file; those of most settings are read at the start only, those of vaults at need. */
const entityText = JSON.stringify([services, entities])
const used = [...places.keys()].filter(reference => entityText.includes(reference))
const file = join(directory, 'leak.json')
writeFileSync(file, document(''))

const environment = {
  ...env,
  POSTERN_VAULT_FS_PREFIX: secrets,
  POSTERN_VAULT_START: 'degraded',
  POSTERN_LOG_LEVEL: 'trace',
  POSTERN_PROXY_ACCESS_LOG: 'on',
  POSTERN_SECRET_GRACE: '1',
  POSTERN_PROXY_LISTEN: '127.0.0.1:0, 127.0.0.1:0 ssl',
  HOME: working,
  // Nothing may leave this machine.
  HTTPS_PROXY: 'http://127.0.0.1:9',
  AWS_EC2_METADATA_DISABLED: 'true',
  GCE_METADATA_HOST: '127.0.0.1:9'
}

/** Everything that came out, by where. */
const outputs = new Map<string, string>()
const keep = (name: string, text: string): void =>
  void outputs.set(name, (outputs.get(name) ?? '') + text)

/** What the gateway answers by itself: heads and bodies, on every route and in odd ways. */
async function ask(url: string, phase: string): Promise<void> {
  const one = (path: string, headers: http.OutgoingHttpHeaders, method = 'GET'): Promise<void> =>
    new Promise(resolve => {
      const request = http.request(url + path, { method, headers, agent: false }, response => {
        let body = ''
        response.on('data', chunk => {
          body += chunk
        })
        response.on('close', () => {
          keep(`answer ${phase} ${path}`, `${response.statusCode} ${response.rawHeaders} ${body}`)
          resolve()
        })
      })
      request.on('error', () => resolve())
      request.end()
    })
  for (const path of paths) {
    await one(path, {})
    await one(`${path}/cut`, { accept: 'text/html' })
  }
  await one('/nowhere', { accept: 'application/xml' })
  await one(paths[0]!, { authorization: `Basic ${Buffer.from('a:b').toString('base64')}` })
  await one(paths[0]!, { apikey: 'wrong' })
}

async function askStatus(url: string, phase: string): Promise<void> {
  for (const path of ['/status', '/status/ready', '/vaults', '/config', '/metrics', '/nothing']) {
    keep(`status ${phase} ${path}`, await (await fetch(url + path)).text())
  }
  // Vaults that do not answer are asked at the start; here it would only take time.
  const token = ['{"alg":"RS256","kid":"k"}', '{"sub":"nobody"}', 'signed'].map(part =>
    Buffer.from(part).toString('base64url')
  )
  const headers = { authorization: `Bearer ${token.join('.')}`, 'x-webhook-secret': 'wrong' }
  const webhooks = ['generic', 'aws', 'gcp', 'azure'].map(name => `/vaults/webhooks/${name}`)
  for (const path of ['/vaults/refresh?prefix=fs', '/reload', ...webhooks]) {
    const answer = await fetch(url + path, { method: 'POST', body: '{}', headers })
    keep(`status ${phase} ${path}`, await answer.text())
  }
}

const readCanary = (reference: string): string =>
  readFileSync(join(secrets, places.get(reference)!.file), 'utf8')

/** A module that makes the process fail as a library might: with a secret in the message. */
const crasher = join(directory, 'crasher.mjs')
writeFileSync(
  crasher,
  `import { existsSync, readFileSync } from 'node:fs'
import { isMainThread } from 'node:worker_threads'
const trigger = ${JSON.stringify(directory)} + (isMainThread ? '/crash-main' : '/crash-worker')
const timer = setInterval(() => {
  if (!existsSync(trigger)) return
  clearInterval(timer)
  const secret = readFileSync(trigger, 'utf8')
  process.emitWarning('deprecated with ' + secret)
  throw Object.assign(new Error('refused ' + secret, { cause: new Error(secret) }), { secret })
}, 50)
timer.unref()
`
)

/** What has Node write what it knows to a file: the gateway must not let it. */
const REPORTS = `--report-uncaught-exception --report-on-fatalerror --report-on-signal --report-directory=${working}`

t.test('every field that takes a reference has a canary', async t => {
  t.same(left, [])
  t.ok(planted.size > 20, `${planted.size} canaries`)
  const fields = kinds.flatMap(({ name, schema }) =>
    leavesOf(schema).map(({ path }) => `${name}.${path.join('.')}`)
  )
  t.same(fields.toSorted(), [
    'basicauth_credentials.password',
    'basicauth_credentials.username',
    'ca_certificates.cert',
    'certificates.cert',
    'certificates.cert_alt',
    'certificates.key',
    'certificates.key_alt',
    'keyauth_credentials.key'
  ])
})

t.test('start, traffic, rotation, failures and crashes', async t => {
  await using gateway = await startProcess(
    file,
    {
      ...environment,
      NODE_OPTIONS: `${process.env.NODE_OPTIONS ?? ''} --import=${crasher} ${REPORTS}`
    },
    working
  )
  const { url, statusUrl } = gateway
  const phase = async (name: string): Promise<void> => {
    await ask(url, name)
    await askStatus(statusUrl, name)
  }
  await phase('started')

  for (const { file, next } of places.values()) writeFileSync(join(secrets, file), await next())
  const changed = await until(async () => {
    const answer = await fetch(`${statusUrl}/vaults/refresh?prefix=fs`, { method: 'POST' })
    keep('status refreshed', await answer.text())
    const lines = gateway
      .lines()
      .filter(({ audit, vault }) => audit === 'secret-changed' && vault === 'fs')
    return lines.length >= used.length ? lines : undefined
  }, 'the new values')
  t.match(changed[0], { reference: /^\{vault:/ })
  await phase('rotated')

  for (const [index] of misfits().entries()) {
    for (const { file } of places.values()) {
      const misfit = misfits()[index]!
      planted.set(misfit.core, `misfit ${index}`)
      writeFileSync(join(secrets, file), misfit.value)
    }
    writeFileSync(file, document(`misfit ${index}`))
    await phase(`misfit ${index}`)
  }
  t.ok(gateway.lines().some(({ msg }) => /refused|reloaded/.test(msg)))

  for (const { file } of places.values()) rmSync(join(secrets, file))
  await phase('absent')
  for (const { file } of places.values()) mkdirSync(join(secrets, file))
  await phase('malformed')
  for (const { file, next } of places.values()) {
    rmSync(join(secrets, file), { recursive: true })
    writeFileSync(join(secrets, file), await next())
  }
  writeFileSync(file, document('restored'))
  await phase('restored')

  const crash = [...places.keys()].map(readCanary).find(value => /^canary-/.test(value))!
  writeFileSync(join(directory, 'crash-worker'), crash)
  await until(
    () => gateway.lines().some(({ msg }) => /thread ended and is replaced/.test(msg)),
    'the end of a thread'
  )
  rmSync(join(directory, 'crash-worker'))
  await until(
    () =>
      fetch(url).then(
        () => true,
        () => false
      ),
    'another thread'
  )
  writeFileSync(join(directory, 'crash-main'), crash)
  const { code, stdout, stderr } = await gateway.end('SIGUSR1')
  t.equal(code, 1)
  t.match(stdout, /an error nobody caught ended this process/)
  t.match(stdout, 'refused [secret]')
  keep('stdout', stdout)
  keep('stderr', stderr)
})

t.test('commands, and a start that fails', async t => {
  const other = join(directory, 'other.json')
  writeFileSync(other, JSON.stringify({ _format_version: '3.0', services: services.slice(0, 1) }))
  const runs: readonly (readonly string[])[] = [
    ['check', file, '--resolve'],
    ['check', file, '--resolve', '--json'],
    ['vault', 'list', '-c', file],
    ['vault', 'list', '-c', file, '--json'],
    ['vault', 'get', [...places.keys()][0]!, '-c', file],
    ['vault', 'get', [...places.keys()][0]!, '-c', file, '--json'],
    ['vault', 'get', '{vault://hcv/x/y}'],
    ['vault', 'get', '{vault://conjur/x/y}', '--json'],
    ['diff', file, other],
    ['diff', file, other, '--json'],
    ['check', file]
  ]
  await Promise.all(
    runs.map(async words => {
      const { stdout, stderr } = await posternProcess(words, environment)
      keep(`command ${words.join(' ')}`, stdout + stderr)
    })
  )
  for (const { file } of places.values()) {
    const misfit = misfits()[2]!
    planted.set(misfit.core, 'misfit at the start')
    writeFileSync(join(secrets, file), misfit.value)
  }
  const { stdout, stderr } = await posternProcess(['start', file], {
    ...environment,
    POSTERN_VAULT_START: 'strict'
  })
  keep('failed start', stdout + stderr)
  const refused = await posternProcess(['check', file, '--resolve'], {
    ...env,
    ...misfitEnv,
    POSTERN_VAULT_FS_PREFIX: secrets
  })
  const address = plant((await settingCanaries()).at(-2)!, async () => (await canaries())[0]!)
  const unbound = await posternProcess(['start', other], {
    POSTERN_VAULT_FS_PREFIX: secrets,
    POSTERN_VAULT_START: 'degraded',
    POSTERN_STATUS_LISTEN: 'off',
    POSTERN_PROXY_LISTEN: address
  })
  t.match(unbound, { code: 1, stderr: /POSTERN_PROXY_LISTEN: \[secret\] is no address/ })
  keep('an address that is not there', unbound.stdout + unbound.stderr)
  keep('refused settings', refused.stdout + refused.stderr)
  for (const variable of Object.keys(misfitEnv))
    t.match(refused.stderr, `${variable} holds a reference whose value is refused`)
})

t.test('nothing that came out shows any part of a canary', async t => {
  for (const name of readdirSync(working, { recursive: true, encoding: 'utf8' })) {
    keep(`file ${name}`, readFileSync(join(working, name), 'utf8'))
  }
  t.ok(outputs.size > paths.length)
  t.ok((outputs.get('stdout') ?? '').length > 1000)
  const find = finder([...planted.keys()])
  t.ok(places.size > 300, `${places.size} places`)
  for (const [name, text] of outputs) {
    t.same(
      find(text).map(({ core, at }) => `${planted.get(core)}: ${context(text, core, at)}`),
      [],
      name
    )
  }
})

/** Least length of what is looked for. */
const WINDOW = 7

/** Finds what stands in a text as it is or in base64, at any of its three alignments. */
function finder(cores: readonly string[]) {
  const byStart = new Map<string, { readonly form: string; readonly core: string }[]>()
  for (const core of cores) {
    const encoded = [0, 1, 2].map(shift =>
      // The first and last digits hold bits of what stands around.
      Buffer.from(' '.repeat(shift) + core)
        .toString('base64')
        .replace(/=*$/, '')
        .slice(shift + 1, -2)
    )
    for (const form of [core, ...encoded]) {
      if (form.length < WINDOW) continue
      const start = form.slice(0, WINDOW)
      byStart.set(start, [...(byStart.get(start) ?? []), { form, core }])
    }
  }
  return (text: string): readonly { readonly core: string; readonly at: number }[] => {
    const found = new Map<string, number>()
    for (let at = 0; at + WINDOW <= text.length; at++) {
      for (const { form, core } of byStart.get(text.slice(at, at + WINDOW)) ?? [])
        if (text.startsWith(form, at)) found.set(core, at)
    }
    return [...found].map(([core, at]) => ({ core, at }))
  }
}

const context = (text: string, core: string, at: number): string =>
  text.slice(Math.max(0, at - 100), at + core.length + 40)
