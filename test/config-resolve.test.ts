import { X509Certificate } from 'node:crypto'
import { generate } from 'selfsigned'
import t from 'tap'
import { loadConfig } from '../src/config.ts'
import { validateUses } from '../src/config-values.ts'
import { UseIndex } from '../src/uses.ts'
import { plugins, vaultTypes } from './fixtures/config/plugins.ts'

function load(body: string) {
  return loadConfig(`_format_version: "3.0"\n${body}`, { file: 'kong.yml', plugins, vaultTypes })
}

function lookup(values: Readonly<Record<string, string>>) {
  return (reference: string) => {
    const value = values[reference]
    return value === undefined ? undefined : { value }
  }
}

t.test('resolved values must fit their fields', async t => {
  const config = load(`plugins:
  - name: rate-limiting
    config:
      redis:
        port: "{vault://env/port}"
        ssl: "{vault://env/ssl}"
        password: "{vault://env/password}"
  - name: http-log
    config:
      http_endpoint: "https://{vault://env/host}/in"
      labels: [ok, "{vault://env/label}"]
`)
  const good = {
    '{vault://env/port}': '6380',
    '{vault://env/ssl}': 'true',
    '{vault://env/password}': 'long enough',
    '{vault://env/host}': 'logs',
    '{vault://env/label}': 'short'
  }
  t.same(validateUses(new UseIndex(config), plugins, lookup(good)), [])

  const bad = {
    '{vault://env/port}': 'http',
    '{vault://env/ssl}': 'yes-secret',
    '{vault://env/password}': 'abc',
    '{vault://env/host}': '',
    '{vault://env/label}': 'too long a label'
  }
  const problems = validateUses(new UseIndex(config), plugins, lookup(bad))
  t.same(
    problems.map(({ message, place, code }) => [place.line, place.path, message, code]),
    [
      [6, 'plugins[0].config.redis.port', 'expected an integer', 'POSTERN_CONFIG_RESOLVED'],
      [7, 'plugins[0].config.redis.ssl', 'expected a boolean', 'POSTERN_CONFIG_RESOLVED'],
      [
        8,
        'plugins[0].config.redis.password',
        'length must be at least 4',
        'POSTERN_CONFIG_RESOLVED'
      ],
      [11, 'plugins[1].config.http_endpoint', 'missing host in url', 'POSTERN_CONFIG_RESOLVED'],
      [12, 'plugins[1].config.labels[1]', 'length must be at most 5', 'POSTERN_CONFIG_RESOLVED']
    ]
  )
  t.same(problems[0]!.reference, '{vault://env/port}')
  t.notMatch(JSON.stringify(problems), /yes-secret|abc|too long/, 'no value is shown')

  const { '{vault://env/port}': _, ...unresolved } = bad
  t.equal(
    validateUses(new UseIndex(config), plugins, lookup(unresolved)).length,
    4,
    'fields without a value are skipped'
  )

  const label = new Set(['{vault://env/label}'])
  t.same(
    validateUses(new UseIndex(config), plugins, lookup(bad), label).map(({ place }) => place.path),
    ['plugins[1].config.labels[1]'],
    'only the uses asked about'
  )
})

t.test('vault settings and credentials', async t => {
  const config = load(`vaults: [{name: hcv, prefix: my-hcv, config: {token: "{vault://env/t}"}}]
consumers: [{username: a, keyauth_credentials: [{key: "{vault://env/k}"}]}]`)
  const problems = validateUses(
    new UseIndex(config),
    plugins,
    lookup({ '{vault://env/t}': '', '{vault://env/k}': '' })
  )
  t.same(
    problems.map(({ place }) => place.path),
    ['consumers[0].keyauth_credentials[0].key']
  )
})

t.test('certificates', async t => {
  const pem = async () => await generate([{ name: 'commonName', value: 'h' }], { keySize: 2048 })
  const [first, second] = [await pem(), await pem()]
  t.ok(new X509Certificate(first.cert))
  const config = load('certificates: [{cert: "{vault://env/c}", key: "{vault://env/k}"}]')
  const check = (cert: string, key: string) =>
    validateUses(
      new UseIndex(config),
      plugins,
      lookup({ '{vault://env/c}': cert, '{vault://env/k}': key })
    )
  t.same(check(first.cert, first.private), [])
  t.same(
    check(first.cert, second.private).map(({ message, place }) => [place.path, message]),
    [
      ['certificates[0].cert', 'certificate does not match key'],
      ['certificates[0].key', 'certificate does not match key']
    ]
  )
  t.same(
    check('x', first.private).map(({ message }) => message),
    ['invalid certificate']
  )
  t.same(
    check(first.cert, 'x').map(({ message }) => message),
    ['invalid key']
  )

  await t.test('as literals are checked at load', async t => {
    const text = (cert: string, key: string) =>
      JSON.stringify({ _format_version: '3.0', certificates: [{ cert, key }], ca_certificates: [] })
    const options = { file: 'kong.json', plugins, vaultTypes }
    t.equal(loadConfig(text(first.cert, first.private), options).certificates.length, 1)
    t.throws(() => loadConfig(text(first.cert, second.private), options), /does not match key/)
  })
  await t.test('of authorities must be such', async t => {
    const root = (cert: string) =>
      JSON.stringify({ _format_version: '3.0', ca_certificates: [{ cert }] })
    const options = { file: 'kong.json', plugins, vaultTypes }
    const isCa = new X509Certificate(first.cert).ca
    if (isCa) t.equal(loadConfig(root(first.cert), options).ca_certificates.length, 1)
    else t.throws(() => loadConfig(root(first.cert), options), /CA/)
    t.throws(
      () => loadConfig(root(`${first.cert}\n${second.cert}`), options),
      /only one certificate/
    )
  })
})
