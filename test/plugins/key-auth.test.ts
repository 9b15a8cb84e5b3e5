import t, { type Test } from 'tap'
import { ConfigError } from '../../src/errors.ts'
import { startGateway, startUpstream } from '../harness.ts'

const KEY = 'k-alice-1'

interface Options {
  readonly config?: object
  readonly env?: Record<string, string>
  readonly key?: string
}

async function serve(test: Test, { config = {}, env = {}, key = KEY }: Options = {}) {
  const upstream = await startUpstream()
  test.teardown(() => upstream.close())
  const gateway = await startGateway(document(upstream.url, config, key), { env })
  test.teardown(() => gateway.close())
  return { gateway, upstream }
}

function document(url: string, config: object, key = KEY) {
  return {
    consumers: [
      {
        id: 'aaaaaaaa-0000-4000-8000-000000000001',
        username: 'alice',
        custom_id: 'A-1',
        keyauth_credentials: [{ id: 'bbbbbbbb-0000-4000-8000-000000000001', key, ttl: 60 }]
      },
      { id: 'aaaaaaaa-0000-4000-8000-000000000002', username: 'nobody' }
    ],
    services: [{ name: 's', url, routes: [{ name: 'r', paths: ['/'] }] }],
    plugins: [{ name: 'key-auth', config }]
  }
}

t.test('a key in a header, the query or the body authenticates its consumer', async t => {
  const { gateway } = await serve(t, { config: { key_in_body: true } })
  const json = { 'content-type': 'application/json' }
  const form = { 'content-type': 'application/x-www-form-urlencoded' }
  const parts = { 'content-type': 'multipart/form-data; boundary="b 1"' }
  const multipart = `--b 1\r\nContent-Disposition: form-data; name="apikey"\r\n\r\n${KEY}\r\n--b 1--\r\n`
  const ways = {
    header: await gateway.fetch('/', { headers: { ApiKey: KEY } }),
    query: await gateway.fetch(`/?a=1&apikey=${KEY}`),
    'escaped query': await gateway.fetch(`/?%61pikey=${KEY.replace('-', '%2D')}`),
    JSON: await gateway.fetch('/', { method: 'POST', headers: json, body: `{"apikey":"${KEY}"}` }),
    form: await gateway.fetch('/', { method: 'POST', headers: form, body: `a=1&apikey=${KEY}` }),
    multipart: await gateway.fetch('/', { method: 'POST', headers: parts, body: multipart }),
    'query without value, then body': await gateway.fetch('/?apikey', {
      method: 'POST',
      headers: form,
      body: `apikey=${KEY}`
    })
  }
  for (const [name, answer] of Object.entries(ways)) {
    t.equal(answer.status, 200, name)
    const { headers } = answer.json()
    t.equal(headers['x-consumer-id'], 'aaaaaaaa-0000-4000-8000-000000000001', name)
    t.equal(headers['x-consumer-username'], 'alice', name)
    t.equal(headers['x-consumer-custom-id'], 'A-1', name)
    t.equal(headers['x-credential-identifier'], 'bbbbbbbb-0000-4000-8000-000000000001', name)
    t.equal(headers['x-anonymous-consumer'], undefined, name)
  }
  t.match(ways.multipart.json().body, multipart, 'the body goes on as it came')
  t.equal(ways.header.json().headers.apikey, KEY, 'and so does the key')
})

t.test('what a client claims to be is overwritten', async t => {
  const { gateway } = await serve(t)
  const claims = {
    'x-consumer-id': 'root',
    'x-consumer-username': 'root',
    'x-consumer-custom-id': 'root',
    'x-credential-identifier': 'root',
    'x-anonymous-consumer': 'true'
  }
  const { headers } = (await gateway.fetch('/', { headers: { ...claims, apikey: KEY } })).json()
  t.notMatch(JSON.stringify(headers), /root/)
  t.equal(headers['x-anonymous-consumer'], undefined)
})

t.test('requests without one valid key are refused with a challenge', async t => {
  const { gateway, upstream } = await serve(t)
  const cases: [string, string, Record<string, string | string[]>, string][] = [
    ['no key', '/', {}, 'No API key found in request'],
    ['empty key', '/', { apikey: '' }, 'No API key found in request'],
    ['parameter without value', '/?apikey', {}, 'No API key found in request'],
    ['unknown key', '/', { apikey: 'other' }, 'Unauthorized'],
    ['two headers', '/', { apikey: [KEY, KEY] }, 'Duplicate API key found'],
    ['two parameters', `/?apikey=${KEY}&apikey=${KEY}`, {}, 'Duplicate API key found'],
    [
      'body not looked at',
      '/',
      { 'content-type': 'application/json' },
      'No API key found in request'
    ]
  ]
  for (const [name, path, headers, message] of cases) {
    const answer = await gateway.fetch(path, { headers })
    t.equal(answer.status, 401, name)
    t.equal(answer.json().message, message, name)
    t.equal(answer.headers['www-authenticate'], 'Key', name)
  }
  t.equal(upstream.requests.length, 0)
})

t.test('repeated fields that node would fold into one are seen as two keys', async t => {
  const { gateway } = await serve(t, { config: { key_names: ['authorization'] } })
  const answer = await gateway.fetch('/', { headers: { authorization: [KEY, 'x'] } })
  t.equal(answer.json().message, 'Duplicate API key found')
  t.equal((await gateway.fetch('/', { headers: { authorization: KEY } })).status, 200)
})

t.test('key names are tried in order, places in the order header, query, body', async t => {
  const { gateway } = await serve(t, { config: { key_names: ['X-First', 'second'] } })
  t.equal((await gateway.fetch(`/?second=${KEY}`)).status, 200)
  t.equal((await gateway.fetch(`/?second=${KEY}`, { headers: { 'x-first': 'bad' } })).status, 401)
  t.equal((await gateway.fetch('/?X-First=bad', { headers: { 'x-first': KEY } })).status, 200)
  t.equal((await gateway.fetch(`/?x-first=${KEY}`)).status, 401, 'parameters are case-sensitive')
})

t.test('places can be switched off', async t => {
  const { gateway } = await serve(t, { config: { key_in_header: false, key_in_query: false } })
  t.equal((await gateway.fetch(`/?apikey=${KEY}`, { headers: { apikey: KEY } })).status, 401)
})

t.test('hide_credentials takes the key out of what goes upstream', async t => {
  const { gateway } = await serve(t, { config: { hide_credentials: true, key_in_body: true } })
  const query = await gateway.fetch(`/p?a=%20b&apikey=${KEY}&c`, { headers: { apikey: KEY } })
  t.equal(query.json().url, '/p?a=%20b&c')
  t.equal(query.json().headers.apikey, undefined)
  t.equal((await gateway.fetch(`/p?apikey=${KEY}`)).json().url, '/p')

  const post = async (type: string, body: string) =>
    (await gateway.fetch('/', { method: 'POST', headers: { 'content-type': type }, body })).json()
  const json = await post('application/json', `{ "n": 12345678901234567890, "apikey": "${KEY}" }`)
  t.equal(json.body, '{ "n": 12345678901234567890}')
  t.equal(json.headers['content-length'], String(json.body.length))
  const form = await post('application/x-www-form-urlencoded', `apikey=${KEY}&a=1+2`)
  t.equal(form.body, 'a=1+2')
  const part = (name: string, value: string) =>
    `--b\r\nContent-Disposition: form-data; name="${name}"\r\n\r\n${value}\r\n`
  const multipart = await post(
    'multipart/form-data; boundary=b',
    `${part('a', '1')}${part('apikey', KEY)}${part('c', '3')}--b--\r\n`
  )
  t.equal(multipart.body, `${part('a', '1')}${part('c', '3')}--b--\r\n`)
})

t.test('a body that cannot be parsed holds no key', async t => {
  const { gateway } = await serve(t, { config: { key_in_body: true } })
  for (const [type, body] of [
    ['application/json', '{"apikey":'],
    ['application/json', `["${KEY}"]`],
    ['multipart/form-data', KEY],
    ['text/plain', KEY]
  ] as const) {
    const init = { method: 'POST', headers: { 'content-type': type }, body }
    const answer = await gateway.fetch('/', init)
    t.equal(answer.status, 401, type)
    t.equal(answer.json().message, 'No API key found in request', type)
  }
})

t.test('a body longer than may be buffered is refused', async t => {
  const { gateway, upstream } = await serve(t, {
    config: { key_in_body: true },
    env: { POSTERN_MAX_BUFFERED_BODY: '1024' }
  })
  const headers = { 'content-type': 'application/x-www-form-urlencoded' }
  const body = `apikey=${KEY}&x=${'y'.repeat(4096)}`
  const answer = await gateway.fetch('/', { method: 'POST', headers, body })
  t.equal(answer.status, 413)
  t.equal(upstream.requests.length, 0)
})

t.test('anonymous lets everyone else on as one consumer, by id or username', async t => {
  for (const anonymous of ['nobody', 'aaaaaaaa-0000-4000-8000-000000000002']) {
    const { gateway } = await serve(t, { config: { anonymous } })
    const claims = { 'x-credential-identifier': 'root', 'x-consumer-custom-id': 'root' }
    for (const headers of [claims, { apikey: 'wrong', ...claims }]) {
      const { headers: sent } = (await gateway.fetch('/', { headers })).json()
      t.equal(sent['x-consumer-username'], 'nobody')
      t.equal(sent['x-anonymous-consumer'], 'true')
      t.equal(sent['x-credential-identifier'], undefined)
      t.equal(sent['x-consumer-custom-id'], undefined)
    }
    const { headers: known } = (await gateway.fetch('/', { headers: { apikey: KEY } })).json()
    t.equal(known['x-consumer-username'], 'alice')
    t.equal(known['x-anonymous-consumer'], undefined)
  }
})

t.test('an anonymous consumer that does not exist is an error of the gateway', async t => {
  const { gateway } = await serve(t, { config: { anonymous: 'ghost' } })
  const answer = await gateway.fetch('/')
  t.equal(answer.status, 500)
  t.equal(answer.json().message, 'An unexpected error occurred')
  t.equal((await gateway.fetch('/', { headers: { apikey: KEY } })).status, 200)
})

t.test('preflight requests must authenticate unless told otherwise', async t => {
  const strict = await serve(t)
  t.equal((await strict.gateway.fetch('/', { method: 'OPTIONS' })).status, 401)
  const open = await serve(t, { config: { run_on_preflight: false } })
  t.equal((await open.gateway.fetch('/', { method: 'OPTIONS' })).status, 200)
  t.equal((await open.gateway.fetch('/')).status, 401)
})

t.test('the realm stands in the challenge, quoted', async t => {
  const { gateway } = await serve(t, { config: { realm: 'my "api"' } })
  const answer = await gateway.fetch('/')
  t.equal(answer.headers['www-authenticate'], String.raw`Key realm="my \"api\""`)
})

t.test('the key may come from a vault', async t => {
  const { gateway } = await serve(t, {
    key: '{vault://env/alice-key}',
    env: { ALICE_KEY: 'from-the-vault' }
  })
  t.equal((await gateway.fetch('/', { headers: { apikey: 'from-the-vault' } })).status, 200)
  t.equal(
    (await gateway.fetch('/', { headers: { apikey: '{vault://env/alice-key}' } })).status,
    401
  )
})

t.test('a configuration that asks for what there is not is refused', async t => {
  const cases: [object, RegExp][] = [
    [{ identity_realms: [{ scope: 'realm', id: 'x', region: 'eu' }] }, /identity realms/],
    [{ principals: { enabled: true } }, /principals/],
    [{ key_names: ['a b'] }, /header name/],
    [{ key_names: [] }, /key_names/],
    [{ unknown: 1 }, /unknown/]
  ]
  for (const [config, message] of cases) {
    const failure = await startGateway(document('http://127.0.0.1:1', config)).then(
      gateway => gateway.close().then(() => undefined),
      error => error
    )
    t.type(failure, ConfigError)
    t.match(failure?.message, message)
  }
  await serve(t, { config: { identity_realms: [{ scope: 'cp' }], principals: { enabled: false } } })
})
