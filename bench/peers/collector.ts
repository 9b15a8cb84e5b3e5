import http from 'node:http'

// Takes whatever is sent to it: the endpoint of http-log.
http
  .createServer((request, response) => {
    request.resume()
    request.once('end', () => response.end())
  })
  .listen(Number(process.argv[2]), '127.0.0.1')
