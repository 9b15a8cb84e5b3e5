import { once } from 'node:events'
import http, { type IncomingMessage } from 'node:http'
import http2 from 'node:http2'
import net, { type AddressInfo } from 'node:net'
import t, { type Test } from 'tap'
import { startGateway, type TestGateway, until } from '../harness.ts'
import { statuses } from '../raw.ts'

t.setTimeout(120_000)

/** Bytes of a body that are held before the upstream is asked, by one of the gateways. */
const HELD = 8192

interface Seen {
  readonly request: IncomingMessage
  body: string
  ended: boolean
}

/** An upstream that tells of each request from its head on, and answers when its body is whole. */
async function watchedUpstream(t: Test) {
  const seen: Seen[] = []
  const server = http.createServer((request, response) => {
    const each: Seen = { request, body: '', ended: false }
    seen.push(each)
    if (request.url === '/unread') return
    request.setEncoding('latin1').on('data', chunk => {
      each.body += chunk
    })
    request.on('end', () => {
      each.ended = true
      response.end('taken')
    })
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => {
    server.closeAllConnections()
    server.close()
  })
  return { seen, port: (server.address() as AddressInfo).port }
}

/** A connection to a gateway on which a body can be sent bit by bit. */
function dial(t: Test, gateway: TestGateway, bytes: string) {
  const socket = net.connect(gateway.port, '127.0.0.1')
  const state = { socket, text: '', closed: false }
  socket.setEncoding('latin1').on('data', chunk => {
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

const head = (fields: string): string =>
  `POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n${fields}\r\n\r\n`

await t.test('within narrow bounds', async t => {
  const { seen, port } = await watchedUpstream(t)
  const url = `http://127.0.0.1:${port}`
  await using gateway = await startGateway(
    { services: [{ name: 'up', url, routes: [{ name: 'all', paths: ['/'] }] }] },
    {
      env: {
        POSTERN_PROXY_LISTEN: '127.0.0.1:0 http2',
        POSTERN_REQUEST_BUFFER_SIZE: String(HELD)
      }
    }
  )
  /** When this one has been answered, whatever was sent upstream before it is there. */
  const another = async (): Promise<void> => {
    await gateway.fetch('/', { method: 'POST', body: 'another' })
  }

  await t.test('a body of unknown length is gathered too, in both protocols', async t => {
    const before = seen.length
    const chunked = dial(t, gateway, `${head('Transfer-Encoding: chunked')}5\r\nhello\r\n`)
    const session = http2.connect(gateway.url)
    t.teardown(() => session.destroy())
    const stream = session.request({ ':method': 'POST', ':path': '/' })
    stream.resume()
    stream.write('hello')
    await another()
    t.equal(seen.length, before + 1)
    chunked.socket.write('5\r\nworld\r\n0\r\n\r\n')
    stream.end('world')
    await Promise.all([once(stream, 'end'), until(() => chunked.closed, 'the answer')])
    t.same(statuses(chunked.text), [200])
    for (const { request, body } of seen.slice(before + 1)) {
      t.equal(body, 'helloworld')
      t.equal(request.headers['content-length'], '10', 'its length is known by then')
      t.equal(request.headers['transfer-encoding'], undefined)
    }
    t.equal(seen.length, before + 3)
  })

  await t.test('what is longer than may be held streams from there', async t => {
    const part = (letter: string): string => letter.repeat(HELD)
    const before = seen.length
    const client = dial(t, gateway, head(`Content-Length: ${HELD * 3}`) + part('a').slice(1))
    await another()
    t.equal(seen.length, before + 1, 'a byte too little')
    client.socket.write(`a${part('b')}`)
    const streamed = await until(() => seen[before + 1], 'it to reach the upstream')
    await until(() => streamed.body.length === HELD * 2, 'what came after it')
    t.notOk(streamed.ended)
    client.socket.write(part('c'))
    await until(() => client.closed, 'the answer')
    t.same(statuses(client.text), [200])
    t.ok(streamed.body === part('a') + part('b') + part('c'))
  })

  await t.test('a client that leaves within has asked nothing of the upstream', async t => {
    const before = seen.length
    const client = dial(t, gateway, head('Content-Length: 100') + 'x'.repeat(50))
    const inFlight = async (): Promise<number> => (await gateway.status('/status')).json().inFlight
    await until(async () => (await inFlight()) === 1, 'the request to be under way')
    client.socket.destroy()
    await until(async () => (await inFlight()) === 0, 'nothing to be under way')
    await another()
    t.equal(seen.length, before + 1)
  })

  await t.test('all that is held together is bounded', async t => {
    const before = seen.length
    const holding = Array.from({ length: 32 }, () =>
      dial(t, gateway, head(`Content-Length: ${HELD}`) + 'x'.repeat(HELD - 1))
    )
    const half = head('Content-Length: 200') + 'y'.repeat(100)
    // One streams at once when the others have come as far as to fill what there is.
    const more: ReturnType<typeof dial>[] = []
    await until(() => {
      more.push(dial(t, gateway, half))
      return seen.length > before
    }, 'one to be streamed at once')
    for (const { socket } of holding) socket.write('x')
    for (const { socket } of more) socket.write('y'.repeat(100))
    const all = [...holding, ...more]
    await until(() => all.every(({ closed }) => closed), 'every answer')
    t.ok(all.every(({ text }) => statuses(text)[0] === 200))
    for (const { body } of seen.slice(before)) t.match(body, /^(x{8192}|y{200})$/)
    const whole = seen.length
    dial(t, gateway, half)
    await another()
    t.equal(seen.length, whole + 1, 'there is room again')
  })
})

await t.test('a body that is held is sent again, and no faster than it is taken', async t => {
  const { seen, port } = await watchedUpstream(t)
  let cut = 0
  const cutting = net.createServer(socket => {
    socket.on('error', () => {})
    socket.once('data', () => {
      cut++
      socket.destroy()
    })
  })
  cutting.listen(0, '127.0.0.1')
  await once(cutting, 'listening')
  t.teardown(() => cutting.close())
  const cuttingPort = (cutting.address() as AddressInfo).port
  await using gateway = await startGateway(
    {
      upstreams: [
        {
          name: 'both',
          targets: [
            { target: `127.0.0.1:${cuttingPort}` },
            { target: `127.0.0.1:${port}`, failover: true }
          ]
        }
      ],
      services: [
        { name: 'both', host: 'both', retries: 1, routes: [{ name: 'both', paths: ['/both'] }] },
        {
          name: 'one',
          url: `http://127.0.0.1:${port}`,
          write_timeout: 500,
          retries: 0,
          routes: [{ name: 'one', paths: ['/one'] }]
        }
      ]
    },
    { env: { POSTERN_REQUEST_BUFFER_SIZE: '32m' } }
  )
  const text = '0123456789abcdef'.repeat(20_000)
  for (const trailer of ['', 'X-Sum: 6\r\n']) {
    const client = dial(
      t,
      gateway,
      `PUT /both HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n` +
        `${text.length.toString(16)}\r\n${text}\r\n0\r\n${trailer}\r\n`
    )
    const before = cut
    await until(() => client.closed, 'the answer')
    t.same(statuses(client.text), [200])
    t.equal(cut, before + 1, 'the first attempt failed')
    const { request, body } = seen.at(-1)!
    t.ok(body === text)
    t.equal(request.headers['content-length'], trailer === '' ? `${text.length}` : undefined)
    t.same(request.rawTrailers, trailer === '' ? [] : ['X-Sum', '6'])
  }
  // More than the system's buffers of a connection take.
  const refused = await gateway.fetch('/one/unread', {
    method: 'POST',
    body: Buffer.alloc(30_000_000)
  })
  t.equal(refused.status, 504, 'an upstream that takes nothing')
})
