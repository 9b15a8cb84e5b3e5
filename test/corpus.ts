const HOST = 'Host: a.example\r\n'
const NEXT = `GET /smuggled HTTP/1.1\r\n${HOST}\r\n`
const head = (lines: string, target = '/', method = 'GET'): string =>
  `${method} ${target} HTTP/1.1\r\n${HOST}${lines}\r\n`
const chunked = (body: string, lines = ''): string =>
  head(`Transfer-Encoding: chunked\r\n${lines}`, '/', 'POST') + body

/**
 * What attackers send: each entry is all the bytes of one connection. None may make an upstream see a
 * request that the gateway did not forward as one.
 */
export const corpus: Readonly<Record<string, string>> = {
  'two lengths': `${head('Content-Length: 5\r\nContent-Length: 6\r\n', '/', 'POST')}hello${NEXT}`,
  'one length twice': `${head('Content-Length: 5\r\nContent-Length: 5\r\n', '/', 'POST')}hello${NEXT}`,
  'a list of lengths': `${head('Content-Length: 5, 5\r\n', '/', 'POST')}hello${NEXT}`,
  'length and coding': `${head('Content-Length: 4\r\nTransfer-Encoding: chunked\r\n', '/', 'POST')}0\r\n\r\n${NEXT}`,
  'coding and length': `${head('Transfer-Encoding: chunked\r\nContent-Length: 4\r\n', '/', 'POST')}0\r\n\r\n${NEXT}`,
  'a signed length': `${head('Content-Length: +5\r\n', '/', 'POST')}hello${NEXT}`,
  'a negative length': head('Content-Length: -5\r\n', '/', 'POST') + NEXT,
  'a hexadecimal length': `${head('Content-Length: 0x5\r\n', '/', 'POST')}hello${NEXT}`,
  'a huge length': head('Content-Length: 99999999999999999999\r\n', '/', 'POST') + NEXT,
  'an empty length': head('Content-Length:\r\n', '/', 'POST') + NEXT,
  'a length with a space in it': `${head('Content-Length: 5 6\r\n', '/', 'POST')}hello${NEXT}`,
  'a length longer than the body': `${head('Content-Length: 10\r\n', '/', 'POST')}short`,
  'a length on GET': `${head('Content-Length: 5\r\n')}hello${NEXT}`,
  'a space before the colon': `${head('Content-Length : 5\r\n', '/', 'POST')}hello${NEXT}`,
  'a tab before the colon': `${head('Transfer-Encoding\t: chunked\r\n', '/', 'POST')}0\r\n\r\n${NEXT}`,
  'a folded field': `${head('X-A: 1\r\n Content-Length: 5\r\n', '/', 'POST')}hello${NEXT}`,
  'a folded coding': `${head('Transfer-Encoding:\r\n chunked\r\n', '/', 'POST')}0\r\n\r\n${NEXT}`,
  'a line that begins with a space': `GET / HTTP/1.1\r\n ${HOST}\r\n${NEXT}`,
  'bare LF in the head': `GET / HTTP/1.1\n${HOST.replace('\r', '')}\n${NEXT}`,
  'bare LF between fields': `GET / HTTP/1.1\r\nHost: a.example\nContent-Length: 5\r\n\r\nhello${NEXT}`,
  'bare CR in a field': `${head('X-A: 1\rContent-Length: 5\r\n', '/', 'POST')}hello${NEXT}`,
  'NUL in a field': head('X-A: 1\0\r\n') + NEXT,
  'a control byte in a field': head('X-A: \x01\r\n') + NEXT,
  'a control byte in a name': head('X\x01A: 1\r\n') + NEXT,
  'no colon': head('Garbage\r\n') + NEXT,
  'an empty name': head(': 1\r\n') + NEXT,
  'names in odd case': `${head('cOnTeNt-LeNgTh: 5\r\n', '/', 'POST')}hello${NEXT}`,
  'names with underscores':
    head('Content_Length: 5\r\nTransfer_Encoding: chunked\r\n', '/', 'POST') + NEXT,
  'a name in quotes': head('"Content-Length": 5\r\n', '/', 'POST') + NEXT,
  'an unknown coding': `${head('Transfer-Encoding: xchunked\r\n', '/', 'POST')}0\r\n\r\n${NEXT}`,
  'chunked before another': `${head('Transfer-Encoding: chunked, identity\r\n', '/', 'POST')}0\r\n\r\n${NEXT}`,
  'chunked after another': `${head('Transfer-Encoding: identity, chunked\r\n', '/', 'POST')}0\r\n\r\n${NEXT}`,
  'chunked twice':
    head('Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n', '/', 'POST') +
    `0\r\n\r\n${NEXT}`,
  'chunked in quotes': `${head('Transfer-Encoding: "chunked"\r\n', '/', 'POST')}0\r\n\r\n${NEXT}`,
  'chunked with a vertical tab': `${head('Transfer-Encoding: \x0bchunked\r\n', '/', 'POST')}0\r\n\r\n${NEXT}`,
  'an empty coding': `${head('Transfer-Encoding:\r\nContent-Length: 5\r\n', '/', 'POST')}hello${NEXT}`,
  'a coding on 1.0': `POST / HTTP/1.0\r\n${HOST}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n${NEXT}`,
  'good chunks': chunked('5\r\nhello\r\n0\r\n\r\n') + NEXT,
  'chunks in upper and lower case':
    chunked(`A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n`) + NEXT,
  'a chunk extension': chunked('5;name=value\r\nhello\r\n0\r\n\r\n') + NEXT,
  'a chunk extension with LF': chunked('5;a\nhello\r\n0\r\n\r\n') + NEXT,
  'a space after the size': chunked('5 \r\nhello\r\n0\r\n\r\n') + NEXT,
  'a space before the size': chunked(' 5\r\nhello\r\n0\r\n\r\n') + NEXT,
  'a signed size': chunked('+5\r\nhello\r\n0\r\n\r\n') + NEXT,
  'a size with 0x': chunked('0x5\r\nhello\r\n0\r\n\r\n') + NEXT,
  'an overflowing size': chunked('ffffffffffffffff5\r\nhello\r\n0\r\n\r\n') + NEXT,
  'an empty size': chunked('\r\nhello\r\n0\r\n\r\n') + NEXT,
  'a chunk longer than its size': chunked('3\r\nhello\r\n0\r\n\r\n') + NEXT,
  'a chunk ended by LF': chunked('5\r\nhello\n0\r\n\r\n') + NEXT,
  'a size ended by LF': chunked('5\nhello\r\n0\r\n\r\n') + NEXT,
  'an end with LF': chunked('0\n\n') + NEXT,
  'chunks that never end': chunked('5\r\nhello\r\n'),
  trailers: chunked('0\r\nX-Sum: 1\r\n\r\n', 'Trailer: X-Sum\r\n') + NEXT,
  'framing in trailers': chunked('0\r\nContent-Length: 5\r\nHost: b\r\n\r\n') + NEXT,
  'a coding hidden by Connection':
    head('Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n', '/', 'POST') +
    `0\r\n\r\n${NEXT}`,
  'a length hidden by Connection': `${head('Connection: Content-Length\r\nContent-Length: 5\r\n', '/', 'POST')}hello${NEXT}`,
  'Host hidden by Connection': head('Connection: Host\r\n') + NEXT,
  'two Hosts': head('Host: b.example\r\n') + NEXT,
  'no Host': `GET / HTTP/1.1\r\n\r\n${NEXT}`,
  'a Host with userinfo': `GET / HTTP/1.1\r\nHost: u@a.example\r\n\r\n${NEXT}`,
  'absolute form': `GET http://a.example/x HTTP/1.1\r\n${HOST}\r\n`,
  'absolute form elsewhere': `GET http://b.example/x HTTP/1.1\r\n${HOST}\r\n${NEXT}`,
  'authority form': `CONNECT a.example:80 HTTP/1.1\r\n${HOST}\r\n${NEXT}`,
  'authority form of GET': `GET a.example:80 HTTP/1.1\r\n${HOST}\r\n${NEXT}`,
  'asterisk form': `OPTIONS * HTTP/1.1\r\n${HOST}\r\n${NEXT}`,
  'encoded dots': head('', '/a/%2e%2e/%2E%2e/etc/passwd') + NEXT,
  'encoded slashes': head('', '/a%2f..%2fb') + NEXT,
  'many slashes': head('', '//a.example//x') + NEXT,
  'a backslash': head('', '/a\\..\\b') + NEXT,
  'an encoded line break': head('', '/%0d%0aX-Injected:%201') + NEXT,
  'a line break in the query': head('', '/?a=%0d%0aHost:%20b') + NEXT,
  'a NUL in the target': head('', '/a\0b') + NEXT,
  'a high byte in the target': head('', '/caf\xe9') + NEXT,
  'a tab in the request line': `GET\t/\tHTTP/1.1\r\n${HOST}\r\n${NEXT}`,
  'two spaces in the request line': `GET  /  HTTP/1.1\r\n${HOST}\r\n${NEXT}`,
  'a fragment': head('', '/a#b') + NEXT,
  'version 0.9': `GET /\r\n\r\n${NEXT}`,
  'version 1.2': `GET / HTTP/1.2\r\n${HOST}\r\n${NEXT}`,
  'version 2.0': `GET / HTTP/2.0\r\n${HOST}${HOST}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n${NEXT}`,
  'the preface of HTTP/2': 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n',
  'an h2c upgrade':
    head('Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n') +
    NEXT,
  'another upgrade with a body':
    head('Connection: Upgrade\r\nUpgrade: foo\r\nContent-Length: 5\r\n', '/', 'POST') +
    `hello${NEXT}`,
  'an oversized head': head(`X-A: ${'a'.repeat(40_000)}\r\n`) + NEXT,
  'too many fields': head('X-A: 1\r\n'.repeat(300)) + NEXT,
  'an oversized name': head(`${'X'.repeat(40_000)}: 1\r\n`) + NEXT,
  'an oversized target': head('', `/${'a'.repeat(10_000)}`) + NEXT,
  'an oversized method': head('', '/', 'A'.repeat(40_000)) + NEXT,
  'an oversized chunk extension': chunked(`5;${'a'.repeat(40_000)}\r\nhello\r\n0\r\n\r\n`) + NEXT,
  'a chunk size of many zeros': chunked(`${'0'.repeat(300)}5\r\nhello\r\n0\r\n\r\n`) + NEXT,
  'oversized trailers': chunked(`0\r\nX-A: ${'a'.repeat(40_000)}\r\n\r\n`) + NEXT,
  'many trailers': chunked(`0\r\n${'X-A: 1\r\n'.repeat(60)}\r\n`) + NEXT,
  'a method of its own': head('', '/', 'PROPFIND') + NEXT,
  'a method in lower case': head('', '/', 'get') + NEXT,
  'empty lines before': `\r\n\r\n${head('')}`,
  pipelined: head('') + head('', '/2') + head('', '/3'),
  'HEAD then GET': head('', '/', 'HEAD') + head('', '/2')
}
