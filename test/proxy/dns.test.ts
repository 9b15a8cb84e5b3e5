import t, { type Test } from 'tap'
import type { Logger } from '../../src/plugins/plugin.ts'
import { type Answer, NameService, RemoteResolver, sameAddresses } from '../../src/proxy/dns.ts'
import { records, startNameServer, type TestNameServer } from '../dns-server.ts'
import { until } from '../harness.ts'

interface Options {
  readonly search?: readonly string[]
  readonly order?: ('SRV' | 'A' | 'AAAA')[]
  readonly hosts?: Readonly<Record<string, readonly string[]>>
}

/** A name service that asks this server, with what it told of changes and wrote to the log. */
function serviceOf(t: Test, server: TestNameServer, options: Options = {}) {
  const changes: [string, Answer][] = []
  const lines: string[] = []
  const log = {
    info: (_facts: object, line: string) => lines.push(line),
    warn: (_facts: object, line: string) => lines.push(line)
  } as unknown as Logger
  const servers = [{ host: '127.0.0.1', port: server.port }]
  const service = new NameService({
    conf: { servers, search: options.search ?? [], ndots: 1 },
    client: { servers, timeout: 200, attempts: 1 },
    hosts: { find: name => options.hosts?.[name] },
    order: options.order ?? ['SRV', 'A', 'AAAA'],
    log,
    onChange: (host, answer) => changes.push([host, answer])
  })
  t.teardown(() => service.close())
  const ips = async (host: string) => (await service.resolve(host)).addresses.map(({ ip }) => ip)
  return { service, changes, lines, ips }
}

await t.test('addresses are themselves; the hosts file comes before DNS', async t => {
  await using server = await startNameServer(records('A', 'api.test', 60, '10.9.9.9'))
  const { ips } = serviceOf(t, server, {
    hosts: { 'api.test': ['10.0.0.1', '::1'], six: ['::2'] }
  })
  t.same(await ips('192.0.2.1'), ['192.0.2.1'])
  t.same(await ips('[::1]'), ['::1'])
  t.same(await ips('API.test'), ['10.0.0.1'], 'IPv4 where both are listed, as A comes before AAAA')
  t.same(await ips('six'), ['::2'])
  const first6 = serviceOf(t, server, { order: ['AAAA', 'A'], hosts: { a: ['10.0.0.1', '::1'] } })
  t.same(await first6.ips('a'), ['::1'])
  t.same(server.questions, [])
})

await t.test('types in their order; the one that led to addresses comes first then', async t => {
  await using server = await startNameServer(
    records('A', 'a.test', 1, '10.0.0.1'),
    records('AAAA', 'six.test', 60, '2001:db8::1')
  )
  const { ips } = serviceOf(t, server)
  t.same(await ips('a.test'), ['10.0.0.1'])
  t.same(server.questions, ['SRV a.test', 'A a.test'])
  await until(() => server.questions.length > 2, 'the renewal')
  t.equal(server.questions[2], 'A a.test')
  t.same(await ips('six.test'), ['2001:db8::1'])
})

await t.test('short names with the search domains; an unknown name is asked once', async t => {
  await using server = await startNameServer(records('A', 'api.ns.test', 60, '10.0.0.1'))
  const { ips } = serviceOf(t, server, { search: ['other.test', 'ns.test'] })
  t.same(await ips('api'), ['10.0.0.1'])
  t.same(server.questions, ['SRV api.other.test', 'SRV api.ns.test', 'A api.ns.test'])
})

await t.test('SRV records give port, weight and name, of the lowest priority only', async t => {
  await using server = await startNameServer(
    records(
      'SRV',
      '_api._tcp.test',
      60,
      { target: 'one.test', port: 8001, priority: 1, weight: 30 },
      { target: 'two.test', port: 8002, priority: 1, weight: 0 },
      { target: 'gone.test', port: 8004, priority: 1, weight: 1 },
      { target: 'spare.test', port: 8003, priority: 2, weight: 100 }
    ),
    records('A', 'one.test', 60, '10.0.0.1'),
    records('A', 'two.test', 60, '10.0.0.2', '10.0.0.3')
  )
  const { service } = serviceOf(t, server)
  t.same((await service.resolve('_api._tcp.test')).addresses, [
    { ip: '10.0.0.1', service: { name: 'one.test', port: 8001, weight: 30 } },
    { ip: '10.0.0.2', service: { name: 'two.test', port: 8002, weight: 1 } },
    { ip: '10.0.0.3', service: { name: 'two.test', port: 8002, weight: 1 } }
  ])
})

await t.test('answers are renewed when their TTL ends, and changes are told', async t => {
  await using server = await startNameServer(
    records('A', 'moving.test', 1, '10.0.0.1'),
    records('A', 'standing.test', 300, '10.0.0.5')
  )
  const { service, changes, ips } = serviceOf(t, server)
  t.same(await ips('moving.test'), ['10.0.0.1'])
  t.same(await ips('standing.test'), ['10.0.0.5'])
  const before = service.resolve('moving.test')
  t.equal(service.resolve('moving.test'), before, 'the same answer, without waiting')
  server.zone.set(...records('A', 'moving.test', 1, '10.0.0.2'))
  const { version } = service
  await until(() => changes.length > 0, 'the change')
  t.match(changes[0], ['moving.test', { addresses: [{ ip: '10.0.0.2' }] }])
  t.ok(service.version > version)
  t.same(await ips('moving.test'), ['10.0.0.2'])
  t.equal(server.questions.filter(question => question.endsWith('standing.test')).length, 2)
  t.same([...service.known.keys()], ['moving.test', 'standing.test'])
  service.retain(new Set(['Standing.test']))
  t.same([...service.known.keys()], ['standing.test'])
})

await t.test('the last addresses stay while no server answers', async t => {
  await using server = await startNameServer(records('A', 'a.test', 1, '10.0.0.1'))
  const { ips, lines, changes } = serviceOf(t, server)
  t.same(await ips('a.test'), ['10.0.0.1'])
  server.mode = 'servfail'
  await until(() => lines.some(line => line.includes('its last addresses stay')), 'the failure')
  t.same(await ips('a.test'), ['10.0.0.1'])
  server.zone.set(...records('A', 'a.test', 1, '10.0.0.2'))
  server.mode = 'serve'
  await until(async () => (await ips('a.test'))[0] === '10.0.0.2', 'the new address')
  t.ok(lines.includes('a name resolves again'))
  t.equal(changes.length, 1)
})

await t.test('a name that goes away has no addresses, one that comes has', async t => {
  await using server = await startNameServer(records('A', 'a.test', 1, '10.0.0.1'))
  const { service, ips } = serviceOf(t, server)
  t.match(await service.resolve('b.test'), { addresses: [], failure: 'ENOTFOUND' })
  t.same(await ips('a.test'), ['10.0.0.1'])
  server.zone.clear()
  server.zone.set(...records('A', 'b.test', 1, '10.0.0.3'))
  await until(async () => (await ips('a.test')).length === 0, 'the name to go')
  await until(async () => (await ips('b.test'))[0] === '10.0.0.3', 'the name to come')
})

await t.test('a first question without an answer is a failure, and is asked again', async t => {
  await using server = await startNameServer(records('A', 'a.test', 60, '10.0.0.1'))
  server.mode = 'servfail'
  const { service, ips, lines } = serviceOf(t, server)
  t.match(await service.resolve('a.test'), { addresses: [], failure: 'SERVFAIL' })
  t.match(lines[0], /requests to it are answered 503/)
  server.mode = 'serve'
  await until(async () => (await ips('a.test')).length === 1, 'the addresses')
})

await t.test('a TTL of 0 asks for each request, at once for those at the same time', async t => {
  await using server = await startNameServer(records('A', 'a.test', 0, '10.0.0.1'))
  const { service, ips, lines } = serviceOf(t, server, { order: ['A'] })
  await Promise.all([ips('a.test'), ips('a.test'), ips('a.test')])
  t.equal(server.questions.length, 1)
  await ips('a.test')
  t.equal(server.questions.length, 2)
  t.equal((await service.resolve('a.test')).transient, true)
  server.mode = 'servfail'
  t.same(await ips('a.test'), ['10.0.0.1'], 'the last one')
  t.equal(lines.length, 1)
  server.mode = 'serve'
  await until(async () => (await service.resolve('a.test')).transient, 'asking again')
})

await t.test('a thread asks once for each name, then is told', async t => {
  const answer = (ip: string, transient = false): Answer => ({
    addresses: [{ ip, service: undefined }],
    failure: undefined,
    transient
  })
  const asked: string[] = []
  let next: Answer | Error = answer('10.0.0.1')
  const resolver = new RemoteResolver(
    async host => {
      asked.push(host)
      if (next instanceof Error) throw next
      return next
    },
    new Map([['known.test', answer('10.0.0.9')]])
  )
  t.match(resolver.resolve('known.test'), answer('10.0.0.9'))
  t.match(resolver.resolve('192.0.2.1'), answer('192.0.2.1'))
  await Promise.all([resolver.resolve('A.test'), resolver.resolve('a.test')])
  t.match(resolver.resolve('a.test'), answer('10.0.0.1'))
  t.same(asked, ['a.test'])
  const { version } = resolver
  resolver.update('other.test', answer('10.0.0.3'))
  t.equal(resolver.version, version, 'a name it does not know')
  resolver.update('a.test', answer('10.0.0.2'))
  t.ok(resolver.version > version)
  t.match(resolver.resolve('a.test'), answer('10.0.0.2'))
  resolver.update('a.test', answer('10.0.0.2', true))
  next = answer('10.0.0.4', true)
  t.match(await resolver.resolve('a.test'), answer('10.0.0.4', true))
  await resolver.resolve('a.test')
  t.equal(asked.length, 3)
  next = new Error('the thread ended')
  t.match(await resolver.resolve('b.test'), { addresses: [], failure: 'ECLOSED' })
})

await t.test('answers are compared by what they lead to, in any order', async t => {
  const plain = (ip: string) => ({ ip, service: undefined })
  const srv = (ip: string, weight: number) => ({ ip, service: { name: 'n', port: 1, weight } })
  t.ok(sameAddresses([plain('1'), plain('2')], [plain('2'), plain('1')]))
  t.notOk(sameAddresses([plain('1')], [plain('1'), plain('2')]))
  t.notOk(sameAddresses([plain('1')], [plain('2')]))
  t.notOk(sameAddresses([srv('1', 1)], [srv('1', 2)]))
  t.ok(sameAddresses([srv('1', 1)], [srv('1', 1)]))
})
