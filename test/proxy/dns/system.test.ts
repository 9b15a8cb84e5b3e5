import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import {
  candidates,
  HostsFile,
  parseResolvConf,
  readResolvConf
} from '../../../src/proxy/dns/system.ts'

await t.test('resolv.conf', async t => {
  const conf = parseResolvConf(
    [
      '# comment',
      'nameserver 10.0.0.10 # main',
      'nameserver fd00::1',
      'nameserver fe80::1%eth0',
      'nameserver 10.0.0.13',
      'nameserver nonsense',
      'domain old.test',
      'search ns.svc.cluster.local svc.cluster.local. cluster.local',
      'options timeout:1 ndots:5'
    ].join('\n')
  )
  t.same(conf, {
    servers: [
      { host: '10.0.0.10', port: 53 },
      { host: 'fd00::1', port: 53 },
      { host: 'fe80::1%eth0', port: 53 }
    ],
    search: ['ns.svc.cluster.local', 'svc.cluster.local', 'cluster.local'],
    ndots: 5
  })
  t.same(parseResolvConf(''), { servers: [], search: [], ndots: 1 })
  t.same(readResolvConf(join(t.testdir(), 'none')).servers, [{ host: '127.0.0.1', port: 53 }])
  const file = join(t.testdir({ 'resolv.conf': 'nameserver 10.9.9.9\n' }), 'resolv.conf')
  t.same(readResolvConf(file).servers, [{ host: '10.9.9.9', port: 53 }])
})

await t.test('short names are completed first, long ones last, absolute ones never', async t => {
  const conf = { servers: [], search: ['ns.local', 'local'], ndots: 2 }
  t.same(candidates('api', conf), ['api.ns.local', 'api.local', 'api'])
  t.same(candidates('api.other', conf), ['api.other.ns.local', 'api.other.local', 'api.other'])
  t.same(candidates('a.b.c', conf), ['a.b.c', 'a.b.c.ns.local', 'a.b.c.local'])
  t.same(candidates('api.', conf), ['api'])
})

await t.test('the hosts file, read again when it changes', async t => {
  const file = join(t.testdir(), 'hosts')
  const hosts = new HostsFile(file)
  t.equal(hosts.find('api.test'), undefined, 'no file')
  t.same(hosts.find('localhost'), ['127.0.0.1'])
  t.same(hosts.find('app.localhost'), ['127.0.0.1'])
  writeFileSync(file, '10.0.0.1 api.test API2.test # note\nfe80::1 api.test\nnonsense x\n')
  t.same(hosts.find('API.test.'), ['10.0.0.1', 'fe80::1'])
  t.same(hosts.find('api2.test'), ['10.0.0.1'])
  t.equal(hosts.find('x'), undefined)
  writeFileSync(file, '::1 localhost api.test\n127.0.0.1 localhost\n127.0.0.1 localhost\n')
  t.same(hosts.find('api.test'), ['::1'])
  t.same(hosts.find('localhost'), ['127.0.0.1', '::1'])
})
