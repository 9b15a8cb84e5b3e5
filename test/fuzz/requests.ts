import { once } from 'node:events'
import http from 'node:http'
import net, { type AddressInfo, type Socket } from 'node:net'
import fc from 'fast-check'
import { corpus } from '../corpus.ts'
import { startGateway, type TestGateway, until } from '../harness.ts'
import { type Budget, explore, mutated } from './budget.ts'

/** Milliseconds within which every connection is answered or closed. */
const BOUND = 20_000
const OK = 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n'

/** Requests by method and target. */
class Tally {
  readonly counts = new Map<string, number>()

  add(key: string, count = 1): void {
    this.counts.set(key, (this.counts.get(key) ?? 0) + count)
  }

  /** The first that is in this tally more often than in another. */
  beyond(other: Tally): string | undefined {
    for (const [key, count] of this.counts) {
      if (count > (other.counts.get(key) ?? 0)) return `${count} × ${JSON.stringify(key)}`
    }
    return undefined
  }
}

/** What the upstream of a fuzzed gateway saw. */
interface Seen {
  /** Requests whose head came. */
  readonly heads: Tally
  /** Those that came whole, and so were answered. */
  readonly whole: Tally
  /** Bytes that are no request. */
  readonly malformed: string[]
}

const REQUEST_LINE = /^([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~\x80-\xff]+) HTTP\/1\.1$/
const FIELD = /^([!#$%&'*+.^_`|~0-9A-Za-z-]+): ?([\t\x20-\x7e\x80-\xff]*)$/

/** Reads one connection's requests by the letter of RFC 9112, and nothing that comes close to it. */
class StrictReader {
  readonly #seen: Seen
  readonly #answer: (text: string) => void
  #rest = ''
  #key = ''
  #method = ''
  /** Bytes of the body to come; -1 for chunks, undefined between requests. */
  #length: number | undefined = undefined
  #broken = false

  constructor(seen: Seen, answer: (text: string) => void) {
    this.#seen = seen
    this.#answer = answer
  }

  feed(text: string): void {
    this.#rest += text
    while (!this.#broken && this.#step());
  }

  #fail(what: string): false {
    this.#broken = true
    this.#seen.malformed.push(`${what}: ${JSON.stringify(this.#rest.slice(0, 500))}`)
    return false
  }

  #step(): boolean {
    if (this.#rest === '') return false
    if (this.#length === undefined) return this.#head()
    if (this.#length === -1) return this.#chunks()
    if (this.#rest.length < this.#length) return false
    this.#rest = this.#rest.slice(this.#length)
    return this.#end()
  }

  #head(): boolean {
    const end = this.#rest.indexOf('\r\n\r\n')
    if (end === -1) return this.#rest.length > 100_000 && this.#fail('an endless head')
    const [line = '', ...fields] = this.#rest.slice(0, end).split('\r\n')
    const request = REQUEST_LINE.exec(line)
    if (request === null) return this.#fail('no request line')
    const lengths: string[] = []
    const codings: string[] = []
    let hosts = 0
    for (const each of fields) {
      const field = FIELD.exec(each)
      if (field === null) return this.#fail('no field')
      const name = field[1]!.toLowerCase()
      if (name === 'content-length') lengths.push(field[2]!)
      if (name === 'transfer-encoding') codings.push(field[2]!)
      if (name === 'host') hosts++
    }
    if (hosts !== 1 || lengths.length + codings.length > 1) return this.#fail('ambiguous framing')
    if (lengths.length > 0 && !/^\d+$/.test(lengths[0]!)) return this.#fail('no length')
    if (codings.length > 0 && codings[0] !== 'chunked') return this.#fail('no coding')
    this.#rest = this.#rest.slice(end + 4)
    this.#method = request[1]!
    this.#key = `${request[1]} ${request[2]}`
    this.#length = codings.length > 0 ? -1 : Number(lengths[0] ?? 0)
    this.#seen.heads.add(this.#key)
    return this.#length === 0 ? this.#end() : true
  }

  #chunks(): boolean {
    const line = /^([0-9A-Fa-f]+)\r\n/.exec(this.#rest)
    if (line === null) {
      const whole = this.#rest.includes('\r\n') || this.#rest.length > 20
      return whole && this.#fail('no chunk')
    }
    const size = Number.parseInt(line[1]!, 16)
    if (size > 0) {
      const end = line[0].length + size
      if (this.#rest.length < end + 2) return false
      if (!this.#rest.startsWith('\r\n', end)) return this.#fail('no end of a chunk')
      this.#rest = this.#rest.slice(end + 2)
      return true
    }
    const trailers = /^0+\r\n((?:[^\r\n]+\r\n)*)\r\n/.exec(this.#rest)
    if (trailers === null) return false
    for (const each of trailers[1]!.split('\r\n').slice(0, -1)) {
      if (!FIELD.test(each)) return this.#fail('no trailer')
    }
    this.#rest = this.#rest.slice(trailers[0].length)
    return this.#end()
  }

  #end(): true {
    this.#length = undefined
    this.#seen.whole.add(this.#key)
    this.#answer(this.#method === 'HEAD' ? OK : `${OK}ok`)
    return true
  }
}

async function listen(server: net.Server): Promise<number> {
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return (server.address() as AddressInfo).port
}

/** A gateway, its upstream that reads strictly, and the endpoint of its log. */
class Bench {
  readonly seen: Seen = { heads: new Tally(), whole: new Tally(), malformed: [] }
  /** Requests the gateway logged as sent upstream, by attempt, and those of them that were answered. */
  readonly sent = new Tally()
  readonly answered = new Tally()
  readonly #sockets = new Set<Socket>()
  readonly #upstream = net.createServer(socket => this.#serve(socket))
  readonly #log = http.createServer((request, response) => this.#take(request, response))
  #gateway: TestGateway | undefined

  get gateway(): TestGateway {
    return this.#gateway!
  }

  async start(): Promise<this> {
    const [upstream, log] = await Promise.all([listen(this.#upstream), listen(this.#log)])
    this.#gateway = await startGateway(
      {
        services: [
          {
            name: 'up',
            url: `http://127.0.0.1:${upstream}`,
            retries: 0,
            routes: [
              { name: 'all', paths: ['/'] },
              { name: 'streamed', paths: ['/stream'], request_buffering: false }
            ]
          }
        ],
        plugins: [
          {
            name: 'http-log',
            config: { http_endpoint: `http://127.0.0.1:${log}/`, queue: { concurrency_limit: -1 } }
          }
        ]
      },
      { env: { POSTERN_REQUEST_BODY_TIMEOUT: '0.5', POSTERN_REQUEST_HEADER_TIMEOUT: '2' } }
    )
    return this
  }

  #serve(socket: Socket): void {
    this.#sockets.add(socket)
    socket.on('error', () => {})
    socket.on('close', () => this.#sockets.delete(socket))
    const reader = new StrictReader(this.seen, text => socket.write(text))
    socket.setEncoding('latin1').on('data', (chunk: string) => reader.feed(chunk))
  }

  async #take(request: http.IncomingMessage, response: http.ServerResponse): Promise<void> {
    let text = ''
    for await (const chunk of request.setEncoding('utf8')) text += chunk
    response.end()
    const { request: asked, upstream_uri, upstream_status, tries } = JSON.parse(text)
    const key = `${asked.method} ${upstream_uri}`
    // What the gateway answered by itself was not tried.
    this.sent.add(key, tries?.length ?? 0)
    if (`${upstream_status}`.endsWith('200')) this.answered.add(key)
  }

  /** Sends the bytes of one connection, in pieces, and waits for its end. */
  async send(bytes: string, cuts: readonly number[]): Promise<void> {
    const socket = net.connect(this.gateway.port, '127.0.0.1')
    socket.on('error', () => {})
    socket.setNoDelay(true)
    let answer = ''
    socket.setEncoding('latin1').on('data', chunk => {
      answer += chunk
    })
    let closed = false
    socket.once('close', () => {
      closed = true
    })
    let from = 0
    for (const cut of [...cuts].map(at => Math.floor(at * bytes.length)).sort((a, b) => a - b)) {
      socket.write(Buffer.from(bytes.slice(from, cut), 'latin1'))
      from = cut
      await new Promise(resolve => setImmediate(resolve))
    }
    socket.end(Buffer.from(bytes.slice(from), 'latin1'))
    await until(() => closed, 'an answer or the end', BOUND)
    if (answer !== '' && !/^HTTP\/1\.1 \d{3} /.test(answer)) {
      throw new Error(`no answer of HTTP: ${JSON.stringify(answer.slice(0, 200))}`)
    }
  }

  /** Waits until the log has told of all that was sent, then compares it with what came. */
  async compare(): Promise<void> {
    const { heads, whole, malformed } = this.seen
    if (malformed.length > 0) throw new Error(`the upstream was sent ${malformed[0]}`)
    const good = await this.gateway.fetch('/alive')
    if (good.status !== 200) throw new Error(`a good request was answered ${good.status}`)
    await until(
      () => heads.beyond(this.sent) === undefined,
      'the log of all that was sent',
      BOUND
    ).catch(error => {
      throw new Error(`${error.message}; more than logged: ${heads.beyond(this.sent)}`)
    })
    const unseen = this.answered.beyond(whole)
    if (unseen !== undefined) throw new Error(`logged as answered, and never came whole: ${unseen}`)
  }

  /** Forgets what was found, so that the next inputs are judged by themselves. */
  forget(): void {
    const { heads, whole, malformed } = this.seen
    malformed.length = 0
    for (const { counts } of [heads, whole, this.sent, this.answered]) counts.clear()
  }

  async close(): Promise<void> {
    await this.#gateway?.close()
    for (const socket of this.#sockets) socket.destroy()
    this.#log.closeAllConnections()
    this.#upstream.close()
    this.#log.close()
  }
}

const TOKENS = [
  '\r\n',
  '\n',
  '\r',
  '\0',
  ' ',
  '\t',
  ':',
  ' :',
  '\r\n ',
  '\r\n\r\n',
  '0\r\n\r\n',
  'Content-Length: 5\r\n',
  'Content-Length: 0\r\n',
  'Content-Length: 05\r\n',
  'Transfer-Encoding: chunked\r\n',
  'Transfer-Encoding : chunked\r\n',
  'Transfer-Encoding: identity\r\n',
  'Transfer-Encoding:\x0bchunked\r\n',
  'Connection: close, Host\r\n',
  'Connection: keep-alive\r\n',
  'Expect: 100-continue\r\n',
  'Upgrade: h2c\r\nConnection: Upgrade\r\n',
  'Trailer: X\r\n',
  'X-A: \xff\r\n',
  'Host: b.example\r\n',
  'GET /smuggled HTTP/1.1\r\nHost: a.example\r\n\r\n',
  'POST /stream HTTP/1.1\r\nHost: a.example\r\n',
  'HTTP/1.0',
  'HTTP/1.1',
  '5;x=y\r\nhello\r\n',
  'ffffffffffffffff\r\n',
  '%2e%2e/',
  '%00',
  '\\',
  '#',
  '//'
]

const field = fc.constantFrom(
  '',
  'X-A: 1\r\n',
  'Cookie: a=b; c\r\n',
  'TE: trailers\r\n',
  'Connection: keep-alive\r\n',
  'Expect: 100-continue\r\n'
)
const start = fc
  .tuple(
    fc.constantFrom('GET', 'POST', 'PUT', 'HEAD', 'DELETE', 'OPTIONS', 'PROPFIND'),
    fc.constantFrom('/', '/a?b=c', '/stream', '/stream/x', '/%2F', '/a/../b', '/\xfc')
  )
  .map(([method, target]) => `${method} ${target} HTTP/1.1\r\nHost: a.example\r\n`)
const rest = fc.oneof(
  fc.constant('\r\n'),
  fc.nat(300).map(length => `Content-Length: ${length}\r\n\r\n${'x'.repeat(length)}`),
  fc
    .array(fc.integer({ min: 1, max: 40 }), { maxLength: 3 })
    .map(
      sizes =>
        'Transfer-Encoding: chunked\r\n\r\n' +
        `${sizes.map(size => `${size.toString(16)}\r\n${'y'.repeat(size)}\r\n`).join('')}0\r\n\r\n`
    )
)
const request = fc.tuple(start, field, rest).map(parts => parts.join(''))
const connection = fc.record({
  bytes: mutated(
    fc.oneof(
      fc.constantFrom(...Object.values(corpus)),
      fc.array(request, { minLength: 1, maxLength: 3 }).map(all => all.join(''))
    ),
    TOKENS
  ),
  cuts: fc.array(fc.double({ min: 0, max: 1, noNaN: true }), { maxLength: 2 })
})

/**
 * Whatever comes over a connection is answered or closed, the gateway serves on, and what its upstream
 * was sent reads strictly as the requests of the gateway's log: none that is not in it, none too many,
 * and each it logs as answered came whole.
 */
export async function fuzzRequests(budget: Budget): Promise<number> {
  const bench = await new Bench().start()
  try {
    const property = fc.asyncProperty(
      fc.array(connection, { minLength: 1, maxLength: 8 }),
      async connections => {
        try {
          await Promise.all(connections.map(({ bytes, cuts }) => bench.send(bytes, cuts)))
          await bench.compare()
        } catch (error) {
          bench.forget()
          throw error
        }
      }
    )
    return await explore(property, budget)
  } finally {
    await bench.close()
  }
}
