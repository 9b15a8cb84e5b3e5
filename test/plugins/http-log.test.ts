import { mkdtemp, rename, rm, writeFile } from 'node:fs/promises'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import t, { type Test } from 'tap'
import { type Received, startGateway, startUpstream, until } from '../harness.ts'
import { freePort } from '../ports.ts'

const ANNA = 'aaaaaaaa-0000-4000-8000-000000000001'
const ANNAS_KEY = 'bbbbbbbb-0000-4000-8000-000000000001'

/** How a collector treats a delivery; `n` counts from 1. */
type Fault = (
  response: ServerResponse,
  received: Received,
  n: number,
  request: IncomingMessage
) => unknown

/** A collector that accepts every delivery until told otherwise. */
async function startCollector(test: Test) {
  let fault: Fault = response => response.end()
  const server = await startUpstream((received, response, request) => {
    fault(response, received, server.requests.length, request)
  })
  test.teardown(() => server.close())
  return {
    url: `${server.url}/logs`,
    port: server.port,
    deliveries: server.requests,
    /** Every record of every delivery, refused ones too. */
    // biome-ignore lint/suspicious/noExplicitAny: tests look into records of any shape
    records: (): any[] => server.requests.flatMap(({ body }) => JSON.parse(body)),
    setFault(next: Fault) {
      fault = next
    }
  }
}

/** Configurations that share a gateway: the route `/NAME` logs to the collector of this name. */
const configs = {
  plain: { headers: { 'X-Token': 't', Accept: 'text/plain' } },
  put: {
    method: 'PUT',
    content_type: 'application/json; charset=utf-8',
    queue: { max_batch_size: 2, max_coalescing_delay: 0.1 }
  },
  legacy: { queue_size: 3, flush_timeout: 0.1, retry_count: 7 },
  full: { queue: { max_batch_size: 5, max_coalescing_delay: 3600 } },
  varied: { queue: { max_batch_size: 7, max_coalescing_delay: 0.05 } },
  waited: { queue: { max_batch_size: 100, max_coalescing_delay: 0.3 } },
  faulty: { timeout: 200, queue: { initial_retry_delay: 0.02 } },
  never: { queue: { max_retry_time: -1 } },
  briefly: { queue: { max_retry_time: 0.2, initial_retry_delay: 0.05, max_retry_delay: 0.1 } },
  number: { queue: { max_entries: 3 } },
  bytes: { queue: { max_bytes: 6000 } },
  one: {},
  many: { queue: { concurrency_limit: -1, max_batch_size: 50 } },
  refused: {
    headers: { 'X-Token': '{vault://fs/refused-token}' },
    // Nothing but a refresh makes another attempt within the test.
    queue: { initial_retry_delay: 3600, max_retry_delay: 3600 }
  },
  denied: {
    headers: { 'X-Token': '{vault://fs/denied-token}' },
    queue: { initial_retry_delay: 3600, max_retry_delay: 3600 }
  },
  custom: {
    custom_fields_by_lua: {
      'request.headers.cookie': 'return nil',
      'app.name': "return 'shop'",
      'app.version': 'return 2',
      'a\\.b': 'return true',
      who: 'return kong.request.get_header("x-who")',
      status: 'return kong.response.get_status()'
    }
  },
  broken: { custom_fields_by_lua: { 'client_ip.deep': 'return 1' } },
  whole: { http_endpoint: '{vault://env/log-endpoint}' },
  part: {
    http_endpoint: 'http://{vault://env/log-user}:{vault://env/log-pass}@{vault://env/log-peer}/in'
  }
} as const

type Collector = Awaited<ReturnType<typeof startCollector>>

const folder = await mkdtemp(join(tmpdir(), 'postern-http-log-'))
t.teardown(() => rm(folder, { recursive: true, force: true }))

/** Replaces the file of a secret atomically. */
async function writeSecret(name: string, text: string): Promise<void> {
  await writeFile(join(folder, `.${name}`), text)
  await rename(join(folder, `.${name}`), join(folder, name))
}
await writeSecret('refused-token', 'first')
await writeSecret('denied-token', 'first')
await writeSecret('log-token', 'first')

const upstream = await startUpstream()
t.teardown(() => upstream.close())
const collectors = {} as Record<keyof typeof configs, Collector>
for (const name of Object.keys(configs) as (keyof typeof configs)[]) {
  collectors[name] = await startCollector(t)
}
const withUser = collectors.put.url.replace('http://', 'http://an%40na:p%3Aw@')
const routes = Object.entries(configs).map(([name, config]) => {
  const { url } = collectors[name as keyof typeof configs]
  const http_endpoint = name === 'put' ? `${withUser}?tenant=1` : url
  return {
    name,
    paths: [`/${name}`],
    plugins: [{ name: 'http-log', config: { http_endpoint, ...config } }]
  }
})
const gateway = await startGateway(
  { services: [{ name: 's', url: upstream.url, routes }] },
  {
    env: {
      POSTERN_VAULT_FS_PREFIX: folder,
      LOG_ENDPOINT: `${collectors.whole.url}/whole`,
      LOG_USER: 'anna',
      LOG_PASS: 'secret',
      LOG_PEER: `127.0.0.1:${collectors.part.port}`
    }
  }
)
t.teardown(() => gateway.close())
t.jobs = 4

t.test('a record tells all about an exchange', async t => {
  const collector = await startCollector(t)
  const upstream = await startUpstream((_, response) => {
    response.setHeader('X-Twice', ['1', '2'])
    response.end('hello')
  })
  t.teardown(() => upstream.close())
  const gateway = await startGateway({
    consumers: [
      {
        id: ANNA,
        username: 'anna',
        tags: ['vip'],
        keyauth_credentials: [{ id: ANNAS_KEY, key: 'k' }]
      }
    ],
    services: [
      {
        name: 's',
        url: `${upstream.url}/base`,
        tags: ['blue'],
        routes: [
          { name: 'open', paths: ['/open'], plugins: [{ name: 'key-auth' }] },
          {
            name: 'closed',
            paths: ['/closed'],
            plugins: [{ name: 'request-termination', config: { status_code: 418 } }]
          }
        ]
      },
      { name: 'away', url: 'http://127.0.0.1:1', retries: 1, routes: [{ paths: ['/away'] }] }
    ],
    plugins: [
      { name: 'http-log', config: { http_endpoint: collector.url } },
      { name: 'correlation-id', config: { header_name: 'X-Id', echo_downstream: true } }
    ]
  })
  t.teardown(() => gateway.close())
  const began = Date.now()
  const answer = await gateway.fetch('/open/it?a=1&a=2&b&c=%20d&apikey=k', {
    method: 'POST',
    headers: { authorization: 'Basic c2VjcmV0', 'X-Id': 'mine', 'x-many': ['1', '2'] },
    body: 'four'
  })
  await gateway.fetch('/closed')
  await gateway.fetch('/away')
  await gateway.fetch('/nowhere')
  await until(() => collector.deliveries.length === 4, 'four records')
  const [proxied, ended, failed, unrouted] = collector.records()
  t.match(proxied, {
    request: {
      id: /^[0-9a-f]{32}$/,
      method: 'POST',
      uri: '/open/it?a=1&a=2&b&c=%20d&apikey=k',
      url: `${gateway.url}/open/it?a=1&a=2&b&c=%20d&apikey=k`,
      querystring: { a: ['1', '2'], b: true, c: ' d', apikey: 'k' },
      headers: {
        authorization: 'REDACTED',
        'x-many': ['1', '2'],
        'x-consumer-username': 'anna',
        'x-id': 'mine'
      },
      size: Number
    },
    upstream_uri: '/base/it?a=1&a=2&b&c=%20d&apikey=k',
    upstream_status: '200',
    response: {
      status: 200,
      headers: { 'x-twice': ['1', '2'], 'content-length': '5' },
      size: Number
    },
    latencies: { kong: Number, proxy: Number, request: Number, receive: Number },
    tries: [{ ip: '127.0.0.1', port: upstream.port, balancer_start: Number }],
    authenticated_entity: { id: ANNAS_KEY, consumer_id: ANNA },
    consumer: { id: ANNA, username: 'anna', tags: ['vip'] },
    route: { name: 'open', paths: ['/open'], strip_path: true, protocols: ['http', 'https'] },
    service: { name: 's', port: upstream.port, tags: ['blue'], retries: 5 },
    client_ip: '127.0.0.1',
    started_at: Number,
    source: 'upstream',
    workspace: '0dc6f45b-8f8d-40d2-a504-473544ee190b',
    workspace_name: 'default',
    correlation_id: 'mine'
  })
  const { connection: _, 'keep-alive': __, ...received } = answer.headers
  t.match(
    proxied.response.headers,
    received,
    "whatever the client got of fields, a plugin's and our own"
  )
  t.ok(proxied.started_at >= began && proxied.started_at <= Date.now())
  t.ok(proxied.request.size > 'POST /open/it HTTP/1.1 four'.length)
  t.ok(proxied.response.size > 'HTTP/1.1 200 OK hello'.length)
  t.equal(proxied.route.service.id, proxied.service.id)
  t.match(ended, {
    upstream_uri: '',
    upstream_status: '',
    response: { status: 418 },
    latencies: { proxy: -1, receive: 0 },
    tries: [],
    source: 'kong',
    request: { querystring: {} }
  })
  for (const key of ['consumer', 'authenticated_entity']) t.notOk(key in ended, key)
  t.match(failed, { response: { status: 502 }, upstream_status: '', source: 'kong' })
  t.same(
    failed.tries.map(({ state, code }: { state: string; code: number }) => [state, code]),
    [
      ['next', 502],
      ['failed', 502]
    ]
  )
  t.match(unrouted, { response: { status: 404 }, source: 'kong', upstream_uri: '' })
  for (const key of ['route', 'service', 'tries', 'consumer']) t.notOk(key in unrouted, key)
})

t.test('what a delivery looks like', async t => {
  const first = async (name: 'plain' | 'put' | 'legacy') => {
    await gateway.fetch(`/${name}/%C3%BC`)
    return until(() => collectors[name].deliveries[0], `a delivery of ${name}`)
  }
  const plain = await first('plain')
  t.match(plain, {
    method: 'POST',
    url: '/logs',
    headers: {
      host: `127.0.0.1:${collectors.plain.port}`,
      'content-type': 'application/json',
      'content-length': String(Buffer.byteLength(plain.body)),
      'x-token': 't',
      accept: 'text/plain'
    }
  })
  t.equal(plain.headers['transfer-encoding'], undefined)
  t.type(JSON.parse(plain.body).request, 'object')
  const put = await first('put')
  t.match(put, {
    method: 'PUT',
    url: '/logs?tenant=1',
    headers: {
      'content-type': 'application/json; charset=utf-8',
      authorization: `Basic ${Buffer.from('an@na:p:w').toString('base64')}`
    }
  })
  t.equal(JSON.parse(put.body).length, 1, 'an array even of one')
  const legacy = await first('legacy')
  t.equal(JSON.parse(legacy.body).length, 1, 'deprecated names have their meaning')
})

t.test('batches fill up, or go when their first entry has waited', async t => {
  const sizes = ({ deliveries }: Collector) => deliveries.map(({ body }) => JSON.parse(body).length)
  await Promise.all(Array.from({ length: 11 }, () => gateway.fetch('/full')))
  await until(() => collectors.full.deliveries.length === 2, 'two full batches')
  await gateway.fetch('/waited')
  await until(() => collectors.waited.deliveries.length === 1, 'the one that waited')
  t.same(sizes(collectors.full), [5, 5])
  t.same(sizes(collectors.waited), [1])
})

t.test('a collector that is not there yet gets its records once it is', async t => {
  const port = await freePort()
  const gateway = await startGateway({
    services: [{ name: 's', url: upstream.url, routes: [{ name: 'all', paths: ['/'] }] }],
    plugins: [{ name: 'http-log', config: { http_endpoint: `http://127.0.0.1:${port}/` } }]
  })
  t.teardown(() => gateway.close())
  const [thread] = gateway.gateway.workers
  t.equal((await gateway.fetch('/early')).status, 200)
  // Time for attempts that are refused; should there be none yet, the test only shows less.
  await new Promise(resolve => setTimeout(resolve, 300))
  const uris: string[] = []
  const server = createServer(async (request, response) => {
    for (const record of [JSON.parse(await text(request))].flat()) uris.push(record.request.uri)
    response.end()
  }).listen(port, '127.0.0.1')
  t.teardown(() => {
    server.closeAllConnections()
    server.close()
  })
  await until(() => uris.includes('/early'), 'the first record')
  t.equal(gateway.gateway.workers[0], thread, 'by the same thread')
})

t.test('batches of any size, one after the other, arrive as they were', async t => {
  const sent: string[] = []
  for (let burst = 0; burst < 12; burst++) {
    const paths = Array.from(
      { length: 1 + (burst % 5) * 3 },
      (_, i) => `/varied/${burst}-${i}/${'x'.repeat((burst * 977 + i * 131) % 4000)}`
    )
    sent.push(...paths)
    await Promise.all(paths.map(path => gateway.fetch(path)))
    await until(() => collectors.varied.records().length === sent.length, 'the whole burst')
  }
  const logged = collectors.varied.records().map(({ request }) => request.uri)
  t.same(logged.sort(), sent.sort())
})

t.test('what the collector does never reaches the client, and nothing is lost', async t => {
  const collector = collectors.faulty
  const endless: Fault = response => {
    const more = () => {
      while (!response.destroyed && response.write('x'.repeat(65_536)));
    }
    response.on('drain', more)
    more()
  }
  const faults: [string, Fault][] = [
    ['error', response => response.writeHead(500).end('no')],
    ['redirect', response => response.writeHead(302, { location: '/logs' }).end()],
    ['reset', (_response, _received, _n, request) => request.socket.resetAndDestroy()],
    ['silence', () => {}],
    ['no-http', (_response, _received, _n, request) => request.socket.end('hello\r\n\r\n')],
    ['half', response => response.writeHead(200, { 'content-length': '9' }).write('h')],
    ['endless', endless]
  ]
  for (const [name, fault] of faults) {
    const before = collector.deliveries.length
    collector.setFault((response, received, n, request) =>
      n <= before + 2 ? fault(response, received, n, request) : response.end()
    )
    const answer = await gateway.fetch(`/faulty?${name}`)
    t.equal(answer.status, 200, name)
    t.equal(answer.json().url, `/?${name}`)
    // The status of the last two is fine; only their connection is given up.
    const attempts = name === 'half' || name === 'endless' ? 1 : 3
    await until(() => collector.deliveries.length >= before + attempts, `attempts after ${name}`)
    const uris = collector.records().map(({ request }) => request.uri)
    t.same(new Set(uris.slice(before)), new Set([`/faulty?${name}`]), 'the same one again')
    collector.setFault(response => response.end())
    await gateway.fetch('/faulty?after')
    await until(() => collector.records().at(-1).request.uri === '/faulty?after', 'the next')
  }
})

t.test('a batch is given up after max_retry_time, those that follow are not', async t => {
  const sent = async (name: 'never' | 'briefly') => {
    const collector = collectors[name]
    collector.setFault((response, { body }) =>
      response.writeHead(body.includes('bad') ? 503 : 200).end()
    )
    await gateway.fetch(`/${name}?bad`)
    await gateway.fetch(`/${name}?good`)
    return until(() => {
      const uris = collector.records().map(({ request }) => request.uri)
      return uris.at(-1) === `/${name}?good` ? uris : undefined
    }, 'the next batch')
  }
  t.same(await sent('never'), ['/never?bad', '/never?good'])
  const briefly = await sent('briefly')
  t.ok(briefly.length >= 3, 'it was tried again')
  t.same(new Set(briefly), new Set(['/briefly?bad', '/briefly?good']))
})

t.test('a full queue drops its oldest entries, by number and by bytes', async t => {
  for (const name of ['number', 'bytes'] as const) {
    const collector = collectors[name]
    const held: ServerResponse[] = []
    collector.setFault(response => held.push(response))
    await gateway.fetch(`/${name}?0`)
    await until(() => held.length === 1, 'a delivery under way')
    for (let i = 1; i < 10; i++) await gateway.fetch(`/${name}?${i}`)
    if (name === 'bytes') await gateway.fetch(`/${name}?${'x'.repeat(7000)}`)
    collector.setFault(response => response.end())
    held[0]!.end()
    await until(() => collector.records().at(-1).request.uri === `/${name}?9`, 'the newest')
    const [first, ...kept] = collector.records().map(({ request }) => request.uri)
    t.equal(first, `/${name}?0`)
    const newest = Array.from({ length: kept.length }, (_, i) => 10 - kept.length + i)
    t.same(
      kept,
      newest.map(i => `/${name}?${i}`),
      'the newest, in order'
    )
    if (name === 'number') t.equal(kept.length, 3)
    else t.ok(JSON.stringify(collector.records().slice(1)).length <= 6000 + kept.length + 1)
  }
})

t.test('without a concurrency limit deliveries overlap', async t => {
  const held: ServerResponse[] = []
  collectors.many.setFault(response => held.push(response))
  await Promise.all(Array.from({ length: 5 }, (_, i) => gateway.fetch(`/many?${i}`)))
  await until(() => held.length === 5, 'five at once')
  for (const response of held.splice(0)) response.end()
  for (const { body } of collectors.many.deliveries) t.equal(JSON.parse(body).length, 1)
  collectors.one.setFault(response => held.push(response))
  await Promise.all(Array.from({ length: 5 }, () => gateway.fetch('/one')))
  await until(() => held.length === 1, 'the first')
  await gateway.fetch('/one')
  t.equal(held.length, 1, 'the next ones wait for it')
  collectors.one.setFault(response => response.end())
  held[0]!.end()
  await until(() => collectors.one.deliveries.length === 6, 'all of them')
})

t.test('what is queued is sent at shutdown', async t => {
  const collector = await startCollector(t)
  const queue = { max_batch_size: 100, max_coalescing_delay: 3600 }
  const config = { http_endpoint: collector.url, queue }
  const gateway = await startGateway(
    {
      services: [{ name: 's', url: upstream.url, routes: [{ name: 'r', paths: ['/'] }] }],
      plugins: [{ name: 'http-log', config }]
    },
    { env: { POSTERN_SHUTDOWN_TIMEOUT: '20' } }
  )
  t.teardown(() => gateway.close())
  for (let i = 0; i < 3; i++) await gateway.fetch(`/?${i}`)
  t.equal(collector.deliveries.length, 0)
  await gateway.gateway.close()
  const uris = collector.records().map(({ request }) => request.uri)
  t.same(uris, ['/?0', '/?1', '/?2'])
})

t.test('a reload and a rotation lose nothing that is queued', async t => {
  const collector = await startCollector(t)
  const document = (...others: readonly object[]) => ({
    services: [
      { name: 's', url: upstream.url, routes: [{ name: 'r', paths: ['/logged'] }, ...others] }
    ],
    plugins: [
      {
        name: 'http-log',
        route: 'r',
        config: {
          http_endpoint: collector.url,
          headers: { Authorization: 'Bearer {vault://fs/log-token}' },
          queue: { initial_retry_delay: 0.05, max_retry_delay: 0.05 }
        }
      }
    ]
  })
  const gateway = await startGateway(document(), { env: { POSTERN_VAULT_FS_PREFIX: folder } })
  t.teardown(() => gateway.close())
  const accepted: string[] = []
  collector.setFault((response, { headers, body }) => {
    const fits = headers.authorization === 'Bearer second'
    if (fits) accepted.push(JSON.parse(body).request.uri)
    response.writeHead(fits ? 200 : 503).end()
  })
  for (let i = 0; i < 5; i++) await gateway.fetch(`/logged?${i}`)
  await until(() => collector.deliveries.length > 0, 'a first attempt')
  await gateway.reload(document({ name: 'new', paths: ['/new'] }))
  t.equal((await gateway.fetch('/new')).status, 200)
  await gateway.fetch('/logged?5')
  t.same(accepted, [])
  await writeSecret('log-token', 'second')
  await until(() => accepted.length === 6, 'all of them with the new secret')
  t.same(
    accepted,
    [0, 1, 2, 3, 4, 5].map(i => `/logged?${i}`)
  )
})

for (const [name, status] of [
  ['refused', 401],
  ['denied', 403]
] as const) {
  t.test(`credentials refused with ${status} are read again, and sent at once`, async t => {
    const tokens: unknown[] = []
    collectors[name].setFault(async (response, { headers }) => {
      tokens.push(headers['x-token'])
      if (headers['x-token'] !== 'second') {
        await writeSecret(`${name}-token`, 'second')
        response.statusCode = status
      }
      response.end()
    })
    await gateway.fetch(`/${name}`)
    await until(() => tokens.length === 2, 'a second attempt')
    t.same(tokens, ['first', 'second'])
  })
}

t.test('the endpoint may be a secret, whole and in part', async t => {
  await gateway.fetch('/whole')
  const whole = await until(() => collectors.whole.deliveries[0], 'a delivery')
  t.equal(whole.url, '/logs/whole')
  await gateway.fetch('/part')
  const part = await until(() => collectors.part.deliveries[0], 'a delivery')
  t.equal(part.url, '/in')
  const authorization = `Basic ${Buffer.from('anna:secret').toString('base64')}`
  t.equal(part.headers.authorization, authorization)
})

t.test('custom fields are added, replaced and taken out', async t => {
  await gateway.fetch('/custom', { headers: { cookie: 'session=secret', 'x-who': 'me' } })
  const { body } = await until(() => collectors.custom.deliveries[0], 'a record')
  const expected = { app: { name: 'shop', version: 2 }, 'a.b': true, who: 'me', status: 200 }
  t.match(JSON.parse(body), expected)
  t.notMatch(body, /session=secret/)
  t.equal((await gateway.fetch('/broken')).status, 200, 'a record that cannot be made is dropped')
})

t.test('a configuration that cannot work is refused', async t => {
  const url = 'http://127.0.0.1:1/'
  const cases: [object, RegExp][] = [
    [{}, /http_endpoint/],
    [{ http_endpoint: 'logs.internal/in' }, /http_endpoint/],
    [{ http_endpoint: 'ftp://logs.internal/' }, /http or https/],
    [{ http_endpoint: url, headers: { host: 'x' } }, /cannot contain 'Host' header/],
    [{ http_endpoint: url, headers: { 'content-type': 'x' } }, /cannot contain 'Content-Type'/],
    [{ http_endpoint: url, headers: { 'Content-Length': '1' } }, /cannot contain 'Content-Length'/],
    [{ http_endpoint: url, headers: { 'a b': 'x' } }, /headers/],
    [{ http_endpoint: 'http://u:p@h/', headers: { Authorization: 'x' } }, /user info/],
    [{ http_endpoint: url, custom_fields_by_lua: { x: 'os.exit()' } }, /not supported/],
    [{ http_endpoint: url, queue: { max_entries: 0 } }, /max_entries/],
    [{ http_endpoint: url, queue: { concurrency_limit: 2 } }, /concurrency_limit/],
    [{ http_endpoint: url, method: 'GET' }, /method/]
  ]
  for (const [config, message] of cases) {
    await t.rejects(
      startGateway({ plugins: [{ name: 'http-log', config }] }),
      { message },
      JSON.stringify(config)
    )
  }
  const resolved: [Record<string, string>, RegExp][] = [
    [{ LOG_ENDPOINT: 'mailto:x' }, /http_endpoint|LOG_ENDPOINT/],
    [{ LOG_ENDPOINT: url, LOG_TOKEN: 'two\nlines' }, /header X-Token has a forbidden character/]
  ]
  for (const [env, message] of resolved) {
    const config = {
      http_endpoint: '{vault://env/log-endpoint}',
      headers: { 'X-Token': '{vault://env/log-token?default=x}' }
    }
    const error = await startGateway({ plugins: [{ name: 'http-log', config }] }, { env }).then(
      gateway => gateway.close().then(() => undefined),
      (error: Error) => error
    )
    t.match(error?.message, message)
    t.notMatch(error?.message, /mailto:x|two\nlines/, 'no value stands in the message')
  }
})
