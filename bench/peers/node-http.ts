import http from 'node:http'

// Plain node:http that answers by itself: what a connection costs before any proxying.
http
  .createServer({ keepAliveTimeout: 600_000 }, (request, response) => {
    request.resume()
    response.end('ok')
  })
  .listen(Number(process.argv[2]), '127.0.0.1')
