import { readFile } from 'node:fs/promises'
import t from 'tap'
import { records, startNameServer } from './dns-server.ts'
import { startGateway, startUpstream, until } from './harness.ts'

const file = new URL('./fixtures/kong.yml', import.meta.url)

/** An upstream that says which one it is. */
function upstreamNamed(name: string) {
  return startUpstream(({ method, url, headers }, response) => {
    response.setHeader('Content-Type', 'application/json')
    response.end(JSON.stringify({ name, method, url, headers }))
  })
}

const catalogue = await upstreamNamed('catalogue')
const account = await upstreamNamed('account')
const ordersA = await upstreamNamed('orders-a')
const ordersB = await upstreamNamed('orders-b')
const collector = await startUpstream()
const upstreams = { catalogue, account, 'orders-a': ordersA, 'orders-b': ordersB }
// The file names hosts and ports that only a name server can give to this machine.
const nameServer = await startNameServer(
  records('A', 'node.shop.internal', 60, '127.0.0.1'),
  ...Object.entries(upstreams).map(([name, { port }]) =>
    records('SRV', `${name}.shop.internal`, 60, { port, target: 'node.shop.internal' })
  )
)
const gateway = await startGateway(await readFile(file, 'utf8'), {
  env: {
    POSTERN_DNS_RESOLVER: `127.0.0.1:${nameServer.port}`,
    SHOP_ALICE_KEY: 'alices-key',
    SHOP_BOB_PASSWORD: 'bobs-password',
    SHOP_SESSION_SECRET: 'pLSQ0Ys1BKgQv1W2fXjSgJTJtEVTw2hRRbA7RfZ2oRw=',
    OPS_LOG_ENDPOINT: `${collector.url}/in`,
    OPS_LOG_AUTHORIZATION: 'Bearer log-token'
  }
})
t.teardown(async () => {
  await gateway.close()
  await nameServer[Symbol.asyncDispose]()
  for (const upstream of [collector, ...Object.values(upstreams)]) await upstream.close()
})

const get = (path: string, headers: Record<string, string> = {}) => gateway.fetch(path, { headers })
const basic = (user: string, password: string) =>
  `Basic ${Buffer.from(`${user}:${password}`).toString('base64')}`

await t.test('a prefix, a regex, a wildcard host, a header and methods route', async t => {
  const products = await get('/products/7')
  t.match(products.json(), {
    name: 'catalogue',
    url: '/v2/products/7',
    headers: { host: /^catalogue\.shop\.internal:\d+$/ }
  })
  const reviews = await get('/products/7/reviews')
  t.equal(reviews.status, 410)
  t.same(reviews.json(), { message: 'reviews have moved' })
  t.equal((await get('/products/x/reviews')).json().url, '/v2/products/x/reviews')
  const tenant = await get('/anything', { host: 'acme.shop.example' })
  t.match(tenant.json(), { name: 'catalogue', url: '/v2/anything' })
  t.equal(tenant.json().headers.host, 'acme.shop.example')
  const post = await gateway.fetch('/products', { method: 'POST' })
  t.equal(post.status, 404)
  t.equal(post.json().message, 'no Route matched with those values')
  const beta = await gateway.fetch('/products', {
    method: 'POST',
    headers: { 'x-release': 'Beta' }
  })
  t.equal(beta.status, 200, 'the header makes it another route')
  const health = await get('/health')
  t.match(health, { status: 200, body: 'fine', headers: { 'content-type': 'text/plain' } })
  const secure = await get('/secure?a=1', { host: 'shop.example' })
  t.match(secure, { status: 308, headers: { location: 'https://shop.example/secure?a=1' } })
})

await t.test('the instance of the narrowest scope runs', async t => {
  const everywhere = await get('/products')
  t.match(everywhere.headers['x-request-id'], /#\d+$/, 'the global one')
  const beta = await get('/products', { 'x-release': 'beta' })
  t.match(beta.headers['x-beta-id'], /^[0-9a-f-]{36}$/, 'the one of the route')
  t.equal(beta.headers['x-request-id'], undefined)
  t.equal(everywhere.headers['x-ratelimit-limit-hour'], '1000', 'that of the service')
})

await t.test('keys, groups and passwords let in whom they should', async t => {
  t.equal((await get('/orders/1')).status, 401)
  t.equal((await get('/orders/1', { apikey: 'unknown' })).status, 401)
  t.equal((await get('/orders/1', { apikey: 'eves-key' })).status, 403)
  const alice = await get('/orders/1', { 'x-api-key': 'alices-key' })
  t.match(alice.json(), {
    name: /^orders-[ab]$/,
    url: '/orders-api/1',
    headers: { 'x-consumer-username': 'alice', 'x-consumer-custom-id': '1001' }
  })
  t.equal(alice.json().headers['x-api-key'], undefined, 'hidden')
  t.equal(alice.json().headers['x-consumer-groups'], 'buyers')
  t.equal((await get('/orders/admin', { apikey: 'alices-key' })).status, 401)
  t.equal((await get('/orders/admin', { authorization: basic('bob', 'wrong') })).status, 401)
  const bob = await get('/orders/admin', { authorization: basic('bob', 'bobs-password') })
  t.match(bob.json(), { url: '/orders-api', headers: { 'x-consumer-username': 'bob' } })
  t.equal(bob.json().headers.authorization, undefined)
  t.equal(bob.json().headers['x-consumer-groups'], undefined)
})

await t.test('limits count by their scope', async t => {
  const statuses = async (count: number, path: string, headers: Record<string, string>) => {
    const answers = []
    for (let i = 0; i < count; i++) answers.push(await get(path, headers))
    return answers
  }
  // Alice has one of her two left, whichever route she takes.
  const alice = await statuses(2, '/orders', { apikey: 'alices-key' })
  t.same(
    alice.map(({ status }) => status),
    [200, 429]
  )
  t.match(alice[1]!.headers, { 'x-ratelimit-limit-hour': '2', 'retry-after': /^\d+$/ })
  t.equal(alice[1]!.json().message, 'API rate limit exceeded')
  const acme = await statuses(5, '/orders', { apikey: 'acme-key' })
  t.same(
    acme.map(({ status }) => status),
    [200, 200, 200, 200, 429],
    'four for acme on this route'
  )
  const names = new Set(acme.slice(0, 4).map(answer => answer.json().name))
  t.same(names, new Set(['orders-a', 'orders-b']), 'both targets served')
  const bob = { authorization: basic('bob', 'bobs-password') }
  const staff = await statuses(5, '/orders/admin', bob)
  t.same(
    staff.map(({ status }) => status),
    [200, 200, 200, 200, 429],
    'five for everyone else on this service, one of which he had before'
  )
})

await t.test('a session replaces the key, until it is logged out of', async t => {
  const visitor = await get('/account')
  t.match(visitor, { status: 401 })
  t.same(visitor.json(), { message: 'please log in' })
  const login = await get('/account', { apikey: 'acme-key' })
  const cookie = String(login.headers['set-cookie']).split(';')[0]!
  t.match(cookie, /^shop_session=/)
  const known = await get('/account/me', { cookie })
  t.match(known.json(), { name: 'account', headers: { 'x-consumer-username': 'acme' } })
  const logout = { method: 'POST', headers: { cookie } }
  t.match(await gateway.fetch('/account?session_logout', logout), { status: 200, body: '' })
})

await t.test('everything was logged, with its secret header', async t => {
  await get('/products?last')
  // biome-ignore lint/suspicious/noExplicitAny: records are of any shape
  const all = (): any[] => collector.requests.flatMap(({ body }) => JSON.parse(body))
  await until(() => all().some(({ request }) => request.uri === '/products?last'), 'the last')
  for (const { headers, url } of collector.requests) {
    t.equal(url, '/in')
    t.equal(headers.authorization, 'Bearer log-token')
  }
  const statuses = new Set(all().map(({ response }) => response.status))
  for (const status of [200, 308, 401, 403, 404, 410, 429]) t.ok(statuses.has(status), `${status}`)
  t.ok(
    all().every(({ request }) => request.headers.authorization !== basic('bob', 'bobs-password'))
  )
})
