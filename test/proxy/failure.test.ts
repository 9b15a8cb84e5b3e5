import t from 'tap'
import {
  defaultMessage,
  errorBody,
  failureKind,
  grpcStatus,
  httpLayerBody,
  upstreamFailure
} from '../../src/proxy/failure.ts'

const ID = '0123456789abcdef0123456789abcdef'

await t.test('four content types, byte for byte', async t => {
  t.same(errorBody(404, 'Gone <away> & "more"', 'application/json', ID), {
    contentType: 'application/json; charset=utf-8',
    body: `{\n  "message":"Gone <away> & \\"more\\"",\n  "request_id":"${ID}"\n}`
  })
  t.same(errorBody(404, 'Not found', 'text/plain', ID), {
    contentType: 'text/plain; charset=utf-8',
    body: `Not found\nrequest_id: ${ID}\n`
  })
  const html = errorBody(404, 'Not <found>', 'text/html', ID)
  t.equal(html.contentType, 'text/html; charset=utf-8')
  t.match(html.body, /<title>Error<\/title>[\s\S]*<h1>Error<\/h1>/)
  t.match(html.body, `<p>Not &lt;found&gt;.</p>\n    <p>request_id: ${ID}</p>`)
  const xml = errorBody(404, 'a & b', 'application/xml', ID)
  t.equal(xml.contentType, 'application/xml; charset=utf-8')
  t.match(xml.body, `<message>a &amp; b</message>\n  <requestid>${ID}</requestid>`)
})

await t.test('the type a client prefers', async t => {
  const type = (accept: string | undefined): string =>
    errorBody(400, 'm', accept, ID).contentType.split(';')[0]!
  t.equal(type(undefined), 'application/json')
  t.equal(type('*/*'), 'application/json')
  t.equal(type('application/*'), 'application/json')
  t.equal(type('image/png'), 'application/json')
  t.equal(type('text/*'), 'text/plain')
  t.equal(type('TEXT/HTML'), 'text/html')
  t.equal(type('text/html;q=0.5, application/xml'), 'application/xml')
  t.equal(type('application/xml ; q=0.2 , text/plain;level=1;q=0.9'), 'text/plain')
  t.equal(type('text/html;q=0'), 'application/json')
  t.equal(type('text/html;q=nonsense, text/plain;q=0.1'), 'text/plain')
})

await t.test('the HTTP layer without Accept follows the content type, else is plain', async t => {
  const type = (accept: string | undefined, contentType: string | undefined): string =>
    httpLayerBody(502, 'm', accept, contentType, ID).contentType.split(';')[0]!
  t.equal(type(undefined, undefined), 'text/plain')
  t.equal(type(undefined, 'application/json; charset=utf-8'), 'application/json')
  t.equal(type(undefined, 'application/x-www-form-urlencoded'), 'text/plain')
  t.equal(type('text/html', 'application/json'), 'text/html')
  t.equal(type('image/png', 'text/html'), 'application/json')
})

await t.test('messages by status', async t => {
  for (const [status, message] of Object.entries({
    400: 'Bad request',
    401: 'Unauthorized',
    403: 'Forbidden',
    404: 'Not found',
    405: 'Method not allowed',
    408: 'Request timeout',
    411: 'Length required',
    412: 'Precondition failed',
    413: 'Payload too large',
    414: 'URI too long',
    417: 'Expectation failed',
    429: 'Too many requests',
    494: 'Request header or cookie too large',
    500: 'An unexpected error occurred',
    502: 'An invalid response was received from the upstream server',
    503: 'The upstream server is currently unavailable',
    504: 'The upstream server is timing out',
    599: 'The upstream server responded with 599'
  })) {
    t.equal(defaultMessage(Number(status)), message)
  }
})

await t.test('failures towards an upstream', async t => {
  const failure = (code: string | undefined) =>
    upstreamFailure(Object.assign(new Error('x'), code === undefined ? {} : { code }))
  for (const code of [
    'UND_ERR_CONNECT_TIMEOUT',
    'UND_ERR_HEADERS_TIMEOUT',
    'UND_ERR_BODY_TIMEOUT',
    'ETIMEDOUT',
    'POSTERN_WRITE_TIMEOUT'
  ]) {
    t.same(failure(code), { status: 504, message: 'The upstream server is timing out' }, code)
  }
  for (const code of [
    'ECONNREFUSED',
    'ECONNRESET',
    'UND_ERR_SOCKET',
    'CERT_HAS_EXPIRED',
    undefined
  ]) {
    t.equal(failure(code).status, 502, String(code))
  }
  t.same(failure('POSTERN_DNS_FAILED'), { status: 503, message: 'name resolution failed' })
  t.equal(failure('POSTERN_UPSTREAM_BUSY').status, 503)
  for (const code of ['EMFILE', 'ENFILE', 'ENOBUFS', 'ENOMEM']) {
    t.equal(failure(code).status, 503, code)
    t.equal(failureKind(Object.assign(new Error('x'), { code })), undefined, 'not the target')
  }
  t.equal(failureKind(Object.assign(new Error('x'), { code: 'ECONNREFUSED' })), 'tcp')
  t.equal(failure('POSTERN_BODY_TOO_LARGE').status, 413)
})

await t.test('gRPC statuses', async t => {
  t.same(
    [200, 400, 401, 403, 404, 409, 429, 499, 500, 501, 503, 504, 418, 599, 302].map(grpcStatus),
    [0, 3, 16, 7, 5, 6, 8, 1, 13, 12, 14, 4, 3, 13, 2]
  )
})
