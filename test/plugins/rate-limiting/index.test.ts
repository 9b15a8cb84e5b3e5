import t from 'tap'
import { ConfigError } from '../../../src/errors.ts'
import { periods, secondsLeft } from '../../../src/plugins/rate-limiting/periods.ts'
import { startGateway, startUpstream, type TestResponse } from '../../harness.ts'

/** Waits until the hour lasts for long enough that the tests fit in. */
async function earlyInTheHour(): Promise<void> {
  const { windowAt } = periods[2]!
  while (windowAt(Date.now()) !== windowAt(Date.now() + 40_000)) {
    await new Promise(resolve => setTimeout(resolve, 100))
  }
}

await earlyInTheHour()
const upstream = await startUpstream()
t.teardown(() => upstream.close())
const gateway = await startGateway({}, { workers: 2, env: { POSTERN_TRUSTED_IPS: '127.0.0.1' } })
t.teardown(() => gateway.close())
const ask = gateway.fetch
let scopes = 0

/** Serves a route with limits of its own, counted from nothing; gives the document. */
async function serve(config: object) {
  const name = `scope-${++scopes}`
  const plugins = [{ name: 'rate-limiting', config }]
  const document = {
    services: [{ name, url: upstream.url, routes: [{ name, paths: ['/'], plugins }] }]
  }
  await gateway.reload(document)
  return document
}

/** The same document with other limits. */
function withConfig({ services: [service] }: Awaited<ReturnType<typeof serve>>, config: object) {
  const route = { ...service!.routes[0]!, plugins: [{ name: 'rate-limiting', config }] }
  return { services: [{ ...service!, routes: [route] }] }
}

function told({ headers }: TestResponse): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(headers).filter(([name]) => /ratelimit|retry-after/.test(name))
  )
}

t.test('requests pass until the limit, are told what is left, and then refused', async t => {
  const received = upstream.requests.length
  await serve({ hour: 6 })
  for (const left of [5, 4, 3, 2, 1, 0]) {
    const passed = await ask('/')
    const reset = secondsLeft(periods[2]!, Date.now())
    t.equal(passed.status, 200)
    t.match(told(passed), {
      'x-ratelimit-limit-hour': '6',
      'x-ratelimit-remaining-hour': String(left),
      'ratelimit-limit': '6',
      'ratelimit-remaining': String(left)
    })
    t.notOk('retry-after' in told(passed))
    const difference = Number(told(passed)['ratelimit-reset']) - reset
    t.ok(difference === 0 || difference === 1, 'the reset is when the hour ends')
  }
  const refused = await ask('/')
  t.equal(refused.status, 429)
  t.equal(refused.json().message, 'API rate limit exceeded')
  t.ok(refused.json().request_id)
  t.match(told(refused), {
    'x-ratelimit-limit-hour': '6',
    'x-ratelimit-remaining-hour': '0',
    'ratelimit-remaining': '0',
    'retry-after': told(refused)['ratelimit-reset']
  })
  t.equal(upstream.requests.length - received, 6)
})

t.test('several periods are told, and RateLimit-* describe the tighter', async t => {
  await serve({ hour: 3, day: 6 })
  const first = told(await ask('/'))
  t.match(first, {
    'x-ratelimit-limit-hour': '3',
    'x-ratelimit-remaining-hour': '2',
    'x-ratelimit-limit-day': '6',
    'x-ratelimit-remaining-day': '5',
    'ratelimit-limit': '3',
    'ratelimit-remaining': '2'
  })
  await ask('/')
  await ask('/')
  for (let i = 0; i < 3; i++) {
    const refused = await ask('/')
    t.equal(refused.status, 429)
    t.match(told(refused), {
      'x-ratelimit-remaining-hour': '0',
      'x-ratelimit-remaining-day': '3',
      'ratelimit-limit': '3'
    })
  }
})

t.test('of limits with as little left, the longest is described', async t => {
  await serve({ hour: 2, day: 2 })
  t.equal(Number(told(await ask('/'))['ratelimit-reset']) > 3600 || nearMidnight(), true)
  await ask('/')
  const refused = told(await ask('/'))
  t.match(refused, { 'x-ratelimit-remaining-hour': '0', 'x-ratelimit-remaining-day': '0' })
  t.equal(refused['retry-after'], refused['ratelimit-reset'])
})

/** In the last hour of a day the reset of both periods is the same. */
function nearMidnight(): boolean {
  return new Date().getUTCHours() === 23
}

t.test('the client need not be told, and status and message are configurable', async t => {
  const config = { hour: 1, hide_client_headers: true, error_code: 503, error_message: 'Slow down' }
  await serve(config)
  t.same(told(await ask('/')), {})
  const refused = await ask('/')
  t.equal(refused.status, 503)
  t.equal(refused.json().message, 'Slow down')
  t.same(told(refused), {})
})

t.test('what is counted by', async t => {
  const consumer = (username: string) => ({
    username,
    keyauth_credentials: [{ key: `${username}-1` }, { key: `${username}-2` }]
  })
  const kinds: Record<string, { config: object; same: object[]; other: object[] }> = {
    consumer: {
      config: { limit_by: 'consumer' },
      same: [{ key: 'ann-1' }, { key: 'ann-2', ip: '10.0.0.9' }],
      other: [{ key: 'bob-1' }, {}]
    },
    credential: {
      config: { limit_by: 'credential' },
      same: [{ key: 'ann-1' }, { key: 'ann-1', ip: '10.0.0.9' }],
      other: [{ key: 'ann-2' }, {}]
    },
    ip: {
      config: { limit_by: 'ip' },
      same: [{ ip: '10.0.0.1' }, { ip: '10.0.0.1', key: 'ann-1' }],
      other: [{ ip: '10.0.0.2' }, { ip: 'fd00::1' }]
    },
    service: {
      config: { limit_by: 'service' },
      same: [
        { ip: '10.0.0.1', path: '/s' },
        { ip: '10.0.0.2', path: '/s/2', key: 'ann-1' }
      ],
      other: [{ path: '/other', ip: '10.0.0.1' }]
    },
    header: {
      config: { limit_by: 'header', header_name: 'X-Tenant' },
      same: [{ tenant: 'blue' }, { tenant: 'blue', ip: '10.0.0.9' }],
      other: [{ tenant: 'red' }, { tenant: 'b'.repeat(1000) }, {}, { ip: '10.0.0.3' }]
    },
    path: {
      config: { limit_by: 'path', path: '/s/metered' },
      same: [{ path: '/s/metered?q=1' }, { path: '/s/metered', ip: '10.0.0.9' }],
      other: [
        { path: '/s/metered/', ip: '10.0.0.1' },
        { path: '/s', ip: '10.0.0.2' }
      ]
    }
  }
  for (const [kind, { config, same, other }] of Object.entries(kinds)) {
    await gateway.reload({
      consumers: [consumer('ann'), consumer('bob'), { username: 'anonymous' }],
      services: [
        { name: 's', url: upstream.url, routes: [{ name: kind, paths: ['/s'] }] },
        { name: 'other', url: upstream.url, routes: [{ name: 'other', paths: ['/other'] }] }
      ],
      plugins: [
        // A scope of its own for each kind, so that nothing is left over from another.
        ...(kind === 'service'
          ? [{ name: 'rate-limiting', config: { hour: 1, ...config } }]
          : [{ name: 'rate-limiting', route: kind, config: { hour: 1, ...config } }]),
        { name: 'key-auth', config: { anonymous: 'anonymous' } }
      ]
    })
    const ask = async (who: { key?: string; ip?: string; tenant?: string; path?: string }) => {
      const headers: Record<string, string> = {}
      if (who.key !== undefined) headers.apikey = who.key
      if (who.ip !== undefined) headers['x-real-ip'] = who.ip
      if (who.tenant !== undefined) headers['x-tenant'] = who.tenant
      return (await gateway.fetch(who.path ?? '/s', { headers })).status
    }
    const [first, second] = same
    t.equal(await ask(first!), 200, kind)
    t.equal(await ask(second!), 429, `${kind}: counted together`)
    for (const each of other) t.equal(await ask(each), 200, `${kind}: ${JSON.stringify(each)}`)
  }
})

t.test('an instance counts for its scope, and the more specific one decides', async t => {
  const limited = (hour: number, more: object = {}) => ({
    name: 'rate-limiting',
    config: { hour, limit_by: 'ip' },
    ...more
  })
  await gateway.reload({
    consumers: [{ username: 'ann', keyauth_credentials: [{ key: 'ann' }] }, { username: 'nobody' }],
    services: [
      {
        name: 'a',
        url: upstream.url,
        routes: [
          { name: 'a1', paths: ['/a1'], plugins: [limited(2)] },
          { name: 'a2', paths: ['/a2'] },
          { name: 'a3', paths: ['/a3'] }
        ],
        plugins: [limited(3)]
      },
      { name: 'b', url: upstream.url, routes: [{ name: 'b1', paths: ['/b1'] }, { paths: ['/b2'] }] }
    ],
    plugins: [
      limited(4),
      limited(5, { consumer: 'ann', route: 'a1' }),
      { name: 'key-auth', config: { anonymous: 'nobody' } }
    ]
  })
  const passed = async (...paths: string[]): Promise<number> => {
    let count = 0
    while ((await gateway.fetch(paths[count % paths.length]!)).status === 200) count++
    return count
  }
  t.equal(await passed('/a1'), 2, 'the route')
  t.equal(await passed('/a2', '/a3'), 3, 'the service, over its routes')
  t.equal(await passed('/b1', '/b2'), 4, 'all others together')
  const ann = await gateway.fetch('/a1', { headers: { apikey: 'ann' } })
  t.match(told(ann), { 'x-ratelimit-limit-hour': '5' })
})

t.test('threads count together, exactly', async t => {
  const limit = 300
  await serve({ hour: limit, day: 100_000 })
  let passed = 0
  let refused = 0
  const client = async (): Promise<void> => {
    // A connection each: the kernel spreads connections over the threads.
    for (let i = 0; i < 20; i++) {
      const { status } = await gateway.fetch('/', { headers: { connection: 'close' } })
      if (status === 200) passed++
      else if (status === 429) refused++
    }
  }
  await Promise.all(Array.from({ length: 20 }, client))
  t.equal(passed, limit)
  t.equal(refused, 100)
  const last = told(await gateway.fetch('/'))
  t.equal(last['x-ratelimit-remaining-day'], String(100_000 - limit), 'the refused do not count')
})

t.test('counters survive a reload, and a changed limit applies to them', async t => {
  const document = await serve({ hour: 3 })
  await ask('/')
  await ask('/')
  await gateway.reload({ ...document, _comment: 'the same in other words' })
  t.equal(told(await ask('/'))['x-ratelimit-remaining-hour'], '0')
  t.equal((await ask('/')).status, 429)
  await gateway.reload(withConfig(document, { hour: 5 }))
  t.equal(told(await ask('/'))['x-ratelimit-remaining-hour'], '1')
})

t.test('what a configuration gets wrong is said', async t => {
  const document = await serve({ hour: 3 })
  const cases: [object, string | RegExp][] = [
    [
      {},
      "at least one of these fields must be non-empty: 'config.second', 'config.minute', 'config.hour', 'config.day', 'config.month', 'config.year'"
    ],
    [
      { second: 5, minute: 1 },
      'The limit for minute(1.0) cannot be lower than the limit for second(5.0)'
    ],
    [
      { minute: 2.5, year: 1.5 },
      'The limit for year(1.5) cannot be lower than the limit for minute(2.5)'
    ],
    [{ minute: 0 }, /config.minute/],
    [{ year: 2 ** 33 }, 'policy local counts up to 4294967280'],
    [{ minute: 1, limit_by: 'header' }, /config.header_name: required field missing/],
    [{ minute: 1, limit_by: 'path' }, /config.path: required field missing/],
    [{ minute: 1, limit_by: 'consumer-group' }, 'consumer groups are not supported'],
    [{ minute: 1, policy: 'cluster' }, 'policy cluster counts in a database'],
    [{ minute: 1, sync_rate: 1 }, 'sync_rate can only be used with the redis policy'],
    [
      { minute: 1, policy: 'redis', sync_rate: 0.01, redis: { host: 'r' } },
      'sync_rate must be greater than 0.02, or -1 to disable'
    ],
    [{ minute: 1, policy: 'redis' }, /config.redis.host: required field missing/],
    [
      { minute: 1, policy: 'redis', redis: { host: 'r', cloud_authentication: {} } },
      'cloud authentication is not supported'
    ],
    [{ minute: 1, redis_host: 'a', redis: { host: 'b' } }, 'redis_host'],
    [{ minute: 1, error_code: 99 }, /config.error_code/]
  ]
  for (const [config, message] of cases) {
    const problem = await gateway.reload(withConfig(document, config)).catch(error => error)
    t.type(problem, ConfigError, JSON.stringify(config))
    t.match(String(problem.message), message)
  }
  await gateway.reload({
    ...document,
    plugins: [
      { name: 'rate-limiting', config: { year: 2 ** 40, policy: 'redis', redis_host: 'r' } }
    ]
  })
})
