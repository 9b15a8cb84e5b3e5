import { mkdtemp, rename, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { startGateway, startUpstream, until } from '../../harness.ts'
import { Browser } from './browser.ts'
import { consumers, documentOf, SECRET, serve } from './serve.ts'

const STORAGES = ['cookie', 'kong']

// They mostly wait.
t.jobs = 4

/** The storages as routes of one gateway. */
function ofBoth(config: object): Record<string, object> {
  return Object.fromEntries(STORAGES.map(storage => [`/${storage}`, { ...config, storage }]))
}

t.test('a random secret holds on every thread, and outlives a reload', async t => {
  const config = { secret: undefined }
  const { browser, gateway, upstream } = await serve(t, ofBoth(config), { workers: 2 })
  const close = { headers: { connection: 'close' } }
  const statuses = async (path: string) => {
    const answers = await Promise.all(Array.from({ length: 10 }, () => browser.fetch(path, close)))
    return answers.map(({ status }) => status)
  }
  for (const path of ['/cookie', '/kong']) {
    browser.cookies.clear()
    await browser.logIn('annas-key', path)
    t.same(await statuses(path), Array(10).fill(200), path)
  }
  await gateway.reload(documentOf(upstream.url, ofBoth({ ...config, idling_timeout: 800 })))
  t.same(await statuses('/kong'), Array(10).fill(200))
})

t.test('whoever is not in the configuration any more is out', async t => {
  const { gateway, upstream } = await serve(t, ofBoth({}))
  const [anna, ...rest] = consumers
  const clients = []
  for (const path of ['/cookie', '/kong']) {
    const [annas, berts] = [new Browser(gateway), new Browser(gateway)]
    await annas.logIn('annas-key', path)
    await berts.logIn('berts-key', path)
    clients.push({ path, annas, berts })
  }
  const keyless = { ...anna, keyauth_credentials: [{ key: 'a-new-key' }] }
  await gateway.reload(documentOf(upstream.url, ofBoth({}), [keyless, ...rest]))
  for (const { path, annas, berts } of clients) {
    t.equal((await annas.fetch(path)).status, 401, 'the credential is gone')
    t.equal(annas.cookies.size, 0)
    t.equal((await berts.fetch(path)).status, 200, 'others stay')
  }
  await gateway.reload(documentOf(upstream.url, ofBoth({}), rest.slice(1)))
  for (const { path, berts } of clients) {
    t.equal((await berts.fetch(path)).status, 401, 'the consumer is gone')
    t.equal(berts.cookies.size, 0)
  }
})

t.test('after a rotation the old secret opens, the new one seals', async t => {
  const folder = await mkdtemp(join(tmpdir(), 'postern-session-'))
  t.teardown(() => rm(folder, { recursive: true, force: true }))
  const write = async (text: string) => {
    await writeFile(join(folder, 'next'), text)
    await rename(join(folder, 'next'), join(folder, 'session-secret'))
  }
  await write('the first secret of all')
  const config = { secret: '{vault://fs/session-secret}', stale_ttl: 3600 }
  const env = { POSTERN_VAULT_FS_PREFIX: folder, POSTERN_SECRET_GRACE: '6' }
  const { gateway } = await serve(t, ofBoth(config), { env })
  const clients = []
  for (const path of ['/cookie', '/kong']) {
    const browser = new Browser(gateway)
    await browser.logIn('annas-key', path)
    clients.push({ path, browser, old: new Map(browser.cookies) })
  }
  await write('the second secret')
  await Promise.all(
    clients.map(async ({ path, browser }) => {
      const renewed = await until(async () => {
        const answer = await browser.fetch(path)
        if (answer.status !== 200) throw new Error('a request was refused')
        return answer.lines.length > 0 ? answer : undefined
      }, 'a cookie of the new secret')
      t.equal(renewed.lines.length, 1)
      t.same((await browser.fetch(path)).lines, [], 'which is enough')
    })
  )
  for (const { path, browser, old } of clients) {
    await until(
      async () => (await new Browser(gateway, old).fetch(path)).status === 401,
      'the end of the grace period'
    )
    t.equal((await browser.fetch(path)).status, 200)
  }
})

t.test('a session follows who was authenticated last', async t => {
  const session = { name: 'session', config: { secret: SECRET, response_headers: ['id'] } }
  const keyAuth = (config: object) => [{ name: 'key-auth', config }]
  const upstream = await startUpstream()
  t.teardown(() => upstream.close())
  const routes = [
    { name: 'must', paths: ['/must'], plugins: keyAuth({}) },
    { name: 'may', paths: ['/may'], plugins: keyAuth({ anonymous: 'anonymous' }) }
  ]
  const services = [{ name: 's', url: upstream.url, routes, plugins: [session] }]
  const gateway = await startGateway({ consumers, services })
  t.teardown(() => gateway.close())
  const browser = new Browser(gateway)
  const first = await browser.logIn('annas-key', '/must')
  const same = await browser.logIn('annas-key', '/must')
  t.same(same.lines, [], 'the same credential needs no other session')
  t.equal(same.headers['session-id'], first.headers['session-id'])
  const other = await browser.logIn('berts-key', '/must')
  t.not(other.headers['session-id'], first.headers['session-id'])
  t.equal((await browser.fetch('/may')).json().headers['x-consumer-username'], 'bert')
  t.equal((await browser.fetch('/must')).status, 401, 'without anonymous a key is asked each time')
  t.equal((await browser.fetch('/may')).status, 200)
})
