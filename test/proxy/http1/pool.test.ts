import { once } from 'node:events'
import net, { type AddressInfo, type Socket } from 'node:net'
import { Readable } from 'node:stream'
import { queryObjects } from 'node:v8'
import t from 'tap'
import { buildConnector, type Dispatcher } from 'undici'
import { Http1Pool, type Http1PoolOptions } from '../../../src/proxy/http1/pool.ts'
import { until } from '../../harness.ts'

type Answer = (socket: Socket, request: string, connection: number) => void

/** A server of raw bytes: `answer` is called with each request head (and whatever came with it). */
async function startRaw(answer: Answer) {
  const sockets: Socket[] = []
  const received: string[] = []
  const server = net.createServer(socket => {
    const index = sockets.push(socket) - 1
    received[index] = ''
    socket.on('error', () => {})
    socket.on('data', data => {
      const text = data.toString('latin1')
      received[index] += text
      answer(socket, text, index)
    })
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  return {
    port,
    sockets,
    received,
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy()
      await new Promise(resolve => server.close(resolve))
    }
  }
}

function openPool(port: number, options: Partial<Http1PoolOptions> = {}, Type = Http1Pool) {
  const pool = new Type(new URL(`http://127.0.0.1:${port}`), {
    connect: buildConnector({ allowH2: false, timeout: 5000 }),
    connections: 10,
    maxWaiting: 10,
    waitTimeout: 10_000,
    idleTimeout: 60_000,
    maxRequests: 100,
    maxHeadSize: 1024,
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
  pool: Http1Pool,
  options: Partial<Dispatcher.DispatchOptions> = {},
  handler: Dispatcher.DispatchHandler = {}
): Promise<Got> {
  const { promise, resolve, reject } = Promise.withResolvers<Got>()
  let status = 0
  let body = ''
  pool.dispatch(
    { path: '/', method: 'GET', headers: ['Host', 'a'], ...options },
    {
      onRequestStart(controller, context) {
        handler.onRequestStart?.(controller, context)
      },
      onResponseStart(controller, code, headers, text) {
        status = code
        handler.onResponseStart?.(controller, code, headers, text)
      },
      onResponseData(controller, chunk) {
        body += chunk.toString('latin1')
        handler.onResponseData?.(controller, chunk)
      },
      onResponseEnd(controller, trailers) {
        resolve({ status, body, trailers: controller.rawTrailers })
        handler.onResponseEnd?.(controller, trailers)
      },
      onResponseError(_controller, error) {
        reject(error)
      }
    }
  )
  return promise
}

const answerWith =
  (text: string): Answer =>
  socket =>
    socket.write(text)
const HELLO = 'HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello'

await t.test('requests one after another share a connection, at once each has its own', async t => {
  await using server = await startRaw(answerWith(HELLO))
  await using pool = openPool(server.port)
  for (let i = 0; i < 3; i++) t.match(await call(pool), { status: 200, body: 'hello' })
  t.equal(server.sockets.length, 1)
  await Promise.all(Array.from({ length: 4 }, () => call(pool)))
  t.ok(server.sockets.length > 1 && server.sockets.length <= 4)
  t.equal(server.received[0]!.split('\r\n')[0], 'GET / HTTP/1.1')
})

await t.test(
  'no more connections than allowed; the rest waits, and no more than allowed',
  async t => {
    const held: Socket[] = []
    await using server = await startRaw(socket => held.push(socket))
    await using pool = openPool(server.port, { connections: 2, maxWaiting: 3 })
    const calls = Array.from({ length: 4 }, () => call(pool))
    await until(() => held.length === 2, 'two requests under way')
    const fifth = call(pool)
    await t.rejects(call(pool), { code: 'POSTERN_UPSTREAM_BUSY' })
    t.equal(server.sockets.length, 2)
    const answering = setInterval(() => held.splice(0).map(socket => socket.write(HELLO)), 5)
    for (const got of await Promise.all([...calls, fifth])) t.equal(got.body, 'hello')
    clearInterval(answering)
    t.equal(server.sockets.length, 2)
  }
)

await t.test('waiting for a connection ends, and with it the closing of the pool', async t => {
  const held: Socket[] = []
  await using server = await startRaw(socket => held.push(socket))
  await using pool = openPool(server.port, { connections: 1, waitTimeout: 300 })
  const first = call(pool)
  await until(() => held.length === 1, 'the first under way')
  await t.rejects(call(pool), { code: 'POSTERN_UPSTREAM_QUEUE_TIMEOUT', statusCode: 503 })
  const served = call(pool)
  const closing = pool.close()
  held.shift()!.write(HELLO)
  t.equal((await first).body, 'hello')
  await until(() => held.length === 1, 'who waited is served')
  held.shift()!.write(HELLO)
  t.equal((await served).body, 'hello')
  await closing
  // A connector that never comes back, as when packets are dropped.
  await using lost = openPool(server.port, { waitTimeout: 50, connect: () => {} })
  await t.rejects(call(lost), { code: 'UND_ERR_CONNECT_TIMEOUT' })
})

await t.test('a request that waits for its connection is served by a pool that closes', async t => {
  await using server = await startRaw(answerWith(HELLO))
  const pool = openPool(server.port)
  const waiting = call(pool)
  await Promise.all([waiting, pool.close()])
  t.equal((await waiting).body, 'hello')
})

await t.test(
  'bodies: a buffer, a stream of known length, a stream in chunks with trailers',
  async t => {
    await using server = await startRaw((socket, text) => {
      if (text.endsWith('end') || text.includes('\r\n0\r\n')) socket.write(HELLO)
    })
    await using pool = openPool(server.port)
    await call(pool, { method: 'POST', body: Buffer.from('the end') })
    t.match(server.received[0], /\r\nContent-Length: 7\r\n\r\nthe end$/)
    await call(pool, {
      method: 'PUT',
      headers: ['Host', 'a', 'Content-Length', '7'],
      body: Readable.from([Buffer.from('the '), Buffer.from('end')])
    })
    t.match(server.received[0], /PUT \/ HTTP\/1.1\r\nHost: a\r\nContent-Length: 7\r\n\r\nthe end$/)
    const stream = Readable.from([Buffer.from('one'), Buffer.from('three more')])
    await call(pool, { method: 'POST', body: Object.assign(stream, { trailers: 'T: 1\r\n' }) })
    t.match(
      server.received[0],
      /Transfer-Encoding: chunked\r\n\r\n3\r\none\r\na\r\nthree more\r\n0\r\nT: 1\r\n\r\n$/
    )
    t.equal(server.sockets.length, 1)
  }
)

await t.test(
  'a body that is not as long as announced, or breaks, ends request and connection',
  async t => {
    await using server = await startRaw(() => {})
    await using pool = openPool(server.port)
    const headers = ['Host', 'a', 'Content-Length', '5']
    for (const [body, code] of [
      [Readable.from([Buffer.from('abc')]), 'UND_ERR_REQ_CONTENT_LENGTH_MISMATCH'],
      [Readable.from([Buffer.from('abcdef')]), 'UND_ERR_REQ_CONTENT_LENGTH_MISMATCH'],
      [Buffer.from('abc'), 'UND_ERR_REQ_CONTENT_LENGTH_MISMATCH'],
      [null, 'UND_ERR_REQ_CONTENT_LENGTH_MISMATCH']
    ] as const) {
      await t.rejects(call(pool, { method: 'POST', headers, body }), { code })
    }
    const broken = new Readable({ read() {} })
    const failing = call(pool, { method: 'POST', headers, body: broken })
    broken.push(Buffer.from('ab'))
    await until(() => server.received.some(text => text.endsWith('ab')), 'the first bytes')
    broken.destroy(Object.assign(new Error('client gone'), { code: 'GONE' }))
    await t.rejects(failing, { code: 'GONE' })
    await until(() => server.sockets.at(-1)!.destroyed, 'the connection to end')
  }
)

await t.test('what could be read as more than one request is not sent', async t => {
  await using server = await startRaw(answerWith(HELLO))
  await using pool = openPool(server.port)
  await call(pool)
  const before = server.received[0]
  for (const options of [
    { path: '/ HTTP/1.1\r\nX: y' },
    { path: '/a b' },
    { path: '' },
    { method: 'GET /' as 'GET' },
    { headers: ['Host', 'a\r\nX: y'] },
    { headers: ['Host', 'a', 'X\r\nY', 'b'] },
    { headers: ['Host', 'a', 'X', 'b\0'] },
    { headers: ['Host', 'a', 'X', 'snow ☃'] },
    { headers: ['Host', 'a', 'Content-Length', '1', 'content-length', '1'] },
    { headers: ['Host', 'a', 'Content-Length', '+1'] }
  ]) {
    await t.rejects(call(pool, options), { code: 'UND_ERR_INVALID_ARG' }, JSON.stringify(options))
  }
  t.equal((await call(pool)).body, 'hello', 'the connection is as good as before')
  t.equal(server.received[0], `${before}GET / HTTP/1.1\r\nHost: a\r\n\r\n`)
})

await t.test('a connection in doubt is not used again', async t => {
  const endings: readonly (readonly [string, string])[] = [
    ['bytes after the response', `${HELLO}x`],
    ['Connection: close', 'HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello'],
    ['HTTP/1.0', 'HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello']
  ]
  for (const [name, text] of endings) {
    await using server = await startRaw(answerWith(text))
    await using pool = openPool(server.port)
    t.equal((await call(pool)).body, 'hello', name)
    t.equal((await call(pool)).body, 'hello', name)
    t.equal(server.sockets.length, 2, name)
  }
  await using unasked = await startRaw(answerWith(HELLO))
  await using pool = openPool(unasked.port)
  await call(pool)
  unasked.sockets[0]!.write(HELLO)
  await until(() => unasked.sockets[0]!.destroyed, 'the connection to end')
  t.equal((await call(pool)).body, 'hello')
  t.equal(unasked.sockets.length, 2)
})

await t.test('a connection is replaced after its requests, and after its idle time', async t => {
  await using server = await startRaw(answerWith(HELLO))
  await using few = openPool(server.port, { maxRequests: 2 })
  for (let i = 0; i < 5; i++) await call(few)
  t.equal(server.sockets.length, 3)
  await using short = openPool(server.port, { idleTimeout: 20 })
  await call(short)
  await until(() => server.sockets.at(-1)!.destroyed, 'the idle connection to end')
  await using hinting = await startRaw(
    answerWith('HTTP/1.1 200 OK\r\nKeep-Alive: timeout=1, max=9\r\nContent-Length: 0\r\n\r\n')
  )
  await using careful = openPool(hinting.port)
  await call(careful)
  await until(
    () => hinting.sockets[0]!.destroyed,
    'the connection to end before the upstream ends it'
  )
})

await t.test('failures: refused, closed, malformed, silent', async t => {
  const free = await startRaw(() => {})
  await free[Symbol.asyncDispose]()
  await using nobody = openPool(free.port)
  await t.rejects(call(nobody), { code: 'ECONNREFUSED' })
  await using closing = await startRaw(socket => socket.end())
  await using toClosing = openPool(closing.port)
  await t.rejects(call(toClosing), { code: 'UND_ERR_SOCKET' })
  await using resetting = await startRaw(socket => socket.resetAndDestroy())
  await using toResetting = openPool(resetting.port)
  await t.rejects(call(toResetting), { code: 'ECONNRESET' })
  await using babbling = await startRaw(answerWith('hello\r\n\r\n'))
  await using toBabbling = openPool(babbling.port)
  await t.rejects(call(toBabbling), { code: 'HPE_INVALID_RESPONSE' })
  await using silent = await startRaw(() => {})
  await using toSilent = openPool(silent.port)
  await t.rejects(call(toSilent, { headersTimeout: 30 }), { code: 'UND_ERR_HEADERS_TIMEOUT' })
  await using stalling = await startRaw(
    answerWith('HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel')
  )
  await using toStalling = openPool(stalling.port)
  await t.rejects(call(toStalling, { bodyTimeout: 30 }), { code: 'UND_ERR_BODY_TIMEOUT' })
  await until(() => stalling.sockets[0]!.destroyed, 'the stalled connection to end')
})

await t.test('a paused response waits, without a time limit of its own', async t => {
  await using server = await startRaw(answerWith(HELLO))
  await using pool = openPool(server.port)
  let controller: Dispatcher.DispatchController | undefined
  const seen: string[] = []
  const answer = call(
    pool,
    { headersTimeout: 100, bodyTimeout: 20 },
    {
      onResponseStart(each) {
        controller = each
        each.pause()
      },
      onResponseData(_controller, chunk) {
        seen.push(chunk.toString())
      }
    }
  )
  await until(() => controller !== undefined, 'the head')
  await new Promise(resolve => setTimeout(resolve, 60))
  t.same(seen, [])
  controller!.resume()
  t.equal((await answer).body, 'hello')
  controller!.pause()
  controller!.abort(new Error('late'))
  t.equal((await call(pool)).body, 'hello', 'a controller of the past touches nothing')
  t.equal(server.sockets.length, 1)
})

await t.test('aborting ends the request: before it is sent, waiting, and under way', async t => {
  await using server = await startRaw(() => {})
  await using pool = openPool(server.port, { connections: 1 })
  const reason = Object.assign(new Error('no more'), { code: 'NO_MORE' })
  const unsent = call(pool, {}, { onRequestStart: controller => controller.abort(reason) })
  await t.rejects(unsent, { code: 'NO_MORE' })
  let running: Dispatcher.DispatchController | undefined
  const underWay = call(
    pool,
    {},
    {
      onRequestStart(controller) {
        running = controller
      }
    }
  )
  await until(() => server.received.some(text => text.includes('GET')), 'the request')
  running!.abort(reason)
  await t.rejects(underWay, { code: 'NO_MORE' })
})

await t.test(
  'an answer before the end of the request ends the connection and the body',
  async t => {
    await using server = await startRaw(answerWith(HELLO))
    await using pool = openPool(server.port)
    const body = new Readable({ read() {} })
    const answer = call(pool, { method: 'POST', body })
    body.push(Buffer.from('begun'))
    t.equal((await answer).body, 'hello')
    await until(() => body.destroyed && server.sockets[0]!.destroyed, 'both to end')
  }
)

await t.test('a request body waits for the upstream to take it', async t => {
  let taking: Socket | undefined
  await using server = await startRaw((socket, _text, _index) => {
    if (taking === undefined) socket.pause()
    taking ??= socket
  })
  await using pool = openPool(server.port)
  let produced = 0
  const body = new Readable({
    read() {
      if (produced > 64 * 1024 * 1024) this.push(null)
      else {
        produced += 65_536
        this.push(Buffer.alloc(65_536))
      }
    }
  })
  const ended = call(pool, { method: 'POST', body }).catch(() => {})
  await until(() => taking !== undefined, 'the first bytes')
  let before = -1
  await until(async () => {
    const same = produced === before
    before = produced
    await new Promise(resolve => setTimeout(resolve, 50))
    return same
  }, 'the body to stand still')
  t.ok(produced < 32 * 1024 * 1024, `${produced} bytes were produced`)
  taking!.destroy()
  await ended
})

await t.test('what an upstream answers before it resets the connection is read', async t => {
  const body = new Readable({ read() {} })
  await using server = await startRaw(socket => {
    socket.write('HTTP/1.1 413 Too Large\r\nContent-Length: 8\r\n\r\ntoo long')
    socket.resetAndDestroy()
    // Before the answer can have been read.
    setImmediate(() => body.push('more'))
  })
  await using pool = openPool(server.port)
  body.push('some')
  const got = await call(pool, { method: 'POST', body })
  t.match(got, { status: 413, body: 'too long' })
  t.ok(body.destroyed)

  const second = new Readable({ read() {} })
  await using silent = await startRaw(socket => {
    socket.write('HTTP/1.1 413 Too Large\r\nContent-Length: 9\r\n\r\ntoo long')
    socket.resetAndDestroy()
    setImmediate(() => second.push('more'))
  })
  await using other = openPool(silent.port)
  second.push('some')
  await t.rejects(call(other, { method: 'POST', body: second }), Error)
})

await t.test('closing waits for what is under way, destroying does not', async t => {
  const held: Socket[] = []
  await using server = await startRaw(socket => held.push(socket))
  const pool = openPool(server.port)
  const underWay = call(pool)
  await until(() => held.length === 1, 'the request')
  const closed = pool.close()
  await t.rejects(call(pool), { code: 'UND_ERR_DESTROYED' })
  held[0]!.write(HELLO)
  t.equal((await underWay).body, 'hello')
  await closed
  const other = openPool(server.port, { connections: 1 })
  const cut = call(other)
  const waiting = call(other)
  await until(() => held.length === 2, 'the second request')
  const gone = Promise.all([
    t.rejects(cut, { code: 'UND_ERR_DESTROYED' }),
    t.rejects(waiting, { code: 'UND_ERR_DESTROYED' })
  ])
  await other.destroy()
  await gone
})

await t.test('nothing holds a pool that was closed', async t => {
  await using server = await startRaw(socket => socket.write(HELLO))
  class Watched extends Http1Pool {}
  const open = async (): Promise<void> => {
    const pool = openPool(server.port, {}, Watched)
    await call(pool)
    await pool.close()
  }
  await open()
  const left = (): number => Number(queryObjects(Watched, { format: 'count' }))
  await until(() => left() === 0, 'it to be collected')
  t.equal(left(), 0)
})
