import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import http from 'node:http'
import net, { type AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { loadConfig } from '../src/config.ts'
import { validateUses } from '../src/config-values.ts'
import { plugins } from '../src/plugins/index.ts'
import { kinds } from '../src/schema/kinds.ts'
import { vaultConfigSchema } from '../src/schema/vault-config.ts'
import { type Setting, settingsTable } from '../src/settings.ts'
import { UseIndex } from '../src/uses.ts'
import { backendTypes } from '../src/vault/backends/index.ts'
import {
  type Canary,
  canaries,
  exampleConfigs,
  type Leaf,
  leavesOf,
  lineOf,
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

/** Stores a value; gives the reference to it. */
function plant(canary: Canary, next: () => Promise<Canary>): string {
  const file = `s${places.size}`
  const reference = `{vault://fs/${file}}`
  const put = (each: Canary): string => {
    planted.set(each.core, reference)
    return each.value
  }
  writeFileSync(join(secrets, file), put(canary))
  places.set(reference, { file, next: async () => put(await next()) })
  return reference
}

/** A server that takes no password. */
async function refusingRedis() {
  const server = net.createServer(socket => {
    socket.on('error', () => {})
    socket.on('data', () =>
      socket.write('-WRONGPASS invalid username-password pair or user is disabled.\r\n')
    )
  })
  server.listen(0, '127.0.0.1')
  await new Promise(resolve => server.once('listening', resolve))
  return { port: (server.address() as AddressInfo).port, close: () => server.close() }
}

const upstream = await startUpstream((received, response) => {
  if (received.url.includes('cut')) response.destroy()
  else response.end('an answer that repeats nothing')
})
const collector = await startUpstream((_received, response) => {
  response.writeHead(401).end()
})
const redis = await refusingRedis()
t.teardown(async () => {
  await upstream.close()
  await collector.close()
  redis.close()
})

/** What stands in fields that are not being tested: everything leads to servers of this test. */
const literal = (name: string): unknown =>
  /port/.test(name)
    ? redis.port
    : /host|address/.test(name)
      ? '127.0.0.1'
      : /endpoint|url|uri/.test(name)
        ? collector.url
        : 'literal-of-the-file'

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

/** A configuration of a plugin with a reference in this field, and a value that fits it. */
async function placeIn(plugin: string, leaf: Leaf): Promise<object | undefined> {
  for (const example of [{}, ...exampleConfigs(plugin)]) {
    const base = withLiterals(example, literal)
    const document = (text: unknown): object => ({
      plugins: [{ name: plugin, config: quiet(withMember(base, leaf.path, text)) }]
    })
    const config = attempt(() => load(document('{vault://fs/x}')))
    if (config === undefined) continue
    const fits = ({ value }: Canary): boolean =>
      validateUses(new UseIndex(config), plugins, () => ({ value })).length === 0
    const next = async (): Promise<Canary> => (await canaries()).find(fits)!
    const canary = await next()
    if (canary === undefined) return { plugins: [] }
    return document(plant(canary, next))
  }
  return undefined
}

/** TLS towards the servers of this test would end before anything is refused. */
const quiet = (config: unknown): unknown =>
  JSON.parse(JSON.stringify(config), (key, value) => (key === 'ssl' ? false : value))

interface Described {
  readonly type?: unknown
  readonly enum?: readonly unknown[]
}

/** A vault of this type with a reference in this setting; undefined when no form of it takes one. */
function vaultWith(type: string, schema: object, leaf: Leaf): object | undefined {
  const settings = leavesOf(schema)
  const choices = settings.flatMap(({ path, schema: { enum: values = [] } }) =>
    ((values as Described['enum']) ?? []).map(value => ({ [path[0]!]: value }))
  )
  for (const choice of [{}, ...choices]) {
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
        ...Object.fromEntries(lacking.map(name => [name, literal(name)])),
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
    const found = (await placeIn(name, leaf)) as { readonly plugins: readonly object[] } | undefined
    if (found === undefined) left.push(`plugin ${name} ${leaf.path.join('.')}`)
    else if (found.plugins.length > 0) route(found.plugins)
  }
}

for (const { name, schema } of backendTypes) {
  for (const leaf of leavesOf(vaultConfigSchema(schema))) {
    const { type, enum: values } = leaf.schema as Described
    if (type !== 'string' || values !== undefined) continue
    const config = vaultWith(name, vaultConfigSchema(schema), leaf)
    if (config === undefined) {
      left.push(`vault ${name} ${leaf.path.join('.')}`)
      continue
    }
    const prefix = `v${vaults.length}x`
    const variable = `CANARY_${vaults.length}`
    const reference = `{vault://env/${variable.toLowerCase().replaceAll('_', '-')}}`
    const text = (await canaries())[0]!
    env[variable] = text.value
    planted.set(text.core, `vault ${name} ${leaf.path.join('.')}`)
    vaults.push({ name, prefix, config: withMember(config, leaf.path, reference) })
    route([
      {
        name: 'http-log',
        config: { http_endpoint: collector.url, headers: { 'X-Canary': `{vault://${prefix}/x/y}` } }
      }
    ])
  }
}

// The same settings as literals of the environment, where they are credentials.
const CREDENTIALS =
  /(password|secret|secret_id|token|api_key|access_key|nonce|jwt|^service_account)$/
for (const { name, schema } of backendTypes) {
  for (const { path, schema: field } of leavesOf(vaultConfigSchema(schema))) {
    if ((field as Described).type !== 'string' || !CREDENTIALS.test(path[0]!)) continue
    const [text] = await canaries()
    const variable = `POSTERN_VAULT_${name}_${path[0]}`.toUpperCase().replaceAll('-', '_')
    env[variable] = text!.value
    planted.set(text!.core, variable)
  }
}
const certificate = await pairOf('ec')
env.POSTERN_VAULT_AZURE_CLIENT_CERTIFICATE = certificate.cert.value + certificate.key.value
planted.set(certificate.key.core, 'POSTERN_VAULT_AZURE_CLIENT_CERTIFICATE')
Object.assign(env, {
  POSTERN_VAULT_HCV_HOST: '127.0.0.1',
  POSTERN_VAULT_HCV_PORT: '9',
  POSTERN_VAULT_AWS_REGION: 'eu-central-1',
  POSTERN_VAULT_AWS_ENDPOINT_URL: 'http://127.0.0.1:9',
  POSTERN_VAULT_AWS_ACCESS_KEY_ID: 'AKIDEXAMPLE',
  POSTERN_VAULT_GCP_PROJECT_ID: 'postern-test',
  POSTERN_VAULT_GCP_ENDPOINT_URL: 'http://127.0.0.1:9',
  POSTERN_VAULT_AZURE_VAULT_URI: 'https://127.0.0.1:9',
  POSTERN_VAULT_AZURE_AUTH_METHOD: 'client_certificate',
  POSTERN_VAULT_AZURE_TENANT_ID: 'tenant',
  POSTERN_VAULT_AZURE_CLIENT_ID: 'client',
  POSTERN_VAULT_CONJUR_ENDPOINT_URL: 'http://127.0.0.1:9',
  POSTERN_VAULT_CONJUR_ACCOUNT: 'acme',
  POSTERN_VAULT_CONJUR_LOGIN: 'host/gateway'
})
for (const name of ['hcv', 'aws', 'gcp', 'azure', 'conjur']) {
  const headers = { 'X-Canary': `{vault://${name}/x/y}` }
  route([{ name: 'http-log', config: { http_endpoint: collector.url, headers } }])
}

// Entities: what takes references is asserted to be just this.
const fitting = (index: number) => async (): Promise<Canary> => (await canaries())[index]!
const plain = async (): Promise<string> => plant(await fitting(0)(), fitting(0))
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
const short = plant(shortCanary(), async () => shortCanary())
const entities = {
  consumers: [
    {
      username: 'anna',
      keyauth_credentials: [{ key: await plain() }, { key: short }],
      basicauth_credentials: [{ username: await plain(), password: await plain() }]
    }
  ],
  certificates: [{ ...ec, cert_alt: rsa.cert, key_alt: rsa.key, snis: [{ name: 'canary.test' }] }],
  ca_certificates: [{ cert: plant(await fitting(3)(), fitting(3)) }]
}
route([{ name: 'key-auth' }])
route([{ name: 'basic-auth' }])

// Settings that are secrets.
const settingsPair = await pairOf('ec')
for (const row of Object.values(settingsTable) as readonly Setting[]) {
  if (!row.secret || row.verbatim) continue
  if (row.variable === settingsTable.sslCertKey.variable) {
    env[row.variable] = plant(settingsPair.key, async () => settingsPair.key)
    env[settingsTable.sslCert.variable] = plant(settingsPair.cert, async () => settingsPair.cert)
  } else if (row.variable === settingsTable.sessionRedisUrl.variable) {
    env[row.variable] = `redis://user:${await plain()}@127.0.0.1:${redis.port}`
  } else {
    const next = async (): Promise<Canary> =>
      (await canaries()).find(
        ({ value }) => attempt(() => row.parse(value, () => {})) !== undefined
      )!
    env[row.variable] = plant(await next(), next)
  }
}

const document = (comment: string): string =>
  JSON.stringify({ _format_version: '3.0', _comment: comment, services, vaults, ...entities })

/** References of the file; those of most settings are read at the start only. */
const used = [...places.keys()].filter(reference => document('').includes(reference))
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
  POSTERN_VAULT_CACHE_FILE: join(working, 'last-known-good'),
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
  for (const path of ['/vaults/refresh?prefix=fs', '/reload', '/vaults/webhooks/generic']) {
    const answer = await fetch(url + path, { method: 'POST', body: '{}' })
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
    { ...environment, NODE_OPTIONS: `${process.env.NODE_OPTIONS ?? ''} --import=${crasher}` },
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
    const lines = gateway.lines().filter(({ audit }) => audit === 'secret-changed')
    return lines.length >= used.length ? lines : undefined
  }, 'the new values')
  t.match(changed[0], { reference: /^\{vault:/, vault: 'fs' })
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

t.test('commands, and a start that fails', async () => {
  const runs: readonly (readonly string[])[] = [
    ['check', file, '--resolve'],
    ['check', file, '--resolve', '--json'],
    ['vault', 'list', '-c', file],
    ['vault', 'get', [...places.keys()][0]!, '-c', file],
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
})

t.test('nothing that came out shows any part of a canary', async t => {
  for (const name of readdirSync(working, { recursive: true, encoding: 'utf8' })) {
    keep(`file ${name}`, readFileSync(join(working, name), 'utf8'))
  }
  t.ok(outputs.size > paths.length)
  t.ok((outputs.get('stdout') ?? '').length > 1000)
  for (const [name, text] of outputs) {
    const shown = [...planted].filter(
      ([core]) => text.includes(core) || text.includes(lineOf(core))
    )
    t.same(
      shown.map(([core, place]) => `${place}: ${context(text, core)}`),
      [],
      name
    )
  }
})

const context = (text: string, core: string): string => {
  const at = text.indexOf(core)
  return text.slice(Math.max(0, at - 100), at + core.length + 40)
}
