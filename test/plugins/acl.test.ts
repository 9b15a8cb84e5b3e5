import t, { type Test } from 'tap'
import { ConfigError } from '../../src/errors.ts'
import acl from '../../src/plugins/acl.ts'
import { createDirectory } from '../../src/plugins/directory.ts'
import type { Context, Exchange } from '../../src/plugins/plugin.ts'
import { startGateway, startUpstream } from '../harness.ts'

function document(url: string, config: object, auth: object = {}) {
  const consumer = (username: string, groups: string[]) => ({
    username,
    keyauth_credentials: [{ key: username }],
    acls: groups.map(group => ({ group }))
  })
  return {
    consumers: [
      consumer('gold', ['gold', 'staff']),
      consumer('silver', ['silver']),
      consumer('loner', []),
      consumer('guest', ['guests']),
      { username: 'stranger' }
    ],
    services: [{ name: 's', url, routes: [{ name: 'r', paths: ['/'] }] }],
    plugins: [
      { name: 'acl', config },
      { name: 'key-auth', config: auth }
    ]
  }
}

async function serve(test: Test, config: object, auth?: object) {
  const upstream = await startUpstream()
  test.teardown(() => upstream.close())
  const gateway = await startGateway(document(upstream.url, config, auth))
  test.teardown(() => gateway.close())
  return (key: string | undefined, headers: Record<string, string> = {}) =>
    gateway.fetch('/', { headers: key === undefined ? headers : { ...headers, apikey: key } })
}

t.test('an allow list lets its groups pass', async t => {
  const ask = await serve(t, { allow: ['staff', 'admin'] })
  const passed = await ask('gold', {
    'x-consumer-groups': 'admin',
    'x-authenticated-groups': 'admin'
  })
  t.equal(passed.status, 200)
  t.equal(passed.json().headers['x-consumer-groups'], 'gold, staff')
  t.equal(passed.json().headers['x-authenticated-groups'], undefined)
  for (const key of ['silver', 'loner']) {
    const stopped = await ask(key)
    t.equal(stopped.status, 403, key)
    t.equal(stopped.json().message, 'You cannot consume this service', key)
  }
})

t.test('a deny list stops its groups', async t => {
  const ask = await serve(t, { deny: ['staff'] })
  const stopped = await ask('gold')
  t.equal(stopped.status, 403)
  t.equal(stopped.json().message, 'You cannot consume this service')
  t.equal((await ask('silver')).json().headers['x-consumer-groups'], 'silver')
  const loner = await ask('loner', { 'x-consumer-groups': 'admin' })
  t.equal(loner.status, 200, 'no group is no denied group')
  t.equal(loner.json().headers['x-consumer-groups'], undefined, 'a client cannot claim groups')
})

t.test('hide_groups_header keeps the groups from the upstream', async t => {
  const ask = await serve(t, { allow: ['staff'], hide_groups_header: true })
  const { headers } = (await ask('gold', { 'x-consumer-groups': 'admin' })).json()
  t.equal(headers['x-consumer-groups'], undefined)
})

t.test(
  'an anonymous consumer is judged by its groups, and without any is asked to log in',
  async t => {
    const guests = await serve(t, { allow: ['guests'] }, { anonymous: 'guest' })
    t.equal((await guests(undefined)).json().headers['x-consumer-groups'], 'guests')
    const strangers = await serve(t, { allow: ['guests'] }, { anonymous: 'stranger' })
    const refused = await strangers(undefined)
    t.equal(refused.status, 401)
    t.equal(refused.json().message, 'Unauthorized')
    t.equal((await strangers('loner')).status, 403, 'with a credential there is no use in that')
  }
)

t.test('without authentication nobody passes', async t => {
  const upstream = await startUpstream()
  t.teardown(() => upstream.close())
  const base = document(upstream.url, { deny: ['staff'] })
  const gateway = await startGateway({ ...base, plugins: base.plugins.slice(0, 1) })
  t.teardown(() => gateway.close())
  const answer = await gateway.fetch('/')
  t.equal(answer.status, 401)
  t.equal(answer.json().message, 'Unauthorized')
})

t.test('a configuration needs exactly one of the lists', async t => {
  const cases: [object, RegExp][] = [
    [{}, /at least one/],
    [{ allow: ['a'], deny: ['b'] }, /only one/],
    [{ allow: ['a'], include_consumer_groups: true }, /consumer groups/]
  ]
  for (const [config, message] of cases) {
    const failure = await startGateway(document('http://127.0.0.1:1', config)).then(
      gateway => gateway.close().then(() => undefined),
      error => error
    )
    t.type(failure, ConfigError)
    t.match(failure?.message, message)
  }
})

// No plugin here establishes groups of its own yet, so these exchanges are made by hand.
t.test('groups an authentication plugin established', async t => {
  const id = 'aaaaaaaa-0000-4000-8000-000000000001'
  const directory = await createDirectory({
    transform: true,
    consumers: [],
    keyauth_credentials: [],
    basicauth_credentials: [],
    acls: [{ id, consumer: { id }, group: 'own' }]
  })
  const base = { hide_groups_header: false, include_consumer_groups: false }
  const run = async (config: object, known: Partial<Exchange>) => {
    const settings = { ...base, always_use_authenticated_groups: false, ...config }
    const hooks = await acl.setup(settings, {} as Context<never>)
    const sent: Record<string, string> = {}
    let status = 0
    const exchange = {
      directory,
      ...known,
      upstream: {
        setHeader: (name: string, value: string) => {
          sent[name] = value
        },
        removeHeader: (name: string) => delete sent[name]
      },
      error: (code: number) => {
        status = code
      }
    }
    hooks.access?.(exchange as unknown as Exchange)
    return status === 0 ? sent : status
  }
  const consumer = { id } as Exchange['consumer']
  const credential = { id } as Exchange['credential']
  const established = { 'X-Authenticated-Groups': 'given' }
  const groups = ['given']

  t.same(await run({ allow: ['given'] }, { groups }), established, 'without a consumer')
  t.equal(await run({ deny: ['given'] }, { groups }), 403)
  t.equal(await run({ deny: ['given'] }, { credential }), 403, 'a credential without groups')
  t.same(await run({ allow: ['given'] }, { groups, consumer }), established, 'anonymous')
  t.equal(await run({ allow: ['given'] }, { groups, consumer, credential }), 403)
  t.same(await run({ allow: ['own'] }, { groups, consumer, credential }), {
    'X-Consumer-Groups': 'own'
  })
  t.same(
    await run(
      { allow: ['given'], always_use_authenticated_groups: true },
      { groups, consumer, credential }
    ),
    established
  )
})
