import t from 'tap'
import { startGateway, startUpstream } from '../harness.ts'

const configs = {
  default: {},
  message: { status_code: 403, message: 'go away' },
  body: { status_code: 200, body: '<p>hi</p>', content_type: 'text/html' },
  untyped: { status_code: 200, body: 'plain' },
  unauthorized: { status_code: 401 },
  missing: { status_code: 404 },
  timeout: { status_code: 504 },
  teapot: { status_code: 418 },
  trigger: { status_code: 451, trigger: 'X-Stop', message: 'stopped' },
  echo: { status_code: 200, echo: true }
}

const upstream = await startUpstream()
const routes = Object.entries(configs).map(([name, config]) => ({
  name,
  paths: [`~/${name}(/(?<rest>.*))?$`],
  plugins: [{ name: 'request-termination', config }]
}))
const gateway = await startGateway({
  services: [{ name: 's', url: upstream.url, routes }],
  routes: [
    {
      name: 'serviceless',
      paths: ['/serviceless'],
      plugins: [{ name: 'request-termination', config: { status_code: 204 } }]
    }
  ]
})
t.teardown(async () => {
  await gateway.close()
  await upstream.close()
})

t.test('it answers what it is told, and nothing reaches the upstream', async t => {
  const cases: [string, number, string | undefined, string][] = [
    ['default', 503, 'application/json; charset=utf-8', '{"message":"Service unavailable"}'],
    ['message', 403, 'application/json; charset=utf-8', '{"message":"go away"}'],
    ['body', 200, 'text/html', '<p>hi</p>'],
    ['untyped', 200, undefined, 'plain'],
    ['unauthorized', 401, 'application/json; charset=utf-8', '{"message":"Unauthorized"}'],
    ['missing', 404, 'application/json; charset=utf-8', '{"message":"Not found"}'],
    ['teapot', 418, undefined, ''],
    ['serviceless', 204, undefined, '']
  ]
  for (const [name, status, type, body] of cases) {
    const answer = await gateway.fetch(`/${name}`)
    t.equal(answer.status, status, name)
    t.equal(answer.headers['content-type'], type, name)
    t.equal(answer.body, body, name)
  }
  t.equal(upstream.requests.length, 0)
})

t.test('a status without words of its own gets the error body of the gateway', async t => {
  const answer = await gateway.fetch('/timeout', { headers: { accept: 'text/plain' } })
  t.equal(answer.status, 504)
  t.match(answer.body, /^The upstream server is timing out\nrequest_id: [0-9a-f]{32}\n$/)
})

t.test('a trigger is a header or a query argument', async t => {
  t.equal((await gateway.fetch('/trigger')).status, 200)
  t.equal((await gateway.fetch('/trigger?x-stop')).status, 200, 'arguments are case-sensitive')
  t.equal((await gateway.fetch('/trigger?a=1&X-Stop')).status, 451)
  t.equal((await gateway.fetch('/trigger', { headers: { 'x-stop': '1' } })).status, 451)
})

t.test('echo tells what was matched', async t => {
  const answer = await gateway.fetch('/echo/it?a=1', { method: 'POST', body: 'four' })
  t.equal(answer.status, 200)
  t.match(answer.json(), {
    message: '',
    kong: { node_id: String, worker_pid: process.pid, hostname: String },
    request: {
      scheme: 'http',
      host: '127.0.0.1',
      port: gateway.port,
      method: 'POST',
      path: '/echo/it',
      query: { a: '1' },
      raw_body: 'four',
      uri_captures: { rest: 'it' }
    },
    matched_route: { name: 'echo' },
    matched_service: { name: 's' }
  })
})

t.test('a configuration that contradicts itself is refused', async t => {
  const cases: [object, RegExp][] = [
    [{ message: 'm', body: 'b' }, /message cannot be used with content_type or body/],
    [{ content_type: 'text/plain' }, /content_type requires a body/],
    [{ echo: true, body: 'b' }, /echo cannot be used with content_type and body/],
    [{ status_code: 99 }, /status_code/],
    [{ trigger: 'a b' }, /trigger/]
  ]
  for (const [config, message] of cases) {
    await t.rejects(
      startGateway({ plugins: [{ name: 'request-termination', config }] }),
      { message },
      JSON.stringify(config)
    )
  }
})
