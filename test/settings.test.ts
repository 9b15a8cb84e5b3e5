import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { generate } from 'selfsigned'
import t from 'tap'
import { ConfigError, type Problem } from '../src/errors.ts'
import {
  collectSettings,
  type Environment,
  parseSettings,
  type Settings,
  settingsTable,
  trustedPeers
} from '../src/settings.ts'

const directory = mkdtempSync(join(tmpdir(), 'postern-settings-'))
t.teardown(() => rmSync(directory, { recursive: true }))

function read(env: Environment, values: Readonly<Record<string, string>> = {}) {
  return parseSettings(collectSettings(env), reference => values[reference])
}

function settings(env: Environment): Settings {
  return read(env).settings
}

/** The problems an environment has; fails when it has none. */
function problems(env: Environment, values?: Readonly<Record<string, string>>): readonly Problem[] {
  try {
    read(env, values)
  } catch (error) {
    if (error instanceof ConfigError) return error.problems
    throw error
  }
  throw new Error('the environment was accepted')
}

function says(env: Environment, values?: Readonly<Record<string, string>>): string {
  return problems(env, values)
    .map(({ message, fix }) => `${message}. ${fix}`)
    .join('\n')
}

const warned = (env: Environment): readonly string[] =>
  read(env).warnings.map(({ message }) => message)

await t.test('an empty environment gives the defaults', async t => {
  const { settings, warnings } = read({})
  t.same(warnings, [])
  t.equal(settings.config, 'config/postern.yaml')
  t.equal(settings.configString, undefined)
  t.same(
    settings.proxyListen.map(({ host, port, ssl, http2 }) => [host, port, ssl, http2]),
    [
      ['0.0.0.0', 8000, false, false],
      ['0.0.0.0', 8443, true, true]
    ]
  )
  t.match(settings.statusListen, { host: '127.0.0.1', port: 8007 })
  t.equal(settings.workers, availableParallelism())
  t.equal(settings.logLevel, 'info')
  t.same(settings.trustedIps, [])
  t.equal(settings.realIpHeader, 'X-Real-IP')
  t.equal(settings.upstreamTlsVerify, true)
  t.equal(settings.vaultRotationInterval, 60)
  t.equal(settings.maxBufferedBody, 1024 * 1024)
  t.same(settings.ownHeaders, {
    namespace: 'X-Postern',
    server: true,
    via: true,
    latency: true,
    requestId: true,
    upstreamStatus: false,
    upstreamRequestId: true
  })
})

await t.test('settings are plain frozen data that crosses threads', async t => {
  const read = settings({ POSTERN_TRUSTED_IPS: '10.0.0.0/8' })
  t.same(structuredClone(read), read)
  t.ok(
    Object.isFrozen(read) &&
      Object.isFrozen(read.proxyListen[0]) &&
      Object.isFrozen(read.ownHeaders)
  )
})

await t.test('an empty value counts as unset', async t => {
  t.equal(settings({ POSTERN_LOG_LEVEL: '', KONG_LOG_LEVEL: 'debug' }).logLevel, 'debug')
})

await t.test("Kong's variables mean the same", async t => {
  const { settings, warnings } = read({
    KONG_DATABASE: 'off',
    KONG_ADMIN_LISTEN: 'off',
    KONG_DECLARATIVE_CONFIG: '/kong/kong.yml',
    KONG_DECLARATIVE_CONFIG_STRING: '{}',
    KONG_PROXY_LISTEN: '0.0.0.0:8000 reuseport backlog=16384, [::]:8443 http2 ssl reuseport bind',
    KONG_STATUS_LISTEN: 'off',
    KONG_NGINX_WORKER_PROCESSES: '3',
    KONG_LOG_LEVEL: 'notice',
    KONG_PROXY_ACCESS_LOG: '/dev/stdout basic',
    KONG_TRUSTED_IPS: '0.0.0.0/0,::/0',
    KONG_REAL_IP_HEADER: 'X-Forwarded-For',
    KONG_REAL_IP_RECURSIVE: 'on',
    KONG_HEADERS: 'server_tokens, X-Kong-Upstream-Status',
    KONG_HEADERS_UPSTREAM: 'off',
    KONG_UPSTREAM_KEEPALIVE_POOL_SIZE: '100',
    KONG_UPSTREAM_KEEPALIVE_IDLE_TIMEOUT: '30',
    KONG_NGINX_PROXY_PROXY_SSL_VERIFY: 'off',
    KONG_NGINX_HTTP_CLIENT_MAX_BODY_SIZE: '8m',
    KONG_NGINX_HTTP_KEEPALIVE_TIMEOUT: '65s'
  })
  t.same(warnings, [])
  t.match(settings, {
    config: '/kong/kong.yml',
    configString: '{}',
    statusListen: undefined,
    workers: 3,
    logLevel: 'info',
    accessLog: true,
    trustedIps: ['0.0.0.0/0', '::/0'],
    realIpHeader: 'X-Forwarded-For',
    realIpRecursive: true,
    ownHeaders: {
      server: true,
      via: true,
      latency: false,
      requestId: false,
      upstreamStatus: true,
      upstreamRequestId: false
    },
    upstreamKeepalivePoolSize: 100,
    upstreamKeepaliveIdleTimeout: 30,
    upstreamTlsVerify: false,
    maxBodySize: 8 * 1024 * 1024,
    clientKeepaliveTimeout: 65
  })
  t.match(settings.proxyListen, [
    { host: '0.0.0.0', port: 8000, ssl: false, http2: false, backlog: 16_384 },
    { host: '::', port: 8443, ssl: true, http2: true, backlog: undefined }
  ])
})

await t.test("the gateway's own variable wins, and the other one is told", async t => {
  const env = { POSTERN_LOG_LEVEL: 'warn', KONG_LOG_LEVEL: 'debug' }
  t.equal(settings(env).logLevel, 'warn')
  t.same(warned(env), ['KONG_LOG_LEVEL is not read, since POSTERN_LOG_LEVEL is set'])
  t.same(warned({ POSTERN_LOG_LEVEL: 'warn', KONG_LOG_LEVEL: 'warn' }), [])
})

await t.test("Kong's variables without a meaning here are named in one warning", async t => {
  const [first, ...others] = warned({
    KONG_PG_HOST: 'db',
    KONG_DATABASE: 'postgres',
    KONG_PREFIX: '/kong'
  })
  t.same(others, [])
  t.match(first, /^KONG_DATABASE, KONG_PG_HOST, KONG_PREFIX have no meaning here$/)
  t.equal(warned({ KONG_PREFIX: '/kong' })[0], 'KONG_PREFIX has no meaning here')
})

await t.test('a misspelt variable is an error that names the nearest', async t => {
  const [problem, ...others] = problems({ POSTERN_LOG_LEVL: 'warn' })
  t.same(others, [])
  t.match(problem, {
    code: 'POSTERN_SETTING_UNKNOWN',
    fix: /POSTERN_LOG_LEVEL\?/,
    place: { file: 'environment', path: 'POSTERN_LOG_LEVL' }
  })
})

await t.test('what Kubernetes sets for a service named postern is no setting', async t => {
  t.same(
    warned({
      POSTERN_SERVICE_HOST: '10.96.0.7',
      POSTERN_SERVICE_PORT: '80',
      POSTERN_SERVICE_PORT_HTTP: '80',
      POSTERN_PORT: 'tcp://10.96.0.7:80',
      POSTERN_PORT_80_TCP: 'tcp://10.96.0.7:80',
      POSTERN_PORT_80_TCP_ADDR: '10.96.0.7',
      KONG_PROXY_PORT_80_TCP_PROTO: 'tcp'
    }),
    []
  )
})

await t.test('every problem is reported at once', async t => {
  const found = problems({
    POSTERN_WORKERS: '0',
    POSTERN_LOG_LEVEL: 'loud',
    POSTERN_X: '1',
    KONG_PROXY_LISTEN: 'nowhere'
  })
  t.same(found.map(({ place }) => place.path).sort(), [
    'KONG_PROXY_LISTEN',
    'POSTERN_LOG_LEVEL',
    'POSTERN_WORKERS',
    'POSTERN_X'
  ])
})

await t.test('every part of a value that is wrong is reported at once', async t => {
  const told = (env: Environment): readonly string[] =>
    problems(env).map(({ message }) => message.replace(/^\S+ /, ''))
  t.same(
    told({
      POSTERN_PROXY_LISTEN:
        '0.0.0.0:80000 fast http3, 127.0.0.1:1 ssl, nowhere, 127.0.0.1:2 backlog=x, 127.0.0.1:1'
    }),
    [
      '"0.0.0.0:80000" is not an address',
      '"fast" is not a flag of a listener',
      '"http3" is not a flag of a listener',
      '"nowhere" is not an address',
      'has a backlog of x, which is not a number in range',
      'names port 1 of 127.0.0.1 twice'
    ]
  )
  for (const variable of [
    'POSTERN_TRUSTED_IPS',
    'POSTERN_DNS_RESOLVER',
    'POSTERN_DNS_ORDER',
    'POSTERN_STATUS_HOSTS',
    'POSTERN_HEADERS'
  ])
    t.match(told({ [variable]: 'one:, two:, three:' }), [/one:/i, /two:/i, /three:/i], variable)
  const value = 'hunter2, hunter3 quick'
  const withheld = problems(
    { POSTERN_PROXY_LISTEN: '{vault://env/x}' },
    { '{vault://env/x}': value }
  )
  t.equal(withheld.length, 2, 'one for each thing to do')
  t.notMatch(JSON.stringify(withheld), /hunter|quick/)
})

await t.test('what settings lack of each other is told at once, and before a vault is asked', t => {
  const offline = (env: Environment): readonly string[] => {
    try {
      collectSettings(env)
      return []
    } catch (error) {
      return (error as ConfigError).problems.map(({ message }) => message)
    }
  }
  t.same(
    offline({
      POSTERN_WORKERS: 'many',
      KONG_SSL_CERT: '{vault://fs/cert}',
      POSTERN_VAULT_CACHE_FILE: '/var/cache/known',
      POSTERN_WEBHOOK_AZURE_TENANT: 'tenant',
      POSTERN_SSL_VERIFY_CLIENT: 'optional'
    }),
    [
      'POSTERN_WORKERS is not a number in range',
      'POSTERN_SSL_CERT_KEY is not set, but KONG_SSL_CERT is',
      'POSTERN_VAULT_CACHE_KEY is not set, but POSTERN_VAULT_CACHE_FILE is',
      'POSTERN_WEBHOOK_AZURE_AUDIENCE is not set, but POSTERN_WEBHOOK_AZURE_TENANT is',
      'POSTERN_SSL_VERIFY_CLIENT asks for client certificates, but no authority is set'
    ]
  )
  t.same(
    offline({
      POSTERN_SSL_CERT: '{vault://fs/cert}',
      POSTERN_SSL_CERT_KEY: '{vault://fs/key}',
      POSTERN_SSL_VERIFY_CLIENT: 'on',
      POSTERN_SSL_CLIENT_CERTIFICATE: '{vault://fs/ca}'
    }),
    [],
    'a reference is set'
  )
  t.end()
})

await t.test('values that are refused, and why', async t => {
  const cases: readonly (readonly [variable: string, value: string, reason: RegExp])[] = [
    ['PROXY_LISTEN', 'unix:postern.sock', /not the absolute path of a socket/],
    ['PROXY_LISTEN', `unix:/${'x'.repeat(103)}`, /at most 103 bytes/],
    ['PROXY_LISTEN', 'unix:/run/a.sock, unix:/run/a.sock ssl', /names unix:\/run\/a.sock twice/],
    ['STATUS_LISTEN', 'unix:/run/a.sock', /only listeners of traffic/],
    ['STATUS_LISTEN', '127.0.0.1:1 proxy_protocol', /only listeners of traffic/],
    ['SSL_PROTOCOLS', 'TLSv1', /names no TLS version that is spoken/],
    ['SSL_PROTOCOLS', 'TLSv1.3 TLSv9', /names no TLS version that is spoken/],
    ['SSL_CIPHERS', 'NOTHING-OF-THE-KIND', /not a list of ciphers/],
    ['SSL_VERIFY_CLIENT', 'on', /no authority is set.*POSTERN_SSL_CLIENT_CERTIFICATE/],
    ['SSL_VERIFY_CLIENT', 'maybe', /off, optional, on/],
    ['MAX_HEADERS', '5', /from 10 to 1000/],
    ['PROXY_LISTEN', '0.0.0.0:8000 sll', /"sll" is not a flag.*Did you mean ssl/],
    ['PROXY_LISTEN', '0.0.0.0:8000 backlog=0', /backlog/],
    ['PROXY_LISTEN', '0.0.0.0:8000 backlog', /backlog/],
    ['PROXY_LISTEN', '0.0.0.0:70000', /not an address/],
    ['PROXY_LISTEN', '0.0.0.256:8000', /not an address/],
    ['PROXY_LISTEN', '::1:8000', /not an address/],
    ['PROXY_LISTEN', '[127.0.0.1]:8000', /not an address/],
    ['PROXY_LISTEN', '8000', /not an address/],
    ['PROXY_LISTEN', ',', /names no address/],
    ['PROXY_LISTEN', '0.0.0.0:8000, 0.0.0.0:8000 ssl', /twice/],
    ['STATUS_LISTEN', '127.0.0.1:1, 127.0.0.1:2', /several addresses/],
    ['STATUS_LISTEN', '127.0.0.1:1 ssl', /TLS/],
    ['WORKERS', '1.5', /whole number from 1 to 1024/],
    ['STATUS_HOSTS', 'http://postern', /is not a host name/],
    ['STATUS_HOSTS', 'postern:8007', /is not a host name/],
    ['STATUS_HOSTS', 'a.*.example', /is not a host name/],
    ['TRUSTED_IPS', '10.0.0.0/33', /neither an IP address nor a CIDR range/],
    ['TRUSTED_IPS', '10.0.0.1/8/8', /neither/],
    ['TRUSTED_IPS', 'unix:/run/a.sock', /neither an IP address/],
    ['REAL_IP_HEADER', 'a b', /not the name of a header/],
    ['REAL_IP_RECURSIVE', 'yes', /neither on nor off/],
    ['HEADERS', 'latency_token', /Did you mean latency_tokens/],
    ['HEADERS_UPSTREAM', 'X-Other', /not a header the gateway can send/],
    ['HEADERS_NAMESPACE', 'Acme', /one of Postern, Kong/],
    ['VAULT_ROTATION_INTERVAL', '0', /from 1 to/],
    ['SECRET_GRACE', '-1', /time in range/],
    ['SHUTDOWN_TIMEOUT', '99999999', /time in range/],
    ['MAX_BODY_SIZE', '1t', /size in range/],
    ['MAX_HEADER_SIZE', '2m', /size in range/],
    ['PROXY_ACCESS_LOG', 'logs/access.log', /names a file/],
    ['SSL_CERT', '/nowhere/cert.pem', /cannot be read \(ENOENT\)/],
    ['VAULT_CACHE_KEY', '/nowhere/key', /names a file that cannot be read \(ENOENT\)/],
    ['CONFIG', '{vault://}', /vault/]
  ]
  for (const [variable, value, reason] of cases)
    t.match(says({ [`POSTERN_${variable}`]: value }), reason, `${variable}=${value}`)
})

await t.test('values that are accepted without effect are told', async t => {
  const notes = warned({
    POSTERN_PROXY_LISTEN: '127.0.0.1:0 deferred so_keepalive=on ipv6only=off',
    POSTERN_HEADERS: 'advanced_latency_tokens, X-Kong-Proxy-Latency'
  })
  t.equal(notes.length, 5)
  t.match(
    notes.join('\n'),
    /deferred.*so_keepalive.*ipv6only.*advanced_latency_tokens.*X-Kong-Proxy-Latency/s
  )
})

await t.test('other values', async t => {
  t.match(
    settings({
      POSTERN_PROXY_LISTEN: 'off',
      POSTERN_STATUS_HOSTS: 'Postern.gateway.svc., *.svc.cluster.local',
      POSTERN_WORKERS: 'auto',
      POSTERN_HEADERS: 'off',
      POSTERN_HEADERS_NAMESPACE: 'kong',
      POSTERN_MAX_BODY_SIZE: '2MiB',
      POSTERN_SHUTDOWN_DELAY: '500ms',
      POSTERN_SECRET_GRACE: '1h',
      POSTERN_SESSION_REDIS_URL: 'rediss://user:pw@redis:6380/1',
      POSTERN_LOG_LEVEL: 'silent',
      POSTERN_VAULT_START: 'degraded'
    }),
    {
      proxyListen: [],
      statusHosts: ['postern.gateway.svc', '*.svc.cluster.local'],
      workers: availableParallelism(),
      ownHeaders: {
        namespace: 'X-Kong',
        server: false,
        via: false,
        latency: false,
        requestId: false,
        upstreamStatus: false
      },
      maxBodySize: 2 * 1024 * 1024,
      shutdownDelay: 0.5,
      secretGrace: 3600,
      sessionRedisUrl: 'rediss://user:pw@redis:6380/1',
      logLevel: 'silent',
      vaultStart: 'degraded'
    }
  )
})

await t.test('settings of the default vaults are collected by type', async t => {
  const { vaultDefaults } = collectSettings({
    KONG_VAULT_FS_PREFIX: '/kong',
    POSTERN_VAULT_FS_PREFIX: '/run/secrets',
    KONG_VAULT_FS_TTL: '{vault://env/ttl}',
    KONG_VAULT_ENV_DECODE_BASE64: 'true',
    POSTERN_VAULT_FS_BASE64_DECODE: 'true'
  })
  t.same(vaultDefaults, {
    fs: { prefix: '/run/secrets', ttl: '{vault://env/ttl}', base64_decode: 'true' },
    env: { base64_decode: 'true' }
  })
})

await t.test(
  'settings of the default vaults are checked, each by itself and all at once',
  async t => {
    const wrong: readonly [string, string, RegExp, RegExp][] = [
      ['POSTERN_VAULT_AWS_TTL', '5q', /expected a number/, /^Write a number\.$/],
      ['POSTERN_VAULT_AZURE_CERTS_TIMEOUT', '301', /at most 300/, /^Write 300 or less\.$/],
      ['POSTERN_VAULT_AZURE_VAULT_URI', 'ftp://x', /invalid value/, /https/],
      ['POSTERN_VAULT_ENV_BASE64_DECODE', 'maybe', /expected a boolean/, /^Write true or false\.$/],
      ['POSTERN_VAULT_HCV_AUTH_METHOD', 'approll', /expected one of/, /^Did you mean approle\?$/],
      [
        'POSTERN_VAULT_HCV_KUBE_ROLE',
        '{vault://nope/x}',
        /"nope", which is no default vault/,
        /fs, hcv/
      ],
      ['POSTERN_VAULT_HCV_PORT', 'http', /expected an integer/, /^Write a whole number\.$/],
      [
        'POSTERN_VAULT_HCV_TOKEN',
        '{vault://fs/x',
        /brace is missing/,
        /^Write {vault:\/\/fs\/x}\.$/
      ]
    ]
    t.match(
      problems(Object.fromEntries(wrong)),
      wrong.map(([path, , message, fix]) => ({
        code: 'POSTERN_SETTING_INVALID',
        message,
        fix,
        place: { path }
      }))
    )
    t.doesNotThrow(() =>
      collectSettings({
        POSTERN_VAULT_ENV_BASE64_DECODE: 'on',
        POSTERN_VAULT_ENV_ALLOW: 'DB_*,API_KEY',
        POSTERN_VAULT_HCV_AUTH_METHOD: 'cert',
        POSTERN_VAULT_HCV_PORT: '{vault://env/port}',
        KONG_VAULT_HCV_TTL: '0.5'
      })
    )
  }
)

await t.test('a malformed reference is one problem', async t => {
  t.match(problems({ POSTERN_WORKERS: '{vault://env/x' }), [{ fix: 'Write {vault://env/x}.' }])
  t.equal(problems({ POSTERN_WORKERS: '{vault://env/x' }).length, 1)
})

await t.test('a field the vault does not have is told', async t => {
  t.match(problems({ POSTERN_VAULT_FS_PREFX: '/x' }), [
    { code: 'POSTERN_SETTING_UNKNOWN', fix: /POSTERN_VAULT_FS_PREFIX\?/ }
  ])
  for (const [variable, fix] of [
    ['POSTERN_WORKRS', /^Did you mean POSTERN_WORKERS\?/],
    ['POSTERN_VAULT_HVC_HOST', /^Did you mean POSTERN_VAULT_HCV_HOST\?/],
    ['POSTERN_VAULT_AZURE_CERTS_TENANTID', /^Did you mean POSTERN_VAULT_AZURE_CERTS_TENANT_ID\?/],
    ['POSTERN_VAULT_HCV_ROLE', /^`postern schema vault hcv` shows/],
    ['POSTERN_VAULT_AZURE_CERTS_COLOUR', /^`postern schema vault azure-certs` shows/],
    ['POSTERN_UNHEARD_OF', /^docs\/operations\.md lists/]
  ] as const) {
    t.match(problems({ [variable]: 'x' }), [{ code: 'POSTERN_SETTING_UNKNOWN', fix }], variable)
  }
  t.match(problems({ POSTERN_VAULT_KONNECT_CONFIG_STORE_ID: 'x' }), [
    { code: 'POSTERN_SETTING_UNKNOWN' }
  ])
  t.match(warned({ KONG_VAULT_KONNECT_CONFIG_STORE_ID: 'x' }), [
    /KONG_VAULT_KONNECT_CONFIG_STORE_ID/
  ])
})

await t.test('references are found, replaced, then parsed', async t => {
  const env = {
    POSTERN_SESSION_REDIS_URL: 'redis://:{vault://env/redis-pw}@redis',
    POSTERN_WORKERS: '{vault://fs/count}'
  }
  const { references } = collectSettings(env)
  t.match(references, [
    {
      name: 'workers',
      template: '{vault://fs/count}',
      references: ['{vault://fs/count}'],
      place: { file: 'environment', path: 'POSTERN_WORKERS' }
    },
    { name: 'sessionRedisUrl', references: ['{vault://env/redis-pw}'] }
  ])
  const { settings } = read(env, { '{vault://env/redis-pw}': 'pw', '{vault://fs/count}': '2\n' })
  t.equal(settings.sessionRedisUrl, 'redis://:pw@redis')
  t.equal(settings.workers, 2)
  t.match(
    says(env, { '{vault://env/redis-pw}': 'pw' }),
    /POSTERN_WORKERS holds a reference that has no value/
  )
})

await t.test('a resolved value that is refused is not repeated', async t => {
  const value = 'http://:hunter2@redis'
  t.notMatch(
    says({ POSTERN_SESSION_REDIS_URL: '{vault://env/url}' }, { '{vault://env/url}': value }),
    /hunter2/
  )
  t.notMatch(
    says({ POSTERN_PROXY_LISTEN: '{vault://env/url}' }, { '{vault://env/url}': value }),
    /hunter2/
  )
  const mangled = 'MIIEowIBAAKCAQEAhunter2'
  const key = says({ POSTERN_SSL_CERT: mangled, POSTERN_SSL_CERT_KEY: mangled })
  t.match(key, /POSTERN_SSL_CERT_KEY/)
  t.notMatch(key, /hunter2/)
})

await t.test(
  'references within a configuration given as text stay, unless it is one as a whole',
  async t => {
    const yaml = '  services:\n  - password: "{vault://env/pw}"\n'
    t.same(collectSettings({ POSTERN_CONFIG_STRING: yaml }).references, [])
    t.equal(settings({ POSTERN_CONFIG_STRING: yaml }).configString, yaml)
    const { settings: whole } = read(
      { POSTERN_CONFIG_STRING: '{vault://fs/file}' },
      { '{vault://fs/file}': yaml }
    )
    t.equal(whole.configString, yaml.trimEnd())
  }
)

await t.test('a certificate is a path, PEM, or base64 of PEM, and its key fits', async t => {
  const one = await generate([{ name: 'commonName', value: 'one' }])
  const two = await generate([{ name: 'commonName', value: 'two' }])
  const path = join(directory, 'one.pem')
  writeFileSync(path, one.cert)
  const key = join(directory, 'one.key')
  writeFileSync(key, one.private)
  const expected = { sslCert: one.cert, sslCertKey: one.private }
  t.match(settings({ POSTERN_SSL_CERT: path, KONG_SSL_CERT_KEY: key }), expected)
  const encoded = (pem: string) => Buffer.from(pem).toString('base64')
  t.match(
    settings({ POSTERN_SSL_CERT: encoded(one.cert), POSTERN_SSL_CERT_KEY: encoded(one.private) }),
    expected
  )
  t.match(
    settings({ POSTERN_SSL_CERT: one.cert, POSTERN_SSL_CERT_KEY: one.private }).sslCertKey,
    readFileSync(key, 'utf8').trim()
  )
  t.match(
    says({ POSTERN_SSL_CERT: path, POSTERN_SSL_CERT_KEY: two.private }),
    /is not the key of POSTERN_SSL_CERT/
  )
  t.match(says({ POSTERN_SSL_CERT: path }), /POSTERN_SSL_CERT_KEY is not set/)
  t.match(says({ POSTERN_SSL_CERT_KEY: key }), /POSTERN_SSL_CERT is not set/)
  t.match(says({ POSTERN_SSL_CERT: `${path},${key}` }), /several files/)
  t.match(
    says({ POSTERN_SSL_CERT: key, POSTERN_SSL_CERT_KEY: path }),
    /no certificate.*no private key/s
  )
})

await t.test('who signs a webhook must be told with for whom', async t => {
  const { webhookGcpAudience: audience, webhookAzureTenant: tenant } = settingsTable
  t.match(problems({ [audience.variable]: 'https://gateway.example' }), [
    { place: { path: 'POSTERN_WEBHOOK_GCP_ACCOUNT' }, message: /is not set/ }
  ])
  t.match(problems({ [tenant.variable]: 'tenant' }), [
    { place: { path: 'POSTERN_WEBHOOK_AZURE_AUDIENCE' } }
  ])
  t.match(says({ POSTERN_WEBHOOK_GCP_KEYS_URL: 'http://example.com' }), /not an https address/)
  t.match(says({ POSTERN_WEBHOOK_SECRET: 'short' }), /too short/)
})

await t.test('trusted peers', async t => {
  const trusted = trustedPeers(['10.0.0.0/8', '192.0.2.7', 'fd00::/8'])
  for (const ip of ['10.1.2.3', '192.0.2.7', 'fd12::1', '::ffff:10.0.0.1']) t.ok(trusted(ip), ip)
  for (const ip of ['11.0.0.1', '192.0.2.8', '2001:db8::1', '::ffff:11.0.0.1', ''])
    t.notOk(trusted(ip), ip)
  t.notOk(trustedPeers([])('127.0.0.1'))
})

await t.test('a listener that is written is read back', async () => {
  const host = fc.oneof(
    fc.ipV4(),
    fc.ipV6().map(ip => `[${ip}]`),
    fc.constant('localhost')
  )
  const flags = fc.oneof(
    fc.constant(''),
    fc.constant(' ssl'),
    fc.constant(' ssl http2'),
    fc.constant(' http2 ssl')
  )
  fc.assert(
    fc.property(host, fc.integer({ min: 0, max: 65_535 }), flags, (host, port, flags) => {
      const [listener] = settings({ POSTERN_PROXY_LISTEN: `${host}:${port}${flags}` }).proxyListen
      return (
        listener?.host === host.replace(/^\[|\]$/g, '') &&
        listener.port === port &&
        listener.ssl === flags.includes('ssl') &&
        listener.http2 === flags.includes('http2')
      )
    }),
    { numRuns: 60 }
  )
})

await t.test('no text in any variable fails in another way than as a problem', async () => {
  const variables = Object.values(settingsTable).map(({ variable }) => variable)
  fc.assert(
    fc.property(fc.constantFrom(...variables), fc.string(), (variable, value) => {
      try {
        read({ [variable]: value })
        return true
      } catch (error) {
        return (
          error instanceof ConfigError &&
          error.problems.every(({ code, fix }) => code.startsWith('POSTERN_SETTING_') && fix !== '')
        )
      }
    }),
    { numRuns: 200 }
  )
})
