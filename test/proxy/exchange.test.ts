import { IncomingMessage, ServerResponse } from 'node:http'
import { Duplex } from 'node:stream'
import t from 'tap'
import type { Consumer, Credential, Directory } from '../../src/plugins/plugin.ts'
import { type ExchangeOptions, HttpExchange, splitHost } from '../../src/proxy/exchange.ts'

/** A connection from this address that nothing is read from. */
class Connection extends Duplex {
  readonly remoteAddress: string | undefined

  constructor(remoteAddress?: string) {
    super({ read() {}, write: (_chunk, _encoding, done) => done() })
    this.remoteAddress = remoteAddress
  }
}

interface Given {
  readonly target?: string
  readonly method?: string
  readonly headers?: Record<string, string>
  readonly remote?: string | undefined
  readonly options?: Partial<ExchangeOptions>
}

function exchangeOf({ target = '/', method = 'GET', headers = {}, remote, options }: Given = {}) {
  const raw = new IncomingMessage(new Connection(remote) as never)
  raw.method = method
  raw.httpVersion = '1.1'
  for (const [name, value] of Object.entries(headers)) {
    raw.headers[name.toLowerCase()] = value
    raw.rawHeaders.push(name, value)
  }
  return new HttpExchange(raw, new ServerResponse(raw), target, {} as Directory, {
    listener: { port: 8000, ssl: false, clientCertificates: false },
    trusted: () => false,
    realIpHeader: 'x-real-ip',
    realIpRecursive: false,
    maxBufferedBody: 10,
    maxTrailers: 2,
    bodyTimeout: 60_000,
    ...options
  })
}

await t.test('hosts and ports', async t => {
  t.same(splitHost('a.example'), { host: 'a.example', port: undefined })
  t.same(splitHost('a.example:81'), { host: 'a.example', port: 81 })
  t.same(splitHost('a.example:'), { host: 'a.example', port: undefined })
  t.same(splitHost('[::1]'), { host: '[::1]', port: undefined })
  t.same(splitHost('[::1]:81'), { host: '[::1]', port: 81 })
})

await t.test('what a request says', async t => {
  const { request, id, http2 } = exchangeOf({
    target: '/a/../b%41?q=%zz',
    headers: { Host: 'a.example:81' }
  })
  t.match(id, /^[0-9a-f]{32}$/)
  t.equal(http2, false)
  t.match(request, {
    method: 'GET',
    scheme: 'http',
    host: 'a.example',
    port: 81,
    authority: 'a.example:81',
    target: '/a/../b%41?q=%zz',
    rawPath: '/a/../b%41',
    path: '/bA',
    query: 'q=%zz',
    tls: undefined
  })
  t.match(exchangeOf({ target: 'http://a.example?x' }).request, { rawPath: '/', query: 'x' })
  t.match(exchangeOf().request, { host: '', port: 8000 })
})

await t.test('the client behind proxies', async t => {
  const ip = (remote: string, value: string | undefined, more: Partial<ExchangeOptions> = {}) =>
    exchangeOf({
      remote,
      headers: value === undefined ? {} : { 'X-Real-IP': value },
      options: { trusted: address => address.startsWith('10.'), ...more }
    }).request.clientIp
  const recursive = { realIpRecursive: true }
  t.equal(ip('9.9.9.9', '1.1.1.1'), '9.9.9.9', 'a stranger is not believed')
  t.equal(ip('10.0.0.1', undefined), '10.0.0.1')
  t.equal(ip('10.0.0.1', '1.1.1.1'), '1.1.1.1')
  t.equal(ip('::ffff:10.0.0.1', '::ffff:1.1.1.1'), '1.1.1.1')
  t.equal(ip('10.0.0.1', '6.6.6.6, 1.1.1.1'), '1.1.1.1', 'the last one')
  t.equal(ip('10.0.0.1', '1.1.1.1:443'), '1.1.1.1')
  t.equal(ip('10.0.0.1', '[2001:db8::1]:443'), '2001:db8::1')
  t.equal(ip('10.0.0.1', '2001:db8::1'), '2001:db8::1')
  t.equal(ip('10.0.0.1', '2001:DB8:0::1'), '2001:db8::1', 'one address, one spelling')
  t.equal(ip('10.0.0.1', '::FFFF:101:101'), '1.1.1.1')
  t.equal(ip('10.0.0.1', 'unknown'), '10.0.0.1', 'what is no address is not taken for one')
  t.equal(ip('10.0.0.1', ''), '10.0.0.1')
  t.equal(ip('10.0.0.1', '6.6.6.6, 1.1.1.1, 10.0.0.9', recursive), '1.1.1.1')
  t.equal(ip('10.0.0.1', '10.0.0.8, 10.0.0.9', recursive), '10.0.0.8', 'all trusted: the first')
  t.equal(ip('10.0.0.1', 'junk, 10.0.0.9', recursive), '10.0.0.9')
})

await t.test('edits of the request lie over the client’s fields', async t => {
  const { upstream } = exchangeOf({ target: '/?a', headers: { 'X-A': 'client' } })
  t.equal(upstream.query, 'a')
  t.equal(upstream.header('x-a'), 'client')
  upstream.setHeader('X-A', 'plugin')
  t.equal(upstream.header('X-a'), 'plugin')
  upstream.removeHeader('x-A')
  t.equal(upstream.header('X-A'), undefined)
  t.equal(upstream.header('X-B'), undefined)
})

await t.test('edits of the response', async t => {
  const { response } = exchangeOf()
  response.base = ['Set-Cookie', 'a=1', 'X-A', '1', 'Set-Cookie', 'b=2']
  t.equal(response.fields(), response.base, 'none: the fields themselves')
  t.same(response.header('set-cookie'), ['a=1', 'b=2'])
  response.appendHeader('Set-Cookie', 'c=3')
  response.appendHeader('set-cookie', 'd=4')
  response.setHeader('x-a', '2')
  response.setHeader('X-New', 'n')
  response.removeHeader('X-New')
  t.same(response.header('Set-Cookie'), ['a=1', 'b=2', 'c=3', 'd=4'])
  t.equal(response.header('X-A'), '2')
  t.equal(response.header('x-new'), undefined)
  t.same(response.fields(), [
    'Set-Cookie',
    'a=1',
    'Set-Cookie',
    'b=2',
    'set-cookie',
    'c=3',
    'set-cookie',
    'd=4',
    'x-a',
    '2'
  ])
})

await t.test(
  'authentication sets what upstreams read, and clears what a client claimed',
  async t => {
    const consumer = { id: 'c1', username: 'alice' } as Consumer
    const credential = { id: 'k1', consumer: { id: 'c1' } } as Credential
    const exchange = exchangeOf({
      headers: { 'X-Anonymous-Consumer': 'true', 'X-Consumer-Custom-ID': 'root' }
    })
    exchange.authenticate(consumer, credential, 'k1', ['staff'])
    const header = (name: string) => exchange.upstream.header(name)
    t.equal(header('X-Consumer-ID'), 'c1')
    t.equal(header('X-Consumer-Username'), 'alice')
    t.equal(header('X-Consumer-Custom-ID'), undefined)
    t.equal(header('X-Credential-Identifier'), 'k1')
    t.equal(header('X-Anonymous-Consumer'), undefined)
    t.same(exchange.groups, ['staff'])
    exchange.authenticate({ id: 'c2' } as Consumer, undefined)
    t.equal(header('X-Anonymous-Consumer'), 'true')
    t.equal(header('X-Credential-Identifier'), undefined)
  }
)

await t.test('answers', async t => {
  const answered = (act: (exchange: HttpExchange) => void) => {
    const exchange = exchangeOf({ headers: { Accept: 'text/plain' } })
    act(exchange)
    t.ok(exchange.ended)
    const { status } = exchange.response
    return [status, exchange.response.fields(), exchange.answer!.body, exchange.answer!.source]
  }
  t.same(
    answered(e => e.exit(204)),
    [204, [], undefined, 'exit']
  )
  t.same(
    answered(e => e.exit(200, 'text', { 'X-A': '1' })),
    [200, ['X-A', '1'], 'text', 'exit']
  )
  t.same(
    answered(e => e.exit(200, { a: 1 })),
    [200, ['Content-Type', 'application/json; charset=utf-8'], '{"a":1}', 'exit']
  )
  t.match(
    answered(e => e.error(403)),
    [403, ['Content-Type', 'text/plain; charset=utf-8'], /^Forbidden\n/, 'exit']
  )
  t.same(
    answered(e => e.fail(502, 'text/plain', 'broken')),
    [502, ['Content-Type', 'text/plain'], 'broken', 'error']
  )
})

await t.test('bodies are gathered once, within the limit', async t => {
  const exchange = exchangeOf({ method: 'POST' })
  const raw = exchange.raw as IncomingMessage
  const first = exchange.body()
  t.equal(exchange.body(), first, 'asked for twice, read once')
  raw.push('hello')
  raw.push(null)
  t.equal(String(await first), 'hello')
  t.equal(String(exchange.upstream.body), 'hello', 'the same bytes go upstream')
  t.equal(exchange.bytesReceived, 5)

  const long = exchangeOf({ method: 'POST' })
  ;(long.raw as IncomingMessage).push('x'.repeat(11))
  await t.rejects(long.body(), { code: 'POSTERN_BODY_TOO_LARGE', statusCode: 413 })
  const lower = exchangeOf({ method: 'POST' })
  ;(lower.raw as IncomingMessage).push('xxxx')
  await t.rejects(lower.body(3), { code: 'POSTERN_BODY_TOO_LARGE' })

  const many = exchangeOf({ method: 'POST' })
  ;(many.raw as IncomingMessage).rawTrailers.push('a', '1', 'b', '2', 'c', '3')
  ;(many.raw as IncomingMessage).push(null)
  await t.rejects(many.body(), { code: 'POSTERN_TRAILERS_TOO_MANY', statusCode: 400 })

  const cut = exchangeOf({ method: 'POST' })
  const pending = cut.body()
  ;(cut.raw as IncomingMessage).destroy()
  await t.rejects(pending, { code: 'POSTERN_BODY_ABORTED' })
})
