import t from 'tap'
import { startGateway, startUpstream, until } from '../harness.ts'

const upstream = await startUpstream()
const collector = await startUpstream()
t.teardown(async () => {
  await upstream.close()
  await collector.close()
})

const answering = (message: string, scope: object = {}) => ({
  name: 'request-termination',
  config: { status_code: 200, message },
  ...scope
})

t.test('of the instances that match a request the most specific one runs', async t => {
  // In the order of entities: the narrower the later, so that no order of the file helps.
  const scopes: [string, object][] = [
    ['global', {}],
    ['service', { service: 's' }],
    ['route', { route: 'r' }],
    ['consumer', { consumer: 'anna' }],
    ['route and service', { route: 'r', service: 's' }],
    ['service and consumer', { service: 's', consumer: 'anna' }],
    ['route and consumer', { route: 'r', consumer: 'anna' }],
    ['route, service and consumer', { route: 'r', service: 's', consumer: 'anna' }]
  ]
  const document = (count: number) => ({
    consumers: [
      { username: 'anna', keyauth_credentials: [{ key: 'annas' }] },
      { username: 'bert', keyauth_credentials: [{ key: 'berts' }] }
    ],
    services: [
      {
        name: 's',
        url: upstream.url,
        routes: [
          { name: 'r', paths: ['/r'] },
          { name: 'sibling', paths: ['/sibling'] }
        ]
      },
      { name: 'other', url: upstream.url, routes: [{ name: 'other', paths: ['/other'] }] }
    ],
    plugins: [
      { name: 'key-auth', config: {} },
      ...scopes.slice(0, count).map(([message, scope]) => answering(message, scope))
    ]
  })
  const gateway = await startGateway(document(1))
  t.teardown(() => gateway.close())
  const message = async (path: string, apikey: string) =>
    (await gateway.fetch(path, { headers: { apikey } })).json().message
  for (const [index, [name]] of scopes.entries()) {
    await gateway.reload({ ...document(index + 1), _comment: name })
    t.equal(await message('/r', 'annas'), name)
  }
  t.equal(await message('/r', 'berts'), 'route and service')
  t.equal(await message('/sibling', 'annas'), 'service and consumer')
  t.equal(await message('/sibling', 'berts'), 'service')
  t.equal(await message('/other', 'annas'), 'consumer')
  t.equal(await message('/other', 'berts'), 'global')
  const disabled = document(scopes.length)
  const last = disabled.plugins.at(-1) as object
  disabled.plugins.splice(-1, 1, { ...last, enabled: false } as never)
  await gateway.reload(disabled)
  t.equal(await message('/r', 'annas'), 'route and consumer', 'a disabled one is not there')
})

t.test('an answer stops the plugins that follow, and their later phases see it', async t => {
  const gateway = await startGateway({
    consumers: [{ username: 'anna', keyauth_credentials: [{ key: 'annas' }] }],
    services: [{ name: 's', url: upstream.url, routes: [{ name: 'r', paths: ['/'] }] }],
    plugins: [
      answering('never reached'),
      { name: 'key-auth', config: {} },
      { name: 'correlation-id', config: { echo_downstream: true, header_name: 'X-Id' } },
      { name: 'http-log', config: { http_endpoint: collector.url } }
    ]
  })
  t.teardown(() => gateway.close())
  const refused = await gateway.fetch('/', { headers: { 'x-id': 'mine' } })
  t.equal(refused.status, 401)
  t.equal(refused.headers['x-id'], 'mine')
  const { body } = await until(() => collector.requests[0], 'a record')
  t.match(JSON.parse(body), { response: { status: 401 }, source: 'kong', correlation_id: 'mine' })
  const admitted = await gateway.fetch('/', { headers: { apikey: 'annas' } })
  t.same(admitted.json(), { message: 'never reached' })
})

t.test('a plugin that cannot be scoped to a consumer is refused there', async t => {
  for (const name of ['key-auth', 'basic-auth', 'acl', 'session']) {
    const config = name === 'acl' ? { allow: ['a'] } : {}
    await t.rejects(
      startGateway({ consumers: [{ username: 'anna', plugins: [{ name, config }] }] }),
      { message: /consumer/ },
      name
    )
  }
})
