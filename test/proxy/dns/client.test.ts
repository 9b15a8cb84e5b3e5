import t from 'tap'
import { type AddressType, lookUp, type NameServer } from '../../../src/proxy/dns/client.ts'
import { records, startNameServer } from '../../dns-server.ts'

const ask = (
  servers: readonly NameServer[],
  name: string,
  type: AddressType = 'A',
  timeout = 2000
) => lookUp(name, type, { servers, timeout, attempts: 1 })
const at = ({ port }: { port: number }): NameServer => ({ host: '127.0.0.1', port })

await t.test('records of each type, with their TTL', async t => {
  await using server = await startNameServer(
    records('A', 'a.test', 60, '10.0.0.1', '10.0.0.2'),
    records('AAAA', 'a.test', 30, '2001:db8::1'),
    records('SRV', 'a.test', 20, { port: 81, target: 'b.test', priority: 1, weight: 5 })
  )
  const a = await ask([at(server)], 'A.test')
  t.same(
    a.records.map(({ data }) => data),
    ['10.0.0.1', '10.0.0.2']
  )
  t.match(a, { ttl: 60, unknown: false })
  t.match(await ask([at(server)], 'a.test', 'AAAA'), {
    records: [{ data: '2001:db8::1' }],
    ttl: 30
  })
  t.match(await ask([at(server)], 'a.test', 'SRV'), {
    records: [{ data: 'b.test', port: 81, priority: 1, weight: 5 }],
    ttl: 20
  })
})

await t.test('aliases, in one answer and over several questions', async t => {
  await using server = await startNameServer(
    records('CNAME', 'www.test', 5, 'a.test'),
    records('A', 'a.test', 60, '10.0.0.1'),
    records('CNAME', 'dangling.test', 5, 'nowhere.test')
  )
  t.match(await ask([at(server)], 'www.test'), { records: [{ data: '10.0.0.1' }], ttl: 5 })
  t.same((await ask([at(server)], 'dangling.test')).records, [])
  server.questions.length = 0
  server.mode = 'first-alias'
  t.match(await ask([at(server)], 'www.test'), { records: [{ data: '10.0.0.1' }], ttl: 5 })
  t.same(server.questions, ['A www.test', 'A a.test'])
  server.zone.set(...records('CNAME', 'a.test', 5, 'www.test'))
  t.equal((await ask([at(server)], 'www.test').catch(error => error)).code, 'ELOOP')
  server.zone.set(...records('CNAME', 'self.test', 5, 'self.test'))
  t.same((await ask([at(server)], 'self.test')).records, [])
})

await t.test('nothing of this type, and nothing at all', async t => {
  await using server = await startNameServer(records('A', 'a.test', 60, '10.0.0.1'))
  server.negativeTtl = 7
  t.same(await ask([at(server)], 'a.test', 'AAAA'), { records: [], ttl: 7, unknown: false })
  t.same(await ask([at(server)], 'b.test'), { records: [], ttl: 7, unknown: true })
})

await t.test('what is no address, or says that there is no service, is left out', async t => {
  await using server = await startNameServer(
    records('SRV', 'none.test', 20, { port: 0, target: '.' })
  )
  t.same((await ask([at(server)], 'none.test', 'SRV')).records, [])
})

await t.test('a truncated answer is asked for again over TCP', async t => {
  const many = Array.from({ length: 100 }, (_, i) => `10.0.1.${i}`)
  await using server = await startNameServer(records('A', 'many.test', 60, ...many))
  server.mode = 'truncate'
  t.equal((await ask([at(server)], 'many.test')).records.length, 100)
  t.same(server.questions, ['A many.test', 'A many.test'])
})

await t.test('failures: each server in turn, then the reason of the last', async t => {
  await using bad = await startNameServer()
  await using good = await startNameServer(records('A', 'a.test', 60, '10.0.0.1'))
  const code = (error: { code?: string }) => error.code
  for (const [mode, expected, timeout] of [
    ['servfail', 'SERVFAIL', 5000],
    ['silent', 'ETIMEDOUT', 50],
    ['wrong-id', 'ETIMEDOUT', 50],
    ['garbage', 'ETIMEDOUT', 50]
  ] as const) {
    bad.mode = mode
    t.equal(await ask([at(bad)], 'a.test', 'A', timeout).catch(code), expected, mode)
    t.equal((await ask([at(bad), at(good)], 'a.test', 'A', 1000)).records.length, 1, mode)
  }
  const closed = await startNameServer()
  await closed[Symbol.asyncDispose]()
  t.equal(await ask([at(closed)], 'a.test').catch(code), 'ECONNREFUSED')
  t.equal(await ask([], 'a.test').catch(code), 'ENOSERVER')
})

await t.test('TCP that breaks, babbles or is silent', async t => {
  await using server = await startNameServer(records('A', 'a.test', 60, '10.0.0.1'))
  server.mode = 'truncate'
  const zone = server.zone.get.bind(server.zone)
  t.teardown(() => {
    server.zone.get = zone
  })
  server.zone.get = name => {
    server.mode = 'silent'
    return zone(name)
  }
  const error = await ask([at(server)], 'a.test', 'A', 100).catch(cause => cause)
  t.equal(error.code, 'ETIMEDOUT')
  server.mode = 'truncate'
  server.zone.get = name => {
    server.mode = 'garbage'
    return zone(name)
  }
  t.equal((await ask([at(server)], 'a.test').catch(cause => cause)).code, 'EBADRESP')
})
