import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import http from 'node:http'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { startUpstream, until } from './harness.ts'
import { cleanEnvironment, postern, posternProcess, startProcess } from './process.ts'

const directory = mkdtempSync(join(tmpdir(), 'postern-cli-'))
t.teardown(() => rmSync(directory, { recursive: true }))
// Some runs are processes of their own, and the machine may be busy.
t.setTimeout(240_000)
let files = 0

/** Writes a file of this test; gives its path. */
function file(text: string, name = `${++files}.yaml`): string {
  const path = join(directory, name)
  writeFileSync(path, text)
  return path
}

const VALID = `_format_version: "3.0"
services:
  - name: orders
    url: http://127.0.0.1:1
    routes:
      - name: orders
        paths: [/orders]
`
const REFERRING = `${VALID}plugins:
  - name: http-log
    config:
      http_endpoint: "{vault://env/endpoint}"
      headers:
        Authorization: "Bearer {vault://fs/token}"
        X-Again: "{vault://fs/token}"
`
const BROKEN = `_format_version: "3.0"
services:
  - name: orders
    url: http://127.0.0.1:1
    retrys: 3
    routes:
      - name: orders
        paths: [orders]
plugins:
  - name: http-log
    config:
      http_endpoint: {vault://env/endpoint}
`

function secrets(test: Test, values: Readonly<Record<string, string>>): string {
  const root = mkdtempSync(join(tmpdir(), 'postern-cli-secrets-'))
  test.teardown(() => rmSync(root, { recursive: true }))
  for (const [name, value] of Object.entries(values)) writeFileSync(join(root, name), value)
  return root
}

t.test('wrong usage is told with how it is done, and is exit code 2', async t => {
  const wrong: readonly (readonly [string, RegExp, RegExp])[] = [
    [
      'serve',
      /^There is no command "serve"\.$/m,
      /^ {2}postern start \[FILE\] .*postern diff OLD/ms
    ],
    ['chekc', /^There is no command "chekc"\. Did you mean check\?$/m, /postern COMMAND --help/],
    ['help serve', /^There is no command "serve"\.$/m, /postern COMMAND --help/],
    ['serve --help', /^There is no command "serve"\.$/m, /postern COMMAND --help/],
    [
      'check --resovle',
      /^There is no option --resovle\. Did you mean --resolve\?$/m,
      /postern check --help/
    ],
    [
      'check -x',
      /^There is no option -x\.$/m,
      /^ {2}postern check \[FILE\] \[--resolve\] \[--json\]$/m
    ],
    ['check -c', /argument missing\.$/m, /postern check --help/],
    ['check a b', /^"b" is one word too many\.$/m, /postern check --help/],
    [
      'vault',
      /^vault needs one of get, list, refresh\.$/m,
      /postern vault get .*postern vault refresh/s
    ],
    ['vault get', /^vault get needs a reference/m, /^ {2}postern vault get REFERENCE/m],
    ['vault forget --json', /^vault needs one of get, list, refresh\.$/m, /postern vault --help/],
    [
      'vault list --reveal',
      /^postern vault list takes no --reveal\.$/m,
      /postern vault list --help/
    ],
    ['reload --json', /^postern reload takes no --json\.$/m, /postern reload --help/],
    ['reload now', /^"now" is one word too many\.$/m, /postern reload --help/],
    ['diff a', /^diff needs two files: OLD NEW\.$/m, /postern diff --help/]
  ]
  for (const [words, message, usage] of wrong) {
    const { code, stdout, stderr } = await postern(words.split(' '))
    t.equal(code, 2, words)
    t.match(stderr, message, words)
    t.match(stderr, /^Usage$/m)
    t.match(stderr, usage, words)
    t.equal(stdout, '')
  }
})

t.test('help of all, and of each command: its options, exit codes and an example', async t => {
  const { overview, version } = await helps()
  t.match(version, { code: 0, stdout: /^\d+\.\d+\.\d+\n$/ })
  for (const words of ['', '--help', 'help', '-h'])
    t.same(await postern(words === '' ? [] : [words]), overview, words)
  const names = [...overview.stdout.matchAll(/^ {2}postern ((?:vault )?[a-z]+)/gm)].map(
    ([, name]) => name!
  )
  t.same(names.length, 11)
  const pages = new Set<string>()
  for (const name of names.filter(name => name !== 'help')) {
    const { code, stdout } = await postern([...name.split(' '), '--help'])
    t.equal(code, 0, name)
    t.match(stdout, new RegExp(`^Usage\n {2}postern ${name}.*\n`, 'm'))
    t.match(
      stdout,
      /^Options\n( {2}.*\n)+\nExit codes\n {2}0 .*\n( {2}.*\n)+\nExamples\n {2}.*postern /m
    )
    t.same(await postern(['help', ...name.split(' ')]), { code, stdout, stderr: '' })
    const [, call] = /^Usage\n {2}(.*)$/m.exec(stdout)!
    const options = /^Options\n((?: .*\n)+)/m.exec(stdout)![1]!
    for (const [each] of call!.matchAll(/--[a-z]+|\b[A-Z]{3,}\b/g)) t.match(options, each, name)
    t.ok(
      stdout.split('\n').every(line => line.length <= 100),
      `${name} fits a terminal`
    )
    pages.add(stdout)
  }
  t.equal(pages.size, names.length - 1, 'each its own')
  t.match(await postern(['vault', '--help']), {
    code: 0,
    stdout: /vault get .*vault list .*refresh/s
  })
})

async function helps() {
  const [overview, version] = await Promise.all([postern(['--help']), postern(['version'])])
  return { overview, version }
}

t.test('a valid file passes offline, without asking a vault and without its settings', async t => {
  // Nothing listens there: asking would fail.
  const { code, stdout, stderr } = await postern(['check', file(REFERRING)], {
    POSTERN_SESSION_REDIS_URL: 'redis://:{vault://env/nothing-is-there}@redis'
  })
  t.equal(code, 0, stderr)
  t.match(stdout, /valid, 1 services, 1 routes, 1 plugins, 4 references\n$/)
  t.match(stderr, /warning: the vault "fs" lacks its setting prefix/)
  t.match(stderr, /1 warning\n$/)
})

t.test('the file that is named comes before what the environment says', async t => {
  const env = { POSTERN_CONFIG_STRING: 'no configuration', POSTERN_CONFIG: '/nowhere' }
  const [named, option, text, gone, elsewhere] = await Promise.all([
    postern(['check', file(VALID)], env),
    postern(['check', '-c', file(VALID)], env),
    postern(['check'], { POSTERN_CONFIG_STRING: VALID }),
    postern(['check', '/nowhere.yaml'], env),
    postern(['check'], { POSTERN_CONFIG: '{vault://env/path}' })
  ])
  t.equal(named.code, 0)
  t.equal(option.code, 0)
  t.match(text, { code: 0, stdout: /^POSTERN_CONFIG_STRING: valid/ })
  t.match(gone, { code: 1, stderr: /POSTERN_CONFIG_UNREADABLE/ })
  t.match(elsewhere, { code: 1, stderr: /not resolved offline/ })
})

t.test('a file that a vault names is checked with --resolve, and listed', async t => {
  const env = { POSTERN_CONFIG: '{vault://env/where}', WHERE: file(VALID) }
  const [found, listed, gone, text] = await Promise.all([
    postern(['check', '--resolve'], env),
    postern(['vault', 'list'], env),
    postern(['check', '--resolve', '--json'], { POSTERN_CONFIG: env.POSTERN_CONFIG }),
    postern(['check', '--resolve'], {
      POSTERN_CONFIG_STRING: '{vault://env/where}',
      WHERE: BROKEN
    })
  ])
  t.match(found, {
    code: 0,
    stdout: /POSTERN_CONFIG .*\n.*valid, 1 services.* 1 references resolved/
  })
  t.match(listed, { code: 0, stdout: /POSTERN_CONFIG +env .* ok/ })
  t.equal(gone.code, 1)
  t.match(JSON.parse(gone.stdout).problems, [
    { code: 'POSTERN_VAULT_ABSENT', place: { path: 'POSTERN_CONFIG' } }
  ])
  t.match(text, { code: 1, stderr: /POSTERN_CONFIG_STRING:5:5 services\[0\]\.retrys: unknown/ })
})

t.test('a broken file shows every error with its place, line and caret', async t => {
  const path = file(BROKEN)
  const { code, stdout, stderr } = await postern(['check', path])
  t.equal(code, 1)
  t.equal(stdout, '')
  t.match(stderr, `${path}:5:5 services[0].retrys: unknown field`)
  t.match(stderr, `${path}:8:17 services[0].routes[0].paths[0]: `)
  t.match(stderr, `${path}:12:22 plugins[0].config.http_endpoint: `)
  t.match(stderr, /5 \| {5}retrys: 3\n {6} {4}\^/)
  t.match(stderr, /3 problems\n$/)
  t.notOk(stderr.includes('\u001b'), 'no colour into a pipe')
})

t.test('the same for programs', async t => {
  const path = file(BROKEN)
  const [broken, valid] = await Promise.all([
    postern(['check', path, '--json']),
    postern(['check', file(REFERRING), '--json'])
  ])
  t.equal(broken.code, 1)
  t.match(JSON.parse(broken.stdout), {
    valid: false,
    problems: [
      { code: 'POSTERN_CONFIG_UNKNOWN_FIELD', place: { file: path, line: 5, column: 5 } },
      { place: { line: 8 } },
      { place: { line: 12 } }
    ]
  })
  t.equal(valid.code, 0)
  t.match(JSON.parse(valid.stdout), {
    valid: true,
    problems: [],
    references: [
      { reference: '{vault://env/endpoint}', vault: 'env', state: 'unresolved', fingerprint: '' },
      { reference: '{vault://fs/token}', vault: 'fs' },
      { reference: '{vault://fs/token}' }
    ]
  })
})

t.test('colour on a terminal only', async t => {
  if (!existsSync('/usr/bin/script')) {
    t.pass('skipped: /usr/bin/script, which makes a terminal, is not there')
    return
  }
  const onTerminal = (env: Readonly<Record<string, string>>): string =>
    spawnSync(
      '/usr/bin/script',
      ['-qec', `${process.execPath} src/cli.ts check ${file(BROKEN)}`, '/dev/null'],
      { env: cleanEnvironment(env), encoding: 'utf8', cwd: join(import.meta.dirname, '..') }
    ).stdout
  t.match(onTerminal({}), '\u001b[31m')
  const plain = onTerminal({ NO_COLOR: '1' })
  t.match(plain, /unknown field/)
  t.notOk(plain.includes('\u001b['))
  t.notOk(onTerminal({ TERM: 'dumb' }).includes('\u001b['))
  const piped = async (env: Readonly<Record<string, string>>): Promise<string> =>
    (await posternProcess(['check', file(BROKEN)], env)).stderr
  t.notOk((await piped({})).includes('\u001b['))
  t.match(await piped({ FORCE_COLOR: '1' }), '\u001b[31m')
  t.notOk((await piped({ FORCE_COLOR: '1', NO_COLOR: '1' })).includes('\u001b['))
  const valid = await posternProcess(['check', file(VALID)], { FORCE_COLOR: '1' })
  t.match(valid.stdout, '\u001b[32m')
})

t.test('problems of the environment and of the file are told together', async t => {
  const env = {
    POSTERN_WORKERS: 'many',
    POSTERN_PROXY_LISTEN: '127.0.0.1:0',
    POSTERN_STATUS_LISTEN: 'off'
  }
  const path = file(`${BROKEN}vaults: [{ prefix: own, name: of-a-module }]\n`)
  const [json, text, started, nowhere, fine] = await Promise.all([
    postern(['check', path, '--json'], env),
    postern(['check', path], env),
    posternProcess(['start', path], env),
    postern(['check', '/nowhere.yaml'], env),
    postern(['check', file(VALID)], env)
  ])
  const codes = JSON.parse(json.stdout).problems.map(({ code }: { code: string }) => code)
  t.equal(codes[0], 'POSTERN_SETTING_INVALID')
  t.ok(codes.includes('POSTERN_CONFIG_UNKNOWN_FIELD') && codes.includes('POSTERN_CONFIG_REFERENCE'))
  for (const { code, stderr } of [text, started]) {
    t.equal(code, 1)
    t.match(stderr, /POSTERN_WORKERS is not a number.*retrys: unknown field/s)
    t.notMatch(stderr, /of-a-module/)
  }
  t.match(nowhere, { code: 1, stderr: /POSTERN_WORKERS.*the file does not exist/s })
  t.match(fine.stderr, /\n1 problem\n$/)
  const inVault = { ...env, POSTERN_CONFIG: '{vault://env/where}' }
  t.match(await postern(['check'], inVault), { stderr: /\n1 problem\n$/ })
})

t.test('a file that is no file, and a diff that is none, in words for programs, too', async t => {
  t.match(await postern(['check', directory]), { code: 1, stderr: /this is a directory\n/ })
  const { code, stdout } = await postern(['diff', file(VALID), file(BROKEN), '--json'])
  t.equal(code, 2)
  t.match(JSON.parse(stdout), {
    valid: false,
    problems: [{ code: 'POSTERN_CONFIG_UNKNOWN_FIELD' }]
  })
})

t.test('a default that the file states is shown as it stands there', async t => {
  const path = file(`${VALID}plugins:
  - name: http-log
    config: { http_endpoint: "{vault://env/there?default=http://10.0.0.1:1/logs}" }
`)
  const { code, stdout } = await postern(['check', path, '--resolve'])
  t.equal(code, 0)
  t.match(stdout, '{vault://env/there?default=http://10.0.0.1:1/logs}')
})

t.test('--resolve shows what each reference came to, never its value', async t => {
  const root = secrets(t, { token: 'hunter2-hunter2' })
  const env = {
    ENDPOINT: 'http://127.0.0.1:1/logs',
    REDIS_PW: 'correct-horse',
    POSTERN_VAULT_FS_PREFIX: root,
    POSTERN_SESSION_REDIS_URL: 'redis://:{vault://env/redis-pw}@redis'
  }
  const path = file(REFERRING)
  const keyed = { ...env, POSTERN_FINGERPRINT_KEY: 'a key of more than sixteen' }
  const [{ code, stdout, stderr }, again, first, second] = await Promise.all([
    postern(['check', path, '--resolve'], env),
    postern(['check', path, '--resolve'], env),
    postern(['check', path, '--resolve'], keyed),
    postern(['check', path, '--resolve'], keyed)
  ])
  t.equal(code, 0, stderr)
  t.match(stdout, /^reference +place +vault +version +age +state +fingerprint$/m)
  t.match(
    stdout,
    /^\{vault:\/\/env\/redis-pw\} +POSTERN_SESSION_REDIS_URL +env .* ok +[0-9a-f]{8}$/m
  )
  const tokens = [...stdout.matchAll(/^\{vault:\/\/fs\/token\} .* ok +([0-9a-f]{8})$/gm)]
  t.equal(tokens.length, 2)
  t.equal(tokens[0]![1], tokens[1]![1], 'equal values have equal fingerprints')
  t.match(stdout, /4 references resolved\n$/)
  t.notMatch(stdout + stderr, /hunter2|correct-horse/)
  t.notOk(again.stdout.includes(tokens[0]![1]!), 'which say nothing outside their output')
  t.match(stderr, /^Fingerprints compare within this output/)
  t.equal(first.stdout, second.stdout, 'unless they have a key')
  t.equal(first.stderr, '')
})

t.test('--resolve tells absent, malformed and invalid apart', async t => {
  const root = secrets(t, { pair: 'no json' })
  const path = file(`${VALID}plugins:
  - name: http-log
    config:
      http_endpoint: "{vault://env/endpoint}"
      headers:
        A: "{vault://fs/gone}"
        B: "{vault://fs/pair/user}"
        C: "{vault://fs/../etc/passwd}"
`)
  const env = { POSTERN_VAULT_FS_PREFIX: root, ENDPOINT: 'no-url-4711' }
  const [json, table] = await Promise.all([
    postern(['check', path, '--resolve', '--json'], env),
    postern(['check', path, '--resolve'], env)
  ])
  t.equal(json.code, 1)
  const { valid, references, problems } = JSON.parse(json.stdout)
  t.equal(valid, false)
  t.match(references, [
    { path: 'plugins[0].config.http_endpoint', state: 'invalid', fingerprint: /^[0-9a-f]{8}$/ },
    { state: 'absent', fingerprint: '' },
    { state: 'malformed' },
    { state: 'denied' }
  ])
  t.equal(problems.length, 4)
  t.notMatch(json.stdout, /no-url-4711|no json/)
  t.equal(table.code, 1)
  t.match(table.stdout, / invalid .*\n.* absent.*\n.* malformed.*\n.* denied/)
  t.match(table.stderr, /4 problems\n$/)
})

t.test('errors of a vault show its settings as written, not what they resolve to', async t => {
  const path = file(`${VALID}vaults:
  - { name: fs, prefix: mine, config: { prefix: "{vault://env/root}" } }
  - { name: hcv, prefix: theirs, config: { token_file: "{vault://env/token-file}" } }
plugins:
  - name: http-log
    config:
      http_endpoint: http://127.0.0.1:1
      headers: { A: "{vault://mine/a}", B: "{vault://theirs/a/b}" }
`)
  for (const [root, tokenFile] of [
    ['/r/s', './t'],
    ['//nowhere//of//length/', '/nowhere/of/length'],
    ['/one line of it\nand another line\u0007', '/t\nthe token itself\nof three lines']
  ] as const) {
    const env = { ROOT: root, TOKEN_FILE: tokenFile }
    const { stderr } = await postern(['check', path, '--resolve'], env)
    t.match(stderr, 'Nothing is stored at {vault://env/root}/a (there is no such file)')
    t.match(stderr, '{vault://env/token-file} (token_file) cannot be read')
    t.notMatch(stderr, /\/r\/s|\.\/t|nowhere|line of|another|token itself|three lines/)
  }
})

t.test(
  'what keeps a vault from being asked is told as its settings, not as its content',
  async t => {
    const root = secrets(t, { port: 'no port' })
    const path = file(`${VALID}vaults:
  - prefix: ruled
    name: hcv
    config: { token: t, mount: sys }
plugins:
  - name: http-log
    config:
      http_endpoint: http://127.0.0.1:1
      headers: { A: "{vault://ruled/x/y}", B: "{vault://hcv/x/y}" }
`)
    const env = {
      POSTERN_VAULT_FS_PREFIX: root,
      POSTERN_VAULT_HCV_TOKEN: 't',
      POSTERN_VAULT_HCV_PORT: '{vault://fs/port}'
    }
    const [json, got] = await Promise.all([
      postern(['check', path, '--resolve', '--json'], env),
      postern(['vault', 'get', 'hcv/x/y'], env)
    ])
    t.equal(json.code, 1)
    t.match(JSON.parse(json.stdout).problems, [
      { code: 'POSTERN_VAULT_SETTINGS', message: /mount "sys"/, fix: /Correct the vault's config/ },
      { code: 'POSTERN_VAULT_SETTINGS', message: /port: expected an integer/ }
    ])
    t.match(got, { code: 1, stderr: /port: expected an integer.* \[POSTERN_VAULT_SETTINGS\]$/m })
  }
)

t.test('a server that is no vault is told as the wrong address, not as a wrong secret', async t => {
  await using other = await startUpstream((_received, response) => {
    response.statusCode = 404
    response.end('not here')
  })
  const { port } = new URL(other.url)
  const env = { POSTERN_VAULT_HCV_TOKEN: 't', POSTERN_VAULT_HCV_PORT: port }
  t.match(await postern(['vault', 'get', 'hcv/x/y'], env), {
    code: 1,
    stderr: /nothing takes a login.*404.*Check host, port.*\[POSTERN_VAULT_SETTINGS\]/
  })
})

t.test('a switch of a default vault is on, too, not only true', async t => {
  const env = { SECRET: 'aGVsbG8gdGhlcmU=', POSTERN_VAULT_ENV_BASE64_DECODE: 'on' }
  t.match(await postern(['vault', 'get', 'env/secret', '--reveal'], env), {
    code: 0,
    stdout: 'hello there\n'
  })
})

t.test('--resolve of an environment that does not resolve', async t => {
  const env = { POSTERN_WORKERS: '{vault://env/count}', COUNT: 'many-4711' }
  const [{ code, stderr }, absent] = await Promise.all([
    postern(['check', file(VALID), '--resolve'], env),
    postern(['check', file(VALID), '--resolve', '--json'], {
      POSTERN_WORKERS: '{vault://env/count}'
    })
  ])
  t.equal(code, 1)
  t.match(stderr, /POSTERN_WORKERS holds a reference whose value is refused/)
  t.notMatch(stderr, /many-4711/)
  t.equal(absent.code, 1)
  t.match(JSON.parse(absent.stdout), {
    problems: [{ code: 'POSTERN_VAULT_ABSENT', place: { path: 'POSTERN_WORKERS' } }],
    references: [{ place: 'POSTERN_WORKERS', state: 'absent' }]
  })
})

t.test('vault get shows what a value is, and the value only when it is asked for', async t => {
  const root = secrets(t, { 'db.json': '{"password":"pa55word"}', short: 'x' })
  const env = { POSTERN_VAULT_FS_PREFIX: root, PIN: '1234' }
  const keyed = { ...env, POSTERN_FINGERPRINT_KEY: 'a key of more than sixteen' }
  const [table, withKey, bare, revealed, json, gone, goneJson, unset, malformed] =
    await Promise.all([
      postern(['vault', 'get', '{vault://fs/db.json/password}'], env),
      postern(['vault', 'get', '{vault://fs/db.json/password}'], keyed),
      postern(['vault', 'get', '{vault://fs/db.json/password}', '--json'], env),
      postern(['vault', 'get', 'fs/db.json/password', '--reveal'], env),
      postern(['vault', 'get', 'vault://env/pin', '--json'], keyed),
      postern(['vault', 'get', 'fs/gone'], env),
      postern(['vault', 'get', 'fs/gone', '--json'], env),
      postern(['vault', 'get', 'fs/gone']),
      postern(['vault', 'get', '{vault:/fs}'])
    ])
  t.equal(table.code, 0)
  t.match(table.stdout, /^vault +version +length *\nfs +\S+ +8$/m)
  t.match(table.stderr, /Under POSTERN_FINGERPRINT_KEY a fingerprint/)
  t.match(withKey.stdout, /^vault +version +length +fingerprint\nfs +\S+ +8 +[0-9a-f]{8}$/m)
  t.equal(withKey.stderr, '')
  t.equal(JSON.parse(bare.stdout).fingerprint, null)
  t.notMatch(table.stdout, /pa55word/)
  t.match(revealed, { code: 0, stdout: 'pa55word\n' })
  t.match(JSON.parse(json.stdout), {
    reference: '{vault://env/pin}',
    state: 'ok',
    vault: 'env',
    length: 4,
    fingerprint: /^[0-9a-f]{8}$/
  })
  t.match(gone, { code: 1, stderr: /absent/ })
  t.match(JSON.parse(goneJson.stdout), { state: 'absent' })
  t.match(unset, { code: 1, stderr: /POSTERN_VAULT_FS_PREFIX/ })
  t.match(malformed, { code: 1, stderr: /POSTERN_REFERENCE_INVALID/ })
})

t.test("vault get takes the file's own vaults too", async t => {
  const root = secrets(t, { token: 'in-the-file' })
  const path = file(`${VALID}vaults:
  - name: fs
    prefix: mine
    config: { prefix: ${root} }
`)
  t.match(await postern(['vault', 'get', 'mine/token', '--reveal', '-c', path]), {
    code: 0,
    stdout: 'in-the-file\n'
  })
})

t.test('vault list', async t => {
  const root = secrets(t, { token: 'hunter2-hunter2' })
  const path = file(REFERRING)
  const [some, all] = await Promise.all([
    postern(['vault', 'list', '-c', path], { POSTERN_VAULT_FS_PREFIX: root }),
    postern(['vault', 'list', '--json', '-c', path], {
      POSTERN_VAULT_FS_PREFIX: root,
      ENDPOINT: 'http://127.0.0.1:1'
    })
  ])
  t.equal(some.code, 1, 'one is absent')
  t.match(some.stdout, /vault:\/\/env\/endpoint.* absent/)
  t.match(some.stderr, /^\{vault:\/\/env\/endpoint\}: .* ENDPOINT \(no such variable is set\)$/m)
  t.equal(all.code, 0)
  t.equal(JSON.parse(all.stdout).length, 3)
  t.notMatch(all.stdout, /hunter2/)
})

t.test('schema marks the fields that take references', async t => {
  const [names, plugin, vault, unknown] = await Promise.all([
    postern(['schema']),
    postern(['schema', 'http-log']),
    postern(['schema', 'vault', 'fs']),
    postern(['schema', 'plugin', 'http-lag'])
  ])
  t.match(names, { code: 0, stdout: /^plugins: .*http-log.*\nvaults: .*env.*fs/ })
  const schema = JSON.parse(plugin.stdout)
  t.equal(schema.$schema, 'https://json-schema.org/draft/2020-12/schema')
  t.equal(schema.properties.http_endpoint.referenceable, true)
  t.equal(schema.properties.method.referenceable, undefined)
  const { properties } = JSON.parse(vault.stdout)
  t.equal(properties.prefix.referenceable, true)
  t.equal(properties.ttl.type, 'number', 'with the settings every vault has')
  t.match(unknown, { code: 1, stderr: /no plugin "http-lag"/ })
})

t.test('diff tells what changes, and no literal secret', async t => {
  const old = file(`${VALID}plugins:
  - name: key-auth
consumers:
  - username: anna
    keyauth_credentials: [{ key: literal-old-key }]
vaults:
  - { name: env, prefix: mine, config: { prefix: A_ } }
`)
  const next = file(
    `${VALID.replace('paths: [/orders]', 'paths: [/orders]\n        strip_path: false')}plugins:
  - name: http-log
    service: orders
    config: { http_endpoint: http://user:literal-password@logs }
consumers:
  - username: anna
    tags: [new]
    keyauth_credentials: [{ key: "{vault://mine/anna}" }]
vaults:
  - { name: env, prefix: mine, config: { prefix: B_ } }
`
  )
  const [{ code, stdout }, json, equal, broken] = await Promise.all([
    postern(['diff', old, next]),
    postern(['diff', old, next, '--json']),
    postern(['diff', old, old]),
    postern(['diff', old, file(BROKEN)])
  ])
  t.equal(code, 1)
  t.match(stdout, /^~ routes orders\n {4}strip_path: true → false$/m)
  t.match(stdout, /^\+ plugins http-log \(service orders\)$/m)
  t.match(stdout, /^- plugins key-auth \(global\)$/m)
  t.match(stdout, /^ {4}key: \[literal\] → \{vault:\/\/mine\/anna\}$/m)
  t.match(stdout, /^ {4}config\.prefix: A_ → B_$/m)
  t.match(stdout, /^~ keyauth_credentials [0-9a-f-]{36} of anna$/m)
  t.match(stdout, /^\+ reference \{vault:\/\/mine\/anna\}$/m)
  t.notMatch(stdout, /literal-|tags|consumers anna\n/)
  t.equal(json.code, 1)
  t.match(JSON.parse(json.stdout), {
    equal: false,
    references: { added: ['{vault://mine/anna}'], removed: [] }
  })
  t.match(equal, { code: 0, stdout: 'Both serve the same.\n' })
  t.match(broken, { code: 2, stderr: /unknown field/ })
})

t.test('without a running gateway its commands say so', async t => {
  const server = net.createServer().listen(0, '127.0.0.1')
  await new Promise(resolve => server.once('listening', resolve))
  const { port } = server.address() as net.AddressInfo
  await new Promise(resolve => server.close(resolve))
  const env = { POSTERN_STATUS_LISTEN: `127.0.0.1:${port}` }
  t.match(await postern(['healthcheck'], env), { code: 1, stderr: /ECONNREFUSED/ })
  t.match(await postern(['reload'], { POSTERN_STATUS_LISTEN: 'off' }), {
    code: 1,
    stderr: /is off/
  })
})

t.test('start serves, the commands reach it, and SIGTERM ends it with 0', async t => {
  await using upstream = await startUpstream()
  const root = secrets(t, { key: 'first-key-of-anna' })
  const text = `_format_version: "3.0"
services:
  - url: ${upstream.url}
    routes: [{ paths: [/] }]
plugins: [{ name: key-auth }]
consumers:
  - username: anna
    keyauth_credentials: [{ key: "{vault://fs/key}" }]
`
  const path = file(text)
  await using gateway = await startProcess(path, { POSTERN_VAULT_FS_PREFIX: root })
  const env = {
    POSTERN_STATUS_LISTEN: '{vault://env/where}',
    WHERE: new URL(gateway.statusUrl).host
  }
  t.match(await postern(['healthcheck'], env), { code: 0, stdout: /"ready": true/ })
  t.match(await postern(['vault', 'refresh'], env), { code: 0, stdout: /"changed": 0/ })
  t.match(await postern(['vault', 'refresh', 'fs'], env), { code: 0 })
  t.match(await postern(['reload'], env), { code: 0, stdout: /"reloaded": true/ })
  writeFileSync(path, text.replace('url:', 'ulr:'))
  t.match(await postern(['reload'], env), { code: 1, stderr: /unknown field/ })
  writeFileSync(path, text)
  const status = async (key: string): Promise<number> =>
    (await fetch(gateway.url, { headers: { apikey: key } })).status
  t.equal(await status('first-key-of-anna'), 200)
  writeFileSync(join(root, 'key'), 'second-key-of-anna')
  await until(async () => (await status('second-key-of-anna')) === 200, 'the new key')
  const { code, stdout, stderr } = await gateway.end('SIGTERM')
  t.equal(code, 0)
  t.equal(stderr, '')
  t.match(stdout, /"audit":"secret-changed"/)
  t.notMatch(stdout, /key-of-anna/)
})

t.test('a start without its secrets lists each of them, and is exit code 1', async t => {
  const { code, stderr } = await posternProcess(['start', file(REFERRING)], {
    POSTERN_VAULT_FS_PREFIX: secrets(t, {}),
    POSTERN_PROXY_LISTEN: '127.0.0.1:0',
    POSTERN_STATUS_LISTEN: 'off',
    POSTERN_WORKERS: '1'
  })
  t.equal(code, 1)
  t.match(
    stderr,
    /:11:22 plugins\[0\]\.config\.http_endpoint: \{vault:\/\/env\/endpoint\} has no value/
  )
  t.match(stderr, /3 problems\n$/)
})

t.test('a start names the file of a credential that it cannot read', async t => {
  const { code, stderr } = await posternProcess(
    ['start', file(REFERRING.replace('{vault://env/endpoint}', '{vault://hcv/endpoint/url}'))],
    {
      POSTERN_VAULT_FS_PREFIX: directory,
      POSTERN_VAULT_HCV_TOKEN_FILE: '/nowhere/token-of-the-vault',
      POSTERN_PROXY_LISTEN: '127.0.0.1:0',
      POSTERN_STATUS_LISTEN: 'off'
    }
  )
  t.equal(code, 1)
  t.match(stderr, '/nowhere/token-of-the-vault (token_file) cannot be read: ENOENT')
})

t.test('signals that come while a vault keeps the start waiting', async t => {
  let asked = Promise.withResolvers<http.ServerResponse>()
  let answers = false
  const answer = (response: http.ServerResponse): void => {
    response.setHeader('Content-Type', 'application/json')
    response.end('{"data":{"b":"value-of-b"}}')
  }
  const vault = http.createServer((_request, response) => {
    if (answers) answer(response)
    else asked.resolve(response)
  })
  vault.listen(0, '127.0.0.1')
  await once(vault, 'listening')
  t.teardown(() => vault.close().closeAllConnections())
  const path = file(`${VALID}plugins:
  - name: http-log
    config: { http_endpoint: "http://127.0.0.1:1", headers: { A: "{vault://hcv/a/b}" } }
`)
  const env = cleanEnvironment({
    POSTERN_PROXY_LISTEN: '127.0.0.1:0',
    POSTERN_STATUS_LISTEN: '127.0.0.1:0',
    POSTERN_WORKERS: '1',
    POSTERN_VAULT_HCV_PORT: String((vault.address() as net.AddressInfo).port),
    POSTERN_VAULT_HCV_KV: 'v1',
    POSTERN_VAULT_HCV_TOKEN: 'a-token'
  })
  const cli = join(import.meta.dirname, '../src/cli.ts')
  const stopped = spawn(process.execPath, [cli, 'start', path], { env, stdio: 'ignore' })
  await asked.promise
  stopped.kill('SIGTERM')
  t.same(await once(stopped, 'exit'), [143, null], 'it takes the signal itself, and does not wait')

  asked = Promise.withResolvers()
  const hung = spawn(process.execPath, [cli, 'start', path], { env })
  let log = ''
  hung.stdout.setEncoding('utf8').on('data', text => {
    log += text
  })
  t.teardown(() => hung.kill('SIGKILL'))
  const response = await asked.promise
  hung.kill('SIGHUP')
  answers = true
  answer(response)
  await until(() => log.includes('"msg":"serving"'), 'it to serve', 60_000)
  const exited = once(hung, 'exit')
  hung.kill('SIGTERM')
  t.same(await exited, [0, null])
})

t.test('an address that cannot be had names its setting and what to do', async t => {
  const rows: [string, string][] = [
    ['203.0.113.5:1', 'POSTERN_PROXY_LISTEN: 203.0.113.5:1 is no address of this machine. Choose'],
    [
      'unix:/nowhere/gate.sock',
      'POSTERN_PROXY_LISTEN: /nowhere/gate.sock cannot be made: its directory does not exist'
    ]
  ]
  for (const [address, message] of rows) {
    const { code, stderr } = await posternProcess(['start', file(VALID)], {
      POSTERN_PROXY_LISTEN: address,
      POSTERN_STATUS_LISTEN: 'off',
      POSTERN_WORKERS: '1'
    })
    t.equal(code, 1)
    t.match(stderr, message)
  }
})

t.test('an address that is taken is one line, and is exit code 1', async t => {
  const server = net.createServer().listen(0, '127.0.0.1')
  await new Promise(resolve => server.once('listening', resolve))
  t.teardown(() => server.close())
  const { port } = server.address() as net.AddressInfo
  const { code, stderr } = await posternProcess(['start', file(VALID)], {
    POSTERN_PROXY_LISTEN: `127.0.0.1:${port}`,
    POSTERN_STATUS_LISTEN: 'off',
    POSTERN_WORKERS: '1'
  })
  t.equal(code, 1)
  t.equal(
    stderr,
    `POSTERN_PROXY_LISTEN: 127.0.0.1:${port} is in use by another process. Stop that one, or choose another address. [EADDRINUSE]\n`
  )
})
