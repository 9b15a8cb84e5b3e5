import t from 'tap'
import {
  buildUpstreamHeaders,
  filterResponseHeaders,
  filterTrailers,
  listsTrailers,
  type UpstreamHeadersInput
} from '../../src/proxy/headers.ts'

type Edits = Record<string, string | undefined>

/** What goes upstream for a client's fields, as an object of lists by lower-case name. */
function sent(
  client: readonly string[],
  input: Partial<UpstreamHeadersInput> = {},
  edits?: Edits
): Record<string, string[]> {
  const flat = buildUpstreamHeaders({
    rawHeaders: client,
    edits:
      edits === undefined
        ? undefined
        : new Map(
            Object.entries(edits).map(([name, value]) => [name.toLowerCase(), { name, value }])
          ),
    host: 'up.example:8080',
    clientIp: '10.0.0.1',
    remoteAddress: '10.0.0.2',
    scheme: 'http',
    forwardedHost: 'client.example',
    port: 8000,
    rawPath: '/svc/a',
    prefix: undefined,
    trusted: false,
    httpVersion: '1.1',
    requestId: 'f00d',
    requestIdHeader: 'X-Postern-Request-Id',
    via: 'postern/1',
    upgrade: false,
    bodyLength: undefined,
    ...input
  })
  const fields: Record<string, string[]> = {}
  for (let i = 0; i < flat.length; i += 2) {
    const name = flat[i]!.toLowerCase()
    fields[name] = [...(fields[name] ?? []), flat[i + 1]!]
  }
  return fields
}

await t.test('a bare request gets exactly the fields of the gateway', async t => {
  t.same(sent(['Host', 'client.example']), {
    host: ['up.example:8080'],
    'x-real-ip': ['10.0.0.1'],
    'x-forwarded-for': ['10.0.0.1'],
    'x-forwarded-proto': ['http'],
    'x-forwarded-host': ['client.example'],
    'x-forwarded-port': ['8000'],
    'x-forwarded-path': ['/svc/a'],
    via: ['1.1 postern/1'],
    'x-postern-request-id': ['f00d']
  })
})

await t.test('what ends at this hop does not go on', async t => {
  const hop = [
    'Connection',
    'Keep-Alive',
    'Proxy-Connection',
    'Proxy',
    'Transfer-Encoding',
    'Upgrade',
    'HTTP2-Settings',
    'Expect',
    'TE',
    'Trailer'
  ]
  const fields = sent(hop.flatMap(name => [name, 'x']))
  for (const name of hop) t.equal(fields[name.toLowerCase()], undefined, name)
  const end = ['Authorization', 'Cookie', 'Range', 'If-None-Match', 'Accept', 'Forwarded', 'X-A']
  const kept = sent(end.flatMap(name => [name, `${name} value`]))
  for (const name of end) t.same(kept[name.toLowerCase()], [`${name} value`], name)
})

await t.test('Connection names fields to drop, in any case and over several lines', async t => {
  const fields = sent([
    'Connection',
    'Keep-Alive, X-One ,',
    'connection',
    'x-TWO',
    'X-One',
    '1',
    'x-two',
    '2',
    'X-Three',
    '3'
  ])
  t.equal(fields['x-one'], undefined)
  t.equal(fields['x-two'], undefined)
  t.same(fields['x-three'], ['3'])
  t.equal(fields.connection, undefined)
})

await t.test('Connection strips nothing that the gateway or a plugin adds', async t => {
  const own = [
    'Host',
    'X-Real-IP',
    'X-Forwarded-For',
    'X-Forwarded-Proto',
    'X-Forwarded-Host',
    'X-Forwarded-Port',
    'X-Forwarded-Path',
    'X-Forwarded-Prefix',
    'Via',
    'X-Postern-Request-Id',
    'X-Consumer-ID',
    'Authorization'
  ]
  const fields = sent(
    ['Connection', own.join(', '), 'Authorization', 'Bearer of-the-client'],
    { prefix: '/svc' },
    { 'X-Consumer-ID': 'alice', Authorization: 'Bearer injected' }
  )
  for (const name of own) t.equal(fields[name.toLowerCase()]?.length, 1, name)
  t.same(fields.authorization, ['Bearer injected'])
  t.same(fields['x-consumer-id'], ['alice'])
})

await t.test('forwarding fields: appended to, else only believed of trusted peers', async t => {
  const client = [
    'X-Real-IP',
    '6.6.6.6',
    'X-Forwarded-For',
    '1.1.1.1',
    'X-Forwarded-For',
    '2.2.2.2',
    'X-Forwarded-Proto',
    'https',
    'X-Forwarded-Host',
    'public.example',
    'X-Forwarded-Port',
    '443',
    'X-Forwarded-Path',
    '/public',
    'X-Forwarded-Prefix',
    '/p',
    'Via',
    '1.0 a',
    'Via',
    '1.1 b'
  ]
  t.match(sent(client, { prefix: '/svc' }), {
    'x-real-ip': ['10.0.0.1'],
    'x-forwarded-for': ['1.1.1.1, 2.2.2.2, 10.0.0.2'],
    'x-forwarded-proto': ['http'],
    'x-forwarded-host': ['client.example'],
    'x-forwarded-port': ['8000'],
    'x-forwarded-path': ['/svc/a'],
    'x-forwarded-prefix': ['/svc'],
    via: ['1.0 a, 1.1 b, 1.1 postern/1']
  })
  t.equal(sent(client)['x-forwarded-prefix'], undefined, 'no prefix was taken off')
  t.match(sent(client, { trusted: true, prefix: '/svc' }), {
    'x-real-ip': ['10.0.0.1'],
    'x-forwarded-for': ['1.1.1.1, 2.2.2.2, 10.0.0.2'],
    'x-forwarded-proto': ['https'],
    'x-forwarded-host': ['public.example'],
    'x-forwarded-port': ['443'],
    'x-forwarded-path': ['/public'],
    'x-forwarded-prefix': ['/p']
  })
})

await t.test('names with underscores cannot speak for fields of the gateway', async t => {
  const fields = sent(
    [
      'X_Forwarded_For',
      '6.6.6.6',
      'x_real-ip',
      '6.6.6.6',
      'X_Consumer_ID',
      'root',
      'Content_Length',
      '7',
      'Transfer_Encoding',
      'chunked',
      'X_Postern_Request_Id',
      'fake',
      'my_own',
      'kept'
    ],
    {},
    { 'X-Consumer-ID': 'alice' }
  )
  t.same(
    Object.keys(fields).filter(name => name.includes('_')),
    ['my_own']
  )
})

await t.test('plugins edit what is forwarded, never what frames it', async t => {
  const fields = sent(
    ['X-Old', '1', 'X-Gone', '2', 'Content-Length', '3'],
    { prefix: '/svc' },
    {
      Host: 'other.example',
      'X-Old': 'new',
      'X-Gone': undefined,
      'X-Forwarded-Host': 'told.example',
      'X-Forwarded-Prefix': undefined,
      'Content-Length': '99',
      'Transfer-Encoding': 'chunked',
      Connection: 'close'
    }
  )
  t.match(fields, {
    host: ['other.example'],
    'x-old': ['new'],
    'x-forwarded-host': ['told.example'],
    'content-length': undefined
  })
  t.equal(fields['x-gone'], undefined)
  t.equal(fields['x-forwarded-prefix'], undefined)
  t.equal(fields['transfer-encoding'], undefined)
  t.equal(fields.connection, undefined)
  t.same(sent([], {}, { Host: undefined }).host, ['up.example:8080'], 'a request needs its Host')
})

await t.test('lengths, TE, versions, upgrades, request ids', async t => {
  t.same(sent(['Content-Length', '3'])['content-length'], ['3'])
  t.same(sent(['Content-Length', '3'], { bodyLength: 5 })['content-length'], ['5'])
  t.same(sent(['TE', 'gzip, Trailers']).te, ['trailers'])
  t.equal(sent(['TE', 'gzip, trailers-not']).te, undefined)
  t.ok(listsTrailers('trailers') && listsTrailers('deflate;q=0.5 , TRAILERS'))
  t.notOk(listsTrailers('x-trailers') || listsTrailers(''))
  t.same(sent([], { httpVersion: '2.0' }).via, ['2 postern/1'])
  t.same(sent([], { httpVersion: '1.0' }).via, ['1.0 postern/1'])
  t.match(sent([], { upgrade: true }), {
    connection: ['keep-alive, Upgrade'],
    upgrade: ['websocket']
  })
  t.same(sent(['X-Postern-Request-Id', 'spoofed'])['x-postern-request-id'], ['f00d'])
  t.same(
    sent(['X-Postern-Request-Id', 'own'], { requestId: undefined })['x-postern-request-id'],
    ['own'],
    'the field is not ours where none is sent'
  )
})

await t.test('an HTTP/2 request: no pseudo fields, one Cookie', async t => {
  const fields = sent([':method', 'GET', ':path', '/', 'cookie', 'a=1', 'cookie', 'b=2', 'x', 'y'])
  t.same(fields.cookie, ['a=1; b=2'])
  t.notOk(Object.keys(fields).some(name => name.startsWith(':')))
})

await t.test('responses: hop-by-hop, named, unsafe and unasked-for fields stay behind', async t => {
  const raw = [
    'Connection',
    'close, X-Named',
    'X-Named',
    '1',
    'Keep-Alive',
    'timeout=5',
    'Proxy-Connection',
    'x',
    'Transfer-Encoding',
    'chunked',
    'Upgrade',
    'h2c',
    'TE',
    'x',
    'Trailer',
    'X-Sum',
    'Set-Cookie',
    'a=1',
    'Set-Cookie',
    'b=2',
    'X-Bad',
    'a\u0001b',
    'X-Latin',
    'caf\u00e9'
  ]
  const kept = ['Set-Cookie', 'a=1', 'Set-Cookie', 'b=2', 'X-Latin', 'caf\u00e9']
  t.same(filterResponseHeaders(raw, 200, 'nothing'), kept)
  t.same(filterResponseHeaders(raw, 200, 'chunks'), ['Trailer', 'X-Sum', ...kept])
  t.same(
    filterResponseHeaders(
      raw.map(part => Buffer.from(part, 'latin1')),
      200,
      'nothing'
    ),
    kept,
    'buffers are read alike'
  )
  const sized = ['Content-Length', '2', 'Trailer', 'X-Sum', 'trailer', 'X-Other']
  t.same(filterResponseHeaders(sized, 200, 'chunks'), ['Content-Length', '2'])
  t.same(filterResponseHeaders(sized, 200, 'any'), sized, 'HTTP/2 has trailers after any body')
  t.same(filterResponseHeaders(['Content-Length', '2', 'A', 'b'], 204, 'nothing'), ['A', 'b'])
})

await t.test('trailers that frame, route or authenticate are dropped', async t => {
  t.same(
    filterTrailers([
      'X-Sum',
      '42',
      'Content-Length',
      '7',
      'transfer-encoding',
      'chunked',
      'Host',
      'evil',
      'Authorization',
      'x',
      'Set-Cookie',
      'x',
      'X-Forwarded-For',
      '6.6.6.6',
      'X-Split',
      'a\r\nX: y',
      'grpc-status',
      '0'
    ]),
    ['X-Sum', '42', 'grpc-status', '0']
  )
})
