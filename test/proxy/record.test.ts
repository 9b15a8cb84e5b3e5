import t from 'tap'
import { type Finished, writeRecord } from '../../src/proxy/record.ts'

const recordOf = (exchange: Finished): Record<string, unknown> => JSON.parse(writeRecord(exchange))

/** An exchange that was proxied, but for what `more` says. */
function finished(more: object = {}): Finished {
  return {
    id: 'f'.repeat(32),
    startedAt: 1_700_000_000_123,
    startedMark: performance.now() - 30,
    sentMark: performance.now() - 20,
    firstByteMark: performance.now() - 10,
    lastByteMark: performance.now() - 5,
    bytesReceived: 7,
    bytesSent: 11,
    request: {
      method: 'POST',
      scheme: 'https',
      httpVersion: '1.1',
      host: 'a.example',
      port: 8443,
      target: '/x?a=1&b&a=2&c=%zz&d=x+y&=e&__proto__=p',
      query: 'a=1&b&a=2&c=%zz&d=x+y&&=e&__proto__=p',
      rawHeaders: [
        ':path',
        '/x',
        'Authorization',
        'Bearer t',
        'X-A',
        '1',
        'x-a',
        '2',
        'X-A',
        '3',
        'X-Gone',
        'g'
      ],
      tls: { version: 'TLSv1.3', cipher: 'TLS_AES_256_GCM_SHA384', clientVerify: 'NONE' },
      clientIp: '1.2.3.4'
    },
    upstream: {
      path: '/up',
      query: 'a=1',
      edits: new Map([
        ['x-added', { value: 'yes' }],
        ['x-gone', { value: undefined }],
        ['proxy-authorization', { value: 'secret' }]
      ])
    },
    response: { status: 201, sent: ['Set-Cookie', 'a', 'Set-Cookie', 'b', 'X-B', '1'] },
    tries: [
      {
        startedAt: 1_700_000_000_124.5,
        latency: 1.6,
        peer: { ip: '10.0.0.1', port: 80 },
        state: 'next',
        code: 502
      },
      { startedAt: 1_700_000_000_130, latency: 0, peer: { ip: '10.0.0.2', port: 80 } }
    ],
    upstreamStatuses: [502, 201],
    answer: undefined,
    route: { id: 'r1' },
    service: { id: 's1' },
    consumer: { id: 'c1' },
    credential: { id: 'k1', consumer: { id: 'c1' } },
    logFields: {},
    ...more
  } as never
}

await t.test('a proxied request', async t => {
  const record = recordOf(finished())
  t.match(record, {
    request: {
      id: 'f'.repeat(32),
      uri: /^\/x\?/,
      url: /^https:\/\/a\.example:8443\/x\?/,
      method: 'POST',
      headers: {
        authorization: 'REDACTED',
        'proxy-authorization': 'REDACTED',
        'x-a': ['1', '2', '3'],
        'x-added': 'yes'
      },
      tls: { version: 'TLSv1.3', cipher: 'TLS_AES_256_GCM_SHA384', client_verify: 'NONE' }
    },
    upstream_uri: '/up?a=1',
    upstream_status: '502, 201',
    response: { status: 201, headers: { 'set-cookie': ['a', 'b'], 'x-b': '1' } },
    latencies: { kong: 10, proxy: 10, request: Number, receive: 5 },
    client_ip: '1.2.3.4',
    started_at: 1_700_000_000_123,
    source: 'upstream',
    workspace_name: 'default',
    route: { id: 'r1' },
    service: { id: 's1' },
    consumer: { id: 'c1' },
    authenticated_entity: { id: 'k1', consumer_id: 'c1' },
    tries: [
      {
        balancer_start: 1_700_000_000_124,
        balancer_latency: 2,
        ip: '10.0.0.1',
        port: 80,
        state: 'next',
        code: 502
      },
      { ip: '10.0.0.2', port: 80 }
    ]
  })
  const { request, response, tries } = record as {
    request: { headers: object; querystring: object; size: number }
    response: { size: number }
    tries: object[]
  }
  t.notOk('x-gone' in request.headers)
  t.notOk(':path' in request.headers)
  t.notOk('state' in tries[1]!)
  t.ok(Object.hasOwn(request.querystring, '__proto__'), 'a query cannot reach a prototype')
  t.same(
    { ...request.querystring },
    { a: ['1', '2'], b: true, c: '%zz', d: 'x y', '': 'e', ['__proto__']: 'p' }
  )
  t.ok(request.size > 7)
  t.equal(response.size, 17 + 11 + 2 + 'Set-Cookie: a\r\n'.length * 2 + 'X-B: 1\r\n'.length)
})

await t.test('three values of a query name', async t => {
  const record = recordOf(finished({ request: { ...finished().request, query: 'a=1&a=2&a=3' } }))
  t.same({ ...(record.request as { querystring: object }).querystring }, { a: ['1', '2', '3'] })
})

await t.test('an answer of the gateway, without any upstream', async t => {
  const record = recordOf(
    finished({
      answer: {},
      sentMark: 0,
      firstByteMark: 0,
      lastByteMark: 0,
      tries: [],
      upstreamStatuses: [],
      upstream: { path: '', query: undefined, edits: undefined },
      request: { ...finished().request, tls: undefined, query: undefined },
      route: undefined,
      service: undefined,
      consumer: undefined,
      credential: undefined
    })
  )
  const { latencies } = record as { latencies: Record<string, number> }
  t.match(record, { source: 'kong', upstream_uri: '', upstream_status: '' })
  t.equal(latencies.kong, latencies.request)
  t.match(latencies, { proxy: -1, receive: 0 })
  for (const key of ['route', 'service', 'consumer', 'authenticated_entity', 'tries']) {
    t.notOk(key in record, `absent: ${key}`)
  }
  t.notOk('tls' in (record.request as object))
})

await t.test('a Unix socket has no port', async t => {
  const record = recordOf(finished({ request: { ...finished().request, port: 0 } }))
  t.match((record.request as { url: string }).url, /^https:\/\/a\.example\/x\?/)
})
