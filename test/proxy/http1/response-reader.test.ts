import fc from 'fast-check'
import t from 'tap'
import { ResponseReader, type ResponseSink } from '../../../src/proxy/http1/response-reader.ts'

/** What a reader told, in order; bodies joined. */
class Recorder implements ResponseSink {
  paused = false
  readonly told: unknown[] = []
  #body = ''

  onHead(status: number, reason: string, rawHeaders: string[], contentLength: number): void {
    this.told.push(['head', status, reason, rawHeaders, contentLength])
  }

  onBody(chunk: Buffer): void {
    this.#body += chunk.toString('latin1')
  }

  onEnd(rawTrailers: string[], reusable: boolean): void {
    this.told.push(['end', this.#body, rawTrailers, reusable])
    this.#body = ''
  }

  onUpgrade(rawHeaders: string[], head: Buffer): void {
    this.told.push(['upgrade', rawHeaders, head.toString('latin1')])
  }
}

function read(text: string, method = 'GET', cuts: readonly number[] = []): readonly unknown[] {
  const recorder = new Recorder()
  const reader = new ResponseReader(recorder, 1024)
  reader.begin(method)
  const bytes = Buffer.from(text, 'latin1')
  const ends = [...new Set([...cuts.filter(cut => cut < bytes.length), bytes.length])]
  let from = 0
  for (const end of ends.sort((a, b) => a - b)) {
    reader.feed(bytes.subarray(from, end))
    from = end
  }
  return recorder.told
}

const OK = 'HTTP/1.1 200 OK\r\n'

await t.test('each way a body may be delimited', async t => {
  const cases: readonly (readonly [string, string, string, readonly unknown[]])[] = [
    ['a length', 'GET', `${OK}Content-Length: 3\r\n\r\nabc`, ['abc', [], true]],
    ['no body by length', 'GET', `${OK}content-length:0\r\n\r\n`, ['', [], true]],
    ['the answer to HEAD', 'HEAD', `${OK}Content-Length: 3\r\n\r\n`, ['', [], true]],
    ['204', 'GET', 'HTTP/1.1 204 No Content\r\n\r\n', ['', [], true]],
    ['304 with a length', 'GET', 'HTTP/1.1 304\r\nContent-Length: 9\r\n\r\n', ['', [], true]],
    [
      'chunks',
      'GET',
      `${OK}Transfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n1;x=y\r\nd\r\n0\r\n\r\n`,
      ['abcd', [], true]
    ],
    [
      'chunks and trailers',
      'GET',
      `${OK}Transfer-Encoding: chunked\r\n\r\nA\r\n0123456789\r\n0\r\nX-A: 1\r\nX-B:2 \r\n\r\n`,
      ['0123456789', ['X-A', '1', 'X-B', '2'], true]
    ],
    ['close', 'GET', `${OK}Content-Length: 1\r\nConnection: close\r\n\r\na`, ['a', [], false]],
    ['HTTP/1.0', 'GET', 'HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\na', ['a', [], false]]
  ]
  for (const [name, method, text, end] of cases) {
    const whole = read(text, method)
    t.same(whole.at(-1), ['end', ...end], name)
    fc.assert(
      fc.property(fc.array(fc.nat({ max: text.length })), cuts => {
        t.same(read(text, method, cuts), whole)
      }),
      { numRuns: 30 }
    )
  }
})

await t.test('the head as it came, after interim ones', async t => {
  t.same(
    read(
      'HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 \r\nX:  a b\t\r\nContent-Length: 0\r\n\r\n'
    ),
    [
      ['head', 103, 'Early Hints', ['Link', '</a>'], -1],
      ['head', 200, '', ['X', 'a b', 'Content-Length', '0'], 0],
      ['end', '', [], true]
    ]
  )
})

await t.test('a switch of protocols that was asked for', async t => {
  const answer = 'HTTP/1.1 101 Switching Protocols\r\nUpgrade: a\r\n\r\n'
  for (const cut of [1, 20, answer.length, answer.length + 2]) {
    const recorder = new Recorder()
    const reader = new ResponseReader(recorder, 1024)
    reader.begin('GET', true)
    const bytes = Buffer.from(`${answer}more`)
    reader.feed(bytes.subarray(0, cut))
    if (recorder.told.length === 0) reader.feed(bytes.subarray(cut))
    const head = 'more'.slice(0, cut < answer.length ? 4 : cut - answer.length)
    t.same(recorder.told, [['upgrade', ['Upgrade', 'a'], head]], `cut at ${cut}`)
  }
})

await t.test('a connection that might have switched is not used again', async t => {
  const recorder = new Recorder()
  const reader = new ResponseReader(recorder, 1024)
  reader.begin('GET', true)
  reader.feed(Buffer.from(`${OK}Content-Length: 0\r\n\r\n`))
  t.same(recorder.told.at(-1), ['end', '', [], false])
})

await t.test('a body that ends with the connection', async t => {
  const recorder = new Recorder()
  const reader = new ResponseReader(recorder, 1024)
  reader.begin('GET')
  reader.feed(Buffer.from(`${OK}\r\nabc`))
  reader.feed(Buffer.from('def'))
  t.equal(recorder.told.length, 1)
  reader.finish()
  t.same(recorder.told.at(-1), ['end', 'abcdef', [], false])
})

await t.test('a connection that closes within a response is a failure', async t => {
  for (const begun of [
    '',
    'HTTP/1.1 2',
    `${OK}Content-Length: 3\r\n\r\nab`,
    `${OK}Transfer-Encoding: chunked\r\n\r\n3\r\nab`
  ]) {
    const reader = new ResponseReader(new Recorder(), 1024)
    reader.begin('GET')
    reader.feed(Buffer.from(begun))
    t.throws(() => reader.finish(), { code: 'UND_ERR_SOCKET' }, JSON.stringify(begun))
  }
})

await t.test('whatever two parsers could read differently is refused', async t => {
  const refused: readonly string[] = [
    'HTTP/2 200 OK\r\n\r\n',
    'HTTP/1.2 200 OK\r\n\r\n',
    'HTTP/1.1  200 OK\r\n\r\n',
    'HTTP/1.1 20 OK\r\n\r\n',
    'HTTP/1.1 600 OK\r\n\r\n',
    'HTTP/1.1 2000\r\n\r\n',
    'http/1.1 200 OK\r\n\r\n',
    '\r\nHTTP/1.1 200 OK\r\n\r\n',
    'HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n',
    `${OK}Content-Length: 1\r\nContent-Length: 1\r\n\r\na`,
    `${OK}Content-Length: 1, 1\r\n\r\na`,
    `${OK}Content-Length: +1\r\n\r\na`,
    `${OK}Content-Length: 0x1\r\n\r\na`,
    `${OK}Content-Length: -1\r\n\r\na`,
    `${OK}Content-Length: \r\n\r\na`,
    `${OK}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n`,
    `${OK}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n`,
    `${OK}Transfer-Encoding: gzip, chunked\r\n\r\n`,
    `${OK}Transfer-Encoding: identity\r\n\r\n`,
    `${OK}Transfer-Encoding: chunked, identity\r\n\r\n`,
    'HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
    `${OK}X : a\r\n\r\n`,
    `${OK}X\r\n\r\n`,
    `${OK}: a\r\n\r\n`,
    `${OK}A: b\r\n c\r\n\r\n`,
    `${OK}A: b\nC: d\r\n\r\n`,
    `${OK}A: b\rC: d\r\n\r\n`,
    `${OK}A: b\0\r\n\r\n`,
    `${OK}A: b\x7f\r\n\r\n`,
    `${OK}Transfer-Encoding: chunked\r\n\r\n1\na\r\n0\r\n\r\n`,
    `${OK}Transfer-Encoding: chunked\r\n\r\n 1\r\na\r\n0\r\n\r\n`,
    `${OK}Transfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n`,
    `${OK}Transfer-Encoding: chunked\r\n\r\n-1\r\na\r\n0\r\n\r\n`,
    `${OK}Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n`,
    `${OK}Transfer-Encoding: chunked\r\n\r\n\r\n`,
    `${OK}Transfer-Encoding: chunked\r\n\r\n${'f'.repeat(14)}\r\n`,
    `${OK}Transfer-Encoding: chunked\r\n\r\n1;${'x'.repeat(300)}\r\na`,
    `${OK}Transfer-Encoding: chunked\r\n\r\n0\r\nX : a\r\n\r\n`,
    `${OK}Transfer-Encoding: chunked\r\n\r\n0\r\nX: a\nY: b\r\n\r\n`
  ]
  for (const text of refused) {
    t.throws(() => read(text), { code: 'HPE_INVALID_RESPONSE' }, JSON.stringify(text))
    t.throws(
      () =>
        read(
          text,
          'GET',
          Array.from({ length: text.length }, (_, i) => i)
        ),
      { code: 'HPE_INVALID_RESPONSE' },
      `${JSON.stringify(text)} byte by byte`
    )
  }
  for (const text of [
    `${OK}X: ${'a'.repeat(2000)}`,
    `${OK}X: ${'a'.repeat(2000)}\r\n\r\n`,
    `${OK}Transfer-Encoding: chunked\r\n\r\n0\r\nX: ${'a'.repeat(2000)}`
  ]) {
    t.throws(() => read(text), { code: 'UND_ERR_HEADERS_OVERFLOW' })
  }
  t.throws(() => read('HTTP/1.1 100 Continue\r\n\r\n'.repeat(40)), { code: 'HPE_INVALID_RESPONSE' })
})

await t.test(
  'bytes after a response end the use of the connection, told before the error',
  async t => {
    for (const text of [
      `${OK}Content-Length: 1\r\n\r\nab`,
      'HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\n\r\n'
    ]) {
      const recorder = new Recorder()
      const reader = new ResponseReader(recorder, 1024)
      reader.begin('GET')
      t.throws(() => reader.feed(Buffer.from(text)), { code: 'HPE_INVALID_RESPONSE' })
      t.match(recorder.told.at(-1), ['end', String, [], false])
    }
  }
)

await t.test('while the sink is paused a read is told no further than the body goes', async t => {
  const responses = [
    `${OK}Content-Length: 6\r\n\r\nabcdef`,
    `${OK}Content-Length: 0\r\n\r\n`,
    `${OK}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\nT: 1\r\n\r\n`,
    `${OK}\r\nuntil the end`
  ]
  for (const text of responses) {
    const expected = (() => {
      const recorder = new Recorder()
      const reader = new ResponseReader(recorder, 1024)
      reader.begin('GET')
      reader.feed(Buffer.from(text))
      if (recorder.told.length === 1) reader.finish()
      return recorder.told
    })()
    const recorder = new Recorder()
    let reads = 0
    /** The read within which a piece of a body was told last. */
    let bodyIn = -1
    const pausing: ResponseSink = {
      get paused() {
        return recorder.paused
      },
      onHead(...all) {
        recorder.onHead(...all)
        recorder.paused = true
      },
      onBody(chunk) {
        t.ok(!recorder.paused || bodyIn === reads)
        bodyIn = reads
        recorder.onBody(chunk)
        recorder.paused = true
      },
      onEnd(...all) {
        t.notOk(recorder.paused)
        recorder.onEnd(...all)
      },
      onUpgrade() {}
    }
    const reader = new ResponseReader(pausing, 1024)
    reader.begin('GET')
    const bytes = Buffer.from(text)
    reader.feed(bytes.subarray(0, bytes.length - 2))
    reads++
    reader.feed(bytes.subarray(bytes.length - 2))
    reads++
    reader.finish()
    for (let i = 0; i < 20 && recorder.told.length < 2; i++) {
      recorder.paused = false
      reads++
      reader.resume()
    }
    t.same(
      recorder.told.map(each => (each as unknown[]).slice(0, 3)),
      expected.map(each => (each as unknown[]).slice(0, 3)),
      JSON.stringify(text)
    )
  }
})

await t.test('no bytes at all make it fail in another way', async t => {
  const piece = fc.constantFrom(
    'HTTP/1.1 200 OK',
    '\r\n',
    '\n',
    'Content-Length: 2',
    'Transfer-Encoding: chunked',
    'ab',
    '2',
    '0',
    'X: y',
    ' ',
    '\0',
    ':'
  )
  fc.assert(
    fc.property(fc.array(piece, { maxLength: 20 }), fc.array(fc.nat(80)), (pieces, cuts) => {
      try {
        read(pieces.join(''), 'GET', cuts)
      } catch (error) {
        t.match(
          (error as { code?: string }).code,
          /^(HPE_INVALID_RESPONSE|UND_ERR_HEADERS_OVERFLOW)$/
        )
      }
    })
  )
})

await t.test('lines that end in a bare LF are refused at once, not waited for', async t => {
  const chunked = `${OK}Transfer-Encoding: chunked\r\n\r\n0\r\n`
  for (const text of [
    'HTTP/1.1 200 OK\nContent-Length: 2\n\nok',
    `${OK}Content-Length: 2\r\n\nok`,
    '\n',
    `${chunked}X: y\n\n`,
    `${chunked}X: y\r\nZ: 1\n`
  ]) {
    const cuts = Array.from({ length: text.length }, (_, i) => i + 1)
    t.throws(() => read(text), { code: 'HPE_INVALID_RESPONSE', message: /bare line break/ })
    t.throws(() => read(text, 'GET', cuts), { code: 'HPE_INVALID_RESPONSE' })
  }
})
