import t, { type Test } from 'tap'
import { awsBackend } from '../../../src/vault/backends/aws.ts'
import { startUpstream } from '../../harness.ts'
import { OWNER, startFakeAws } from '../aws-server.ts'
import { backendContract } from '../backend-contract.ts'

await backendContract(t, 'aws', async () => {
  const aws = await startFakeAws()
  return {
    type: awsBackend,
    config: {
      region: 'eu-central-1',
      endpoint_url: aws.url,
      access_key_id: OWNER.id,
      secret_access_key: OWNER.secret
    },
    secrets: [OWNER.secret],
    put: async (resource, value) =>
      aws.secrets.put(resource, typeof value === 'string' ? value : JSON.stringify(value)),
    remove: async resource => aws.secrets.remove(resource),
    resource: name => `contract/${name}`,
    fault: kind => aws.fault(kind),
    connections: () => aws.connections,
    close: () => aws.close()
  }
})

async function open(t: Test, more: Readonly<Record<string, string>> = {}) {
  const aws = await startFakeAws()
  const backend = await awsBackend.open(
    {
      region: 'eu-central-1',
      endpoint_url: aws.url,
      access_key_id: OWNER.id,
      secret_access_key: OWNER.secret,
      ...more
    },
    { env: {}, log: { info() {}, warn() {} } }
  )
  t.teardown(async () => {
    await backend.close!()
    await aws.close()
  })
  const signal = () => AbortSignal.timeout(10_000)
  return {
    aws,
    fetch: (resource: string, version?: string) => backend.fetch(resource, version, signal()),
    probe: (resource: string, version?: string) => backend.probe!(resource, version, signal())
  }
}

await t.test('versions by number, stage and id', async t => {
  const { aws, fetch, probe } = await open(t)
  const first = aws.secrets.put('db', 'one')
  t.equal(await fetch('db', '2'), undefined, 'there is no previous version yet')
  t.equal(await probe('db', '2'), undefined)
  const second = aws.secrets.put('db', 'two')
  const pending = aws.secrets.stage('db', 'AWSPENDING', 'three')
  for (const [version, value, id] of [
    [undefined, 'two', second],
    ['1', 'two', second],
    ['2', 'one', first],
    ['AWSCURRENT', 'two', second],
    ['AWSPREVIOUS', 'one', first],
    ['AWSPENDING', 'three', pending],
    [first, 'one', first]
  ] as const) {
    t.same(await fetch('db', version), { value, version: id }, `version ${version}`)
    t.equal(await probe('db', version), id, `probe of version ${version}`)
  }
  t.equal(await fetch('db', 'no-such-stage'), undefined)
  aws.secrets.put('db', 'four')
  t.equal(await probe('db', first), first, 'a version that no stage is on any more is still there')
})

await t.test('ids that people chose are ids, too', async t => {
  const { aws, fetch } = await open(t)
  const id = 'terraform-20260101120000000000000001'
  aws.secrets.put('db', 'one', id)
  aws.secrets.put('db', 'two')
  t.same(await fetch('db', id), { value: 'one', version: id })
})

await t.test('bytes are text where they are UTF-8', async t => {
  const { aws, fetch } = await open(t)
  aws.secrets.put('key', Buffer.from('{"pass":"wörd"}'))
  t.match(await fetch('key'), { value: '{"pass":"wörd"}' })
  aws.secrets.put('key', Buffer.from([0xff, 0xfe, 0x00]))
  await t.rejects(fetch('key'), { code: 'POSTERN_VAULT_MALFORMED' })
})

await t.test('what waits for its deletion is absent, and says so', async t => {
  const { aws, fetch, probe } = await open(t)
  aws.secrets.put('db', 'one')
  aws.secrets.schedule('db')
  await t.rejects(fetch('db'), {
    code: 'POSTERN_VAULT_ABSENT',
    message: /db \(it is scheduled for deletion\)/
  })
  t.equal(await probe('db'), undefined)
})

await t.test('a look at the version costs no read of the value', async t => {
  const { aws, probe } = await open(t)
  const id = aws.secrets.put('db', 'one')
  t.equal(await probe('db'), id)
  t.equal(aws.count('DescribeSecret'), 1)
  t.equal(aws.count('GetSecretValue'), 0)
})

await t.test(
  'an identity that may read and not describe is asked by reads from then on',
  async t => {
    const { aws, probe } = await open(t)
    const id = aws.secrets.put('db', 'one')
    aws.denied.add('DescribeSecret')
    t.equal(await probe('db'), id)
    t.equal(await probe('db'), id)
    t.equal(aws.count('DescribeSecret'), 1)
  }
)

await t.test('a refusal tells who was refused and nothing else of what AWS wrote', async t => {
  const { aws, fetch } = await open(t)
  aws.secrets.put('db', 'one')
  await aws.fault('denied')
  await t.rejects(fetch('db'), {
    code: 'POSTERN_VAULT_DENIED',
    message:
      'The vault refused to give db: the policies of the identity, the secret or its key do not allow it (arn:aws:sts::123456789012:assumed-role/gateway/postern, AccessDeniedException)'
  })
})

await t.test('credentials are refused by type: unknown, wrong, expired', async t => {
  const { aws, fetch } = await open(t)
  aws.secrets.put('db', 'one')
  const key = aws.keys.get(OWNER.id)!
  for (const [keys, type] of [
    [[], 'UnrecognizedClientException'],
    [[[OWNER.id, { secret: 'another' }]], 'InvalidSignatureException'],
    [[[OWNER.id, { ...key, expiresAt: 1 }]], 'ExpiredTokenException']
  ] as const) {
    aws.keys.clear()
    for (const [id, each] of keys) aws.keys.set(id, each)
    await t.rejects(fetch('db'), { code: 'POSTERN_VAULT_DENIED', message: new RegExp(type) })
  }
})

await t.test('a clock that is an hour wrong, either way, costs one more request', async t => {
  for (const skew of [3600_000, -3600_000]) {
    const { aws, fetch } = await open(t)
    aws.secrets.put('db', 'one')
    aws.skew = skew
    t.match(await fetch('db'), { value: 'one' })
    t.match(await fetch('db'), { value: 'one' })
    t.equal(aws.count('GetSecretValue'), 3)
  }
})

await t.test(
  'answers that are none of Secrets Manager are told by status and a plain name',
  async t => {
    await using proxy = await startUpstream((_, response) => {
      response.writeHead(502, { 'Content-Type': 'text/html' }).end('<h1>canary</h1>')
    })
    const { fetch } = await open(t, { endpoint_url: proxy.url })
    const error = await fetch('db').catch(error => error)
    t.equal(error.code, 'POSTERN_VAULT_UNREACHABLE')
    t.match(error.message, /502/)
    t.notMatch(error.message, /canary/)
  }
)

await t.test('names that AWS does not take are malformed', async t => {
  await using aws = await startUpstream((_, response) => {
    response
      .writeHead(400, { 'Content-Type': 'application/x-amz-json-1.1' })
      .end('{"__type":"ValidationException","message":"Invalid name. canary"}')
  })
  const { fetch } = await open(t, { endpoint_url: aws.url })
  await t.rejects(fetch('no name'), {
    code: 'POSTERN_VAULT_MALFORMED',
    message: /AWS does not take this name or version \(ValidationException\)/
  })
})

await t.test('settings that cannot work are told before anything is asked', async t => {
  const environment = { env: {}, log: { info() {}, warn() {} } }
  for (const [config, message] of [
    [{ region: 'eu-central-1/..' }, /region/],
    [{ region: 'eu-central-1', access_key_id: 'AKIA' }, /come together/],
    [{}, /no region is known/]
  ] as const) {
    await t.rejects(async () => awsBackend.open(config, environment), {
      code: 'POSTERN_VAULT_SETTINGS',
      message
    })
  }
})

await t.test('the proxy of the environment carries the requests', async t => {
  await using proxy = await startUpstream((received, response) => {
    response.writeHead(400, { 'Content-Type': 'application/x-amz-json-1.1' })
    response.end(JSON.stringify({ __type: 'ResourceNotFoundException' }))
    t.match(received.url, /^http:\/\/secrets\.example\//)
  })
  const config = {
    region: 'eu-central-1',
    endpoint_url: 'http://secrets.example',
    access_key_id: OWNER.id,
    secret_access_key: OWNER.secret
  }
  const backend = await awsBackend.open(config, {
    env: { HTTP_PROXY: proxy.url, NO_PROXY: 'localhost' },
    log: { info() {}, warn() {} }
  })
  t.equal(await backend.fetch('db', undefined, AbortSignal.timeout(10_000)), undefined)
  t.equal(proxy.requests.length, 1)
  await backend.close!()
})
