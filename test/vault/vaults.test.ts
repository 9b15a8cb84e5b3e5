import t from 'tap'
import { SecretMalformed, VaultDenied, VaultThrottled, VaultUnreachable } from '../../src/errors.ts'
import type { VaultEntity } from '../../src/schema/entities.ts'
import type { Backend, BackendType } from '../../src/vault/backend.ts'
import { envBackend } from '../../src/vault/backends/env.ts'
import type { Reference } from '../../src/vault/reference.ts'
import type { VaultSet } from '../../src/vault/vaults.ts'
import { nothing, reference, scriptedBackend, vaultsOn } from './scripted-backend.ts'

const standing = (set: VaultSet, wanted: Reference): string | undefined => {
  const outcome = set.outcome(wanted.text)
  return outcome.state === 'ok' ? outcome.value : outcome.state
}

await t.test('one read of a resource serves every reference to it', async t => {
  const script = scriptedBackend()
  const { vaults } = vaultsOn([script.type])
  script.answers.set('pair', { value: { user: 'anna', password: 'x', port: 7 }, version: 'v1' })
  const wanted = ['pair/user', 'pair/password', 'pair/port', 'pair/'].map(part =>
    reference(`scripted/${part}`)
  )
  const set = vaults.prepare([])
  const outcomes = await set.load(wanted)
  t.same(script.calls, ['fetch pair'])
  t.same(outcomes.get(wanted[0]!.text), { state: 'ok', value: 'anna', version: 'v1' })
  t.equal(standing(set, wanted[2]!), '7')
  t.equal(standing(set, wanted[3]!), '{"user":"anna","password":"x","port":7}')
  const again = vaults.prepare([])
  await again.load(wanted)
  t.equal(script.calls.length, 1, 'a reload reads nothing twice')
  set.close()
  t.equal(script.closed, 0, 'another set still uses the vault')
  again.close()
  await vaults.close()
  t.equal(script.closed, 1)
})

await t.test(
  'each failure is told as what it is, and a default stands for an absence only',
  async t => {
    const script = scriptedBackend()
    const { vaults } = vaultsOn([script.type])
    script.answers.set('denied', new VaultDenied('denied', 'no'))
    script.answers.set('down', new VaultUnreachable('down', 'no'))
    script.answers.set('odd', new SecretMalformed('odd', 'no'))
    script.answers.set('other', new Error('what a library throws'))
    script.answers.set('nothing', nothing())
    script.answers.set('text', { value: 'no json' })
    script.answers.set('list', { value: '[1,{"a":null}]' })
    const expected: Record<string, string> = {
      'scripted/none': 'absent',
      'scripted/nothing': 'absent',
      'scripted/denied': 'denied',
      'scripted/down': 'unreachable',
      'scripted/other': 'unreachable',
      'scripted/odd': 'malformed',
      'scripted/text/key': 'malformed',
      'scripted/list/key': 'malformed',
      'scripted/list?pointer=/0': '1',
      'scripted/list?pointer=/1/a': 'malformed',
      'scripted/list?pointer=/1': 'malformed',
      'scripted/list?pointer=/length': 'absent',
      'scripted/text?base64_decode=true': 'malformed',
      'scripted/none?default=fallback': 'fallback',
      'scripted/denied?default=fallback': 'denied',
      'scripted/down?default=fallback': 'unreachable'
    }
    const set = vaults.prepare([])
    await set.load(Object.keys(expected).map(reference))
    for (const [text, state] of Object.entries(expected))
      t.equal(standing(set, reference(text)), state, text)
    t.equal(standing(set, reference('scripted/unasked')), 'unreachable')
    t.ok(
      script.calls.filter(call => call === 'fetch down').length > 1,
      'asked a few times at first'
    )
    await vaults.close()
  }
)

await t.test('base64 is decoded, and what is no text refused', async t => {
  const script = scriptedBackend()
  const { vaults } = vaultsOn([script.type])
  script.answers.set('a', { value: Buffer.from('päss').toString('base64') })
  script.answers.set('b', { value: Buffer.from([0xff, 0xfe]).toString('base64') })
  const set = vaults.prepare([])
  const wanted = ['a', 'b'].map(name => reference(`scripted/${name}?base64_decode=true`))
  await set.load(wanted)
  t.equal(standing(set, wanted[0]!), 'päss')
  t.equal(standing(set, wanted[1]!), 'malformed')
  await vaults.close()
})

await t.test('calls to one vault are bounded, and those to others are not held back', async t => {
  const slow = scriptedBackend('slow')
  const quick = scriptedBackend('quick')
  const { vaults } = vaultsOn([slow.type, quick.type], { concurrency: 3 })
  const gates = Promise.withResolvers<void>()
  const names = Array.from({ length: 10 }, (_, i) => `n${i}`)
  for (const name of names) {
    slow.answers.set(name, async () => {
      await gates.promise
      return { value: name }
    })
  }
  quick.answers.set('q', { value: 'q' })
  const set = vaults.prepare([])
  const loading = set.load(names.map(name => reference(`slow/${name}`)))
  await set.load([reference('quick/q')])
  t.equal(standing(set, reference('quick/q')), 'q')
  t.equal(slow.most, 3)
  gates.resolve()
  await loading
  t.equal(standing(set, reference('slow/n9')), 'n9')
  t.equal(slow.most, 3)
  await vaults.close()
})

await t.test('a vault that never answers is given up, and then left alone', async t => {
  const script = scriptedBackend()
  const events: string[] = []
  const { vaults } = vaultsOn([script.type], {
    timeout: 0.05,
    concurrency: 2,
    observe: event => events.push(event.kind === 'read' ? event.outcome : event.kind)
  })
  const names = Array.from({ length: 20 }, (_, i) => `n${i}`)
  for (const name of names) script.answers.set(name, () => new Promise(() => {}))
  const set = vaults.prepare([])
  await set.load(names.map(name => reference(`scripted/${name}`)))
  t.equal(standing(set, reference('scripted/n19')), 'unreachable')
  t.ok(script.calls.length < 20, `${script.calls.length} calls for 20 resources`)
  t.ok(events.every(outcome => outcome === 'unreachable'))
  await vaults.close()
})

await t.test('a vault that does not open costs a read its time-out, and no more', async t => {
  const hanging = scriptedBackend('hanging')
  const quick = scriptedBackend('quick')
  const opened = Promise.withResolvers<Backend>()
  const { vaults } = vaultsOn([{ ...hanging.type, open: () => opened.promise }, quick.type], {
    timeout: 0.2
  })
  hanging.answers.set('a', { value: 'a' })
  quick.answers.set('b', { value: 'b' })
  const set = vaults.prepare([])
  const [hung, sound] = [reference('hanging/a'), reference('quick/b')]
  await set.load([hung, sound])
  t.equal(standing(set, sound), 'b')
  t.match(set.outcome(hung.text), {
    state: 'unreachable',
    message: /it was not opened within 0.2 s/
  })
  opened.resolve(await hanging.type.open({}, { env: {}, log: { info() {}, warn() {} } }))
  await set.load([hung])
  t.equal(standing(set, hung), 'a', 'and it heals once it opened')
  await vaults.close()
})

await t.test('throttling slows down its own vault alone, and a load waits for it', async t => {
  const script = scriptedBackend()
  const other = scriptedBackend('other')
  const events: string[] = []
  const vaultsAndClock = vaultsOn([script.type, other.type], {
    now: () => performance.now(),
    observe: event => events.push(event.kind === 'read' ? event.outcome : event.kind)
  })
  const { vaults } = vaultsAndClock
  let calls = 0
  script.answers.set('a', async () => {
    if (++calls === 1) throw new VaultThrottled('a', 'slowly', 0)
    return { value: 'at last' }
  })
  other.answers.set('b', { value: 'b' })
  const set = vaults.prepare([])
  const loading = set.load([reference('scripted/a')])
  await set.load([reference('other/b')])
  t.equal(calls, 1, 'the other vault does not wait')
  await loading
  t.equal(standing(set, reference('scripted/a')), 'at last')
  t.same(
    events,
    ['throttled', 'paused', 'ok', 'ok'].sort((a, b) => events.indexOf(a) - events.indexOf(b))
  )
  await vaults.close()
})

await t.test('settings come from other vaults, and a changed one opens the vault anew', async t => {
  const script = scriptedBackend()
  const source = scriptedBackend('source')
  const { vaults } = vaultsOn([script.type, source.type])
  source.answers.set('token', { value: 't-1' })
  script.answers.set('a', { value: 'first' })
  const entities = [
    {
      id: '1',
      prefix: 'mine',
      name: 'scripted',
      config: { token: '{vault://source/token}', port: '8200', list: 'a, b', ttl: 5 }
    }
  ] as never
  const set = vaults.prepare(entities)
  const wanted = reference('mine/a')
  await set.load([wanted])
  t.equal(standing(set, wanted), 'first')
  t.same(script.opened, [{ token: 't-1', port: 8200, list: ['a', 'b'] }])
  t.same(
    set.dependencies.map(({ name }) => name),
    ['token']
  )
  source.answers.set('token', { value: 't-2' })
  script.answers.set('a', new VaultDenied('a', 'the token ended'))
  await set.resourceOf(wanted.text)!.refresh()
  t.same(script.opened.at(-1)?.token, 't-2', 'a refusal has the settings read again')
  t.equal(script.closed, 1, 'the one before is closed')
  source.answers.set('token', { value: 'unfit' })
  await set.resourceOf(wanted.text)!.refresh()
  t.equal(script.opened.length, 2, 'settings that do not fit leave the vault as it is')
  t.equal(standing(set, wanted), 'first', 'and the last good value')
  t.match(set.health(), [{ vault: 'mine', tokenExpiresAt: 12 }])
  set.close()
  await vaults.close()
})

await t.test('opening a vault is no part of what its first read may take', async t => {
  const script = scriptedBackend()
  const { type } = script
  const slow: BackendType = {
    ...type,
    async open(config, environment) {
      await new Promise(resolve => setTimeout(resolve, 900))
      return type.open(config, environment)
    }
  }
  const { vaults } = vaultsOn([slow])
  script.answers.set('a', { value: 'first' })
  const set = vaults.prepare([])
  const wanted = reference('scripted/a?timeout=0.6')
  await set.load([wanted])
  t.equal(standing(set, wanted), 'first')
  set.close()
  await vaults.close()
})

await t.test('references in lists of settings stand for items', async t => {
  const script = scriptedBackend()
  const source = scriptedBackend('source')
  const { vaults } = vaultsOn([script.type, source.type])
  source.answers.set('item', { value: 'b, c' })
  script.answers.set('a', { value: 'first' })
  const list = ['a', '{vault://source/item}', 'd-{vault://source/item}']
  const set = vaults.prepare([
    { id: '1', prefix: 'mine', name: 'scripted', config: { list } }
  ] as never)
  const wanted = reference('mine/a')
  await set.load([wanted])
  t.equal(standing(set, wanted), 'first')
  t.same(script.opened, [{ list: ['a', 'b, c', 'd-b, c'] }])
  const circle = vaults.prepare([
    { id: '1', prefix: 'mine', name: 'scripted', config: { list: ['{vault://mine/a}'] } }
  ] as never)
  t.match(circle.check(wanted)?.message, /circle/)
  set.close()
  await vaults.close()
})

await t.test('a vault whose own settings lack is told, and no default hides it', async t => {
  const script = scriptedBackend()
  const source = scriptedBackend('source')
  const { vaults } = vaultsOn([script.type, source.type], {
    defaults: { scripted: { token: '{vault://source/token}' } }
  })
  const set = vaults.prepare([])
  const wanted = reference('scripted/a?default=x')
  await set.load([wanted])
  const outcome = set.outcome(wanted.text)
  t.equal(outcome.state, 'malformed')
  t.match(outcome, { message: /its setting token needs \{vault:\/\/source\/token\}/ })
  source.answers.set('token', new VaultUnreachable('token', 'down'))
  await set.resourceOf(wanted.text)!.refresh()
  await vaults.close()
})

await t.test('a ttl may come from a vault, too', async t => {
  const script = scriptedBackend()
  const { vaults } = vaultsOn([script.type, envBackend({ TTL: '30', BAD: 'soon' })], {
    defaults: { scripted: { ttl: '{vault://env/ttl}' } }
  })
  script.answers.set('a', { value: 'a' })
  const set = vaults.prepare([])
  await set.load([reference('scripted/a')])
  t.equal(set.resourceOf(reference('scripted/a').text)?.freshness.ttl, 30)
  const bad = vaults.prepare([
    { id: '1', prefix: 'bad', name: 'scripted', config: { ttl: '{vault://env/bad}' } }
  ] as never)
  await bad.load([reference('bad/a')])
  t.equal(standing(bad, reference('bad/a')), 'malformed')
  t.match(bad.status(), [{ state: 'malformed', last_error: /ttl is no time/ }])
  set.close()
  bad.close()
  await vaults.close()
})

await t.test('the strictest of the references to one resource decides', async t => {
  const script = scriptedBackend()
  const { vaults } = vaultsOn([script.type])
  script.answers.set('a', { value: { x: '1', y: '2' } })
  const set = vaults.prepare([])
  const wanted = [
    'scripted/a/x?ttl=60&grace=5&on_denied=keep&timeout=4',
    'scripted/a/y?ttl=20&neg_ttl=3&resurrect_ttl=9&on_denied=fail',
    'scripted/a/x'
  ].map(reference)
  await set.load(wanted)
  t.equal(script.calls.length, 1)
  t.same(set.resourceOf(wanted[2]!.text)?.freshness, {
    ttl: 20,
    negTtl: 3,
    resurrectTtl: 9,
    failOnDenied: true,
    timeout: 4
  })
  t.equal(set.grace(wanted[0]!.text), 5)
  t.equal(set.grace(wanted[2]!.text), undefined)
  set.close()
  await vaults.close()
})

await t.test('references are checked without asking anyone', async t => {
  const script = scriptedBackend()
  const { vaults } = vaultsOn([script.type, envBackend({})], {
    defaults: { env: { prefix: 'X_' } }
  })
  const entities = [
    { id: '1', prefix: 'a', name: 'scripted', config: { token: '{vault://b/token}' } },
    { id: '2', prefix: 'b', name: 'scripted', config: { token: '{vault://a/token}' } }
  ] as never
  const complaint = (text: string) => vaults.check(reference(text), entities)
  t.equal(complaint('scripted/x?ttl=5&base64_decode=true&mount=y'), undefined)
  t.match(complaint('scriptd/x'), { message: /no vault "scriptd"/, fix: /Did you mean "scripted"/ })
  t.match(complaint('nowhere/x'), { fix: /Use one of scripted, env, a, b/ })
  t.match(complaint('scripted/x?token=t'), { message: /may not change it/ })
  t.match(complaint('scripted/x?mont=t'), { fix: /Did you mean "mount"/ })
  t.match(complaint('scripted/x?zzzzzz=t'), { fix: /Use one of token, port/ })
  t.match(complaint('scripted/x?ttl=soon'), { message: /takes seconds/ })
  t.match(complaint('scripted/x?base64_decode=1'), { message: /true or false/ })
  t.match(complaint('scripted/x?on_denied=no'), { message: /keep or fail/ })
  t.match(complaint('a/x'), { message: /in a circle: a → b → a/ })
  t.equal(script.opened.length, 0)
  const set = vaults.prepare(entities)
  await set.load([reference('a/x')])
  t.equal(standing(set, reference('a/x')), 'malformed')
  t.equal(set.check(reference('env/x')), undefined)
  set.close()
  await vaults.close()
})

await t.test('no vault is read before the libraries of all are there', async t => {
  const quick = scriptedBackend('quick')
  const slow = scriptedBackend('slow')
  const library = Promise.withResolvers<void>()
  const asWritten: unknown[] = []
  const { vaults } = vaultsOn([
    quick.type,
    {
      ...slow.type,
      load(config) {
        asWritten.push(config)
        return library.promise
      }
    }
  ])
  t.teardown(() => vaults.close())
  for (const { answers } of [quick, slow]) answers.set('a', { value: 't1' })
  const vault = { prefix: 'v', name: 'slow', config: { token: '{vault://quick/a}' } }
  const set = vaults.prepare([vault as unknown as VaultEntity])
  const loading = set.load([reference('quick/a'), reference('v/a')])
  const earlier = vaults.prepare([]).load([reference('quick/b')])
  await new Promise(resolve => setTimeout(resolve, 50))
  t.same([...quick.calls, ...slow.calls, ...slow.opened], [])
  library.resolve()
  for (const outcome of (await loading).values()) t.match(outcome, { state: 'ok', value: 't1' })
  await earlier
  t.same(asWritten, [vault.config])
  t.same(quick.calls, ['fetch a', 'fetch b'])
  t.same(slow.calls, ['fetch a'])
})

await t.test('a library that cannot be imported is a failure of its vault alone', async t => {
  const good = scriptedBackend('good')
  const bad = scriptedBackend('bad')
  const lacking = () => Promise.reject(new Error('the package is not installed'))
  const { vaults } = vaultsOn([good.type, { ...bad.type, load: lacking, open: lacking }])
  t.teardown(() => vaults.close())
  good.answers.set('a', { value: 'x' })
  const outcomes = await vaults.prepare([]).load([reference('good/a'), reference('bad/a')])
  t.match(
    [...outcomes.values()],
    [{ state: 'ok' }, { state: 'unreachable', message: 'the package is not installed' }]
  )
})
