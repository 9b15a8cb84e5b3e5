import fc from 'fast-check'
import t from 'tap'
import { type FetchOptions, startGateway, until } from '../../harness.ts'
import { Browser } from './browser.ts'
import { ANNA, ANNAS_KEY, documentOf, SECRET, serve } from './serve.ts'

const STORAGES = ['cookie', 'kong']
const off = { absolute_timeout: 0, rolling_timeout: 0, idling_timeout: 0 }
const kinds = [
  'id',
  'audience',
  'subject',
  'timeout',
  'idling-timeout',
  'rolling-timeout',
  'absolute-timeout'
]
/** Configurations that need no gateway of their own, by the path of their route. */
const configs: Record<string, object> = {
  '/other-secret': { secret: 'another one' },
  '/other-name': { cookie_name: 'other' },
  '/random-secret': { secret: undefined },
  '/bound': { bind: ['ip', 'scheme', 'user-agent'] },
  '/shop': { audience: 'shop' },
  '/bank': { audience: 'bank' },
  '/told': {
    audience: 'shop',
    rolling_timeout: 0,
    request_headers: kinds,
    response_headers: kinds
  }
}
for (const storage of STORAGES) {
  configs[`/${storage}`] = { storage }
  configs[`/${storage}/logout`] = {
    storage,
    logout_methods: ['POST', 'DELETE', 'GET'],
    read_body_for_logout: true,
    remember: true
  }
  configs[`/${storage}/absolute`] = { ...off, storage, absolute_timeout: 4 }
  configs[`/${storage}/rolling`] = { ...off, storage, rolling_timeout: 4 }
  configs[`/${storage}/idling`] = { ...off, storage, idling_timeout: 4 }
  configs[`/${storage}/never`] = { ...off, storage }
  configs[`/${storage}/used`] = {
    storage,
    absolute_timeout: 1000,
    rolling_timeout: 8,
    idling_timeout: 8,
    stale_ttl: 2,
    response_headers: ['id', 'absolute-timeout', 'rolling-timeout']
  }
  configs[`/${storage}/remember`] = {
    storage,
    remember: true,
    remember_rolling_timeout: 5000,
    remember_absolute_timeout: 6000,
    response_headers: ['id', 'timeout']
  }
}
const attributes: [object, string][] = [
  [{ cookie_same_site: 'Lax' }, 'Path=/; HttpOnly; Secure; SameSite=Lax'],
  [{ cookie_same_site: 'None', cookie_secure: false }, 'Path=/; HttpOnly; Secure; SameSite=None'],
  [{ cookie_same_site: 'Default', cookie_http_only: false }, 'Path=/; Secure'],
  [
    { cookie_domain: 'example.com', cookie_path: '/app', cookie_secure: false },
    'Domain=example.com; Path=/app; HttpOnly; SameSite=Strict'
  ],
  [{ cookie_domain: 'localhost' }, 'Path=/; HttpOnly; Secure; SameSite=Strict'],
  [
    { cookie_samesite: 'off', cookie_httponly: false, cookie_persistent: null, cookie_renew: 600 },
    'Path=/; Secure; SameSite=Lax'
  ],
  [{ cookie_name: '__Host-sid' }, 'Path=/; HttpOnly; Secure; SameSite=Strict']
]
for (const [i, [config]] of attributes.entries()) {
  configs[`/attributes/${i}`] = { cookie_name: 'sid', ...config }
}

const { gateway, upstream } = await serve(t, configs, {
  env: { POSTERN_TRUSTED_IPS: '127.0.0.1', POSTERN_REAL_IP_HEADER: 'X-Forwarded-For' }
})
// They mostly wait.
t.jobs = 4

for (const storage of STORAGES) {
  t.test(`${storage}: a credential opens a session, then the cookie is enough`, async t => {
    const path = `/${storage}`
    const browser = new Browser(gateway)
    t.equal((await browser.fetch(path)).status, 401)
    t.equal(browser.cookies.size, 0, 'nobody gets a session for nothing')
    const login = await browser.logIn('annas-key', path)
    t.equal(login.status, 200)
    t.equal(login.lines.length, 1)
    t.match(login.lines[0], /^session=1[\w-]+; Path=\/; HttpOnly; Secure; SameSite=Strict$/)
    t.notMatch(login.lines[0], /anna|aaaaaaaa/)
    const answer = await browser.fetch(path)
    t.equal(answer.status, 200)
    t.same(answer.lines, [], 'a fresh session needs no new cookie')
    const { headers } = answer.json()
    t.match(headers, {
      'x-consumer-id': ANNA,
      'x-consumer-username': 'anna',
      'x-consumer-custom-id': 'A-1',
      'x-credential-identifier': ANNAS_KEY
    })
    t.equal(headers['x-anonymous-consumer'], undefined)
    t.equal(headers.cookie, `session=${browser.cookies.get('session')}`, 'the cookie goes on')
  })

  t.test(`${storage}: logging out ends the session`, async t => {
    const path = `/${storage}/logout`
    const browser = new Browser(gateway)
    const arrived = () => upstream.requests.filter(({ url }) => url.startsWith(path)).length
    const form = { 'content-type': 'application/x-www-form-urlencoded' }
    const json = { 'content-type': 'application/json' }
    const parts = { 'content-type': 'multipart/form-data; boundary=b' }
    const part = '--b\r\nContent-Disposition: form-data; name="session_logout"\r\n\r\n\r\n--b--\r\n'
    const ways: [string, FetchOptions][] = [
      ['?session_logout', { method: 'POST' }],
      ['?session_logout', { method: 'DELETE' }],
      ['?session_logout=anything', {}],
      ['', { method: 'POST', headers: form, body: 'a=1&session_logout' }],
      ['', { method: 'POST', headers: json, body: '{"session_logout":true}' }],
      ['', { method: 'POST', headers: parts, body: part }]
    ]
    for (const [suffix, options] of ways) {
      await browser.logIn('annas-key', path)
      t.equal(browser.cookies.size, 2)
      const copy = new Browser(gateway, browser.cookies)
      const before = arrived()
      const answer = await browser.fetch(path + suffix, options)
      t.equal(answer.status, 200, `${options.method} ${suffix}`)
      t.equal(answer.body, '')
      t.same(
        answer.lines.map(line => line.replace(/=;.*/, '')),
        ['session', 'remember']
      )
      t.equal(browser.cookies.size, 0)
      t.equal(arrived(), before, 'it is not forwarded')
      t.equal((await browser.fetch(path)).status, 401)
      t.equal((await copy.fetch(path)).status, storage === 'kong' ? 401 : 200, 'a copy after it')
    }
    await browser.logIn('annas-key', path)
    const others: [string, FetchOptions][] = [
      ['?logout', { method: 'POST' }],
      ['?session_logout', { method: 'PUT' }],
      ['', { method: 'POST', headers: json, body: '{"session_logout":null}' }],
      ['', { method: 'POST', headers: json, body: '{"session_logout' }],
      ['', { method: 'POST', headers: { 'content-type': 'text/plain' }, body: 'session_logout' }]
    ]
    for (const [suffix, options] of others) {
      const answer = await browser.fetch(path + suffix, options)
      const { method, body = '' } = options
      t.match(answer.json(), { method, url: path + suffix, body })
    }
    const stranger = await new Browser(gateway).fetch(`${path}?session_logout`, { method: 'POST' })
    t.equal(stranger.status, 401, 'there must be a session')
  })

  t.test(`${storage}: a session ends by each of its timeouts`, async t => {
    const open = async (timeout: string) => {
      const path = `/${storage}/${timeout}`
      const browser = new Browser(gateway)
      await browser.logIn('annas-key', path)
      // A new client each time, so that no newer cookie prolongs the session.
      return async () => (await new Browser(gateway, browser.cookies).fetch(path)).status
    }
    const never = await open('never')
    await Promise.all(
      ['absolute', 'rolling', 'idling'].map(async timeout => {
        const status = await open(timeout)
        t.equal(await status(), 200, timeout)
        await until(async () => (await status()) === 401, `the end by ${timeout}`)
      })
    )
    t.equal(await never(), 200)
  })

  t.test(`${storage}: a session in use is noted, then renewed under a new id`, async t => {
    const path = `/${storage}/used`
    const browser = new Browser(gateway)
    const first = (await browser.logIn('annas-key', path)).headers['session-id']
    const original = new Map(browser.cookies)
    let notes = 0
    const renewed = await until(async () => {
      const answer = await browser.fetch(path)
      if (answer.status !== 200) throw new Error('it ended while it was used')
      if (answer.headers['session-id'] !== first) return answer
      notes += answer.lines.length
      return undefined
    }, 'a renewal')
    t.ok(notes >= 1, 'its use was noted before')
    t.equal(renewed.lines.length, 1)
    t.ok(Number(renewed.headers['session-absolute-timeout']) < 1000, 'its creation stays')
    t.equal(renewed.headers['session-rolling-timeout'], '8')
    const next = await browser.fetch(path)
    t.equal(next.headers['session-id'], renewed.headers['session-id'])
    if (storage === 'kong') {
      await until(
        async () => (await new Browser(gateway, original).fetch(path)).status === 401,
        'the end of the old id'
      )
    }
  })

  t.test(`${storage}: a remembered session comes back`, async t => {
    const path = `/${storage}/remember`
    const browser = new Browser(gateway)
    const login = await browser.logIn('annas-key', path)
    t.match(login.lines[0], /^session=/)
    t.notMatch(login.lines[0], /Max-Age|Expires/)
    t.match(login.lines[1], /^remember=1[\w-]+; Max-Age=5000; Path=\/; Expires=.* GMT; HttpOnly/)
    const remembered = browser.cookies.get('remember')!
    browser.cookies.set('session', 'gone')
    const back = await browser.fetch(path)
    t.equal(back.status, 200)
    t.equal(back.json().headers['x-consumer-username'], 'anna')
    t.equal(back.headers['session-timeout'], '900')
    t.match(
      back.lines.map(line => line.slice(0, 9)),
      ['session=1', 'remember=']
    )
    t.not(browser.cookies.get('remember'), remembered)
    t.same((await browser.fetch(path)).lines, [])
    const again = await new Browser(gateway, [['remember', remembered]]).fetch(path)
    t.equal(again.status, storage === 'kong' ? 401 : 200, 'in the store it can be used once')
  })
}

t.test('whatever a client makes of its cookie, it is nobody', async t => {
  const path = '/cookie/remember'
  const browser = new Browser(gateway)
  await browser.logIn('annas-key', path)
  const cookie = browser.cookies.get('session')!
  t.equal((await browser.fetch(path)).status, 200, 'from now on the real one is remembered')
  const bytes = Buffer.from(cookie.slice(1), 'base64url')
  const refused = async (value: string, name = 'session') => {
    const answer = await new Browser(gateway, [[name, value]]).fetch(path)
    return answer.status === 401 && answer.lines.length === 0
  }
  const changed = fc
    .tuple(fc.nat(bytes.length - 1), fc.integer({ min: 1, max: 255 }))
    .map(([at, bits]) => {
      const copy = Buffer.from(bytes)
      copy[at]! ^= bits
      return `1${copy.toString('base64url')}`
    })
  const cut = fc.nat(cookie.length - 1).map(length => cookie.slice(0, length))
  const invented = fc
    .uint8Array({ maxLength: 400 })
    .map(random => `1${Buffer.from(random).toString('base64url')}`)
  await fc.assert(
    fc.asyncProperty(fc.oneof(changed, cut, invented), value => refused(value)),
    { numRuns: 200 }
  )
  t.ok(await refused(`2${cookie.slice(1)}`))
  t.ok(await refused(cookie, 'remember'), 'one cookie is not the other')
  t.ok(await refused(browser.cookies.get('remember')!, 'session'))
  t.equal((await browser.fetch(path)).status, 200, 'the real one is fine')
})

t.test('a cookie of another secret, name, storage or binding is none', async t => {
  const browser = new Browser(gateway)
  await browser.logIn('annas-key', '/cookie')
  const value = browser.cookies.get('session')!
  const status = async (path: string) => {
    const name = path === '/other-name' ? 'other' : 'session'
    return (await new Browser(gateway, [[name, value]]).fetch(path)).status
  }
  for (const path of ['/other-secret', '/other-name', '/kong', '/random-secret', '/bound']) {
    t.equal(await status(path), 401, path)
  }
  t.equal(await status('/cookie/remember'), 200)
})

t.test('attributes of the cookie', async t => {
  for (const [i, [, expected]] of attributes.entries()) {
    const [line] = (await new Browser(gateway).logIn('annas-key', `/attributes/${i}`)).lines
    t.equal(line?.replace(/^(__Host-)?sid=1[\w-]+; /, ''), expected)
  }
})

t.test('headers tell the upstream and the client about the session', async t => {
  const path = '/told'
  const browser = new Browser(gateway)
  const claims = {
    'session-id': 'mine',
    'session-subject': 'root',
    'x-authenticated-groups': 'admin'
  }
  const login = await browser.fetch(path, { headers: { apikey: 'annas-key', ...claims } })
  t.notMatch(JSON.stringify(login.json().headers), /mine|root|admin/, 'only the gateway tells')
  const expected = {
    'session-audience': 'shop',
    'session-subject': 'anna',
    'session-timeout': /^(900|89\d)$/,
    'session-idling-timeout': /^(900|89\d)$/,
    'session-absolute-timeout': /^86\d{3}$/
  }
  t.match(login.headers, { ...expected, 'session-id': /^[\w-]{43}$/ })
  t.notOk('session-rolling-timeout' in login.headers, 'a timeout that is off has no header')
  const answer = await browser.fetch(path, { headers: claims })
  t.match(answer.headers, expected)
  t.match(answer.json().headers, { ...expected, 'session-id': login.headers['session-id'] })
  t.equal(answer.json().headers['x-authenticated-groups'], undefined)
  const carl = await new Browser(gateway).logIn('carls-key', path)
  t.equal(carl.headers['session-subject'], 'C-1')
})

t.test('audiences share a cookie, and do not know each other', async t => {
  const browser = new Browser(gateway)
  await browser.logIn('annas-key', '/shop')
  t.equal((await browser.fetch('/bank')).status, 401)
  const logout = await browser.fetch('/bank?session_logout', { method: 'POST' })
  t.equal(logout.status, 401, 'nor can one end what the other began')
  await browser.logIn('berts-key', '/bank')
  t.equal(browser.cookies.size, 1)
  const who = async (path: string) =>
    (await browser.fetch(path)).json().headers['x-consumer-username']
  t.equal(await who('/shop'), 'anna')
  t.equal(await who('/bank'), 'bert')
})

t.test('a bound session is worth nothing elsewhere', async t => {
  const path = '/bound'
  const browser = new Browser(gateway)
  const home = { 'user-agent': 'firefox', 'x-forwarded-for': '10.0.0.1' }
  await browser.fetch(path, { headers: { ...home, apikey: 'annas-key' } })
  const status = async (headers: Record<string, string>) =>
    (await browser.fetch(path, { headers })).status
  t.equal(await status(home), 200)
  t.equal(await status({ ...home, 'x-forwarded-for': '10.0.0.2' }), 401)
  t.equal(await status({ ...home, 'user-agent': 'curl' }), 401)
  t.equal(await status(home), 200)
})

t.test('a long session takes several cookies, one too long is not stored', async t => {
  const browser = new Browser(gateway)
  t.equal((await browser.logIn('long-key', '/cookie')).lines.length, 3)
  t.equal((await browser.fetch('/cookie')).status, 200)
  browser.cookies.delete('session2')
  t.equal((await browser.fetch('/cookie')).status, 401)
  const tooLong = await new Browser(gateway).logIn('too-long-key', '/cookie')
  t.equal(tooLong.status, 200, 'the request itself is answered')
  t.same(tooLong.lines, [])
  const stored = new Browser(gateway)
  t.equal((await stored.logIn('too-long-key', '/kong')).lines.length, 1)
  t.equal((await stored.fetch('/kong')).status, 200)
})

t.test('a configuration that cannot work is refused', async t => {
  const cases: [object, RegExp][] = [
    [{ secret: '' }, /secret/],
    [{ cookie_name: 'a b' }, /cookie_name/],
    [{ cookie_path: '/;x' }, /cookie_path/],
    [{ cookie_domain: 'a;b' }, /cookie_domain/],
    [{ remember: true, remember_cookie_name: 'session' }, /remember_cookie_name/],
    [{ remember: true, remember_cookie_name: 'session2' }, /remember_cookie_name/],
    [{ cookie_name: '__Host-s', cookie_path: '/app' }, /clients refuse/],
    [{ cookie_name: '__Secure-s', cookie_secure: false }, /clients refuse/],
    [{ storage: 'redis' }, /storage/],
    [{ logout_methods: ['PUT'] }, /logout_methods/],
    [{ idling_timeout: -1 }, /idling_timeout/]
  ]
  const paths = Object.fromEntries(cases.map(([config], i) => [`/${i}`, config]))
  const error = await startGateway(documentOf('http://127.0.0.1:1', paths)).then(
    gateway => gateway.close().then(() => new Error('it started')),
    (error: Error) => error
  )
  const lines = error.message.split('\n')
  for (const [i, [config, message]] of cases.entries()) {
    const line = lines.find(line => line.includes(`routes[${i}].`))
    t.match(line, message, JSON.stringify(config))
  }
  const plugins = [{ name: 'session', config: { secret: SECRET } }]
  await t.rejects(startGateway({ consumers: [{ username: 'anna', plugins }] }), {
    message: /consumer/
  })
})
