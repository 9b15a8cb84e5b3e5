import { mkdtempSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import http from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { Refresher } from '../../src/webhooks/refresher.ts'
import { startGateway, startUpstream, type TestUpstream, until } from '../harness.ts'
import { ROOT_TOKEN, startFakeVault } from '../vault/hcv-server.ts'
import { inSeconds, signed, startIssuer } from './signer.ts'

// Threads start slowly on a busy machine.
t.setTimeout(120_000)

const SECRET = 'a-secret-of-the-webhook'
const post = (url: string, body: string, headers: Record<string, string> = {}): Promise<Response> =>
  fetch(url, { method: 'POST', body, headers })

/** A gateway whose one key stands in a vault that is not asked again by itself. */
async function serve(upstream: TestUpstream, env: Record<string, string>) {
  const vault = await startFakeVault()
  const write = (key: string, name = 'key') =>
    vault.call('POST', `secret/data/${name}`, { data: { key } })
  await vault
    .call('POST', 'sys/mounts/secret', { type: 'kv', options: { version: '2' } })
    .catch(() => {})
  await write('first-key-of-anna')
  const gateway = await startGateway(
    {
      services: [{ name: 'echo', url: upstream.url, routes: [{ name: 'echo', paths: ['/'] }] }],
      plugins: [{ name: 'key-auth' }],
      vaults: [
        {
          name: 'hcv',
          prefix: 'mine',
          config: { host: '127.0.0.1', port: vault.port, kv: 'v2', token: ROOT_TOKEN }
        }
      ],
      consumers: [{ username: 'anna', keyauth_credentials: [{ key: '{vault://mine/key/key}' }] }]
    },
    { env }
  )
  return {
    vault,
    gateway,
    write,
    status: async (apikey: string) => (await gateway.fetch('/', { headers: { apikey } })).status,
    async [Symbol.asyncDispose]() {
      await gateway.close()
      await vault[Symbol.asyncDispose]()
    }
  }
}

t.test('an event has the new version in force within a second', async t => {
  await using upstream = await startUpstream()
  await using served = await serve(upstream, { POSTERN_WEBHOOK_SECRET: SECRET })
  const url = `${served.gateway.statusUrl}/vaults/webhooks/generic`
  await served.write('second-key-of-anna')
  t.equal(await served.status('second-key-of-anna'), 401, 'nothing refreshes it by itself')
  const body = '{"vault":"mine","resource":"key"}'
  const answer = await post(url, body, signed(SECRET, body))
  t.equal(answer.status, 202)
  t.same(await answer.json(), { references: 1 })
  await until(async () => (await served.status('second-key-of-anna')) === 200, 'the new key')

  t.same(
    await (await post(url, body, signed(SECRET, body))).json(),
    { repeated: true },
    'an id is taken once'
  )
  const other = '{"vault":"mine","resource":"other"}'
  const nothing = await post(url, other, signed(SECRET, other, { id: 'msg_2' }))
  t.same(await nothing.json(), { references: 0 })
  const refused = await post(url, body, signed('another-secret-here', body, { id: 'msg_3' }))
  t.equal(refused.status, 401)
  t.same(await refused.json(), { message: 'Unauthorized' })
  t.equal((await post(url, 'no json', signed(SECRET, 'no json', { id: 'msg_4' }))).status, 400)
  t.equal((await fetch(url)).status, 405)
  t.equal((await post(`${served.gateway.statusUrl}/vaults/webhooks/aws`, '{}')).status, 404)
  const large = await post(url, 'x'.repeat(300 * 1024))
  t.equal(large.status, 413)
})

t.test('events of the clouds find the references of their vaults', async t => {
  await using upstream = await startUpstream()
  await using issuer = await startIssuer()
  const audience = 'https://gateway.example'
  const account = 'pusher@project.iam.gserviceaccount.com'
  await using served = await serve(upstream, {
    POSTERN_WEBHOOK_LISTEN: '127.0.0.1:0',
    POSTERN_WEBHOOK_AWS_SECRET: SECRET,
    POSTERN_WEBHOOK_AZURE_SECRET: SECRET,
    POSTERN_WEBHOOK_AZURE_AUDIENCE: 'api://gateway',
    POSTERN_WEBHOOK_AZURE_TENANT: 'tenant-1',
    POSTERN_WEBHOOK_GCP_AUDIENCE: audience,
    POSTERN_WEBHOOK_GCP_ACCOUNT: account,
    POSTERN_WEBHOOK_GCP_KEYS_URL: issuer.url
  })
  const url = `${served.gateway.gateway.webhookUrl}/vaults/webhooks`
  const aws = { source: 'aws.secretsmanager', detail: { requestParameters: { secretId: 'key' } } }
  const accepted = await post(`${url}/aws`, JSON.stringify(aws), { 'x-webhook-secret': SECRET })
  t.equal(accepted.status, 202)
  t.same(await accepted.json(), { references: 0 }, 'the vault that has a "key" is none of AWS')
  const validation = [
    {
      eventType: 'Microsoft.EventGrid.SubscriptionValidationEvent',
      data: { validationCode: '512d38b6' }
    }
  ]
  const greeted = await post(`${url}/azure?secret=${SECRET}`, JSON.stringify(validation))
  t.same(await greeted.json(), { validationResponse: '512d38b6' })
  const claims = {
    iss: 'accounts.google.com',
    aud: audience,
    email: account,
    email_verified: true,
    exp: inSeconds(60)
  }
  const pushed = JSON.stringify({ message: { attributes: { secretId: 'projects/1/secrets/key' } } })
  const gcp = await post(`${url}/gcp`, pushed, { authorization: `Bearer ${issuer.token(claims)}` })
  t.equal(gcp.status, 202)
  t.equal((await post(`${url}/gcp`, pushed)).status, 401)
  t.equal((await fetch(`${served.gateway.gateway.webhookUrl}/status`)).status, 404, 'nothing else')
  t.equal((await post(`${served.gateway.statusUrl}/vaults/webhooks/aws`, '{}')).status, 404)
})

t.test('the secret of a webhook rotates, and the one before is taken for a while', async t => {
  await using upstream = await startUpstream()
  const root = mkdtempSync(join(tmpdir(), 'postern-webhook-'))
  t.teardown(() => rmSync(root, { recursive: true }))
  const write = (value: string): void => {
    writeFileSync(join(root, '.next'), value)
    renameSync(join(root, '.next'), join(root, 'webhook'))
  }
  write('the-first-secret-of-it')
  await using served = await serve(upstream, {
    POSTERN_VAULT_FS_PREFIX: root,
    POSTERN_WEBHOOK_SECRET: '{vault://fs/webhook}',
    POSTERN_SECRET_GRACE: '3'
  })
  const url = `${served.gateway.statusUrl}/vaults/webhooks/generic`
  let id = 0
  const status = async (secret: string): Promise<number> =>
    (await post(url, '{"vault":"fs"}', signed(secret, '{"vault":"fs"}', { id: `m${++id}` }))).status
  t.equal(await status('the-first-secret-of-it'), 202)
  t.equal(await status('the-second-secret-of-it'), 401)
  write('too-short')
  await served.gateway.gateway.refresh('fs')
  t.equal(await status('too-short'), 401, 'a value the setting refuses changes nothing')
  t.equal(await status('the-first-secret-of-it'), 202)
  write('the-second-secret-of-it')
  await until(async () => (await status('the-second-secret-of-it')) === 202, 'the new secret')
  t.equal(await status('the-first-secret-of-it'), 202, 'the one before, within its grace')
  await until(async () => (await status('the-first-secret-of-it')) === 401, 'the grace to end')
  await served.gateway.reload({
    services: [{ name: 'echo', url: upstream.url, routes: [{ name: 'other', paths: ['/'] }] }]
  })
  t.equal(await status('the-second-secret-of-it'), 202, 'a reload keeps it')
})

t.test('too many deliveries of one second are told to come later', async t => {
  await using upstream = await startUpstream()
  await using served = await serve(upstream, { POSTERN_WEBHOOK_AWS_SECRET: SECRET })
  const url = `${served.gateway.statusUrl}/vaults/webhooks/aws`
  const statuses = await until(async () => {
    const answers = await Promise.all(Array.from({ length: 120 }, () => post(url, '{}')))
    const all = answers.map(({ status }) => status)
    return all.includes(429) ? all : undefined
  }, 'the limit')
  t.same(new Set(statuses), new Set([401, 429]))
})

t.test('a delivery that is not sent to its end has no effect', async t => {
  await using upstream = await startUpstream()
  await using served = await serve(upstream, { POSTERN_WEBHOOK_AWS_SECRET: SECRET })
  const url = `${served.gateway.statusUrl}/vaults/webhooks/aws`
  const request = http.request(url, { method: 'POST', headers: { 'content-length': '100' } })
  request.on('error', () => {})
  request.write('{')
  await new Promise(resolve => setTimeout(resolve, 50))
  request.destroy()
  t.equal((await post(url, '{}')).status, 401, 'it serves on')
})

t.test('a burst is refreshed at once and once more, never two at a time', async t => {
  const runs: string[][] = []
  let running = 0
  let most = 0
  const refresher = new Refresher<string>(async items => {
    most = Math.max(most, ++running)
    runs.push([...items])
    await new Promise(resolve => setTimeout(resolve, 20))
    running--
  })
  refresher.request(['a'])
  refresher.request(['a', 'b'])
  refresher.request(['b', 'c'])
  await until(() => runs.length === 2, 'both')
  t.same(runs, [['a'], ['a', 'b', 'c']])
  t.equal(most, 1)
  refresher.request(['d'])
  refresher.close()
  await new Promise(resolve => setTimeout(resolve, 500))
  t.equal(runs.length, 2, 'nothing after it is closed')
})
