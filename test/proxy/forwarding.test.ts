import { once } from 'node:events'
import http from 'node:http'
import http2 from 'node:http2'
import net, { type AddressInfo } from 'node:net'
import t, { type Test } from 'tap'
import { startGateway, startUpstream, type TestGateway, until } from '../harness.ts'

const services = (url: string, more: object = {}, route: object = {}) => ({
  services: [{ name: 'up', url, ...more, routes: [{ name: 'all', paths: ['/'], ...route }] }]
})

/** Sends raw bytes on one connection and reads until it closes or `until` shows up. */
async function raw(port: number, bytes: string, end?: string): Promise<string> {
  const socket = net.connect(port, '127.0.0.1')
  let text = ''
  socket.setEncoding('latin1')
  socket.write(bytes)
  try {
    for await (const chunk of socket) {
      text += chunk
      if (end !== undefined && text.includes(end)) break
    }
  } catch (error) {
    text += `[${(error as NodeJS.ErrnoException).code}]`
  }
  socket.destroy()
  return text
}

/** A server that answers each connection's first bytes with what `answer` gives, byte for byte. */
async function rawUpstream(answer: (socket: net.Socket, head: string) => void) {
  const sockets = new Set<net.Socket>()
  const server = net.createServer(socket => {
    sockets.add(socket)
    socket.on('error', () => {})
    socket.on('close', () => sockets.delete(socket))
    let head = ''
    socket.setEncoding('latin1')
    socket.on('data', (chunk: string) => {
      head += chunk
      if (!head.includes('\r\n\r\n')) return
      const whole = head
      head = ''
      answer(socket, whole)
    })
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  return {
    url: `http://127.0.0.1:${port}`,
    sockets,
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy()
      await new Promise(resolve => server.close(resolve))
    }
  }
}

await t.test('headers sent upstream and back', async t => {
  await using upstream = await startUpstream((received, response) => {
    response.setHeader('Connection', 'close, X-Named')
    response.setHeader('X-Named', 'hop')
    response.setHeader('X-Kept', 'end')
    response.setHeader('Set-Cookie', ['a=1', 'b=2'])
    response.setHeader('Via', '1.1 other')
    response.setHeader('Server', 'theirs')
    response.end(JSON.stringify(received))
  })
  await using gateway = await startGateway(services(upstream.url, {}, { paths: ['/svc'] }))
  const response = await gateway.fetch('/svc/a%20b?x=%zz&', {
    headers: {
      host: 'client.example:8080',
      'x-end': 'stays',
      'x-forwarded-for': '1.2.3.4',
      'x-forwarded-proto': 'https',
      'x-forwarded-prefix': '/evil',
      'proxy-connection': 'keep-alive',
      te: 'trailers'
    }
  })
  const { url, headers } = response.json()
  t.equal(url, '/a%20b?x=%zz&', 'prefix stripped, query verbatim')
  t.match(headers, {
    host: `127.0.0.1:${upstream.port}`,
    'x-end': 'stays',
    'x-real-ip': '127.0.0.1',
    'x-forwarded-for': '1.2.3.4, 127.0.0.1',
    'x-forwarded-proto': 'http',
    'x-forwarded-host': 'client.example',
    'x-forwarded-port': String(gateway.port),
    'x-forwarded-path': '/svc/a%20b',
    'x-forwarded-prefix': '/svc',
    via: /^1\.1 postern\//,
    te: 'trailers'
  })
  t.equal(headers['proxy-connection'], undefined)
  t.equal(headers['x-postern-request-id'], response.headers['x-postern-request-id'])
  t.match(response.headers, {
    'x-kept': 'end',
    'set-cookie': ['a=1', 'b=2'],
    via: /^1\.1 other, 1\.1 postern\//,
    server: 'theirs',
    'x-postern-request-id': /^[0-9a-f]{32}$/,
    'x-postern-upstream-latency': /^\d+$/,
    'x-postern-proxy-latency': /^\d+$/
  })
  t.equal(response.headers['x-named'], undefined)
})

await t.test(
  'a client may strip its own headers by naming them, never those a plugin adds',
  async t => {
    await using upstream = await startUpstream()
    await using gateway = await startGateway({
      ...services(upstream.url),
      plugins: [{ name: 'correlation-id', config: { header_name: 'X-Correlation' } }]
    })
    const answer = await raw(
      gateway.port,
      'GET / HTTP/1.1\r\nHost: a\r\nConnection: close, X-Hop, X-Correlation, X-Forwarded-For\r\nX-Hop: 1\r\n\r\n'
    )
    t.match(answer, /^HTTP\/1\.1 200/)
    const { headers } = upstream.requests[0]!
    t.equal(headers['x-hop'], undefined)
    t.match(headers['x-correlation'], /#1$/)
    t.equal(headers['x-forwarded-for'], '127.0.0.1')
  }
)

await t.test(
  'forwarding headers of trusted peers, preserve_host and the Kong namespace',
  async t => {
    await using upstream = await startUpstream()
    await using gateway = await startGateway(services(upstream.url, {}, { preserve_host: true }), {
      env: {
        POSTERN_TRUSTED_IPS: '127.0.0.0/8',
        POSTERN_REAL_IP_HEADER: 'X-Forwarded-For',
        POSTERN_REAL_IP_RECURSIVE: 'on',
        POSTERN_HEADERS_NAMESPACE: 'Kong',
        POSTERN_HEADERS: 'X-Kong-Request-Id, X-Kong-Upstream-Status'
      }
    })
    const response = await gateway.fetch('/', {
      headers: {
        host: 'shop.example',
        'x-forwarded-for': '9.9.9.9, 127.0.0.7',
        'x-forwarded-proto': 'https',
        'x-forwarded-host': 'public.example',
        'x-forwarded-prefix': '/p'
      }
    })
    t.match(response.json().headers, {
      host: 'shop.example',
      'x-real-ip': '9.9.9.9',
      'x-forwarded-for': '9.9.9.9, 127.0.0.7, 127.0.0.1',
      'x-forwarded-proto': 'https',
      'x-forwarded-host': 'public.example',
      'x-forwarded-prefix': '/p'
    })
    t.match(response.headers, {
      'x-kong-request-id': /^[0-9a-f]{32}$/,
      'x-kong-upstream-status': '200'
    })
    t.equal(response.headers.via, undefined)
    t.equal(response.headers['x-kong-proxy-latency'], undefined)
  }
)

await t.test('methods, bodies and statuses without a body', async t => {
  await using upstream = await startUpstream((received, response) => {
    if (received.url === '/204') response.writeHead(204).end()
    else if (received.url === '/304') response.writeHead(304, { etag: '"x"' }).end()
    else if (received.url === '/chunks') {
      response.write('one,')
      response.end('two')
    } else {
      const body = `${received.method} ${received.body.length}`
      response.writeHead(200, { 'Content-Length': body.length }).end(body)
    }
  })
  await using gateway = await startGateway(services(upstream.url))
  const text = async (path: string, options = {}) => (await gateway.fetch(path, options)).body
  t.equal(await text('/', { method: 'POST', body: 'hello' }), 'POST 5')
  t.equal(await text('/', { method: 'PUT', body: 'x'.repeat(300_000) }), 'PUT 300000')
  t.equal(await text('/', { method: 'DELETE' }), 'DELETE 0')
  t.equal(await text('/', { method: 'PROPFIND' }), 'PROPFIND 0')
  t.equal(await text('/chunks'), 'one,two')
  const head = await gateway.fetch('/', { method: 'HEAD' })
  t.equal(head.status, 200)
  t.equal(head.body, '')
  t.equal(head.headers['content-length'], '6')
  t.equal((await gateway.fetch('/204')).status, 204)
  const notModified = await gateway.fetch('/304')
  t.equal(notModified.status, 304)
  t.equal(notModified.headers.etag, '"x"')
  const chunked = await raw(
    gateway.port,
    'POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n'
  )
  t.match(chunked, /POST 5/)
})

await t.test('trailers and early hints go through', async t => {
  await using upstream = await rawUpstream(socket => {
    socket.write('HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n')
    socket.write(
      'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 42\r\n\r\n'
    )
  })
  await using gateway = await startGateway(services(upstream.url))
  const request = http.request({ port: gateway.port, path: '/', headers: { te: 'trailers' } })
  const hints: unknown[] = []
  request.on('information', info => hints.push(info.headers.link))
  request.end()
  const [response] = (await once(request, 'response')) as [http.IncomingMessage]
  let body = ''
  for await (const chunk of response) body += chunk
  t.equal(body, 'abc')
  t.equal(response.trailers['x-sum'], '42')
  t.same(hints, ['</style.css>; rel=preload'])
  const without = await raw(gateway.port, 'GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n')
  t.notMatch(without, /X-Sum/i, 'a client that did not ask gets no trailers')
})

await t.test('a head that says too much of a body that is not there', async t => {
  await using upstream = await rawUpstream((socket, head) => {
    const [method, path] = head.split(' ')
    const status = path === '/204' ? '204 No Content' : path === '/304' ? '304 x' : '200 OK'
    const body = method === 'GET' && path === '/200' ? 'hello' : ''
    socket.write(`HTTP/1.1 ${status}\r\nContent-Length: 5\r\nTrailer: X-Sum\r\n\r\n${body}`)
  })
  await using gateway = await startGateway(services(upstream.url), {
    env: { POSTERN_PROXY_LISTEN: '127.0.0.1:0 http2' }
  })
  for (const [method, path, version, length] of [
    ['GET', '/204', '1.1', false],
    ['GET', '/304', '1.1', true],
    ['HEAD', '/200', '1.1', true],
    ['GET', '/200', '1.1', true],
    ['GET', '/200', '1.0', true]
  ] as const) {
    const answer = await raw(
      gateway.port,
      `${method} ${path} HTTP/${version}\r\nHost: a\r\nTE: trailers\r\nConnection: close\r\n\r\n`
    )
    const what = `${method} ${path} ${version}`
    t.match(answer, new RegExp(`^HTTP/1.1 ${path.slice(1)} `), what)
    t.notMatch(answer, /\r\nTrailer:/i, what)
    t.equal(/\r\nContent-Length: 5\r\n/.test(answer), length, what)
  }
  const session = http2.connect(gateway.url)
  const stream = session.request({ ':path': '/204', te: 'trailers' })
  const [headers] = await once(stream, 'response')
  t.equal(headers[':status'], 204)
  t.equal(headers['content-length'], undefined)
  session.destroy()
})

await t.test('what the gateway answers itself, in the type the client accepts', async t => {
  await using gateway = await startGateway({
    services: [
      {
        name: 'refusing',
        url: 'http://127.0.0.1:1',
        retries: 0,
        routes: [{ name: 'r', paths: ['/refusing'] }]
      },
      {
        name: 'off',
        url: 'http://127.0.0.1:1',
        enabled: false,
        routes: [{ name: 'o', paths: ['/off'] }]
      },
      {
        name: 'unknown',
        url: 'http://no-such-name.invalid',
        routes: [{ name: 'n', paths: ['/dns'] }]
      },
      { name: 'empty', host: 'empty.upstream', routes: [{ name: 'e', paths: ['/empty'] }] }
    ],
    upstreams: [{ name: 'empty.upstream' }],
    routes: [
      { name: 'nowhere', paths: ['/nowhere'] },
      { name: 'tls', paths: ['/tls'], protocols: ['https'] },
      { name: 'moved', paths: ['/moved'], protocols: ['https'], https_redirect_status_code: 301 }
    ]
  })
  const message = async (path: string) => {
    const { status, body } = await gateway.fetch(path)
    return [status, body.startsWith('{') ? JSON.parse(body).message : body.split('\n')[0]]
  }
  t.same(await message('/none'), [404, 'no Route matched with those values'])
  t.same(await message('/off'), [404, 'no Route matched with those values'])
  t.same(await message('/nowhere'), [503, 'no Service found with those values'])
  t.same(await message('/refusing'), [
    502,
    'An invalid response was received from the upstream server'
  ])
  t.same(await message('/dns'), [503, 'name resolution failed'])
  t.same(await message('/empty'), [503, 'failure to get a peer from the ring-balancer'])
  t.same(await message('/tls'), [426, 'Please use HTTPS protocol'])
  const moved = await gateway.fetch('/moved?a=1')
  t.equal(moved.status, 301)
  t.equal(moved.headers.location, 'https://127.0.0.1/moved?a=1')
  for (const [accept, type, body] of [
    [
      'application/json',
      'application/json; charset=utf-8',
      /^\{\n {2}"message":"no Route matched with those values",\n {2}"request_id":"[0-9a-f]{32}"\n\}$/
    ],
    [
      'text/html',
      'text/html; charset=utf-8',
      /<h1>Error<\/h1>[\s\S]*<p>no Route matched with those values\.<\/p>/
    ],
    [
      'application/xml',
      'application/xml; charset=utf-8',
      /<message>no Route matched with those values<\/message>/
    ],
    [
      'text/plain',
      'text/plain; charset=utf-8',
      /^no Route matched with those values\nrequest_id: [0-9a-f]{32}\n$/
    ]
  ] as const) {
    const response = await gateway.fetch('/none', { headers: { accept } })
    t.equal(response.headers['content-type'], type)
    t.match(response.body, body)
  }
  const layer = await gateway.fetch('/refusing', { headers: { accept: 'text/html' } })
  t.match(layer.headers['content-type'], 'text/html')
})

await t.test('retries: another target, never after bytes of the answer, by method', async t => {
  let broken = 0
  await using dead = await rawUpstream(socket => {
    broken++
    socket.destroy()
  })
  await using live = await startUpstream()
  const config = (retries: number) => ({
    upstreams: [
      {
        name: 'pair.upstream',
        targets: [{ target: dead.url.slice(7) }, { target: `127.0.0.1:${live.port}` }]
      }
    ],
    services: [{ name: 's', host: 'pair.upstream', retries, routes: [{ name: 'r', paths: ['/'] }] }]
  })
  await using gateway = await startGateway(config(2))
  for (let i = 0; i < 4; i++) t.equal((await gateway.fetch('/')).status, 200)
  t.ok(broken >= 2, 'the dead target was tried')
  const posts = [
    await gateway.fetch('/', { method: 'POST' }),
    await gateway.fetch('/', { method: 'POST' })
  ]
  t.same(
    posts.map(({ status }) => status).sort(),
    [200, 502],
    'a POST that was sent is not repeated'
  )
  await gateway.reload(config(0))
  const answers = [await gateway.fetch('/'), await gateway.fetch('/')]
  t.same(answers.map(({ status }) => status).sort(), [200, 502])
})

await t.test('timeouts are 504, a broken answer cuts the connection', async t => {
  await using upstream = await rawUpstream((socket, head) => {
    if (head.includes('GET /half')) {
      socket.write('HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf')
      setTimeout(() => socket.destroy(), 20)
    } else if (head.includes('GET /garbage')) {
      socket.end('nonsense\r\n\r\n')
    }
  })
  await using gateway = await startGateway(
    services(upstream.url, { read_timeout: 300, retries: 0 })
  )
  const late = await gateway.fetch('/slow')
  t.equal(late.status, 504)
  t.match(late.body, /The upstream server is timing out/)
  t.equal((await gateway.fetch('/garbage')).status, 502)
  await t.rejects(gateway.fetch('/half'), 'the client sees that the body is not whole')
  const half = await raw(gateway.port, 'GET /half HTTP/1.1\r\nHost: a\r\n\r\n')
  t.match(half, /Content-Length: 10[\s\S]*half$/i)
})

await t.test('a client that leaves ends the work of the upstream', async () => {
  let closed = false
  await using upstream = await startUpstream((_received, response) => {
    response.on('close', () => {
      closed = true
    })
    response.write('first')
  })
  await using gateway = await startGateway(services(upstream.url))
  const socket = net.connect(gateway.port, '127.0.0.1')
  socket.write('GET / HTTP/1.1\r\nHost: a\r\n\r\n')
  await once(socket, 'data')
  socket.destroy()
  await until(() => closed, 'the upstream request to end')
  await until(
    async () => (await gateway.status('/status')).json().inFlight === 0,
    'nothing in flight'
  )
})

await t.test('back-pressure: neither direction is gathered in memory', async t => {
  const total = 64 * 1024 * 1024
  let sent = 0
  await using upstream = await startUpstream((_received, response) => {
    const chunk = Buffer.alloc(64 * 1024)
    const more = (): void => {
      while (sent < total) {
        sent += chunk.length
        if (!response.write(chunk)) {
          response.once('drain', more)
          return
        }
      }
      response.end()
    }
    more()
  })
  await using gateway = await startGateway(services(upstream.url))
  const socket = net.connect(gateway.port, '127.0.0.1')
  socket.write('GET / HTTP/1.1\r\nHost: a\r\n\r\n')
  const [first] = (await once(socket, 'data')) as [Buffer]
  socket.pause()
  let before = -1
  await until(() => {
    const still = sent === before
    before = sent
    return still
  }, 'the upstream to be held back')
  t.ok(sent < total / 2, `held back after ${sent} of ${total} bytes`)
  let received = first.length
  socket.on('data', chunk => {
    received += chunk.length
  })
  socket.resume()
  await until(() => received > total, 'the rest to arrive')
  socket.destroy()
})

await t.test('ambiguous framing is answered 400 and closed', async t => {
  await using upstream = await startUpstream()
  await using gateway = await startGateway(services(upstream.url))
  const cases: Record<string, string> = {
    'two Hosts': 'GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n',
    'no Host': 'GET / HTTP/1.1\r\n\r\n',
    'a Host with a path': 'GET / HTTP/1.1\r\nHost: a/b\r\n\r\n',
    'both lengths':
      'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
    'two lengths':
      'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc',
    'a coding on 1.0': 'POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
    'another coding':
      'POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n',
    'a fragment': 'GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n',
    'a backslash': 'GET /a\\b HTTP/1.1\r\nHost: a\r\n\r\n',
    'another authority': 'GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n',
    'no request at all': 'hello\r\n\r\n'
  }
  for (const [name, bytes] of Object.entries(cases)) {
    const answer = await raw(gateway.port, bytes)
    t.match(answer, /^HTTP\/1\.1 400 Bad Request/, name)
    t.match(answer, /connection: close/i, `${name}: closed`)
  }
  t.equal(upstream.requests.length, 0, 'nothing reached the upstream')
  t.match(await raw(gateway.port, 'TRACE / HTTP/1.1\r\nHost: a\r\n\r\n'), /^HTTP\/1\.1 405/)
  const plain = await raw(
    gateway.port,
    'GET /h2c HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n'
  )
  t.match(plain, /^HTTP\/1\.1 200/, 'an h2c upgrade is served as a plain request')
  const { headers } = upstream.requests.at(-1)!
  t.equal(headers.upgrade, undefined)
  t.equal(headers['http2-settings'], undefined)
})

async function limits(t: Test, gateway: TestGateway): Promise<void> {
  t.equal((await gateway.fetch('/', { method: 'POST', body: 'x'.repeat(10) })).status, 200)
  t.equal((await gateway.fetch('/', { method: 'POST', body: 'x'.repeat(11) })).status, 413)
  const chunked = await raw(
    gateway.port,
    'POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nb\r\nabcdefghijk\r\n0\r\n\r\n'
  )
  t.match(chunked, /^HTTP\/1\.1 413/)
  const long = await raw(
    gateway.port,
    `GET / HTTP/1.1\r\nHost: a\r\nX: ${'y'.repeat(40_000)}\r\n\r\n`
  )
  t.match(long, /^HTTP\/1\.1 400[\s\S]*Request header or cookie too large/)
}

await t.test('limits of bodies and heads', async t => {
  await using upstream = await startUpstream()
  await using gateway = await startGateway(services(upstream.url), {
    env: { POSTERN_MAX_BODY_SIZE: '10' }
  })
  await limits(t, gateway)
})
