import { once } from 'node:events'
import http, { type IncomingMessage, type ServerResponse } from 'node:http'
import http2 from 'node:http2'
import net, { type AddressInfo, type Socket } from 'node:net'
import t from 'tap'
import { startGateway, until } from '../harness.ts'
import { raw, statuses } from '../raw.ts'

// What other proxies for Node got wrong, by the thread or advisory that tells of it. Elsewhere:
// fastify-http-proxy#314, node-http-proxy#766 (WebSockets): websocket.test.ts, websocket-link.test.ts
// fastify-reply-from 49a0e5c, 933b383 (HTTP/2 sessions after GOAWAY): http2/pool.test.ts
// fastify#1714, #3617, #5524 (unready before the drain): ../gateway.test.ts

t.setTimeout(120_000)

interface Seen {
  readonly request: IncomingMessage
  readonly response: ServerResponse
  body: string
  closed: boolean
}

const seen: Seen[] = []
const connections = new Set<Socket>()
let opened = 0

/** Answers by the last segment of the path; everything else is echoed. */
const upstream = http.createServer((request, response) => {
  const each: Seen = { request, response, body: '', closed: false }
  seen.push(each)
  response.on('close', () => {
    each.closed = true
  })
  request.setEncoding('latin1').on('data', chunk => {
    each.body += chunk
  })
  const path = request.url!.split('?')[0]!
  if (path.endsWith('/silent')) return
  if (path.endsWith('/half')) {
    response.writeHead(200, { 'Content-Length': '10' }).write('half')
  } else if (path.endsWith('/events')) {
    response.writeHead(200, { 'Content-Type': 'text/event-stream' }).flushHeaders()
  } else if (path.endsWith('/503')) response.writeHead(503).end('busy')
  else if (path.endsWith('/303')) response.writeHead(303, { Location: '../next?a=b' }).end()
  else if (path.endsWith('/204') || path.endsWith('/304')) {
    response.writeHead(Number(path.slice(-3)), { 'X-Kept': '1' }).end()
  } else {
    request.on('end', () => response.end(request.url))
  }
})
upstream.keepAliveTimeout = 60_000
upstream.on('connection', socket => {
  opened++
  connections.add(socket)
  socket.on('close', () => connections.delete(socket))
})
upstream.listen(0, '127.0.0.1')
await once(upstream, 'listening')
const { port: upstreamPort } = upstream.address() as AddressInfo
t.teardown(() => {
  upstream.closeAllConnections()
  upstream.close()
})

const configuration = (port: number) => ({
  services: [
    {
      name: 'up',
      url: `http://127.0.0.1:${port}/base`,
      read_timeout: 1500,
      routes: [
        { name: 'app', paths: ['/app'] },
        { name: 'streamed', paths: ['/streamed'], request_buffering: false }
      ]
    },
    {
      name: 'named',
      url: `http://127.0.0.1:${port}`,
      routes: [{ name: 'named', paths: ['/named'], preserve_host: true }],
      plugins: [{ name: 'correlation-id', config: { header_name: 'X-Injected' } }]
    }
  ]
})
const gateway = await startGateway(configuration(upstreamPort), {
  env: { POSTERN_PROXY_LISTEN: '127.0.0.1:0 http2', POSTERN_UPSTREAM_KEEPALIVE_POOL_SIZE: '8' }
})
t.teardown(() => gateway.close())

const last = (): Seen => seen.at(-1)!
const nothingInFlight = (): Promise<unknown> =>
  until(
    async () => (await gateway.status('/status')).json().inFlight === 0,
    'nothing to be in flight'
  )

await t.test('fastify-reply-from#328: a body that stops does not end the process', async t => {
  await t.rejects(gateway.fetch('/app/half'), 'the client sees that it is not whole')
  t.equal((await gateway.fetch('/app/after')).status, 200)
  await nothingInFlight()
})

await t.test('fastify-reply-from#93, fast-proxy#33: a time-out is 504', async t => {
  t.equal((await gateway.fetch('/app/silent', { method: 'POST' })).status, 504)
})

await t.test('fastify-reply-from#167: a reset is tried again, a 503 never is', async t => {
  const before = seen.length
  t.equal((await gateway.fetch('/app/503')).status, 503)
  t.equal(seen.length, before + 1)
  let resets = 0
  const resetting = net.createServer(socket => {
    socket.on('error', () => {})
    socket.once('data', () => {
      if (++resets < 3) socket.resetAndDestroy()
      else socket.end('HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok')
    })
  })
  resetting.listen(0, '127.0.0.1')
  await once(resetting, 'listening')
  t.teardown(() => resetting.close())
  const { port } = resetting.address() as AddressInfo
  await using other = await startGateway(configuration(port))
  t.equal((await other.fetch('/app/')).status, 200)
  t.equal(resets, 3)
})

await t.test('fastify-reply-from#206: connections are kept, and bounded', async t => {
  await gateway.fetch('/app/first')
  const before = opened
  for (let i = 0; i < 20; i++) await gateway.fetch('/app/again')
  t.equal(opened, before, 'one after the other on the same connection')
  const held = Array.from({ length: 40 }, () => gateway.fetch('/named/silent').catch(() => {}))
  await until(() => connections.size === 8, 'as many as there may be')
  t.equal(connections.size, 8)
  const answering = setInterval(() => {
    for (const { response } of seen) if (!response.writableEnded) response.end()
  }, 10)
  await Promise.all(held)
  clearInterval(answering)
  t.ok(connections.size <= 8)
})

await t.test('fastify-reply-from#449: fields that Connection names end here', async t => {
  await raw(
    gateway.port,
    'GET /named/ HTTP/1.1\r\nHost: a\r\nConnection: close, X-Hop, X-Injected, X-Forwarded-For, Host\r\nX-Hop: 1\r\n\r\n'
  )
  const { headers } = last().request
  t.equal(headers['x-hop'], undefined)
  t.match(headers['x-injected'], /#\d+$/, 'what the gateway adds cannot be stripped')
  t.equal(headers['x-forwarded-for'], '127.0.0.1')
  t.equal(headers.host, 'a')
})

await t.test(
  'GHSA-v2v2-hph8-q5xp, GHSA-qmw8-3v4g-gwj4, GHSA-c4qr-gmr9-v23w: no way out of a prefix',
  async t => {
    for (const path of [
      '/app/../secret',
      '/app/..%2fsecret',
      '/app/%2e%2e/secret',
      '/app/%2e%2e%2fsecret',
      '/app/a/../../secret',
      '/app/..;/secret',
      '/app/..%5csecret',
      '/app//../../secret'
    ]) {
      const before = seen.length
      const [status] = statuses(
        await raw(gateway.port, `GET ${path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n`)
      )
      if (seen.length === before) {
        t.ok(status! >= 400, `${path} is refused`)
        continue
      }
      const segments = decodeURIComponent(last().request.url!).split(/[/\\]/)
      t.ok(segments[1] === 'base' && !segments.includes('..'), `${path} → ${last().request.url}`)
    }
  }
)

await t.test('fastify-reply-from#461: three dots are a name', async t => {
  t.equal((await gateway.fetch('/app/.../a..b')).body, '/base/.../a..b')
})

await t.test('GHSA-2q7r-29rg-6m5h: a query is no path', async t => {
  for (const query of ['a=/../../x', 'next=//evil.example/', 'a?b=c', '/app/../x', 'a=..%2f']) {
    t.equal((await gateway.fetch(`/app/q?${query}`)).body, `/base/q?${query}`)
  }
})

await t.test('GHSA-v574-6498-x57v: targets that concatenate alike are not confused', async t => {
  for (const path of ['/app/x', '/named/base/x', '/app/x?/y', '/named/x', '/app/x/']) {
    const body = path.startsWith('/app') ? `/base${path.slice(4)}` : path.slice(6)
    for (let i = 0; i < 2; i++) t.equal((await gateway.fetch(path)).body, body, path)
  }
})

await t.test(
  'fastify-reply-from da664ac: a request that is broken off is whole nowhere',
  async t => {
    const before = seen.length
    const socket = net.connect(gateway.port, '127.0.0.1')
    socket.on('error', () => {})
    socket.write('POST /streamed/up HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nhalf')
    await until(() => seen.length > before, 'the request to reach the upstream')
    const { request } = last()
    request.on('error', () => {})
    socket.destroy()
    await until(() => request.destroyed, 'the upstream to see that')
    t.notOk(request.complete)
    await nothingInFlight()
  }
)

await t.test('fast-proxy#6, #7, yari#8894, fastify#2678: who the client asked for', async t => {
  await gateway.fetch('/named/', {
    headers: [
      'Host',
      'shop.example:8443',
      'X-Forwarded-Host',
      'evil.example',
      'X-Twice',
      'a',
      'X-Twice',
      'b'
    ]
  })
  t.equal(last().request.headers.host, 'shop.example:8443', 'with its port')
  t.equal(last().request.headers['x-forwarded-host'], 'shop.example', 'not what anyone claims')
  const { rawHeaders } = last().request
  const twice = rawHeaders.flatMap((name, i) =>
    name.toLowerCase() === 'x-twice' && i % 2 === 0 ? [rawHeaders[i + 1]] : []
  )
  t.same(twice, ['a', 'b'], 'a field that came twice goes on twice')
  const session = http2.connect(gateway.url)
  t.teardown(() => session.destroy())
  const stream = session.request({ ':path': '/named/', ':authority': 'two.example:9000' })
  stream.resume()
  await once(stream, 'end')
  t.match(last().request.headers, { host: 'two.example:9000', 'x-forwarded-host': 'two.example' })
})

await t.test(
  'undici#583: a connection that is closed as a request leaves costs no answer',
  async t => {
    // Each connection answers once, says nothing of its end, and closes when the next request comes.
    const closing = net.createServer(socket => {
      let answered = false
      socket.on('error', () => {})
      socket.on('data', () => {
        if (answered) socket.destroy()
        else socket.write('HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok')
        answered = true
      })
    })
    closing.listen(0, '127.0.0.1')
    await once(closing, 'listening')
    t.teardown(() => closing.close())
    const { port } = closing.address() as AddressInfo
    await using other = await startGateway({
      services: [
        {
          name: 'up',
          url: `http://127.0.0.1:${port}`,
          retries: 0,
          routes: [{ name: 'r', paths: ['/'] }]
        }
      ]
    })
    for (let i = 0; i < 10; i++) t.equal((await other.fetch('/')).status, 200)
  }
)

await t.test('undici#4223: what a reload leaves behind is let go', async t => {
  await gateway.fetch('/app/x')
  await until(() => connections.size > 0, 'a connection')
  const second = http.createServer((_request, response) => void response.end('second'))
  second.listen(0, '127.0.0.1')
  await once(second, 'listening')
  t.teardown(() => {
    second.closeAllConnections()
    second.close()
  })
  await gateway.reload(configuration((second.address() as AddressInfo).port))
  t.equal((await gateway.fetch('/app/x')).body, 'second')
  await until(() => connections.size === 0, 'the connections of before to be closed')
  await gateway.reload(configuration(upstreamPort))
})

await t.test('httpxy: statuses without a body, redirects and slashes stay as they are', async t => {
  for (const status of [204, 304]) {
    const answer = await raw(
      gateway.port,
      `GET /app/${status} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n`
    )
    t.match(answer, new RegExp(`^HTTP/1.1 ${status} `))
    t.notMatch(answer, /transfer-encoding|content-length/i)
    t.match(answer, /\r\n\r\n$/)
  }
  const redirect = await gateway.fetch('/app/303', { method: 'POST', body: 'x' })
  t.equal(redirect.status, 303)
  t.equal(redirect.headers.location, '../next?a=b')
})

await t.test('httpxy: bodies of DELETE and OPTIONS, fields that came twice', async t => {
  for (const method of ['DELETE', 'OPTIONS']) {
    await raw(
      gateway.port,
      `${method} /app/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Forwarded-For: 1.1.1.1\r\nX-Forwarded-For: 2.2.2.2\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n`
    )
    t.equal(last().body, 'abc', method)
    const { rawHeaders } = last().request
    const fields = rawHeaders.filter(name => name.toLowerCase().startsWith('x-forwarded-for'))
    t.equal(fields.length, 1)
    t.equal(last().request.headers['x-forwarded-for'], '1.1.1.1, 2.2.2.2, 127.0.0.1')
  }
})

await t.test(
  'httpxy: a client that leaves ends the work of the upstream, of events too',
  async () => {
    for (const path of ['/named/silent', '/app/events']) {
      const before = seen.length
      const socket = net.connect(gateway.port, '127.0.0.1')
      socket.on('error', () => {})
      socket.write(`GET ${path} HTTP/1.1\r\nHost: a\r\n\r\n`)
      await until(() => seen.length > before, 'the request to reach the upstream')
      socket.destroy()
      await until(() => last().closed, `${path} to end`)
    }
    await nothingInFlight()
  }
)

await t.test('httpxy: bytes that are no field value do not reach the client', async t => {
  const odd = net.createServer(socket => {
    socket.on('error', () => {})
    socket.once('data', () =>
      socket.end('HTTP/1.1 200 OK\r\nX-Odd: a\x01b\r\nX-Split: a\rb\r\nContent-Length: 0\r\n\r\n')
    )
  })
  odd.listen(0, '127.0.0.1')
  await once(odd, 'listening')
  t.teardown(() => odd.close())
  await using other = await startGateway(configuration((odd.address() as AddressInfo).port))
  const answer = await raw(other.port, 'GET /app/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n')
  t.same(statuses(answer), [502])
  t.notMatch(answer, /X-Odd|X-Split/i)
})

await t.test(
  'fastify-reply-from#299: a stream of events outlives the time-out of reads',
  async () => {
    const before = seen.length
    const request = http.get(`${gateway.url}/app/events`, { agent: false })
    const [stream] = (await once(request, 'response')) as [IncomingMessage]
    await new Promise(resolve => setTimeout(resolve, 2500))
    const { response } = seen[before]!
    let text = ''
    stream.on('data', data => {
      text += data
    })
    response.write('data: late\n\n')
    await until(() => text === 'data: late\n\n', 'an event')
    response.end()
    await once(stream, 'end')
  }
)

await t.test('fastify#3045: an answer during the drain says that its connection ends', async t => {
  const other = await startGateway(configuration(upstreamPort), {
    env: { POSTERN_SHUTDOWN_TIMEOUT: '30' }
  })
  const before = seen.length
  const request = http.get(`${other.url}/named/silent`, {
    agent: new http.Agent({ keepAlive: true })
  })
  const answered = once(request, 'response')
  await until(() => seen.length > before, 'the request to reach the upstream')
  const closed = other.close()
  await until(
    () =>
      new Promise(resolve => {
        const socket = net.connect(other.port, '127.0.0.1')
        socket.once('connect', () => socket.destroy(void resolve(false)))
        socket.once('error', () => resolve(true))
      }),
    'the listener to close'
  )
  last().response.end('whole')
  const [response] = (await answered) as [IncomingMessage]
  t.equal(response.statusCode, 200)
  let text = ''
  for await (const chunk of response) text += chunk
  t.equal(text, 'whole')
  await closed
})
