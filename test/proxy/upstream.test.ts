import t from 'tap'
import { records, startNameServer } from '../dns-server.ts'
import { startGateway, startUpstream, type TestGateway, until } from '../harness.ts'

// Threads start slowly on a busy machine.
t.setTimeout(120_000)

interface Extra {
  readonly upstream?: object
  readonly service?: object
  readonly route?: object
}

/** A configuration with one route to a pool of these targets. */
const pool = (targets: readonly (string | object)[], extra: Extra = {}) => ({
  upstreams: [
    {
      name: 'pool',
      targets: targets.map(target => (typeof target === 'string' ? { target } : target)),
      ...extra.upstream
    }
  ],
  services: [
    {
      name: 'up',
      host: 'pool',
      ...extra.service,
      routes: [{ name: 'all', paths: ['/'], ...extra.route }]
    }
  ]
})

/** Upstreams that answer with their letter; `status` and `down` change what they do. */
async function startLetter(letter: string) {
  const state = { status: 200, requests: 0 }
  const upstream = await startUpstream((_received, response) => {
    state.requests++
    response.writeHead(state.status, { 'X-Letter': letter }).end(letter)
  })
  return Object.assign(upstream, { state, target: `127.0.0.1:${upstream.port}` })
}

const letters = async (gateway: TestGateway, count: number, path = '/') => {
  let text = ''
  for (let i = 0; i < count; i++) text += (await gateway.fetch(path)).body
  return text
}
const sorted = (text: string): string => [...text].sort().join('')

/** A port nothing listens on. */
async function closedTarget(): Promise<string> {
  const gone = await startUpstream()
  await gone.close()
  return `127.0.0.1:${gone.port}`
}

// One gateway for most of them, reloaded for each.
const gateway = await startGateway(pool([]))
t.teardown(() => gateway.close())

await t.test('weights, Host of targets, and a target of weight 0', async t => {
  await using a = await startLetter('a')
  await using b = await startLetter('b')
  await using c = await startLetter('c')
  await gateway.reload(
    pool([
      { target: a.target, weight: 300 },
      { target: b.target, weight: 100 },
      { target: c.target, weight: 0 }
    ])
  )
  t.equal(sorted(await letters(gateway, 8)), 'aaaaaabb')
  t.equal(a.requests[0]!.headers.host, a.target)
  await gateway.reload(
    pool([a.target], { upstream: { host_header: 'api.example' }, service: { path: '/base' } })
  )
  await gateway.fetch('/x')
  t.match(a.requests.at(-1), { url: '/base/x', headers: { host: `api.example:${a.port}` } })
})

await t.test('P3: a retry goes to another target, and no status is retried', async t => {
  await using good = await startLetter('g')
  await gateway.reload(pool([await closedTarget(), good.target], { service: { retries: 1 } }))
  t.equal(await letters(gateway, 6), 'gggggg')
  good.state.status = 503
  good.state.requests = 0
  const answer = await gateway.fetch('/')
  t.equal(answer.status, 503)
  t.equal(good.state.requests, 1, 'one request, one answer')
})

await t.test('failover targets serve only when no other can', async t => {
  await using main = await startLetter('m')
  await using spare = await startLetter('s')
  const config = (target: string) =>
    pool([target, { target: spare.target, failover: true }], { service: { retries: 1 } })
  await gateway.reload(config(main.target))
  t.equal(await letters(gateway, 4), 'mmmm')
  await gateway.reload(config(await closedTarget()))
  t.equal(await letters(gateway, 4), 'ssss')
})

await t.test(
  'consistent hashing and sticky sessions over the wire, with their cookies',
  async t => {
    await using a = await startLetter('a')
    await using b = await startLetter('b')
    const targets = [a.target, b.target]
    await gateway.reload(
      pool(targets, { upstream: { hash_on: 'header', hash_on_header: 'X-User', slots: 1000 } })
    )
    const seen = new Map<string, string>()
    for (const user of [...Array(20).keys(), ...Array(20).keys()].map(String)) {
      const { body } = await gateway.fetch('/', { headers: { 'x-user': user } })
      t.equal(seen.get(user) ?? body, body, `user ${user}`)
      seen.set(user, body)
    }
    t.equal(new Set(seen.values()).size, 2)
    await gateway.reload(pool(targets, { upstream: { hash_on: 'cookie', hash_on_cookie: 'sid' } }))
    const first = await gateway.fetch('/')
    t.match(first.headers['set-cookie'], /^sid=[0-9a-f-]{36}; Path=\/; Same-Site=Lax; HttpOnly$/)
    const cookie = String(first.headers['set-cookie']).split(';')[0]!
    for (let i = 0; i < 5; i++) {
      const again = await gateway.fetch('/', { headers: { cookie } })
      t.equal(again.body, first.body)
      t.equal(again.headers['set-cookie'], undefined)
    }
    await gateway.reload(
      pool(targets, {
        upstream: { algorithm: 'sticky-sessions', sticky_sessions_cookie: 'bound' }
      })
    )
    const bound = await gateway.fetch('/')
    const sticky = String(bound.headers['set-cookie']).split(';')[0]!
    t.match(sticky, /^bound=/)
    for (let i = 0; i < 5; i++) {
      t.equal((await gateway.fetch('/', { headers: { cookie: sticky } })).body, bound.body)
    }
  }
)

await t.test('every input of consistent hashing, and every one as a fallback', async t => {
  await using a = await startLetter('a')
  await using b = await startLetter('b')
  await using c = await startLetter('c')
  const consumers = Array.from({ length: 12 }, (_, i) => `consumer-${i}`)
  const captured = { paths: ['~/u/(?<who>[^/]+)', '/'] }
  const key = (i: number) => ({ headers: { apikey: consumers[i]! } })
  const inputs: Record<
    string,
    { fields: object; ask(i: number): [string, { headers: Record<string, string> }?] }
  > = {
    consumer: { fields: {}, ask: i => ['/', key(i)] },
    ip: { fields: {}, ask: i => ['/', { headers: { 'x-real-ip': `10.0.${i}.1` } }] },
    header: {
      fields: { _header: 'X-User' },
      ask: i => ['/', { headers: { 'x-user': `user ${i}` } }]
    },
    cookie: { fields: {}, ask: i => ['/', { headers: { cookie: `sid=session-${i}` } }] },
    path: { fields: {}, ask: i => [`/some/path/${i}`] },
    query_arg: { fields: { _query_arg: 'q' }, ask: i => [`/?q=value-${i}`] },
    uri_capture: { fields: { _uri_capture: 'who' }, ask: i => [`/u/someone-${i}/x`] }
  }
  const env = { POSTERN_TRUSTED_IPS: '127.0.0.1', POSTERN_REAL_IP_HEADER: 'X-Real-IP' }
  await using gateway = await startGateway(pool([]), { env })
  const config = (upstream: object) => ({
    ...pool([a.target, b.target, c.target], { upstream, route: captured }),
    consumers: consumers.map(username => ({ username, keyauth_credentials: [{ key: username }] })),
    plugins: [{ name: 'key-auth', config: { anonymous: consumers[0] } }]
  })
  const fieldsOf = (which: 'on' | 'fallback', name: string) => ({
    [`hash_${which}`]: name,
    ...Object.fromEntries(
      Object.entries(inputs[name]!.fields).map(([field, value]) => [`hash_${which}${field}`, value])
    ),
    ...(name === 'cookie' ? { hash_on_cookie: 'sid' } : {})
  })
  const spreads = async (what: string, ask: (i: number) => [string, object?]): Promise<void> => {
    const first: string[] = []
    for (let i = 0; i < 12; i++) first.push((await gateway.fetch(...ask(i))).body)
    for (let i = 0; i < 12; i++) {
      const { body } = await gateway.fetch(...ask(i))
      if (body !== first[i]) t.fail(`${what}: ${i} moved from ${first[i]} to ${body}`)
    }
    t.ok(new Set(first).size > 1, `${what}: ${first.join('')}`)
  }
  for (const [name, { ask }] of Object.entries(inputs)) {
    await gateway.reload(config(fieldsOf('on', name)))
    await spreads(name, ask)
    const on = { hash_on: 'header', hash_on_header: 'X-Absent' }
    await gateway.reload(config({ ...on, ...fieldsOf('fallback', name) }))
    await spreads(`fallback ${name}`, ask)
  }
})

await t.test('latency: the slow one gets few', async t => {
  let slowRequests = 0
  await using slow = await startUpstream((_received, response) => {
    slowRequests++
    setTimeout(() => response.end('slow'), 150)
  })
  await using fast = await startLetter('f')
  const targets = [`127.0.0.1:${slow.port}`, fast.target]
  await gateway.reload(pool(targets, { upstream: { algorithm: 'latency' } }))
  // The first of each tell how fast they are.
  await until(async () => {
    await letters(gateway, 1)
    return slowRequests > 0 && fast.state.requests > 0
  }, 'an answer of both')
  fast.state.requests = 0
  slowRequests = 0
  await letters(gateway, 20)
  t.ok(fast.state.requests > slowRequests, `${fast.state.requests} and ${slowRequests}`)
})

await t.test('least-connections avoids the busy', async t => {
  const held: (() => void)[] = []
  await using slow = await startUpstream((_received, response) => {
    held.push(() => response.end('slow'))
  })
  await using fast = await startLetter('f')
  const targets = [`127.0.0.1:${slow.port}`, fast.target]
  await gateway.reload(pool(targets, { upstream: { algorithm: 'least-connections' } }))
  const waiting: Promise<unknown>[] = []
  while (held.length === 0) {
    const answer = gateway.fetch('/')
    waiting.push(answer)
    await Promise.race([answer, until(() => held.length > 0, 'the slow one to be asked')])
  }
  t.equal(await letters(gateway, 6), 'ffffff')
  for (const release of held) release()
  await Promise.all(waiting)
})

const passive = (unhealthy: object, more: object = {}) => ({
  healthchecks: { passive: { unhealthy }, ...more }
})

await t.test('passive checks take a target out, for all threads and over reloads', async t => {
  await using bad = await startLetter('b')
  await using good = await startLetter('g')
  const config = (extra: Extra) => pool([bad.target, good.target], extra)
  const upstream = passive({ http_failures: 2 })
  await using gateway = await startGateway(config({ upstream }), { workers: 2 })
  bad.state.status = 500
  await until(async () => {
    await letters(gateway, 2)
    return bad.state.requests >= 2
  }, 'two failures')
  const before = bad.state.requests
  t.equal(await letters(gateway, 12), 'g'.repeat(12))
  t.ok(bad.state.requests - before <= 1)
  const { upstreams } = (await gateway.status('/upstreams')).json()
  const [entry] = upstreams
  t.match(entry, { name: 'pool', algorithm: 'round-robin', health: 'HEALTHY' })
  t.match(entry.targets[0], {
    target: bad.target,
    health: 'UNHEALTHY',
    addresses: [
      { ip: '127.0.0.1', health: 'UNHEALTHY', counters: { passive: { http_failures: 2 } } }
    ]
  })
  t.match(entry.targets[1], { health: 'HEALTHY' })
  await gateway.reload(config({ upstream, service: { retries: 1 } }))
  t.equal(await letters(gateway, 6), 'gggggg', 'a reload changes nothing of that')
  const taken = await gateway.status('/upstreams/health?upstream=pool&state=healthy', {
    method: 'POST'
  })
  t.same(taken.json(), { changed: 1 })
  bad.state.status = 200
  t.equal(sorted(await letters(gateway, 4)), 'bbgg')
})

await t.test('connection failures and time-outs count; nothing healthy is 503', async t => {
  await using silent = await startUpstream(() => {})
  const targets = [await closedTarget(), `127.0.0.1:${silent.port}`]
  await gateway.reload(
    pool(targets, {
      upstream: passive({ tcp_failures: 1, timeouts: 1 }),
      service: { retries: 0, read_timeout: 50 }
    })
  )
  const statuses = new Set<number>()
  await until(async () => {
    const answer = await gateway.fetch('/')
    statuses.add(answer.status)
    return answer.status === 503 && answer.json().message
  }, 'both to be out')
  t.same([...statuses].sort(), [502, 503, 504])
  t.equal((await gateway.fetch('/')).json().message, 'failure to get a peer from the ring-balancer')
  t.equal((await gateway.status('/upstreams')).json().upstreams[0].health, 'UNHEALTHY')
})

await t.test('passive checks go by their lists of statuses, or by connections alone', async t => {
  await using bad = await startLetter('b')
  await using good = await startLetter('g')
  const healthOf = async (): Promise<string> =>
    (await gateway.status('/upstreams')).json().upstreams[0].targets[0].health
  const unhealthy = { http_failures: 1, tcp_failures: 1, timeouts: 1 }
  for (const [passive, status, expected] of [
    [{ unhealthy }, 500, 'UNHEALTHY'],
    [{ unhealthy }, 404, 'HEALTHY'],
    [{ unhealthy: { ...unhealthy, http_statuses: [404] } }, 404, 'UNHEALTHY'],
    [{ unhealthy: { ...unhealthy, http_statuses: [404] } }, 500, 'HEALTHY'],
    [{ unhealthy: { ...unhealthy, http_failures: 0 } }, 500, 'HEALTHY'],
    [{ type: 'tcp', unhealthy }, 500, 'HEALTHY']
  ] as const) {
    // Another name each time, since the health of an address outlives a reload.
    const name = `pool-${status}-${JSON.stringify(passive).length}-${expected}`
    await gateway.reload({
      ...pool([bad.target, good.target], {
        upstream: { name, healthchecks: { passive } },
        service: { host: name }
      })
    })
    bad.state.status = status
    const before = bad.state.requests
    await letters(gateway, 4)
    t.ok(bad.state.requests > before)
    t.equal(await healthOf(), expected, `${status} by ${JSON.stringify(passive)}`)
  }
  // What failed and then succeeds has begun a new row, where the status is one of success.
  for (const [http_statuses, expected] of [
    [[200], 'HEALTHY'],
    [[201], 'UNHEALTHY']
  ] as const) {
    const name = `rows-${expected}`
    const passive = { healthy: { http_statuses }, unhealthy: { http_failures: 3 } }
    await gateway.reload(
      pool([bad.target], { upstream: { name, healthchecks: { passive } }, service: { host: name } })
    )
    for (const status of [500, 500, 200, 500]) {
      bad.state.status = status
      await gateway.fetch('/')
    }
    t.equal(await healthOf(), expected, `${http_statuses} is success`)
  }
})

await t.test('the threshold: too little healthy weight takes the upstream out', async t => {
  await using bad = await startLetter('b')
  await using good = await startLetter('g')
  await gateway.reload(
    pool([bad.target, good.target], {
      upstream: passive({ http_failures: 1 }, { threshold: 50 })
    })
  )
  bad.state.status = 500
  await until(async () => (await gateway.fetch('/')).status === 503, '50 % is not more than 50 %')
  bad.state.status = 200
  await gateway.status('/upstreams/health?upstream=pool&state=healthy', { method: 'POST' })
  t.equal(sorted(await letters(gateway, 4)), 'bbgg')
})

await t.test('P10: a connection the upstream has closed costs no request', async t => {
  let closing = false
  await using upstream = await startUpstream((_received, response, request) => {
    if (closing && request.socket.bytesWritten > 0) {
      closing = false
      request.socket.destroy()
    } else response.end('ok')
  })
  await gateway.reload(pool([`127.0.0.1:${upstream.port}`], { service: { retries: 0 } }))
  for (let i = 0; i < 5; i++) {
    t.equal((await gateway.fetch('/')).body, 'ok')
    closing = true
    t.equal((await gateway.fetch('/')).body, 'ok', 'sent again on another connection')
    t.notOk(closing)
  }
  closing = true
  const post = await gateway.fetch('/', { method: 'POST', body: 'x' })
  t.equal(post.status, 502, 'a POST that may have been acted on is not sent twice')
})

await t.test('a change of address leaves what is under way alone', async t => {
  const held: (() => void)[] = []
  await using old = await startUpstream((_received, response) => {
    response.write('begun ')
    held.push(() => response.end('and ended'))
  })
  await using fresh = await startLetter('n')
  const target = (port: number) =>
    records('SRV', 'api.test', 1, { target: 'one.test', port, weight: 10, priority: 1 })
  await using server = await startNameServer(
    target(old.port),
    records('A', 'one.test', 300, '127.0.0.1')
  )
  const env = { POSTERN_DNS_RESOLVER: `127.0.0.1:${server.port}` }
  await using gateway = await startGateway(pool(['api.test:1']), { env })
  const running = gateway.fetch('/')
  await until(() => held.length === 1, 'a request under way')
  server.zone.set(...target(fresh.port))
  await until(async () => {
    const { upstreams } = (await gateway.status('/upstreams')).json()
    return upstreams[0].targets[0].addresses[0].port === fresh.port
  }, 'the new port to be known')
  await until(async () => {
    const asked = gateway.fetch('/')
    // The thread may hear of it later: what still goes to the old one is answered there.
    await until(() => held.length > 1 || fresh.state.requests > 0, 'an answer of either')
    for (const end of held.splice(1)) end()
    return (await asked).body === 'n'
  }, 'the new port to be used')
  held[0]!()
  t.match(await running, { status: 200, body: 'begun and ended' })
})

await t.test('names: a change of address is taken over, and a name without one is 503', async t => {
  await using a = await startLetter('a')
  await using server = await startNameServer(
    records('SRV', 'api.test', 1, { target: 'one.test', port: a.port, weight: 10, priority: 1 }),
    records('A', 'one.test', 300, '127.0.0.1')
  )
  await using b = await startLetter('b')
  const env = { POSTERN_DNS_RESOLVER: `127.0.0.1:${server.port}` }
  const config = pool(['api.test:1'], { upstream: { use_srv_name: true } })
  await using gateway = await startGateway(
    {
      ...config,
      services: [
        ...config.services,
        {
          name: 'lost',
          host: 'nowhere.test',
          routes: [{ paths: ['/lost'] }]
        }
      ]
    },
    { env }
  )
  t.equal(await letters(gateway, 3), 'aaa')
  t.equal(a.requests[0]!.headers.host, `one.test:${a.port}`)
  server.zone.set(
    ...records('SRV', 'api.test', 1, { target: 'one.test', port: b.port, weight: 10, priority: 1 })
  )
  await until(async () => (await letters(gateway, 1)) === 'b', 'the new port')
  t.equal(await letters(gateway, 3), 'bbb')
  server.mode = 'servfail'
  const asked = server.questions.length
  await until(() => server.questions.length > asked + 2, 'questions without an answer')
  t.equal(await letters(gateway, 2), 'bb', 'the last addresses stay')
  server.mode = 'serve'
  const lost = await gateway.fetch('/lost')
  t.equal(lost.status, 503)
  t.equal(lost.json().message, 'name resolution failed')
  t.match((await gateway.status('/upstreams')).json().upstreams[0].targets[0], {
    target: 'api.test:1',
    health: 'HEALTHCHECKS_OFF',
    addresses: [{ ip: '127.0.0.1', port: b.port, weight: 10 }]
  })
})
