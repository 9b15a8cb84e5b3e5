import { generateKeyPairSync } from 'node:crypto'
import t, { type Test } from 'tap'
import { awsSource } from '../../src/webhooks/aws.ts'
import { azureSource } from '../../src/webhooks/azure.ts'
import { gcpSource } from '../../src/webhooks/gcp.ts'
import { genericSource } from '../../src/webhooks/generic.ts'
import { KeySet } from '../../src/webhooks/keys.ts'
import type { Delivery } from '../../src/webhooks/source.ts'
import { inSeconds, signed, startIssuer } from './signer.ts'

function delivery(
  body: unknown,
  headers: Record<string, string> = {},
  query = '',
  method = 'POST'
): Delivery {
  const text = typeof body === 'string' ? body : JSON.stringify(body)
  return { method, headers, query: new URLSearchParams(query), body: Buffer.from(text) }
}

const REFUSED = { code: 'POSTERN_WEBHOOK_REFUSED', statusCode: 401 }
const MALFORMED = { code: 'POSTERN_WEBHOOK_MALFORMED', statusCode: 400 }
async function rejects(
  t: Test,
  run: () => unknown,
  expected: { readonly code: string },
  name = 'it is refused'
): Promise<void> {
  await t.rejects(async () => run(), expected, name)
}

const SECRET = 'a-secret-of-the-webhook'

t.test('generic: signed by the current or the previous secret, at about this time', async t => {
  const secret = { value: SECRET, previous: 'the-secret-before-it' }
  const { receive } = genericSource(() => secret)
  const body = '{"vault":"hcv","resource":"db/creds"}'
  t.match(receive(delivery(body, signed(SECRET, body))), {
    id: 'msg_1',
    changed: [{ vault: 'hcv', names: ['db/creds'] }]
  })
  t.ok(receive(delivery(body, signed(secret.previous, body))))
  t.same(receive(delivery('', signed(SECRET, ''))), { id: 'msg_1', changed: [{}] })
  t.same(receive(delivery('{"vault":"fs"}', signed(SECRET, '{"vault":"fs"}'))), {
    id: 'msg_1',
    changed: [{ vault: 'fs' }]
  })
  const several = signed(SECRET, body)
  several['webhook-signature'] = `v1a,AAAA v1,AAAA ${several['webhook-signature']}`
  t.ok(receive(delivery(body, several)), 'one of several signatures')
  const base64 = genericSource(() => ({
    value: `whsec_${Buffer.from('binary').toString('base64')}`
  }))
  t.ok(base64.receive(delivery(body, signed(Buffer.from('binary'), body))))
})

t.test('generic: everything that is not so is refused', async t => {
  const { receive } = genericSource(() => ({ value: SECRET }))
  const body = '{"vault":"hcv"}'
  const good = signed(SECRET, body)
  const cases: readonly (readonly [string, string, Record<string, string>])[] = [
    ['another secret', body, signed('another-secret-here', body)],
    ['another body', '{"vault":"fs"}', good],
    ['another id', body, { ...good, 'webhook-id': 'msg_2' }],
    ['another time', body, { ...good, 'webhook-timestamp': String(inSeconds(1)) }],
    ['too old', body, signed(SECRET, body, { at: inSeconds(-301) })],
    ['from the future', body, signed(SECRET, body, { at: inSeconds(302) })],
    ['no id', body, { ...good, 'webhook-id': '' }],
    ['no time', body, { ...good, 'webhook-timestamp': 'now' }],
    ['no signature', body, { ...good, 'webhook-signature': '' }],
    ['another scheme', body, { ...good, 'webhook-signature': good['webhook-signature']!.slice(3) }],
    [
      'a shorter signature',
      body,
      { ...good, 'webhook-signature': good['webhook-signature']!.slice(0, 20) }
    ]
  ]
  for (const [name, text, headers] of cases)
    await rejects(t, () => receive(delivery(text, headers)), REFUSED, name)
  for (const text of ['no json', '{"vault":1}', '{"resource":"a"}', '{"vault":"a","resource":{}}'])
    await rejects(t, () => receive(delivery(text, signed(SECRET, text))), MALFORMED, text)
})

t.test('aws: the secret of the connection, and the names of a secret', async t => {
  const { receive } = awsSource(() => ({ value: SECRET, previous: 'the-secret-before-it' }))
  const headers = { 'x-webhook-secret': SECRET }
  const event = (detail: object) => ({ id: 'e1', source: 'aws.secretsmanager', detail })
  const arn = 'arn:aws:secretsmanager:eu-west-1:123456789012:secret:db/creds-a1B2c3'
  const names = [arn, 'db/creds-a1B2c3', 'db/creds']
  for (const detail of [
    { requestParameters: { secretId: arn } },
    { additionalEventData: { SecretId: arn } },
    { responseElements: { arn } },
    { responseElements: { aRN: arn } }
  ])
    t.same(receive(delivery(event(detail), headers)), {
      id: 'e1',
      changed: [{ types: ['aws'], names }]
    })
  t.match(receive(delivery(event({ requestParameters: { secretId: 'db/creds' } }), headers)), {
    changed: [{ names: ['db/creds'] }]
  })
  t.same(receive(delivery({ source: 'aws.secretsmanager' }, headers)), { changed: [] })
  t.ok(receive(delivery(event({}), { 'x-webhook-secret': 'the-secret-before-it' })))
  await rejects(
    t,
    () => receive(delivery(event({}), { 'x-webhook-secret': `${SECRET}x` })),
    REFUSED
  )
  await rejects(t, () => receive(delivery(event({}))), REFUSED)
  await rejects(t, () => receive(delivery({ source: 'aws.s3' }, headers)), MALFORMED)
  await rejects(t, () => receive(delivery('[', headers)), MALFORMED)
})

const CLAIMS = {
  iss: 'https://accounts.google.com',
  aud: 'https://gateway.example/vaults/webhooks/gcp',
  email: 'pusher@project.iam.gserviceaccount.com',
  email_verified: true
}
const pushed = (attributes: object) => ({ message: { attributes, messageId: 'm1', data: '' } })

t.test("gcp: Google's token of the right account, and the name of a secret", async t => {
  await using issuer = await startIssuer()
  const { receive } = gcpSource(new KeySet(issuer.url), CLAIMS.aud, CLAIMS.email)
  const send = (token: string, body: object = pushed({ secretId: 'projects/1/secrets/db' })) =>
    receive(delivery(body, { authorization: `Bearer ${token}` }))
  const claims = { ...CLAIMS, exp: inSeconds(60) }
  t.same(await send(issuer.token(claims)), {
    id: 'm1',
    changed: [{ types: ['gcp'], names: ['db', 'projects/1/secrets/db'] }]
  })
  t.same(await send(issuer.token({ ...claims, aud: ['x', CLAIMS.aud] }), pushed({})), {
    id: 'm1',
    changed: []
  })
  const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 })
  const wrong: readonly (readonly [string, string])[] = [
    ['expired', issuer.token({ ...claims, exp: inSeconds(-120) })],
    ['without an end', issuer.token({ ...CLAIMS })],
    ['not valid yet', issuer.token({ ...claims, nbf: inSeconds(300) })],
    ['of another issuer', issuer.token({ ...claims, iss: 'https://evil.example' })],
    ['for another audience', issuer.token({ ...claims, aud: 'https://other.example' })],
    ['of another account', issuer.token({ ...claims, email: 'other@example.com' })],
    ['not verified', issuer.token({ ...claims, email_verified: false })],
    ['signed by somebody else', issuer.token(claims, { key: privateKey })],
    ['unsigned', issuer.token(claims, { alg: 'none' })],
    ['with a shared key', issuer.token(claims, { alg: 'HS256' })],
    ['with an unknown key', issuer.token(claims, { kid: 'unknown' })],
    ['no JSON', 'bm8.bm8.bm8'],
    ['no token', 'none']
  ]
  for (const [name, token] of wrong) await rejects(t, () => send(token), REFUSED, name)
  await rejects(t, () => receive(delivery(pushed({}))), REFUSED)
  t.equal(issuer.server.requests.length, 1, 'unknown key ids do not flood the key set')
})

t.test('a key set follows the rotation of its keys and outlives its address', async t => {
  await using issuer = await startIssuer()
  let now = Date.now()
  const keys = new KeySet(issuer.url, () => now)
  const [first, again] = await Promise.all([keys.find('key-1'), keys.find('key-1')])
  t.ok(first)
  t.equal(first, again)
  t.equal(issuer.server.requests.length, 1, 'single flight')
  t.equal(await keys.find('bad'), undefined)
  issuer.rotate()
  now += 31_000
  t.ok(await keys.find('key-2'), 'read again for a new id')
  issuer.fault = response => response.writeHead(500).end()
  now += 3_700_000
  t.ok(await keys.find('key-2'), 'what is known stays while the address fails')
  for (const fault of [
    (response: import('node:http').ServerResponse) => response.end('no json'),
    (response: import('node:http').ServerResponse) => response.end('x'.repeat(600 * 1024)),
    (response: import('node:http').ServerResponse) => response.writeHead(404).end()
  ]) {
    issuer.fault = response => void fault(response)
    await t.rejects(new KeySet(issuer.url).find('key-2'), { code: 'POSTERN_WEBHOOK_KEYS' })
  }
})

const AZURE = [
  {
    id: 'a1',
    eventType: 'Microsoft.KeyVault.SecretNewVersionCreated',
    subject: 'db-creds',
    data: { VaultName: 'kv', ObjectName: 'DB-Creds', ObjectType: 'Secret' }
  }
]

t.test('azure: the shared secret, in the query or in a header', async t => {
  const { receive } = azureSource({ secret: () => ({ value: SECRET }), token: undefined })
  const receipt = {
    id: 'a1',
    changed: [{ types: ['azure', 'azure-certs'], names: ['DB-Creds', 'db-creds'] }]
  }
  t.same(await receive(delivery(AZURE, {}, `secret=${SECRET}`)), receipt)
  t.same(await receive(delivery(AZURE, { 'x-webhook-secret': SECRET })), receipt)
  const cloudEvent = {
    id: 'c1',
    type: 'Microsoft.KeyVault.CertificateNewVersionCreated',
    subject: 'web',
    data: { ObjectName: 'web' }
  }
  t.match(await receive(delivery(cloudEvent, {}, `secret=${SECRET}`)), {
    id: 'c1',
    changed: [{ types: ['azure-certs', 'azure'], names: ['web', 'web'] }]
  })
  const others = [{ ...AZURE[0], eventType: 'Microsoft.Storage.BlobCreated' }, AZURE[0]]
  t.match(await receive(delivery(others, {}, `secret=${SECRET}`)), {
    id: undefined,
    changed: [{ names: ['DB-Creds', 'db-creds'] }]
  })
  await rejects(t, () => receive(delivery(AZURE, {}, 'secret=guess')), REFUSED)
  await rejects(t, () => receive(delivery(AZURE)), REFUSED)
})

t.test('azure: both handshakes, for those who know the secret', async t => {
  const { receive } = azureSource({ secret: () => ({ value: SECRET }), token: undefined })
  const validation = [
    {
      id: 'v1',
      eventType: 'Microsoft.EventGrid.SubscriptionValidationEvent',
      data: { validationCode: '512d38b6', validationUrl: 'https://example' }
    }
  ]
  t.same(await receive(delivery(validation, {}, `secret=${SECRET}`)), {
    changed: [],
    answer: { status: 200, body: { validationResponse: '512d38b6' } }
  })
  await rejects(t, () => receive(delivery(validation)), REFUSED)
  const origin = { 'webhook-request-origin': 'eventgrid.azure.net' }
  t.match(await receive(delivery('', origin, `secret=${SECRET}`, 'OPTIONS')), {
    answer: { status: 200, headers: { 'WebHook-Allowed-Origin': 'eventgrid.azure.net' } }
  })
})

t.test('azure: a token of Entra ID, issued to Event Grid', async t => {
  await using issuer = await startIssuer()
  const token = {
    keys: new KeySet(issuer.url),
    audience: 'api://gateway',
    tenant: 'tenant-1',
    client: 'event-grid'
  }
  const { receive } = azureSource({ secret: () => undefined, token })
  const claims = {
    iss: 'https://sts.windows.net/tenant-1/',
    aud: 'api://gateway',
    appid: 'event-grid',
    exp: inSeconds(60)
  }
  const send = (given: object) =>
    receive(delivery(AZURE, { authorization: `Bearer ${issuer.token(given)}` }))
  t.match(await send(claims), { id: 'a1' })
  const { appid, ...rest } = claims
  const version2 = { iss: 'https://login.microsoftonline.com/tenant-1/v2.0', azp: appid }
  t.match(await send({ ...rest, ...version2 }), { id: 'a1' })
  await rejects(t, () => send({ ...claims, appid: 'other' }), REFUSED)
  await rejects(t, () => send({ ...claims, iss: 'https://sts.windows.net/tenant-2/' }), REFUSED)
  await rejects(t, () => receive(delivery(AZURE, {}, `secret=${SECRET}`)), REFUSED)
})
