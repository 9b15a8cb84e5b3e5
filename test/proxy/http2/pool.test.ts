import { once } from 'node:events'
import http2, { type ServerHttp2Session, type ServerHttp2Stream } from 'node:http2'
import https from 'node:https'
import type { AddressInfo, Socket } from 'node:net'
import net from 'node:net'
import { Readable } from 'node:stream'
import t from 'tap'
import { buildConnector, type Dispatcher } from 'undici'
import { AlpnPool } from '../../../src/proxy/alpn-pool.ts'
import { HeldBody } from '../../../src/proxy/held-body.ts'
import { Http2Pool } from '../../../src/proxy/http2/pool.ts'
import type { ForwardOptions, PoolBounds } from '../../../src/proxy/pool.ts'
import { bodyOf } from '../../bodies.ts'
import { certificateFor } from '../../certificates.ts'
import { until } from '../../harness.ts'

type Answer = (stream: ServerHttp2Stream, headers: http2.IncomingHttpHeaders) => void

/** A server of HTTP/2 without TLS. */
async function startHttp2(answer: Answer, options: http2.ServerOptions = {}) {
  const sessions: ServerHttp2Session[] = []
  const server = http2.createServer(options)
  server.on('session', session => {
    sessions.push(session)
    session.on('error', () => {})
  })
  server.on('stream', (stream, headers) => {
    stream.on('error', () => {})
    answer(stream, headers)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    port: (server.address() as AddressInfo).port,
    sessions,
    async [Symbol.asyncDispose]() {
      for (const session of sessions) session.destroy()
      await new Promise(resolve => server.close(resolve))
    }
  }
}

const bounds = {
  connections: 10,
  maxWaiting: 100,
  waitTimeout: 10_000,
  idleTimeout: 60_000,
  maxRequests: 100
}

function openPool(port: number, options: Partial<PoolBounds> = {}) {
  const connect = buildConnector({
    allowH2: true,
    useH2c: true,
    timeout: 10_000
  } as buildConnector.BuildOptions)
  const pool = new Http2Pool(new URL(`http://127.0.0.1:${port}`), {
    connect,
    ...bounds,
    ...options
  })
  return Object.assign(pool, { [Symbol.asyncDispose]: () => pool.destroy() })
}

interface Got {
  readonly status: number
  readonly body: string
  readonly trailers: unknown
}

/** Dispatches and gathers the answer; `handler` sees everything first. */
function call(
  pool: Dispatcher,
  { body: sent, ...options }: Partial<ForwardOptions> = {},
  handler: Dispatcher.DispatchHandler = {}
): Promise<Got> {
  const { promise, resolve, reject } = Promise.withResolvers<Got>()
  let status = 0
  let body = ''
  pool.dispatch(
    {
      path: '/',
      method: 'GET',
      headers: ['Host', 'a.test'],
      headersTimeout: 20_000,
      ...options,
      body: sent as Readable
    },
    {
      onRequestStart(controller, context) {
        handler.onRequestStart?.(controller, context)
      },
      onResponseStart(controller, code, headers, text) {
        status = code
        handler.onResponseStart?.(controller, code, headers, text)
      },
      onResponseData(_controller, chunk) {
        body += chunk.toString('latin1')
      },
      onResponseEnd(controller) {
        resolve({ status, body, trailers: controller.rawTrailers })
      },
      onResponseError(_controller, error) {
        reject(error)
      }
    }
  )
  return promise
}

const hello: Answer = stream => {
  stream.respond({ ':status': 200 })
  stream.end('hello')
}

await t.test('fields, bodies and trailers, many at a time over one connection', async t => {
  const seen: http2.IncomingHttpHeaders[] = []
  const trailers: http2.IncomingHttpHeaders[] = []
  await using server = await startHttp2((stream, headers) => {
    seen.push(headers)
    stream.on('trailers', fields => trailers.push(fields))
    stream.respond({ ':status': 201, 'x-one': ['a', 'b'] }, { waitForTrailers: true })
    stream.on('wantTrailers', () => stream.sendTrailers({ 'x-end': 'yes' }))
    stream.pipe(stream)
  })
  await using pool = openPool(server.port)
  const headers = ['Host', 'a.test', 'X-Two', '1', 'X-Two', '2', 'Connection', 'close']
  const [one] = await Promise.all([
    call(pool, { method: 'POST', path: '/x?y', headers, body: Buffer.from('body') }),
    ...Array.from({ length: 20 }, () => call(pool))
  ])
  t.match(one, { status: 201, body: 'body', trailers: ['x-end', 'yes'] })
  t.match(seen[0], { ':method': 'POST', ':path': '/x?y', ':authority': 'a.test', 'x-two': '1, 2' })
  t.notOk('connection' in seen[0]!)
  const body = Object.assign(Readable.from([Buffer.from('a'), Buffer.from('b')]), {
    trailers: 'X-Sum: 1\r\nX-Sum: 2\r\n'
  })
  t.equal((await call(pool, { method: 'POST', body })).body, 'ab')
  t.match(trailers.at(-1), { 'x-sum': '1, 2' })
  t.equal(server.sessions.length, 1)
})

await t.test('what an upstream could read as more than it is, is not sent', async t => {
  await using server = await startHttp2(hello)
  await using pool = openPool(server.port)
  await t.rejects(call(pool, { path: '/a b' }), { code: 'UND_ERR_INVALID_ARG' })
  await t.rejects(call(pool, { headers: ['Host', 'a', 'X', 'a\r\nb: c'] }), {
    code: 'UND_ERR_INVALID_ARG'
  })
  t.equal((await call(pool)).body, 'hello')
})

await t.test('the limit of streams opens more connections, within their own limit', async t => {
  const held: ServerHttp2Stream[] = []
  await using server = await startHttp2(stream => held.push(stream), {
    settings: { maxConcurrentStreams: 2 }
  })
  await using pool = openPool(server.port, { connections: 2, maxWaiting: 2 })
  const calls = Array.from({ length: 3 }, () => call(pool))
  await until(() => held.length === 3, 'three under way')
  calls.push(call(pool))
  await until(() => held.length === 4, 'four under way')
  t.equal(server.sessions.length, 2)
  calls.push(call(pool), call(pool))
  await t.rejects(call(pool), { code: 'POSTERN_UPSTREAM_BUSY' })
  const answering = setInterval(() => {
    for (const stream of held.splice(0)) hello(stream, {})
  }, 5)
  for (const got of await Promise.all(calls)) t.equal(got.body, 'hello')
  clearInterval(answering)
  t.equal(server.sessions.length, 2)
})

await t.test('waiting ends: for a free stream, and for a connection', async t => {
  const held: ServerHttp2Stream[] = []
  await using server = await startHttp2(stream => held.push(stream), {
    settings: { maxConcurrentStreams: 1 }
  })
  await using pool = openPool(server.port, { connections: 1, waitTimeout: 300 })
  const first = call(pool)
  await until(() => held.length === 1, 'the first under way')
  await t.rejects(call(pool), { code: 'POSTERN_UPSTREAM_QUEUE_TIMEOUT', statusCode: 503 })
  hello(held[0]!, {})
  t.equal((await first).body, 'hello')
  // A connector that never comes back, as when packets are dropped.
  await using lost = openPool(server.port, { waitTimeout: 50, connect: () => {} })
  await t.rejects(call(lost), { code: 'UND_ERR_CONNECT_TIMEOUT' })
  await using refused = openPool(1)
  await t.rejects(call(refused), { code: 'ECONNREFUSED' })
})

await t.test('a connection that ends before it begins is the failure of who waited', async t => {
  let connections = 0
  const server = net.createServer(socket => {
    connections++
    socket.destroy()
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => server.close())
  await using pool = openPool((server.address() as AddressInfo).port)
  await t.rejects(call(pool))
  t.equal(connections, 1)
})

await t.test('GOAWAY: what runs finishes, what was not begun is sent again', async t => {
  const streams: ServerHttp2Stream[] = []
  let bodies = 0
  await using server = await startHttp2((stream, headers) => {
    streams.push(stream)
    if (streams.length === 2) {
      // It goes away having begun with the first only.
      stream.session!.goaway(http2.constants.NGHTTP2_NO_ERROR, streams[0]!.id!)
    } else if (streams.length > 2) {
      stream.on('data', () => bodies++)
      stream.on('end', () => hello(stream, headers))
    }
  })
  await using pool = openPool(server.port)
  const first = call(pool)
  await until(() => streams.length === 1, 'the first under way')
  const starts: unknown[] = []
  const second = call(
    pool,
    { method: 'POST', body: Buffer.from('once') },
    { onRequestStart: controller => starts.push(controller) }
  )
  t.equal((await second).body, 'hello', 'a POST too: nobody has begun with it')
  t.equal(starts.length, 2)
  t.equal(bodies, 1)
  hello(streams[0]!, {})
  t.equal((await first).body, 'hello')
  t.equal(server.sessions.length, 2)
})

await t.test('GOAWAY for an error: what was begun fails, what was not is sent again', async t => {
  const streams: ServerHttp2Stream[] = []
  await using server = await startHttp2((stream, headers) => {
    streams.push(stream)
    if (streams.length > 2) hello(stream, headers)
    else if (streams.length === 2) {
      stream.session!.goaway(http2.constants.NGHTTP2_ENHANCE_YOUR_CALM, streams[0]!.id!)
    }
  })
  await using pool = openPool(server.port)
  const first = call(pool)
  await until(() => streams.length === 1, 'the first under way')
  const [one, two] = await Promise.allSettled([first, call(pool, { method: 'POST' })])
  t.equal(one.status, 'rejected')
  t.match(two, { status: 'fulfilled', value: { body: 'hello' } })
})

await t.test('refused streams are sent again, not for ever, and not once answered', async t => {
  let refusing = 2
  let requests = 0
  await using server = await startHttp2((stream, headers) => {
    requests++
    if (refusing-- > 0) stream.close(http2.constants.NGHTTP2_REFUSED_STREAM)
    else hello(stream, headers)
  })
  await using pool = openPool(server.port)
  t.equal((await call(pool, { method: 'POST', body: Buffer.from('x') })).body, 'hello')
  t.equal(requests, 3)
  refusing = Number.POSITIVE_INFINITY
  requests = 0
  await t.rejects(call(pool), { code: 'ERR_HTTP2_STREAM_ERROR' })
  t.equal(requests, 4)
  refusing = 1
  const body = Readable.from([Buffer.from('gone')])
  await t.rejects(call(pool, { method: 'POST', body }), 'a body that was streamed is gone')
})

await t.test('a connection is replaced after its requests, and after its idle time', async t => {
  await using server = await startHttp2(hello)
  await using few = openPool(server.port, { maxRequests: 2 })
  for (let i = 0; i < 5; i++) t.equal((await call(few)).body, 'hello')
  t.equal(server.sessions.length, 3)
  await using short = openPool(server.port, { idleTimeout: 20 })
  await call(short)
  const session = server.sessions.at(-1)!
  await until(() => session.closed || session.destroyed, 'its end')
  t.equal((await call(short)).body, 'hello')
})

await t.test('silence: time-outs, of events none; the connection is in doubt then', async t => {
  const held: ServerHttp2Stream[] = []
  await using server = await startHttp2((stream, headers) => {
    held.push(stream)
    if (headers[':path'] === '/none') return
    const type = headers[':path'] === '/events' ? 'text/event-stream' : 'text/plain'
    stream.respond({ ':status': 200, 'content-type': type })
    if (type !== 'text/event-stream') return
    setTimeout(() => stream.end('late'), 200)
  })
  await using pool = openPool(server.port)
  const events = call(pool, { path: '/events', bodyTimeout: 50 })
  t.equal((await events).body, 'late')
  await t.rejects(call(pool, { path: '/body', bodyTimeout: 50 }), { code: 'UND_ERR_BODY_TIMEOUT' })
  t.equal(server.sessions.length, 1)
  await t.rejects(call(pool, { path: '/none', headersTimeout: 200 }), {
    code: 'UND_ERR_HEADERS_TIMEOUT'
  })
  t.equal(server.sessions.length, 2)
})

await t.test('a body that is held, no faster than it is taken', async t => {
  const bytes = bodyOf(1, 1_000_000)
  await using server = await startHttp2((stream, headers) => {
    if (headers[':path'] === '/none') return
    stream.respond({ ':status': 200 })
    if (headers[':path'] === '/early') stream.end('early')
    else stream.pipe(stream)
  })
  await using pool = openPool(server.port)
  const send = (path: string) =>
    call(pool, { method: 'POST', path, body: HeldBody.of(bytes), writeTimeout: 300 })
  const { body } = await send('/echo')
  t.ok(Buffer.from(body, 'latin1').equals(bytes))
  t.equal((await send('/early')).body, 'early')
  await t.rejects(send('/none'), { code: 'POSTERN_WRITE_TIMEOUT' })
  t.equal((await call(pool, { method: 'POST', body: HeldBody.of(Buffer.alloc(0)) })).body, '')
})

await t.test('closing waits for what is under way and serves who waits', async t => {
  const held: ServerHttp2Stream[] = []
  await using server = await startHttp2(stream => held.push(stream), {
    settings: { maxConcurrentStreams: 1 }
  })
  const pool = openPool(server.port, { connections: 1 })
  const calls = [call(pool), call(pool)]
  await until(() => held.length === 1, 'the first under way')
  let closed = false
  const closing = pool.close().then(() => {
    closed = true
  })
  await t.rejects(call(pool), { code: 'UND_ERR_DESTROYED' })
  hello(held[0]!, {})
  await until(() => held.length === 2, 'the second under way')
  t.notOk(closed)
  hello(held[1]!, {})
  for (const got of await Promise.all(calls)) t.equal(got.body, 'hello')
  await closing
  const cut = openPool(server.port, { connections: 1 })
  const under = [call(cut), call(cut)]
  await until(() => held.length === 3, 'another under way')
  const ended = Promise.allSettled(under)
  await cut.destroy()
  for (const { status } of await ended) t.equal(status, 'rejected')
  await new Promise<void>(resolve => openPool(server.port).close(resolve))
  await new Promise<void>(resolve => openPool(server.port).destroy(resolve))
})

await t.test('aborting, while it waits and under way', async t => {
  const held: ServerHttp2Stream[] = []
  await using server = await startHttp2(stream => held.push(stream), {
    settings: { maxConcurrentStreams: 1 }
  })
  await using pool = openPool(server.port, { connections: 1 })
  const controllers: Dispatcher.DispatchController[] = []
  const first = call(pool, {}, { onRequestStart: each => controllers.push(each) })
  await until(() => held.length === 1, 'the first under way')
  controllers[0]!.abort(new Error('enough'))
  await t.rejects(first, { message: 'enough' })
  const never = call(pool, {}, { onRequestStart: each => each.abort(new Error('at once')) })
  await t.rejects(never, { message: 'at once' })
})

await t.test('ALPN: HTTP/2 where the upstream chooses it, else HTTP/1.1', async t => {
  const { cert, key } = await certificateFor('a.test')
  const connector = (allowH2: boolean) =>
    buildConnector({
      allowH2,
      preferH2: allowH2,
      rejectUnauthorized: false,
      servername: 'a.test'
    } as buildConnector.BuildOptions)
  const open = (port: number) =>
    new AlpnPool(
      new URL(`https://127.0.0.1:${port}`),
      { ...bounds, connect: connector(false), maxHeadSize: 4096 },
      connector(true)
    )
  const serve = async (server: net.Server) => {
    const sockets: Socket[] = []
    server.on('connection', socket => sockets.push(socket))
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    t.teardown(() => {
      for (const socket of sockets) socket.destroy()
      server.close()
    })
    return (server.address() as AddressInfo).port
  }
  const both = http2.createSecureServer({ cert, key, allowHTTP1: true }, (request, response) => {
    response.end(request.httpVersion)
  })
  const old = https.createServer({ cert, key }, (request, response) => {
    response.end(request.httpVersion)
  })
  for (const [server, version] of [
    [both, '2.0'],
    [old, '1.1']
  ] as const) {
    const pool = open(await serve(server))
    const calls = Array.from({ length: 5 }, () => call(pool))
    for (const got of await Promise.all(calls)) t.equal(got.body, version)
    t.equal((await call(pool)).body, version)
    await pool.close()
    const other = open(1)
    await t.rejects(call(other), { code: 'ECONNREFUSED' })
    await other.destroy()
  }
})
