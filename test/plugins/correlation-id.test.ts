import t from 'tap'
import { startGateway, startUpstream } from '../harness.ts'

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/

const configs = {
  default: {},
  uuid: { generator: 'uuid', header_name: 'X-Id', echo_downstream: true },
  counter: { generator: 'uuid#counter', header_name: 'X-Id', echo_downstream: true },
  tracker: { generator: 'tracker', header_name: 'X-Id', echo_downstream: true },
  silent: { header_name: 'X-Id', echo_downstream: false }
}

const upstream = await startUpstream()
const routes = Object.entries(configs).map(([name, config]) => ({
  name,
  paths: [`/${name}`],
  plugins: [{ name: 'correlation-id', config }]
}))
const away = { name: 'away', url: 'http://127.0.0.1:1', retries: 0 }
const gateway = await startGateway({
  services: [
    { name: 's', url: upstream.url, routes },
    { ...away, routes: [{ name: 'away', paths: ['/away'] }] }
  ],
  plugins: [{ name: 'correlation-id', config: { header_name: 'X-Global', echo_downstream: true } }]
})
t.teardown(async () => {
  await gateway.close()
  await upstream.close()
})

const idsOf = async (name: string, headers: Record<string, string> = {}) => {
  const answer = await gateway.fetch(`/${name}`, { headers })
  return { upstream: answer.json().headers['x-id'] as string, client: answer.headers['x-id'] }
}

t.test('each generator gives every request an id, to the upstream and back', async t => {
  const [one, two] = [await idsOf('uuid'), await idsOf('uuid')]
  t.match(one.upstream, UUID)
  t.equal(one.client, one.upstream)
  t.not(two.upstream, one.upstream)

  const [first, second] = [await idsOf('counter'), await idsOf('counter')]
  const [base, count] = first.upstream.split('#')
  t.match(base, UUID)
  t.equal(second.upstream, `${base}#${Number(count) + 1}`)

  const tracked = await idsOf('tracker')
  t.match(tracked.upstream, /^127\.0\.0\.1-\d+-\d+-\d+-\d+-\d+\.\d{3}$/)
  t.not((await idsOf('tracker')).upstream, tracked.upstream)
})

t.test('an id that the client sent is kept, an empty one is not', async t => {
  t.same(await idsOf('uuid', { 'x-id': 'mine' }), { upstream: 'mine', client: 'mine' })
  t.match((await idsOf('uuid', { 'x-id': '' })).upstream, UUID)
})

t.test('the client learns it only where it is echoed', async t => {
  const { upstream, client } = await idsOf('silent')
  t.match(upstream, /#\d+$/)
  t.equal(client, undefined)
  const { headers } = (await gateway.fetch('/default')).json()
  t.match(headers['kong-request-id'], /#\d+$/)
})

t.test('answers of the gateway itself have one too', async t => {
  const unrouted = await gateway.fetch('/nowhere')
  t.equal(unrouted.status, 404)
  t.match(unrouted.headers['x-global'], /#\d+$/)
  const failed = await gateway.fetch('/away', { headers: { 'x-global': 'mine' } })
  t.equal(failed.status, 502)
  t.equal(failed.headers['x-global'], 'mine')
})

t.test('a configuration that cannot work is refused', async t => {
  for (const config of [{ generator: 'random' }, { header_name: 'a b' }, { unknown: 1 }]) {
    await t.rejects(startGateway({ plugins: [{ name: 'correlation-id', config }] }), {
      message: new RegExp(Object.keys(config)[0]!)
    })
  }
})
