import { randomBytes } from 'node:crypto'
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Test } from 'tap'
import { lineOf, pairOf } from '../../canaries.ts'
import { startUpstream, until } from '../../harness.ts'
import { type GatewayProcess, posternProcess, startProcess } from '../../process.ts'
import { startFaultProxy } from '../fault-proxy.ts'
import { type Fault, type FaultServer, faults } from '../fault-server.ts'
import { type ChaosSubject, type Scenario, scenarios } from './chaos.ts'

// Beside test/leak.test.ts, which fails every place of a secret: here every vault fails in every way,
// at its start and later, and whatever came out is searched for what it holds, what it was signed into
// with, and the words of its errors.
/** One vault of one gateway: a subject behind a proxy that plays this scenario. */
interface Stage {
  readonly subject: ChaosSubject
  readonly scenario: Scenario
  readonly proxy: FaultServer
  readonly prefix: string
  readonly config: Readonly<Record<string, unknown>>
}

/** An answer without an end shows no more than one that is too large. */
const SCENARIOS = scenarios.filter(each => each !== 'endless')

/** What is looked for, and where it was put. */
const planted = new Map<string, string>([['canary: ', 'the words of an error']])
/** Settings that sign the gateway in. */
const CREDENTIAL = /secret|api_key|token|password/
/** Headers that a token is sent in. */
const TOKEN_HEADERS = ['authorization', 'x-vault-token', 'x-amz-security-token']

async function pairFor({ subject, prefix }: Stage): Promise<Readonly<Record<string, string>>> {
  if (subject.type === 'azure-certs') {
    const { cert, key } = await pairOf('ec')
    planted.set(cert.core, prefix).set(key.core, prefix)
    return { cert: cert.value, key: key.value }
  }
  const [user, word] = [randomBytes(8).toString('hex'), randomBytes(8).toString('hex')]
  planted.set(user, prefix).set(word, prefix)
  return { user: `canary-${user}`, password: `canary-${word}` }
}

/** The vaults of a gateway; credentials stand in its environment. */
async function stagesOf(subject: ChaosSubject, env: Record<string, string>): Promise<Stage[]> {
  const stages: Stage[] = []
  for (const scenario of SCENARIOS) {
    const proxy = await startFaultProxy(subject.url, { retryAfter: 1, ...subject.proxy })
    const prefix = `${subject.type}-${scenario}`
    const settings = Object.entries(await subject.settings(proxy, scenario)).map(
      ([name, value]) => {
        if (!CREDENTIAL.test(name) || typeof value !== 'string') return [name, value]
        const variable = `CRED_${Object.keys(env).length}`
        env[variable] = value
        planted.set(value, `${prefix} ${name}`)
        return [name, `{vault://env/${variable.toLowerCase().replace('_', '-')}}`]
      }
    )
    const timeout = scenario === 'black-hole' || scenario === 'slow' ? 5 : 10
    const config = { ...Object.fromEntries(settings), ttl: 1, neg_ttl: 1, timeout }
    stages.push({ subject, scenario, proxy, prefix, config })
  }
  return stages
}

function documentOf(stages: readonly Stage[], upstream: string, collector: string): object {
  const named = stages.map(stage => ({
    ...stage,
    reference: (member: string) => `{vault://${stage.prefix}/pair-${stage.scenario}/${member}}`
  }))
  const certificates = named.filter(({ subject }) => subject.type === 'azure-certs')
  const pairs = named.filter(({ subject }) => subject.type !== 'azure-certs')
  return {
    _format_version: '3.0',
    vaults: stages.map(({ subject, prefix, config }) => ({ name: subject.type, prefix, config })),
    services: [
      {
        name: 'echo',
        url: upstream,
        routes: [
          { name: 'plain', paths: ['/plain'] },
          ...pairs.map(({ prefix, reference }) => ({
            name: prefix,
            paths: [`/${prefix}`],
            plugins: [
              { name: 'basic-auth' },
              {
                name: 'http-log',
                config: {
                  http_endpoint: collector,
                  headers: { 'X-Pair': `${reference('user')}/${reference('password')}` }
                }
              }
            ]
          }))
        ]
      }
    ],
    consumers: pairs.map(({ prefix, reference }) => ({
      username: prefix,
      basicauth_credentials: [{ username: reference('user'), password: reference('password') }]
    })),
    certificates: certificates.map(({ prefix, reference }) => ({
      cert: reference('cert'),
      key: reference('key'),
      snis: [{ name: `${prefix}.example` }]
    }))
  }
}

/** Drives a gateway with vaults of these kinds through every failure, and searches what came out. */
export async function leaks(
  t: Test,
  name: string,
  starts: readonly (() => Promise<ChaosSubject>)[]
): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), 'postern-leak-'))
  const working = join(directory, 'cwd')
  mkdirSync(working)
  const subjects = await Promise.all(starts.map(start => start()))
  const env: Record<string, string> = {}
  const stages = (await Promise.all(subjects.map(each => stagesOf(each, env)))).flat()
  // It refuses what it is sent, so that plugins have their secrets read again.
  const collector = await startUpstream((_, response) => void response.writeHead(401).end())
  const upstream = await startUpstream()
  t.teardown(async () => {
    for (const { proxy } of stages) await proxy.close()
    for (const subject of subjects) await subject[Symbol.asyncDispose]()
    await collector.close()
    await upstream.close()
    rmSync(directory, { recursive: true, force: true })
  })
  const put = async (): Promise<void> => {
    for (const stage of stages) {
      await stage.subject.put(`pair-${stage.scenario}`, await pairFor(stage))
    }
  }
  const file = join(directory, 'postern.json')
  writeFileSync(file, JSON.stringify(documentOf(stages, upstream.url, collector.url)))
  writeFileSync(join(directory, 'trust.pem'), subjects.map(({ trust }) => trust ?? '').join(''))
  const environment = {
    ...env,
    ...Object.assign({}, ...subjects.map(subject => subject.env)),
    NODE_EXTRA_CA_CERTS: join(directory, 'trust.pem'),
    POSTERN_VAULT_ROTATION_INTERVAL: '1',
    POSTERN_SECRET_GRACE: '1',
    POSTERN_SHUTDOWN_TIMEOUT: '1',
    // On a busy machine the SDKs take so long to load that reads of the start time out.
    POSTERN_VAULT_START: 'degraded',
    POSTERN_LOG_LEVEL: 'trace',
    POSTERN_PROXY_ACCESS_LOG: 'on',
    POSTERN_VAULT_CACHE_FILE: join(working, 'last-known-good'),
    POSTERN_VAULT_CACHE_KEY: randomBytes(32).toString('base64')
  }

  const outputs = new Map<string, string>()
  const keep = (what: string, text: string): void => void outputs.set(`${name} ${what}`, text)
  const ask = async ({ url, statusUrl }: GatewayProcess, phase: string): Promise<void> => {
    for (const path of ['/vaults', '/metrics', '/status', '/status/ready', '/config']) {
      keep(`${phase} ${path}`, await (await fetch(statusUrl + path)).text())
    }
    for (const { prefix } of stages) {
      const authorization = `Basic ${Buffer.from('anna:wrong').toString('base64')}`
      const answer = await fetch(`${url}/${prefix}`, { headers: { authorization } })
      const head = JSON.stringify([...answer.headers])
      keep(`${phase} /${prefix}`, `${answer.status} ${head} ${await answer.text()}`)
    }
  }
  const stateOf = async ({ statusUrl }: GatewayProcess) => {
    const { references } = (await (await fetch(`${statusUrl}/vaults`)).json()) as {
      readonly references: readonly { readonly vault: string; readonly failures: number }[]
    }
    return new Map(references.map(({ vault, failures }) => [vault, failures]))
  }
  const failing = (gateway: GatewayProcess) =>
    until(
      async () => {
        const failures = await stateOf(gateway)
        return stages.every(
          ({ scenario, prefix }) =>
            scenario === 'sound' || scenario === 'expired-token' || failures.get(prefix)! > 0
        )
      },
      'every fault to come to a failure',
      60_000
    )
  const play = (which: readonly Fault[], sound: boolean) =>
    Promise.all(
      stages.flatMap(({ scenario, proxy }) => {
        const fault = which.find(each => each === scenario)
        return fault === undefined ? [] : [proxy.fault(sound ? undefined : fault)]
      })
    )
  const end = async (gateway: GatewayProcess, phase: string): Promise<void> => {
    const { stdout, stderr } = await gateway.end()
    keep(`${phase} stdout`, stdout)
    keep(`${phase} stderr`, stderr)
  }

  await put()
  await using gateway = await startProcess(file, environment, working)
  await until(
    async () => [...(await stateOf(gateway)).values()].every(failures => failures === 0),
    'every vault to be read',
    120_000
  )
  await ask(gateway, 'started')
  await put()
  await until(
    () => {
      const changed = gateway.lines().filter(({ audit }) => audit === 'secret-changed')
      return new Set(changed.map(({ vault }) => vault)).size === stages.length
    },
    'the new values',
    60_000
  )
  await play(faults, false)
  for (const subject of subjects) subject.expire()
  await put()
  await failing(gateway)
  await ask(gateway, 'failing')
  await end(gateway, 'first')

  // A start while they fail: with what is known of before, and degraded where that does not help. One
  // that throttles would only be waited for.
  await play(['throttled'], true)
  await using again = await startProcess(file, environment, working)
  await ask(again, 'degraded')
  const runs = [['start'], ['check', '--resolve']].map(async ([command, ...flags]) => {
    const { code, stdout, stderr } = await posternProcess([command!, file, ...flags], {
      ...environment,
      POSTERN_VAULT_START: 'strict',
      POSTERN_PROXY_LISTEN: '127.0.0.1:0',
      POSTERN_STATUS_LISTEN: 'off',
      POSTERN_VAULT_CACHE_FILE: join(working, 'none-yet')
    })
    t.equal(code, 1, `${command} ${flags.join(' ')}`)
    keep(`${command} ${flags.join(' ')}`, stdout + stderr)
  })
  await Promise.all(runs)
  await play(faults, true)
  const refreshed = await fetch(`${again.statusUrl}/vaults/refresh`, { method: 'POST' })
  keep('refreshed', await refreshed.text())
  await ask(again, 'back')
  await end(again, 'second')
  for (const each of readdirSync(working)) keep(each, readFileSync(join(working, each), 'utf8'))

  for (const { headers } of stages.flatMap(({ proxy }) => proxy.requests)) {
    for (const header of TOKEN_HEADERS) {
      const token = String(headers[header] ?? '').replace(/^(Bearer|Token) /, '')
      if (token.length > 8) planted.set(token, `the token of ${name}`)
    }
  }
  t.ok(planted.size > 3 * 2 * stages.length, `${planted.size} texts are looked for`)
  t.ok(outputs.get(`${name} failing /vaults`)!.includes('last_error'))
  for (const [what, text] of outputs) {
    const shown = [...planted].filter(
      ([core]) => text.includes(core) || text.includes(lineOf(core))
    )
    t.same(
      shown.map(([core, place]) => `${place}: ${around(text, core)}`),
      [],
      what
    )
  }
}

function around(text: string, core: string): string {
  const at = text.indexOf(core)
  return text.slice(Math.max(0, at - 150), at + core.length + 40)
}
