import { createHash } from 'node:crypto'
import fc from 'fast-check'
import t, { type Test } from 'tap'
import { ConfigError } from '../../src/errors.ts'
import { parseBasic } from '../../src/plugins/basic-auth.ts'
import { startGateway, startUpstream } from '../harness.ts'

const CONSUMER = 'aaaaaaaa-0000-4000-8000-000000000001'

function basic(text: string, scheme = 'Basic'): string {
  return `${scheme} ${Buffer.from(text).toString('base64')}`
}

function document(url: string, config: object = {}, password = 'open:sesame') {
  return {
    consumers: [
      {
        id: CONSUMER,
        username: 'alice',
        basicauth_credentials: [
          { username: 'ali', password },
          { username: 'jörg', password: 'Straße' }
        ]
      },
      { username: 'nobody' }
    ],
    services: [{ name: 's', url, routes: [{ name: 'r', paths: ['/'] }] }],
    plugins: [{ name: 'basic-auth', config }]
  }
}

async function serve(
  test: Test,
  config?: object,
  options: { password?: string; env?: object; top?: object } = {}
) {
  const upstream = await startUpstream()
  test.teardown(() => upstream.close())
  const gateway = await startGateway(
    { ...options.top, ...document(upstream.url, config, options.password) },
    { env: { ...options.env } }
  )
  test.teardown(() => gateway.close())
  return { gateway, upstream }
}

t.test('a right user and password authenticate the consumer', async t => {
  const { gateway } = await serve(t)
  for (const authorization of [
    basic('ali:open:sesame'),
    basic('ali:open:sesame', 'bASIC'),
    basic('ali:open:sesame').replace(/=+$/, '')
  ]) {
    const answer = await gateway.fetch('/', { headers: { authorization } })
    t.equal(answer.status, 200, authorization)
    const { headers } = answer.json()
    t.equal(headers['x-consumer-id'], CONSUMER)
    t.equal(headers['x-consumer-username'], 'alice')
    t.equal(headers['x-credential-identifier'], 'ali')
    t.equal(headers.authorization, authorization, 'shown to the upstream by default')
  }
  const unicode = await gateway.fetch('/', { headers: { authorization: basic('jörg:Straße') } })
  t.equal(unicode.status, 200)
})

t.test('everything else is refused alike, with a challenge', async t => {
  const { gateway, upstream } = await serve(t)
  const cases: Record<string, Record<string, string>> = {
    'no credentials': {},
    'wrong password': { authorization: basic('ali:wrong') },
    'no password': { authorization: basic('ali:') },
    'unknown user': { authorization: basic('bob:open:sesame') },
    'no colon': { authorization: basic('ali') },
    'no user': { authorization: basic(':open:sesame') },
    'not base64': { authorization: 'Basic !!!' },
    'not UTF-8': { authorization: `Basic ${Buffer.from('ali:\xff', 'latin1').toString('base64')}` },
    'another scheme': { authorization: 'Bearer YWxpOm9wZW46c2VzYW1l' },
    'known to the proxy field, wrong there': {
      'proxy-authorization': basic('ali:wrong'),
      authorization: basic('ali:open:sesame')
    }
  }
  for (const [name, headers] of Object.entries(cases)) {
    const answer = await gateway.fetch('/', { headers })
    t.equal(answer.status, 401, name)
    t.equal(answer.json().message, 'Unauthorized', name)
    t.equal(answer.headers['www-authenticate'], 'Basic realm="service"', name)
  }
  t.equal(upstream.requests.length, 0)
})

t.test('Proxy-Authorization comes first, Authorization when it names no user', async t => {
  const { gateway } = await serve(t)
  const right = basic('ali:open:sesame')
  t.equal((await gateway.fetch('/', { headers: { 'proxy-authorization': right } })).status, 200)
  const headers = { 'proxy-authorization': basic('bob:x'), authorization: right }
  t.equal((await gateway.fetch('/', { headers })).status, 200)
})

t.test('hide_credentials removes the fields that were used', async t => {
  const { gateway } = await serve(t, { hide_credentials: true, realm: 'r' })
  const right = basic('ali:open:sesame')
  const one = await gateway.fetch('/', { headers: { authorization: right } })
  t.equal(one.json().headers.authorization, undefined)
  const headers = { 'proxy-authorization': 'Basic x', authorization: right }
  const both = (await gateway.fetch('/', { headers })).json().headers
  t.equal(both.authorization, undefined)
  t.equal(both['proxy-authorization'], undefined)
  t.equal((await gateway.fetch('/')).headers['www-authenticate'], 'Basic realm="r"')
})

t.test(
  'with _transform false the file holds SHA-1 or SHA-256 digests salted by the consumer',
  async t => {
    for (const algorithm of ['sha1', 'sha256']) {
      const password = createHash(algorithm).update(`open:sesame${CONSUMER}`).digest('hex')
      const { gateway } = await serve(t, {}, { password, top: { _transform: false } })
      const given = async (text: string) =>
        (await gateway.fetch('/', { headers: { authorization: basic(text) } })).status
      t.equal(await given('ali:open:sesame'), 200, algorithm)
      t.equal(await given(`ali:${password}`), 401, 'the digest itself is no password')
    }
  }
)

t.test('user and password may come from a vault', async t => {
  const { gateway } = await serve(
    t,
    {},
    {
      password: '{vault://env/ali-password}',
      env: { ALI_PASSWORD: 'from-the-vault' }
    }
  )
  const headers = { authorization: basic('ali:from-the-vault') }
  t.equal((await gateway.fetch('/', { headers })).status, 200)
})

t.test('anonymous lets others on, and is skipped when a credential was accepted', async t => {
  const { gateway } = await serve(t, { anonymous: 'nobody' })
  const open = (await gateway.fetch('/')).json().headers
  t.equal(open['x-consumer-username'], 'nobody')
  t.equal(open['x-anonymous-consumer'], 'true')
  const headers = { authorization: basic('ali:open:sesame') }
  t.equal((await gateway.fetch('/', { headers })).json().headers['x-consumer-username'], 'alice')
})

t.test('two plugins: both must pass, or with anonymous either of them', async t => {
  const upstream = await startUpstream()
  t.teardown(() => upstream.close())
  const both = (config: object) => {
    const base = document(upstream.url, config)
    const [alice, nobody] = base.consumers
    const bob = { username: 'bob', keyauth_credentials: [{ key: 'bobs-key' }] }
    return {
      ...base,
      consumers: [alice!, nobody!, bob],
      plugins: [...base.plugins, { name: 'key-auth', config }]
    }
  }
  const key = { apikey: 'bobs-key' }
  const password = { authorization: basic('ali:open:sesame') }

  const and = await startGateway(both({}))
  t.teardown(() => and.close())
  t.equal((await and.fetch('/', { headers: key })).status, 401)
  t.equal((await and.fetch('/', { headers: password })).status, 401)
  const passed = await and.fetch('/', { headers: { ...key, ...password } })
  t.equal(passed.json().headers['x-consumer-username'], 'alice', 'the last one decides')

  const or = await startGateway(both({ anonymous: 'nobody' }))
  t.teardown(() => or.close())
  const name = async (headers: Record<string, string>) =>
    (await or.fetch('/', { headers })).json().headers['x-consumer-username']
  t.equal(await name(key), 'bob')
  t.equal(await name(password), 'alice')
  t.equal(await name({ ...key, ...password }), 'bob', 'the first one decides')
  t.equal(await name({}), 'nobody')
})

t.test('a configuration that asks for what there is not is refused', async t => {
  const cases: [object, RegExp][] = [
    [{ brute_force_protection: { strategy: 'memory' } }, /brute force/],
    [{ principals: { enabled: true } }, /principals/],
    [{ realm: 'a\nb' }, /realm/]
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

t.test('parseBasic gives back every user and password of a well-formed field', async () => {
  const username = fc.string({ minLength: 1, unit: 'grapheme' }).filter(text => !text.includes(':'))
  const password = fc.string({ unit: 'grapheme' })
  fc.assert(
    fc.property(username, password, (user, pass) => {
      const parsed = parseBasic(basic(`${user}:${pass}`))
      return parsed?.username === user && parsed.password === pass
    })
  )
  fc.assert(
    fc.property(fc.string(), text => {
      const parsed = parseBasic(text)
      return parsed === undefined || parsed.username !== ''
    })
  )
})
