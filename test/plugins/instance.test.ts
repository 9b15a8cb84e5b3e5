import t from 'tap'
import { Type } from 'typebox'
import { Instance, type InstanceEnvironment, Kept } from '../../src/plugins/instance.ts'
import { definePlugin, type Hooks, type Plugin } from '../../src/plugins/plugin.ts'

import { startGateway, startUpstream } from '../harness.ts'

const silent = { debug() {}, info() {}, warn() {}, error() {} }
const entity = {
  id: 'cccccccc-0000-4000-8000-000000000001',
  name: 'probe',
  instance_name: 'mine',
  config: {},
  enabled: true,
  route: { id: 'dddddddd-0000-4000-8000-000000000001' }
}

function environment(kept = new Kept()): InstanceEnvironment {
  const unused = async () => undefined
  return {
    log: silent,
    store: { get: unused, set: unused, expire: unused, delete: unused },
    shared: { probe: new SharedArrayBuffer(8) },
    kept,
    refresh: async id => ({ refreshed: id })
  }
}

function probe(setup: Plugin['setup']): Plugin {
  return definePlugin({ name: 'probe', priority: 1, schema: Type.Object({}), setup }) as Plugin
}

t.test('a set-up gets its scope, shared memory and a way to refresh', async t => {
  let refreshed: unknown
  const plugin = probe(async (config, context) => {
    t.same(config, { a: 1 })
    t.match(context.scope, { id: entity.id, instanceName: 'mine', routeId: entity.route.id })
    t.equal(context.scope.consumerId, undefined)
    t.equal(context.shared?.byteLength, 8)
    refreshed = await context.refresh()
    return {}
  })
  await Instance.create(plugin, entity, { a: 1 }, environment())
  t.same(refreshed, { refreshed: entity.id })
})

t.test('hooks close after the last of those that hold them', async t => {
  let closed = 0
  const hooks: Hooks = { close: () => void closed++ }
  const instance = await Instance.create(
    probe(() => hooks),
    entity,
    {},
    environment()
  )
  instance.acquire()
  instance.acquire()
  await instance.release()
  t.equal(closed, 0)
  await instance.release()
  t.equal(closed, 1)
})

t.test('what is kept outlives one instance and closes with the last', async t => {
  const kept = new Kept()
  let made = 0
  let closed = 0
  const values: unknown[] = []
  const plugin = probe((_, context) => {
    const create = () => ({ number: ++made, close: () => void closed++ })
    values.push(context.keep('state', create))
    return {}
  })
  const one = await Instance.create(plugin, entity, {}, environment(kept))
  const two = await Instance.create(plugin, entity, {}, environment(kept))
  t.equal(values[0], values[1])
  t.equal(made, 1)
  for (const instance of [one, two]) instance.acquire()
  await one.release()
  t.equal(closed, 0)
  await two.release()
  t.equal(closed, 1)
  await Instance.create(plugin, entity, {}, environment(kept))
  t.equal(made, 2, 'after its end it is made anew')
})

t.test('a set-up that fails gives back what it kept', async t => {
  let closed = 0
  const plugin = probe((_, context) => {
    context.keep('state', () => ({ close: () => void closed++ }))
    throw new Error('no')
  })
  await t.rejects(Instance.create(plugin, entity, {}, environment()), { message: 'no' })
  t.equal(closed, 1)
})

t.test('what is kept is given back also when closing fails', async t => {
  let closed = 0
  const plugin = probe((_, context) => {
    context.keep('state', () => ({ close: () => void closed++ }))
    return { close: () => Promise.reject(new Error('stuck')) }
  })
  const instance = await Instance.create(plugin, entity, {}, environment())
  instance.acquire()
  await t.rejects(instance.release(), { message: 'stuck' })
  t.equal(closed, 1)
})

t.test('an instance without its secret answers 503, and so does nothing else', async t => {
  await using upstream = await startUpstream()
  const routes = [
    {
      name: 'lacking',
      paths: ['/lacking'],
      plugins: [{ name: 'session', config: { secret: '{vault://env/not-there}' } }]
    },
    { name: 'whole', paths: ['/whole'] }
  ]
  await using gateway = await startGateway(
    { services: [{ name: 's', url: upstream.url, routes }] },
    { env: { POSTERN_VAULT_START: 'degraded' } }
  )
  const lacking = await gateway.fetch('/lacking')
  t.equal(lacking.status, 503)
  t.match(lacking.json().message, /is not available \(POSTERN_SECRET_UNAVAILABLE\)/)
  t.equal((await gateway.fetch('/whole')).status, 200)
})
