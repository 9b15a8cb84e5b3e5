import { readFileSync } from 'node:fs'
import t from 'tap'
import { type Config, type LoadOptions, loadConfig } from '../src/config.ts'
import { ConfigError, problemCodes } from '../src/errors.ts'
import { plugins, vaultTypes } from './fixtures/config/plugins.ts'

const options: LoadOptions = { file: 'kong.yml', plugins, vaultTypes }

function load(body: string, extra: Partial<LoadOptions> = {}): Config {
  return loadConfig(`_format_version: "3.0"\n${body}`, { ...options, ...extra })
}

t.test('a kong.yml loads unchanged', async t => {
  const file = new URL('./fixtures/config/kong.yml', import.meta.url)
  const config = loadConfig(readFileSync(file, 'utf8'), options)

  await t.test('nesting becomes foreign keys', async t => {
    const [catalogue, legacy] = config.services
    t.match(catalogue, {
      protocol: 'http',
      host: 'catalogue.internal',
      port: 8080,
      path: '/api',
      retries: 3
    })
    t.same(
      config.routes.map(route => [route.name, route.service?.id]),
      [
        ['products', catalogue!.id],
        ['wildcard', catalogue!.id],
        ['legacy-all', legacy!.id],
        [undefined, legacy!.id],
        [undefined, undefined]
      ]
    )
    t.same(
      config.targets.map(({ target, weight }) => [target, weight]),
      [
        ['10.0.0.1:8000', 100],
        ['10.0.0.2:9000', 50]
      ]
    )
    t.equal(config.acls[0]!.consumer.id, config.consumers[0]!.id)
    t.equal(config.keyauth_credentials[1]!.consumer.id, config.consumers[1]!.id)
  })

  await t.test('a plugin has the scope it is nested in, and no wider one', async t => {
    const scopes = config.plugins.map(({ name, service, route, consumer }) => [
      name,
      Object.keys({
        ...(service && { service }),
        ...(route && { route }),
        ...(consumer && { consumer })
      })
    ])
    t.same(scopes, [
      ['rate-limiting', ['service']],
      ['http-log', ['route']],
      ['rate-limiting', ['consumer']],
      ['http-log', []],
      ['rate-limiting', ['route', 'consumer']]
    ])
  })

  await t.test('defaults are filled, anchors and merge keys apply', async t => {
    const [byService, , byConsumer] = config.plugins
    t.same(byService!.config, {
      minute: 60,
      policy: 'local',
      redis: { port: 6379, ssl: false, timeout: 2000 }
    })
    t.equal(byConsumer!.config.minute, 600)
    t.equal(config.upstreams[0]!.algorithm, 'consistent-hashing', 'hash_on implies it')
    t.match(config.upstreams[0]!.healthchecks, {
      threshold: 0,
      active: { http_path: '/health', concurrency: 10, healthy: { interval: 5, successes: 1 } },
      passive: { unhealthy: { http_statuses: [429, 500, 503] } }
    })
    t.same(config.routes[4]!.protocols, ['http', 'https'])
  })

  await t.test('references are listed with where they stand', async t => {
    t.same(
      config.uses.map(use => [use.kind, use.pointer, use.references, use.place.line]),
      [
        ['vaults', '/config/token', ['{vault://env/vault-token}'], 21],
        ['keyauth_credentials', '/key', ['{vault://shop-env/alice-key}'], 82],
        ['basicauth_credentials', '/password', ['{vault://shop-env/bob-password}'], 91],
        ['plugins', '/config/http_endpoint', ['{vault://shop-hcv/log/endpoint}'], 40],
        ['plugins', '/config/headers/Authorization', ['{vault://shop-env/log-token}'], 42]
      ]
    )
    const [, , , endpoint, header] = config.uses
    t.equal(header!.template, 'Bearer {vault://shop-env/log-token}')
    t.equal(endpoint!.place.path, 'services[0].routes[0].plugins[0].config.http_endpoint')
    t.equal(endpoint!.id, config.plugins[1]!.id)
  })

  await t.test('what is not served is told, not refused', async t => {
    t.same(
      config.warnings.map(({ code, place }) => [code, place.path]),
      [['POSTERN_CONFIG_NOT_SERVED', 'consumers[1].jwt_secrets']]
    )
  })

  await t.test('it is frozen plain data', async t => {
    t.same(structuredClone(config), config)
    t.throws(() => Object.assign(config.plugins[0]!.config, { minute: 1 }), TypeError)
    t.equal(config.transform, true)
  })

  await t.test('the same file gives the same ids', async t => {
    t.same(loadConfig(config.text, options), config)
  })
})

t.test('ids', async t => {
  await t.test('are those Kong derives', async t => {
    // uuid5(uuid5(fd02801f-0957-4a15-a55a-c8d9606f30b5, 'services'), 'a')
    const config = load('services: [{name: a, host: h}]\nplugins: [{name: key-auth}]')
    t.equal(config.services[0]!.id, '72734e2a-702d-5711-b9ef-697178108ad8')
    t.match(config.plugins[0]!.id, /^[0-9a-f]{8}-[0-9a-f]{4}-5/)
  })
  await t.test('of equal nameless entities differ and stay when others come', async t => {
    const one = load('routes: [{paths: [/a]}, {paths: [/a]}]')
    const more = load('routes: [{paths: [/b]}, {paths: [/a]}, {paths: [/a]}]')
    t.equal(new Set(one.routes.map(route => route.id)).size, 2)
    t.same(
      more.routes.slice(1).map(route => route.id),
      one.routes.map(route => route.id)
    )
  })
  await t.test('tell nothing about keys', async t => {
    const ids = ['first', 'other'].map(
      key =>
        load(`consumers: [{username: a, keyauth_credentials: [{key: ${key}}]}]`)
          .keyauth_credentials[0]!.id
    )
    t.equal(ids[0], ids[1])
  })
  await t.test('given ones stay, and name the entity', async t => {
    const id = '3e0f3ab1-9a7d-4d8e-9d6f-5d0f9a4a3c11'
    const config = load(
      `services: [{id: ${id}, host: h}]\nroutes: [{service: {id: ${id}}, paths: [/]}, {service: ${id}, paths: [/a]}]`
    )
    t.same(
      config.routes.map(route => route.service),
      [{ id }, { id }]
    )
  })
})

t.test('a JSON file with tabs loads', async t => {
  const text = JSON.stringify(
    { _format_version: '3.0', services: [{ name: 'a', host: 'h' }] },
    null,
    '\t'
  )
  t.equal(loadConfig(text, { ...options, file: 'kong.json' }).services[0]!.host, 'h')
})

t.test('old formats: paths become prefixes and regular expressions of today', async t => {
  const text =
    '_format_version: "1.1"\nservices: [{host: h, routes: [{paths: [/plain/%41, "/r/[0-9]+", "/d/(.*)%2Ex"]}]}]'
  t.same(loadConfig(text, options).routes[0]!.paths, ['/plain/A', '~/r/[0-9]+', '~/d/(.*)\\.x'])
})

t.test('shorthands', async t => {
  const rows: [string, object][] = [
    ['https://h', { protocol: 'https', host: 'h', port: 443 }],
    ['http://h/', { protocol: 'http', host: 'h', port: 80, path: '/' }],
    ['grpcs://h', { protocol: 'grpcs', host: 'h', port: 80 }],
    ['http://user@[::1]:8080/a?b', { host: '::1', port: 8080, path: '/a' }]
  ]
  for (const [url, want] of rows)
    t.match(load(`services: [{url: "${url}"}]`).services[0], want, url)
  t.equal(load('services: [{host: h, url: null}]').services[0]!.host, 'h')
  t.equal(load('routes: [{protocols: [grpc], hosts: [h]}]').routes[0]!.strip_path, false)
  t.equal(load('upstreams: [{name: u, hash_on: none}]').upstreams[0]!.algorithm, 'round-robin')
  t.equal(
    load('upstreams: [{name: u, hash_on: ip, algorithm: latency}]').upstreams[0]!.hash_on,
    'none'
  )
  t.equal(
    load('upstreams: [{name: u, targets: [{target: "::1"}]}]').targets[0]!.target,
    '[::1]:8000'
  )
  t.equal(load('certificates: []\nconsumers:').consumers.length, 0)
  t.equal(load('_transform: false').transform, false)
  t.same(
    load('plugins: [{name: rate-limiting, config: {redis_host: r}}]').plugins[0]!.config.redis,
    {
      host: 'r',
      port: 6379,
      ssl: false,
      timeout: 2000
    }
  )
})

t.test('an explicit null keeps a default from being used', async t => {
  const config = load(
    'plugins: [{name: rate-limiting, config: {minute: null, redis: {timeout: ~}}}]'
  )
  t.same(config.plugins[0]!.config, { policy: 'local', redis: { port: 6379, ssl: false } })
  t.same(load('plugins: [{name: key-auth, config: null}]').plugins[0]!.config, {
    key_names: ['apikey']
  })
})

const V = 'POSTERN_CONFIG_INVALID_VALUE'
const R = 'POSTERN_CONFIG_REQUIRED'
const U = 'POSTERN_CONFIG_UNKNOWN_FIELD'
const D = 'POSTERN_CONFIG_DUPLICATE'
const X = 'POSTERN_CONFIG_REFERENCE'

/** Text after the version line; then line, column, path, code and part of message and fix. */
type Broken = readonly [
  body: string,
  line: number,
  column: number,
  path: string,
  code: string,
  text: RegExp
]

const broken: readonly Broken[] = [
  ['servces: []', 2, 1, 'servces', U, /Did you mean services\?/],
  ['zzzzz: []', 2, 1, 'zzzzz', U, /unknown field/],
  ['services: {}', 2, 11, 'services', V, /expected an array/],
  ['services: [5]', 2, 12, 'services[0]', V, /expected a record/],
  [
    'services:\n  - name: a\n    hst: h\n    host: h',
    4,
    5,
    'services[0].hst',
    U,
    /Did you mean host\?/
  ],
  ['services:\n  - name: a', 3, 5, 'services[0].host', R, /required field missing.*Add host/],
  ['services: [{host: null}]', 2, 19, 'services[0].host', R, /required field missing/],
  ['services: [{host: h, retries: null}]', 2, 31, 'services[0].retries', R, /leave the key out/],
  ['services: [{host: "h:80"}]', 2, 19, 'services[0].host', V, /must not have a port/],
  ['services: [{host: "a b"}]', 2, 19, 'services[0].host', V, /invalid hostname/],
  [
    'services: [{host: h, port: "80"}]',
    2,
    28,
    'services[0].port',
    V,
    /expected an integer.*without quotes/
  ],
  ['services: [{host: h, port: 70000}]', 2, 28, 'services[0].port', V, /between 0 and 65535/],
  ['services: [{host: h, path: a}]', 2, 28, 'services[0].path', V, /should start with: \//],
  ['services: [{host: h, path: /a//b}]', 2, 28, 'services[0].path', V, /empty segments/],
  [
    'services: [{host: h, path: /%zz}]',
    2,
    28,
    'services[0].path',
    V,
    /invalid url-encoded value: '%zz'/
  ],
  ['services: [{host: h, path: "/a b"}]', 2, 28, 'services[0].path', V, /Percent-encode/],
  ['services: [{host: h, protocol: htp}]', 2, 32, 'services[0].protocol', V, /Did you mean http\?/],
  [
    'services: [{host: h, protocol: grpc, path: /a}]',
    2,
    44,
    'services[0].path',
    V,
    /value must be null/
  ],
  [
    'services: [{host: h, tls_verify: true}]',
    2,
    34,
    'services[0].tls_verify',
    V,
    /protocol to https/
  ],
  ['services: [{url: "h/x"}]', 2, 18, 'services[0].url', V, /missing scheme/],
  ['services: [{url: "http:///x"}]', 2, 18, 'services[0].url', V, /missing host/],
  ['services: [{url: 5}]', 2, 18, 'services[0].url', V, /expected a string/],
  ['services: [{url: "htp://x"}]', 2, 18, 'services[0].url', V, /expected one of: http/],
  ['services: [{url: "http://x:70000"}]', 2, 18, 'services[0].url', V, /between 0 and 65535/],
  ['services: [{host: h, name: "a b"}]', 2, 28, 'services[0].name', V, /invalid name/],
  ['services: [{host: h, tags: ["a,b"]}]', 2, 29, 'services[0].tags[0]', V, /invalid tag/],
  ['services: [{host: h, id: x}]', 2, 26, 'services[0].id', V, /valid UUID/],
  ['services: [{host: h, id: 7}]', 2, 26, 'services[0].id', V, /expected a string/],
  [
    'services: [{host: h, client_certificate: c, protocol: https}]',
    2,
    42,
    'services[0].client_certificate',
    'POSTERN_CONFIG_DANGLING',
    /no such entry in 'certificates'/
  ],
  [
    'services: [{host: h, protocol: https, ca_certificates: [c]}]',
    2,
    57,
    'services[0].ca_certificates[0]',
    'POSTERN_CONFIG_DANGLING',
    /no such entry/
  ],
  [
    'services: [{name: a, host: h}, {name: a, host: h}]',
    2,
    39,
    'services[1].name',
    D,
    /with name set to 'a' already declared.*line 2, column 19/
  ],
  [
    'services: [{name: shop, host: h}]\nroutes: [{service: shp, paths: [/]}]',
    3,
    20,
    'routes[0].service',
    'POSTERN_CONFIG_DANGLING',
    /'service: shp'.*Did you mean shop/
  ],
  [
    'services: [{name: a, host: h, routes: [{service: a, paths: [/]}]}]',
    2,
    50,
    'services[0].routes[0].service',
    V,
    /value must be null/
  ],
  [
    'routes: [{service: [], paths: [/]}]',
    2,
    20,
    'routes[0].service',
    V,
    /expected a name or an id/
  ],
  [
    'routes: [{name: a}]',
    2,
    10,
    'routes[0]',
    R,
    /must set one of 'methods', 'hosts', 'headers', 'paths' when 'protocols' is 'http'/
  ],
  [
    'routes: [{protocols: [http, tcp], paths: [/]}]',
    2,
    22,
    'routes[0].protocols',
    V,
    /mutually exclusive/
  ],
  [
    'routes: [{protocols: [grpc], hosts: [h], methods: [GET]}]',
    2,
    51,
    'routes[0].methods',
    V,
    /cannot set 'methods'/
  ],
  [
    'routes: [{protocols: [grpc], hosts: [h], strip_path: true}]',
    2,
    54,
    'routes[0].strip_path',
    V,
    /cannot set 'strip_path'/
  ],
  ['routes: [{protocols: [http], hosts: [h], snis: [a]}]', 2, 48, 'routes[0].snis', V, /Add https/],
  ['routes: [{hosts: [h], sources: [{port: 1}]}]', 2, 32, 'routes[0].sources', V, /Remove sources/],
  ['routes: [{headers: {Host: [a]}}]', 2, 27, 'routes[0].headers.Host', V, /Use the field 'hosts'/],
  ['routes: [{headers: {"a b": [a]}}]', 2, 21, 'routes[0].headers["a b"]', V, /invalid name/],
  ['routes: [{methods: [get]}]', 2, 21, 'routes[0].methods[0]', V, /\^\[A-Z\]\+\$/],
  ['routes: [{hosts: ["a.*.b"]}]', 2, 19, 'routes[0].hosts[0]', V, /invalid wildcard/],
  ['routes: [{hosts: ["*.*"]}]', 2, 19, 'routes[0].hosts[0]', V, /at most one/],
  ['routes: [{hosts: ["a:99999"]}]', 2, 19, 'routes[0].hosts[0]', V, /invalid host or port/],
  [
    'routes: [{paths: [a]}]',
    2,
    19,
    'routes[0].paths[0]',
    V,
    /\/ \(fixed path\) or ~\/ \(regex path\)/
  ],
  ['routes: [{paths: ["~a"]}]', 2, 19, 'routes[0].paths[0]', V, /Start the regular expression/],
  [
    'routes: [{paths: ["~/a("]}]',
    2,
    19,
    'routes[0].paths[0]',
    V,
    /invalid regex: Unterminated group/
  ],
  ['routes: [{paths: [/a/../b]}]', 2, 19, 'routes[0].paths[0]', V, /consider use '\/b' instead/],
  ['routes: [{paths: ["/a/[0-9]+"]}]', 2, 19, 'routes[0].paths[0]', V, /write '~\/a\/\[0-9\]\+'/],
  ['routes: [{paths: [/%4]}]', 2, 19, 'routes[0].paths[0]', V, /'%4'/],
  [
    'routes: [{paths: [/], expression: "a"}]',
    2,
    35,
    'routes[0].expression',
    'POSTERN_CONFIG_UNSUPPORTED',
    /does not serve expression/
  ],
  [
    'routes: [{paths: [/], https_redirect_status_code: 200}]',
    2,
    51,
    'routes[0].https_redirect_status_code',
    V,
    /one of: 426, 301/
  ],
  ['upstreams: [{name: 10.0.0.1}]', 2, 20, 'upstreams[0].name', V, /no ip addresses/],
  [
    'upstreams: [{name: u, hash_on: header}]',
    2,
    13,
    'upstreams[0].hash_on_header',
    R,
    /hash_on_header/
  ],
  [
    'upstreams: [{name: u, hash_on: ip, hash_fallback: ip}]',
    2,
    51,
    'upstreams[0].hash_fallback',
    V,
    /another value/
  ],
  [
    'upstreams: [{name: u, hash_fallback: ip}]',
    2,
    38,
    'upstreams[0].hash_fallback',
    V,
    /expected one of: none/
  ],
  [
    'upstreams: [{name: u, hash_on: header, hash_on_header: a, hash_fallback: header, hash_fallback_header: A}]',
    2,
    104,
    'upstreams[0].hash_fallback_header',
    V,
    /must be different/
  ],
  [
    'upstreams: [{name: u, algorithm: sticky-sessions}]',
    2,
    13,
    'upstreams[0].sticky_sessions_cookie',
    R,
    /cookie/
  ],
  [
    'upstreams: [{name: u, targets: [{target: "a b"}]}]',
    2,
    42,
    'upstreams[0].targets[0].target',
    V,
    /not a valid hostname/
  ],
  [
    'upstreams: [{name: u, targets: [{target: a}, {target: "a:8000"}]}]',
    2,
    55,
    'upstreams[0].targets[1].target',
    D,
    /already declared/
  ],
  [
    'upstreams: [{name: u, healthchecks: {active: {healthy: {http_statuses: [20]}}}}]',
    2,
    73,
    'upstreams[0].healthchecks.active.healthy.http_statuses[0]',
    V,
    /between 100 and 999/
  ],
  ['consumers: [{tags: [a]}]', 2, 13, 'consumers[0]', R, /at least one of these fields/],
  [
    'consumers: [{username: a}, {username: a}]',
    2,
    39,
    'consumers[1].username',
    D,
    /'a' already declared/
  ],
  [
    'keyauth_credentials: [{key: a}]',
    2,
    23,
    'keyauth_credentials[0].consumer',
    R,
    /required field missing/
  ],
  [
    'consumers: [{username: a, acls: [{group: g}, {group: g}]}]',
    2,
    54,
    'consumers[0].acls[1].group',
    D,
    /for the same consumer/
  ],
  [
    'plugins: [{name: rate-limitng}]',
    2,
    18,
    'plugins[0].name',
    'POSTERN_CONFIG_UNKNOWN_PLUGIN',
    /Did you mean rate-limiting\?/
  ],
  [
    'plugins: [{name: jwt}]',
    2,
    18,
    'plugins[0].name',
    'POSTERN_CONFIG_UNSUPPORTED',
    /does not include the plugin 'jwt'.*http-log, key-auth/
  ],
  [
    'plugins: [{name: key-auth, consumer_group: g}]',
    2,
    44,
    'plugins[0].consumer_group',
    'POSTERN_CONFIG_UNSUPPORTED',
    /consumer_group/
  ],
  [
    'plugins: [{name: key-auth}, {name: key-auth}]',
    2,
    36,
    'plugins[1].name',
    D,
    /'key-auth' already declared/
  ],
  [
    'consumers: [{username: a}]\nplugins: [{name: key-auth, consumer: a}]',
    3,
    38,
    'plugins[0].consumer',
    V,
    /cannot be scoped to a consumer/
  ],
  [
    'consumers: [{username: a, plugins: [{name: key-auth}]}]',
    2,
    44,
    'consumers[0].plugins[0].name',
    V,
    /cannot be scoped/
  ],
  [
    'plugins: [{name: http-log}]',
    2,
    11,
    'plugins[0].config.http_endpoint',
    R,
    /required field missing/
  ],
  [
    'plugins: [{name: http-log, config: {http_endpoint: x}}]',
    2,
    52,
    'plugins[0].config.http_endpoint',
    V,
    /missing scheme in url/
  ],
  [
    'plugins: [{name: http-log, config: {http_endpoint: "http://h", method: GET}}]',
    2,
    72,
    'plugins[0].config.method',
    V,
    /expected one of: POST, PUT/
  ],
  [
    'plugins: [{name: http-log, config: {http_endpoint: "http://h", flush: 0}}]',
    2,
    71,
    'plugins[0].config.flush',
    V,
    /at least 1/
  ],
  [
    'plugins: [{name: http-log, config: {http_endpoint: "http://h", flush: true}}]',
    2,
    71,
    'plugins[0].config.flush',
    V,
    /expected an integer or a string/
  ],
  [
    'plugins: [{name: rate-limiting, config: {minutes: 5}}]',
    2,
    42,
    'plugins[0].config.minutes',
    U,
    /Did you mean minute\?/
  ],
  [
    'plugins: [{name: rate-limiting, config: {minute: 0}}]',
    2,
    50,
    'plugins[0].config.minute',
    V,
    /greater than 0/
  ],
  [
    'plugins: [{name: rate-limiting, config: {minute: 9, hour: 1}}]',
    2,
    50,
    'plugins[0].config.minute',
    V,
    /more than the hour/
  ],
  [
    'plugins:\n  - name: rate-limiting\n    config:\n      redis:\n        prt: 1',
    6,
    9,
    'plugins[0].config.redis.prt',
    U,
    /Did you mean port/
  ],
  [
    'plugins: [{name: http-log, config: {http_endpoint: {vault://env/x}}}]',
    2,
    52,
    'plugins[0].config.http_endpoint',
    X,
    /Quote it: "\{vault:\/\/env\/x\}"/
  ],
  [
    'services: [{host: "{vault://env/x}"}]',
    2,
    19,
    'services[0].host',
    X,
    /cannot hold a reference/
  ],
  [
    'plugins: [{name: rate-limiting, config: {policy: "{vault://env/x}"}}]',
    2,
    50,
    'plugins[0].config.policy',
    X,
    /cannot hold a reference/
  ],
  [
    'plugins: [{name: http-log, config: {http_endpoint: "{vault://}"}}]',
    2,
    52,
    'plugins[0].config.http_endpoint',
    X,
    /./
  ],
  [
    'plugins: [{name: http-log, config: {http_endpoint: "{Vault://env/x}"}}]',
    2,
    52,
    'plugins[0].config.http_endpoint',
    X,
    /./
  ],
  [
    'vaults: [{name: env, prefix: env}]',
    2,
    30,
    'vaults[0].prefix',
    V,
    /must not be one of.*my-env/
  ],
  ['vaults: [{name: env, prefix: a}]', 2, 30, 'vaults[0].prefix', V, /Write text that matches/],
  [
    'vaults: [{name: hvc, prefix: my-v}]',
    2,
    17,
    'vaults[0].name',
    V,
    /vault 'hvc' is not installed.*Did you mean hcv/
  ],
  ['vaults: [{name: hcv, prefix: my-v}]', 2, 10, 'vaults[0].config.token', R, /token/],
  [
    'vaults: [{name: hcv, prefix: my-v, config: {token: t, ttl: -1}}]',
    2,
    60,
    'vaults[0].config.ttl',
    V,
    /at least 0/
  ],
  [
    'certificates: [{cert: a, key: "{vault://env/k}"}]',
    2,
    23,
    'certificates[0].cert',
    V,
    /invalid certificate/
  ],
  [
    'certificates: [{cert: "{vault://env/c}", key: a}]',
    2,
    47,
    'certificates[0].key',
    V,
    /invalid key/
  ],
  [
    'certificates: [{cert: "{vault://a/b}", key: "{vault://a/c}", cert_alt: "{vault://a/d}"}]',
    2,
    16,
    'certificates[0]',
    R,
    /all or none/
  ],
  [
    'certificates: [{cert: "{vault://a/b}", key: "{vault://a/c}", snis: [a, a]}]',
    2,
    72,
    'certificates[0].snis[1].name',
    D,
    /already declared/
  ],
  [
    'certificates: [{cert: "{vault://a/b}", key: "{vault://a/c}", snis: ["1.2.3.4"]}]',
    2,
    69,
    'certificates[0].snis[0].name',
    V,
    /must not be an IP/
  ],
  ['_transform: 5', 2, 13, '_transform', V, /expected a boolean/],
  ['a: *b', 2, 4, 'a', 'POSTERN_CONFIG_SYNTAX', /no anchor "b"/],
  ['_ignore: &a [*a]', 2, 14, '_ignore[0]', 'POSTERN_CONFIG_SYNTAX', /contains itself/],
  ['_ignore: {<<: 5}', 2, 11, '_ignore', 'POSTERN_CONFIG_SYNTAX', /merge key/],
  ['_ignore: {__proto__: 5}', 2, 11, '_ignore', U, /Remove it/],
  ['_ignore: !tag 5', 2, 10, '', 'POSTERN_CONFIG_SYNTAX', /tag/],
  ['services: []\nservices: []', 3, 1, 'services', D, /stands twice.*stands at line 2, column 1/],
  [
    'services: [{name: a, url: "http://a", url: "http://b"}]',
    2,
    39,
    'services[0].url',
    D,
    /line 2, column 22/
  ],
  ['services: []\n---\nroutes: []', 3, 1, '', 'POSTERN_CONFIG_SYNTAX', /one document in the file/],
  ['services: []\n---\n# no\n---\na: 1', 3, 1, '', 'POSTERN_CONFIG_SYNTAX', /one document/],
  ['services: [', 2, 12, '', 'POSTERN_CONFIG_SYNTAX', /./]
]

t.test('names of built-in members are names like others', async t => {
  for (const name of ['constructor', 'toString', 'hasOwnProperty']) {
    const body = `routes: [{protocols: [${name}], ${name}: 1}]\nupstreams: [{name: u, hash_on: ${name}}]\n${name}: []`
    t.equal(problemsOf(`_format_version: "3.0"\n${body}`).length, 4, name)
  }
})

t.test('a document that ends with a marker, or with empty ones, is one', async t => {
  for (const end of ['---\n', '...\n', '---\n# end\n---\n']) {
    t.same(problemsOf(`_format_version: "3.0"\nservices: []\n${end}`), [], end)
  }
})

function problemsOf(text: string, extra: Partial<LoadOptions> = {}) {
  try {
    loadConfig(text, { ...options, ...extra })
    return []
  } catch (error) {
    if (error instanceof ConfigError) return error.problems
    throw error
  }
}

t.test('every problem says where and what to write', async t => {
  for (const [body, line, column, path, code, text] of broken) {
    const problems = problemsOf(`_format_version: "3.0"\n${body}`)
    t.equal(
      problems.length,
      1,
      `one problem in ${body}: ${problems.map(p => p.message).join('; ')}`
    )
    const [problem] = problems
    if (problem === undefined) continue
    t.same(
      [problem.place.line, problem.place.column, problem.place.path, problem.code],
      [line, column, path, code],
      body
    )
    t.match(`${problem.message}. ${problem.fix}`, text, body)
    t.equal(problem.place.file, 'kong.yml')
    t.ok(problem.code in problemCodes, `${problem.code} is described`)
  }
})

t.test('the version', async t => {
  const rows: [string, string, RegExp][] = [
    ['services: []', R, /Add _format_version: "3.0"/],
    ['_format_version: 3.0', V, /Quote it: _format_version: "3.0"/],
    ['_format_version: "4.0"', V, /expected one of: 1.1, 2.1, 3.0/],
    ['[]', V, /expected an object/],
    ['', V, /expected an object/]
  ]
  for (const [text, code, message] of rows) {
    const [problem] = problemsOf(text)
    t.equal(problem?.code, code, text)
    t.match(`${problem?.message} ${problem?.fix}`, message, text)
  }
})

t.test('all problems come at once, in the order of the file', async t => {
  const body =
    'plugins: [{name: nope}]\nservices:\n  - host: "a:1"\n    routes: [{paths: [x]}]\n    retries: many\nroutes: [{service: s}]'
  const lines = problemsOf(`_format_version: "3.0"\n${body}`).map(({ place }) => place.line)
  t.same(lines, [2, 4, 5, 6, 7, 7])
})

t.test('several syntax errors come at once', async t => {
  t.ok(problemsOf('a: "\\q"\nb: "\\z"\n').length >= 2)
})

t.test('bombs are refused', async t => {
  const levels = Array.from(
    { length: 9 },
    (_, i) => `  - &a${i + 1} [${Array(10).fill(`*a${i}`).join(', ')}]`
  )
  const bomb = problemsOf(`_format_version: "3.0"\n_ignore:\n  - &a0 [x]\n${levels.join('\n')}`)
  t.equal(bomb[0]?.code, 'POSTERN_CONFIG_LIMIT')
  t.equal(problemsOf('['.repeat(300))[0]?.code.startsWith('POSTERN_CONFIG_'), true)
  const deep = `${'['.repeat(200)}${']'.repeat(200)}`
  t.equal(problemsOf(`_ignore: ${deep}`)[0]?.code, 'POSTERN_CONFIG_LIMIT')
  const chain = Array.from(
    { length: 200 },
    (_, i) => `  - &b${i} [${i === 0 ? 'x' : `*b${i - 1}`}]`
  ).join('\n')
  t.equal(problemsOf(`_ignore:\n${chain}`)[0]?.code, 'POSTERN_CONFIG_LIMIT')
  for (const flood of ['['.repeat(100_000), '- '.repeat(60_000), '{a: '.repeat(60_000)]) {
    const problems = problemsOf(flood)
    t.same(
      problems.map(({ code }) => code),
      ['POSTERN_CONFIG_LIMIT']
    )
  }
})

t.test('a problem never shows a secret', async t => {
  const body =
    'consumers: [{username: a, keyauth_credentials: [{key: hunter2}, {key: hunter2}], basicauth_credentials: [{username: u, password: 5}]}]'
  const text = JSON.stringify(problemsOf(`_format_version: "3.0"\n${body}`))
  t.match(text, /already declared/)
  t.notMatch(text, /hunter2/)
})

t.test('unserved kinds are told once each with their lines', async t => {
  const config = load(
    'keys: [{kid: a}]\nconsumers:\n  - username: a\n    jwt_secrets: [{key: a}]\n  - username: b\n    jwt_secrets: [{key: b}]\nlicenses: []'
  )
  t.same(
    config.warnings.map(({ message }) => message),
    [
      'this release does not serve keys; ignored here',
      'this release does not serve jwt_secrets; ignored here and in lines 7'
    ]
  )
})

t.test('a plugin that throws over a configuration is told as a problem', async t => {
  const translate = () => {
    throw new Error('cannot translate')
  }
  const [problem] = problemsOf('_format_version: "3.0"\nplugins: [{name: key-auth, config: {}}]', {
    plugins: plugins.map(plugin => ({ ...plugin, translate }))
  })
  t.match(problem, {
    message: 'cannot translate',
    place: { path: 'plugins[0].config', column: 36 }
  })
})

t.test('fields that a url wins over are told', async t => {
  const { warnings, services } = load(
    `services:
  - { name: a, url: http://a:81, protocol: http, port: 80, path: /x, host: "{vault://env/h}" }
  - { name: b, url: https://b/y, protocol: https, host: b, port: 443, path: /y }
  - { name: c, url: http://c, host: null }`
  )
  t.same(
    warnings.map(({ code, place }) => [code, place.path, place.column]),
    [
      ['POSTERN_CONFIG_UNUSED', 'services[0].port', 50],
      ['POSTERN_CONFIG_UNUSED', 'services[0].path', 60],
      ['POSTERN_CONFIG_UNUSED', 'services[0].host', 70]
    ]
  )
  t.match(services[0], { host: 'a', port: 81, path: undefined })
})

t.test('stream routes load with a warning', async t => {
  const config = load(
    'routes: [{protocols: [tcp], sources: [{port: 1}]}]\nservices: [{host: h, protocol: udp}]'
  )
  t.same(
    config.warnings.map(({ place }) => place.path),
    ['routes[0].protocols', 'services[0].protocol']
  )
})

t.test('references are checked against the vaults of the file', async t => {
  const seen: string[] = []
  const problems = problemsOf(
    '_format_version: "3.0"\nvaults: [{name: env, prefix: my-env}]\nplugins: [{name: http-log, config: {http_endpoint: "http://{vault://nope/host}/{vault://my-env/path}"}}]',
    {
      vaultCheck: (reference, vaults) => {
        seen.push(...vaults.map(vault => vault.prefix))
        return reference.vault === 'nope'
          ? { message: 'no vault "nope"', fix: 'Declare it' }
          : undefined
      }
    }
  )
  t.same(seen, ['my-env', 'my-env'])
  t.equal(problems.length, 1)
  t.match(problems[0], {
    code: X,
    reference: '{vault://nope/host}',
    place: { line: 3, column: 52 }
  })
})
