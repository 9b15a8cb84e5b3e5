import { once } from 'node:events'
import http, { type IncomingMessage, type ServerResponse } from 'node:http'
import http2 from 'node:http2'
import net, { type AddressInfo, type Socket } from 'node:net'
import t from 'tap'
import { startGateway, until } from '../harness.ts'
import { raw, statuses } from '../raw.ts'

t.setTimeout(120_000)

/** One request as the upstream sees it, from its head on. */
interface Seen {
  readonly request: IncomingMessage
  readonly response: ServerResponse
  body: string
  ended: boolean
  closed: boolean
}

const seen: Seen[] = []
const upstreamSockets = new Set<Socket>()
const FILE = 'abcdefghijklmnopqrstuvwxyz'
const upstream = http.createServer((request, response) => {
  const each: Seen = { request, response, body: '', ended: false, closed: false }
  seen.push(each)
  response.on('close', () => {
    each.closed = true
  })
  if (request.url === '/unread') return
  request.setEncoding('latin1')
  request.on('data', chunk => {
    each.body += chunk
  })
  request.on('end', () => {
    each.ended = true
    answer(request, response)
  })
})

function answer(request: IncomingMessage, response: ServerResponse): void {
  const range = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '')
  if (request.url === '/held') return
  if (request.url === '/hints') {
    response.writeEarlyHints({ link: ['</a.css>; rel=preload', '</b.js>; rel=preload'] })
    response.end('hinted')
  } else if (request.url === '/trailers') {
    response.writeHead(200, { Trailer: 'X-Sum' })
    response.write('body')
    response.addTrailers({ 'X-Sum': '42', 'Set-Cookie': 'a=1' })
    response.end()
  } else if (request.url === '/file' && range !== null) {
    const [first, last] = [Number(range[1]), Number(range[2])]
    if (first >= FILE.length) response.writeHead(416, { 'Content-Range': `bytes */${FILE.length}` })
    else response.writeHead(206, { 'Content-Range': `bytes ${first}-${last}/${FILE.length}` })
    response.end(first >= FILE.length ? '' : FILE.slice(first, last + 1))
  } else response.end(FILE)
}

upstream.on('connection', socket => {
  upstreamSockets.add(socket)
  socket.on('close', () => upstreamSockets.delete(socket))
})
upstream.keepAliveTimeout = 60_000
upstream.listen(0, '127.0.0.1')
await once(upstream, 'listening')
t.teardown(() => {
  upstream.closeAllConnections()
  upstream.close()
})
const url = `http://127.0.0.1:${(upstream.address() as AddressInfo).port}`

const gateway = await startGateway(
  {
    services: [
      {
        name: 'up',
        url,
        routes: [
          { name: 'all', paths: ['/'] },
          { name: 'streamed', paths: ['/streamed'], request_buffering: false },
          { name: 'unbuffered', paths: ['/unbuffered'], response_buffering: false }
        ]
      },
      {
        name: 'impatient',
        url,
        read_timeout: 1500,
        write_timeout: 1500,
        retries: 0,
        routes: [
          { name: 'impatient', paths: ['/impatient'] },
          { name: 'impatient-streamed', paths: ['/impatient/streamed'], request_buffering: false }
        ]
      },
      {
        name: 'closed',
        url,
        routes: [{ name: 'closed', paths: ['/closed'] }],
        plugins: [{ name: 'key-auth' }]
      }
    ]
  },
  {
    env: {
      POSTERN_PROXY_LISTEN: '127.0.0.1:0 http2',
      POSTERN_REQUEST_HEADER_TIMEOUT: '1',
      POSTERN_REQUEST_BODY_TIMEOUT: '1',
      POSTERN_CLIENT_KEEPALIVE_TIMEOUT: '1',
      POSTERN_SEND_TIMEOUT: '2'
    }
  }
)
t.teardown(() => gateway.close())

/** The request the upstream sees next. */
async function nextSeen(): Promise<Seen> {
  const index = seen.length
  return until(() => seen[index], 'the request to reach the upstream')
}

const pause = (milliseconds: number): Promise<void> =>
  new Promise(resolve => setTimeout(resolve, milliseconds))

/** More than the system's buffers of two connections take at their largest (tcp_rmem, tcp_wmem). */
const TOTAL = 128 * 1024 * 1024

/** Sends TOTAL bytes as the other side takes them, and ends. */
function pour(response: ServerResponse, sent: { bytes: number }): void {
  const chunk = Buffer.alloc(65_536)
  const more = (): void => {
    while (sent.bytes < TOTAL && !response.destroyed) {
      sent.bytes += chunk.length
      if (!response.write(chunk)) {
        response.once('drain', more)
        return
      }
    }
    response.end()
  }
  more()
}

/** Waits until a count has stopped to grow. */
async function stalled(count: () => number): Promise<void> {
  let before = -1
  let same = 0
  await until(async () => {
    await pause(30)
    same = count() === before ? same + 1 : 0
    before = count()
    return same === 10
  }, 'it to be held back')
}

/** A raw connection to the gateway that gathers what comes. */
function dial(bytes: string) {
  const socket = net.connect(gateway.port, '127.0.0.1')
  const state = { socket, text: '', closed: false }
  socket.setEncoding('latin1')
  socket.on('data', chunk => {
    state.text += chunk
  })
  socket.on('error', () => {})
  socket.on('close', () => {
    state.closed = true
  })
  t.teardown(() => socket.destroy())
  socket.write(bytes)
  return state
}

await t.test('trailers of requests, in both protocols', async t => {
  const text = await raw(
    gateway.port,
    'POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n' +
      '3\r\nabc\r\n0\r\nX-Sum: 6\r\nHost: b\r\nAuthorization: x\r\n\r\n'
  )
  t.same(statuses(text), [200])
  t.equal(seen.at(-1)!.body, 'abc')
  t.same(seen.at(-1)!.request.rawTrailers, ['X-Sum', '6'])

  const session = http2.connect(gateway.url)
  t.teardown(() => session.destroy())
  const next = nextSeen()
  const stream = session.request({ ':method': 'POST', ':path': '/', te: 'trailers' }, {
    waitForTrailers: true
  } as http2.ClientSessionRequestOptions)
  stream.on('wantTrailers', () => stream.sendTrailers({ 'x-sum': '7' }))
  stream.end('abc')
  stream.resume()
  await once(stream, 'end')
  const { request, body } = await next
  t.equal(body, 'abc')
  t.same(request.rawTrailers, ['x-sum', '7'])
})

await t.test('trailers of responses, to clients that ask', async t => {
  const request = http.get(`${gateway.url}/trailers`, { headers: { te: 'trailers' } })
  const [response] = (await once(request, 'response')) as [IncomingMessage]
  response.resume()
  await once(response, 'end')
  t.equal(response.headers.trailer, 'X-Sum')
  t.same(response.rawTrailers, ['X-Sum', '42'])

  const session = http2.connect(gateway.url)
  t.teardown(() => session.destroy())
  const stream = session.request({ ':path': '/trailers', te: 'trailers' })
  const trailers = once(stream, 'trailers')
  stream.resume()
  t.equal((await trailers)[0]['x-sum'], '42')
})

await t.test('early hints, in both protocols', async t => {
  const links = '</a.css>; rel=preload, </b.js>; rel=preload'
  const request = http.get(`${gateway.url}/hints`)
  const answered = once(request, 'response')
  const [information] = await once(request, 'information')
  t.equal(information.statusCode, 103)
  t.equal(information.headers.link, links)
  const [response] = (await answered) as [IncomingMessage]
  t.equal(response.statusCode, 200)
  response.resume()

  const session = http2.connect(gateway.url)
  t.teardown(() => session.destroy())
  const stream = session.request({ ':path': '/hints' })
  const final = once(stream, 'response')
  const [headers] = await once(stream, 'headers')
  t.match(headers, { ':status': 103, link: links })
  t.equal((await final)[0][':status'], 200)
  const old = await raw(gateway.port, 'GET /hints HTTP/1.0\r\nHost: a\r\n\r\n')
  t.notMatch(old, /103/, 'a client of HTTP/1.0 knows none')
})

await t.test('ranges pass both ways', async t => {
  const part = await gateway.fetch('/file', {
    headers: { range: 'bytes=2-4', 'if-range': '"v1"' }
  })
  t.equal(part.status, 206)
  t.equal(part.body, 'cde')
  t.equal(part.headers['content-range'], 'bytes 2-4/26')
  t.match(seen.at(-1)!.request.headers, { range: 'bytes=2-4', 'if-range': '"v1"' })
  const beyond = await gateway.fetch('/file', { headers: { range: 'bytes=90-99' } })
  t.equal(beyond.status, 416)
  t.equal(beyond.headers['content-range'], 'bytes */26')
})

await t.test('a client that asks before it sends its body', async t => {
  const HEAD = 'Host: a\r\nExpect: 100-continue\r\nConnection: close\r\nContent-Length: 4\r\n\r\n'
  for (const path of ['/', '/streamed']) {
    const client = dial(`POST ${path} HTTP/1.1\r\n${HEAD}`)
    await until(() => client.text.startsWith('HTTP/1.1 100 Continue\r\n\r\n'), 'the go-ahead')
    client.socket.write('body')
    await until(() => client.closed, 'the answer')
    t.same(statuses(client.text), [100, 200])
    t.equal(seen.at(-1)!.body, 'body')
    t.equal(seen.at(-1)!.request.headers.expect, undefined, 'it is answered at this hop')
  }
  const before = seen.length
  const refused = await raw(gateway.port, `POST /closed HTTP/1.1\r\n${HEAD}`)
  t.same(statuses(refused), [401], 'who is refused is not asked for the body')
  t.equal(seen.length, before)
})

await t.test('request_buffering: a slow client holds an upstream connection or not', async t => {
  const HEAD = 'HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 10\r\n\r\nhello'
  const before = seen.length
  const gathered = dial(`POST / ${HEAD}`)
  const streaming = nextSeen()
  const streamed = dial(`POST /streamed ${HEAD}`)
  const first = await streaming
  await until(() => first.body === 'hello', 'the first half of the streamed body')
  t.equal(first.request.url, '/')
  t.equal(seen.length, before + 1, 'the other is still being gathered')
  for (const { socket } of [gathered, streamed]) socket.write('world')
  await until(() => gathered.closed && streamed.closed, 'both answers')
  t.same([...statuses(gathered.text), ...statuses(streamed.text)], [200, 200])
  t.equal(seen.at(-1)!.body, 'helloworld')
  t.equal(first.body, 'helloworld')
  t.equal(seen.at(-1)!.request.headers['content-length'], '10')
})

await t.test('response_buffering: either way the upstream is held back', async t => {
  for (const path of ['/held', '/unbuffered/held']) {
    const next = nextSeen()
    const client = net.connect(gateway.port, '127.0.0.1')
    client.on('error', () => {})
    client.write(`GET ${path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n`)
    const { response } = await next
    const sent = { bytes: 0 }
    client.pause()
    pour(response, sent)
    await stalled(() => sent.bytes)
    t.ok(sent.bytes < TOTAL, `${path} was held back after ${sent.bytes} bytes`)
    let received = 0
    client.on('data', data => {
      received += data.length
    })
    client.resume()
    await once(client, 'close')
    t.ok(received > TOTAL, 'and came whole')
  }
})

await t.test('a client that takes nothing is cut off, one that takes little is not', async t => {
  const serve = async () => {
    const next = nextSeen()
    const client = net.connect(gateway.port, '127.0.0.1')
    client.on('error', () => {})
    t.teardown(() => client.destroy())
    client.write('GET /held HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n')
    const each = await next
    client.pause()
    const sent = { bytes: 0 }
    pour(each.response, sent)
    return { client, each, sent }
  }
  const idle = await serve()
  const slow = await serve()
  let received = 0
  const began = Date.now()
  slow.client.on('data', data => {
    received += data.length
    if (Date.now() - began > 5000) return
    slow.client.pause()
    // Little by little for several periods of the time-out, then the rest at once.
    setTimeout(() => slow.client.resume(), 20)
  })
  const taken = once(slow.client, 'close')
  slow.client.resume()
  await until(() => idle.each.closed, 'the upstream to be let go')
  t.ok(idle.sent.bytes < TOTAL)
  idle.client.destroy()
  await taken
  t.ok(received > TOTAL, `${received} bytes came`)
})

await t.test('write_timeout: an upstream that takes nothing of an upload is a 504', async t => {
  const next = nextSeen()
  const client = dial(
    'POST /impatient/unread HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 50000000\r\n\r\n'
  )
  const chunk = 'x'.repeat(65_536)
  const more = (): void => {
    for (let i = 0; i < 400; i++) {
      if (!client.socket.write(chunk)) {
        client.socket.once('drain', more)
        return
      }
    }
  }
  more()
  await next
  await until(() => client.closed, 'the answer')
  t.same(statuses(client.text), [504])
})

await t.test('slow but steady is never cut off, in either direction', async t => {
  const next = nextSeen()
  const request = http.request(`${gateway.url}/impatient/streamed`, {
    method: 'POST',
    agent: false
  })
  const answered = once(request, 'response')
  request.write('begin ')
  const up = await next
  const nextDown = nextSeen()
  const download = http.get(`${gateway.url}/impatient/held`, { agent: false })
  const down = await nextDown
  down.response.writeHead(200, { 'Content-Length': '21' })
  down.response.write('x')
  const [body] = (await once(download, 'response')) as [IncomingMessage]
  let text = ''
  body.on('data', data => {
    text += data
  })
  for (let i = 0; i < 20; i++) {
    await pause(100)
    request.write('more ')
    down.response.write('y')
  }
  down.response.end()
  await once(body, 'end')
  t.equal(text, `x${'y'.repeat(20)}`)
  request.end('end')
  const [response] = (await answered) as [IncomingMessage]
  t.equal(response.statusCode, 200)
  t.match(up.body, /^begin (more ){20}end$/)
  response.resume()
})

await t.test(
  'streams of events and long polls may be silent for longer than every time-out',
  async t => {
    const opened = []
    for (const path of ['/held', '/impatient/held', '/unbuffered/held']) {
      const next = nextSeen()
      const request = http.get(`${gateway.url}${path}`, { agent: false })
      const { response } = await next
      response.writeHead(200, { 'Content-Type': 'text/event-stream; charset=utf-8' })
      response.flushHeaders()
      const [stream] = (await once(request, 'response')) as [IncomingMessage]
      t.pass('the head comes before any event')
      opened.push({ response, stream })
    }
    const nextPoll = nextSeen()
    const poll = http.get(`${gateway.url}/held`, { agent: false })
    const polled = await nextPoll
    await pause(2500)
    polled.response.end('at last')
    const [answered] = (await once(poll, 'response')) as [IncomingMessage]
    t.equal(answered.statusCode, 200)
    answered.resume()
    for (const { response, stream } of opened) {
      let text = ''
      stream.on('data', data => {
        text += data
      })
      response.write('data: one\n\n')
      await until(() => text === 'data: one\n\n', 'an event')
      response.end()
      await once(stream, 'end')
    }
  }
)

await t.test('a long poll lasts no longer than its service allows', async t => {
  t.equal((await gateway.fetch('/impatient/held')).status, 504)
  await until(() => seen.at(-1)!.closed, 'the upstream to be let go')
})

await t.test('a body that stops within is cut, so that it is not taken for whole', async t => {
  const next = nextSeen()
  const request = http.get(`${gateway.url}/impatient/held`, { agent: false })
  const { response } = await next
  response.write('half')
  const [stream] = (await once(request, 'response')) as [IncomingMessage]
  stream.resume()
  await t.rejects(once(stream, 'end'), { code: 'ECONNRESET' })
})
