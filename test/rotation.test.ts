import { mkdtemp, rename, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { startGateway, startUpstream, until } from './harness.ts'

/** A folder of secrets whose files are replaced atomically, as secret managers do. */
async function secretsFolder(teardown: (clean: () => Promise<void>) => void) {
  const root = await mkdtemp(join(tmpdir(), 'postern-secrets-'))
  teardown(() => rm(root, { recursive: true, force: true }))
  return {
    root,
    async write(name: string, value: string) {
      await writeFile(join(root, `.${name}`), value)
      await rename(join(root, `.${name}`), join(root, name))
    }
  }
}

const basic = (user: string, password: string): string =>
  `Basic ${Buffer.from(`${user}:${password}`).toString('base64')}`

/** An upstream behind basic-auth with one credential. */
const withPassword = (url: string, credential: { username: string; password: string }) => ({
  services: [
    {
      name: 'echo',
      url,
      routes: [{ name: 'echo', paths: ['/'] }],
      plugins: [{ name: 'basic-auth' }]
    }
  ],
  consumers: [{ username: 'anna', basicauth_credentials: [credential] }]
})

await t.test(
  'a hundred rotations of a pair under load: no request fails, none sees halves',
  async t => {
    const secrets = await secretsFolder(t.teardown)
    await secrets.write('pair.json', JSON.stringify({ user: 'user-0', password: 'password-0' }))
    await using upstream = await startUpstream()
    const collected: string[] = []
    await using collector = await startUpstream((received, response) => {
      collected.push(received.headers['x-pair'] as string)
      response.end()
    })
    await using gateway = await startGateway(
      {
        services: [{ name: 'echo', url: upstream.url, routes: [{ name: 'echo', paths: ['/'] }] }],
        plugins: [
          {
            name: 'http-log',
            config: {
              http_endpoint: collector.url,
              headers: { 'X-Pair': '{vault://fs/pair.json/user}/{vault://fs/pair.json/password}' },
              queue: { max_batch_size: 50, max_coalescing_delay: 0.02 }
            }
          }
        ]
      },
      { env: { POSTERN_VAULT_FS_PREFIX: secrets.root }, workers: 2 }
    )
    let running = true
    let served = 0
    const failures: unknown[] = []
    const clients = Array.from({ length: 4 }, async () => {
      while (running) {
        try {
          const response = await gateway.fetch('/')
          if (response.status !== 200) failures.push(response.status)
          served++
        } catch (error) {
          failures.push(error)
        }
      }
    })
    for (let i = 1; i <= 100; i++) {
      await secrets.write(
        'pair.json',
        JSON.stringify({ user: `user-${i}`, password: `password-${i}` })
      )
      await gateway.gateway.refresh('fs')
    }
    running = false
    await Promise.all(clients)
    await until(() => collected.includes('user-100/password-100'), 'the last pair to arrive')
    t.same(failures, [], 'no request failed')
    t.ok(served > 100, `${served} requests were served meanwhile`)
    t.ok(new Set(collected).size > 20, 'many versions were seen')
    for (const pair of new Set(collected)) {
      const [, user, password] = /^user-(\d+)\/password-(\d+)$/.exec(pair) ?? []
      t.equal(user, password, 'both halves are of one version')
    }
  }
)

await t.test(
  'a rotated file is taken over without being told, and the old key still verifies',
  async t => {
    const secrets = await secretsFolder(t.teardown)
    await secrets.write('password', 'first')
    await using upstream = await startUpstream()
    await using gateway = await startGateway(
      withPassword(upstream.url, { username: 'anna', password: '{vault://fs/password}' }),
      { env: { POSTERN_VAULT_FS_PREFIX: secrets.root, POSTERN_SECRET_GRACE: '2' } }
    )
    const status = async (password: string): Promise<number> =>
      (await gateway.fetch('/', { headers: { authorization: basic('anna', password) } })).status
    t.equal(await status('first'), 200)
    t.equal(await status('second'), 401)
    await secrets.write('password', 'second\n')
    await until(async () => (await status('second')) === 200, 'the new password to be taken over')
    t.equal(await status('first'), 200, 'the previous password verifies during its grace')
    await until(async () => (await status('first')) === 401, 'the grace to end')
    t.equal(await status('second'), 200)
  }
)

await t.test('a name and its password from one secret verify as pairs of one version', async t => {
  const secrets = await secretsFolder(t.teardown)
  const put = (n: number): Promise<void> =>
    secrets.write('pair.json', JSON.stringify({ user: `user-${n}`, password: `password-${n}` }))
  await put(1)
  await using upstream = await startUpstream()
  await using gateway = await startGateway(
    withPassword(upstream.url, {
      // Its grace ends first, and even then its successor must not take the former password.
      username: '{vault://fs/pair.json/user?grace=1}',
      password: '{vault://fs/pair.json/password}'
    }),
    { env: { POSTERN_VAULT_FS_PREFIX: secrets.root } }
  )
  const status = async (user: number, password: number): Promise<number> => {
    const authorization = basic(`user-${user}`, `password-${password}`)
    return (await gateway.fetch('/', { headers: { authorization } })).status
  }
  await put(2)
  await until(async () => (await status(2, 2)) === 200, 'the new pair to be taken over')
  t.equal(await status(2, 1), 401, 'the new name with the former password')
  t.equal(await status(1, 2), 401, 'the former name with the new password')
  await until(async () => (await status(1, 1)) === 401, 'the grace of the name to end')
  t.equal(await status(2, 1), 401, 'the new name with the former password, which has grace still')
  t.equal(await status(2, 2), 200)
})

await t.test('a value that does not fit its field changes nothing', async t => {
  const secrets = await secretsFolder(t.teardown)
  await using upstream = await startUpstream()
  await using collector = await startUpstream()
  await secrets.write('endpoint', collector.url)
  await using gateway = await startGateway(
    {
      services: [{ name: 'echo', url: upstream.url, routes: [{ name: 'echo', paths: ['/'] }] }],
      plugins: [{ name: 'http-log', config: { http_endpoint: '{vault://fs/endpoint}' } }]
    },
    { env: { POSTERN_VAULT_FS_PREFIX: secrets.root } }
  )
  await secrets.write('endpoint', 'no url at all')
  t.equal(await gateway.gateway.refresh(), 0)
  const { references } = (await gateway.status('/vaults')).json()
  t.match(references, [{ reference: '{vault://fs/endpoint}', state: 'invalid', failures: 1 }])
  t.notMatch(JSON.stringify(references), 'no url at all')
  t.match(
    references[0].last_error,
    /^[^\n]*http_endpoint: missing scheme in url[^\n]*$/,
    'one line'
  )
  await gateway.fetch('/after')
  await until(() => collector.requests.length === 1, 'a record at the endpoint that stayed')
  await secrets.write('endpoint', `${collector.url}/moved`)
  await until(async () => {
    await gateway.fetch('/again')
    return collector.requests.some(({ url }) => url === '/moved')
  }, 'the corrected endpoint to be taken over')
})

await t.test('a value that lost its member is refused, and shown so', async t => {
  const secrets = await secretsFolder(t.teardown)
  await using upstream = await startUpstream()
  await secrets.write('anna.json', '{"password":"first-password"}')
  await using gateway = await startGateway(
    withPassword(upstream.url, { username: 'anna', password: '{vault://fs/anna.json/password}' }),
    { env: { POSTERN_VAULT_FS_PREFIX: secrets.root } }
  )
  await secrets.write('anna.json', '{"secret":"second-password"}')
  t.equal(await gateway.gateway.refresh(), 0)
  const headers = { authorization: basic('anna', 'first-password') }
  t.equal((await gateway.fetch('/', { headers })).status, 200)
  const { references } = (await gateway.status('/vaults')).json()
  t.match(references, [{ state: 'invalid', last_error: /no member "password"/ }])
  t.equal((await gateway.status('/status/ready')).status, 200)
})
