import t, { type Test } from 'tap'
import { VaultDenied, VaultThrottled, VaultUnreachable } from '../../src/errors.ts'
import type { VaultEvent } from '../../src/vault/observation.ts'
import { createRotation, type Rotation, type RotationOptions } from '../../src/vault/rotation.ts'
import type { Outcome } from '../../src/vault/vaults.ts'
import { until } from '../harness.ts'
import { reference, type Scripted, scriptedBackend, vaultsOn } from './scripted-backend.ts'

/** A rotation over scripted vaults that records what is brought into force. */
async function rotate(
  t: Test,
  texts: readonly string[],
  scripts: readonly Scripted[],
  options: Partial<RotationOptions> & { now?: () => number } = {}
) {
  const events: VaultEvent[] = []
  const { vaults, pass, now } = vaultsOn(
    scripts.map(({ type }) => type),
    {
      observe: event => events.push(event),
      ...(options.now === undefined ? {} : { now: options.now })
    }
  )
  const set = vaults.prepare([])
  const references = texts.map(reference)
  const published: Map<string, string>[] = []
  const inForce = await set.load(references)
  const refusals = new Set<string>()
  const lines: { level: string; fields: object; message: string }[] = []
  const line = (level: string) => (fields: object, message: string) =>
    void lines.push({ level, fields, message })
  const rotation: Rotation = createRotation({
    set,
    references,
    inForce,
    interval: 3600,
    now,
    log: { info: line('info'), warn: line('warn'), error: line('error') },
    run: task => task(),
    async publish(changes: ReadonlyMap<string, Outcome>) {
      const texts = [...changes].map(
        ([text, outcome]) => [text, outcome.state === 'ok' ? outcome.value : outcome.state] as const
      )
      if (texts.some(([, value]) => refusals.has(value))) throw new Error('it does not fit')
      published.push(new Map(texts))
    },
    observe: event => events.push(event),
    ...options
  })
  t.teardown(async () => {
    rotation.close()
    set.close()
    await vaults.close()
  })
  const status = () => set.status()[0]!
  return { rotation, set, published, pass, refusals, events, lines, status, references }
}

const values = (published: readonly Map<string, string>[]): string[][] =>
  published.map(changes => [...changes.values()])

await t.test('the next read is the look that finds it due, or the time of a retry', async t => {
  const script = scriptedBackend()
  script.answers.set('soon', { value: '1' })
  script.answers.set('late', { value: '2' })
  script.answers.set('ever', { value: '3' })
  script.answers.set('gone', new VaultUnreachable('gone', 'it is away'))
  const { rotation, set } = await rotate(
    t,
    ['scripted/soon?ttl=5', 'scripted/late?ttl=110', 'scripted/ever', 'scripted/gone'],
    [script],
    // Looks come after 60 s and each 60 s from then on.
    { interval: 60, random: () => 1, now: () => 0 }
  )
  const next = set.status(resource => rotation.nextRead(resource)).map(each => each.next_refresh)
  t.match(next, [60, 120, undefined, /^[0-5]$/])
})

await t.test('only what is due is read, and only what changed published, all at once', async t => {
  const script = scriptedBackend()
  script.answers.set('pair', { value: { user: 'u1', word: 'w1' }, version: '1' })
  script.answers.set('still', { value: 's1' })
  script.answers.set('ever', { value: 'e1' })
  const { rotation, published, pass, events } = await rotate(
    t,
    [
      'scripted/pair/user?ttl=10',
      'scripted/pair/word?ttl=10',
      'scripted/still?ttl=10',
      'scripted/ever'
    ],
    [script]
  )
  script.calls.length = 0
  script.answers.set('pair', { value: { user: 'u2', word: 'w2' }, version: '2' })
  script.answers.set('ever', { value: 'e2' })
  t.equal(await rotation.tick(), 2, 'a tenth of the interval may be read early')
  t.same(script.calls.toSorted(), ['fetch pair', 'fetch still'])
  t.same(values(published), [['u2', 'w2']])
  t.match(
    events.filter(({ kind }) => kind === 'changed'),
    [{ vault: 'scripted', from: '1', to: '2' }, {}]
  )
  pass(1e6)
  t.equal(await rotation.tick(), 0)
  t.equal(await rotation.refresh('scripted'), 1, 'a refresh reads what has no ttl, too')
  t.equal(await rotation.refresh('elsewhere'), 0)
  t.equal(await rotation.refresh([reference('scripted/ever')]), 0)
  rotation.close()
  t.equal(await rotation.tick(), 0)
})

await t.test('an unchanged version is not read again', async t => {
  const script = scriptedBackend('scripted', true)
  script.answers.set('a', { value: '1', version: 'v1' })
  const { rotation, published, status, pass, lines } = await rotate(
    t,
    ['scripted/a?ttl=5'],
    [script],
    { interval: 1 }
  )
  const audited = () =>
    lines.flatMap(({ fields }) => {
      const { audit, from, to } = fields as Record<string, string>
      return audit === undefined ? [] : [`${audit} ${from} ${to}`]
    })
  pass(5)
  await rotation.tick()
  t.same(script.calls, ['fetch a', 'probe a'])
  t.same(audited(), [])
  t.match(status(), { state: 'ok', age: 0 })
  script.answers.set('a', { value: '2', version: 'v2' })
  pass(5)
  await rotation.tick()
  t.same(script.calls.slice(2), ['probe a', 'fetch a'])
  t.same(values(published), [['2']])
  script.answers.set('a', { value: '2', version: 'v3' })
  pass(5)
  await rotation.tick()
  t.same(values(published), [['2']], 'another version with the same value changes nothing')
  t.same(audited(), ['secret-changed v1 v2', 'secret-version v2 v3'])
  script.answers.set('a', undefined)
  pass(5)
  await rotation.tick()
  t.match(status(), { state: 'stale', version: 'v3' })
  t.equal(published.length, 1, 'the last value stays')
})

await t.test(
  'a failing vault is asked with growing pauses, and the last value stays until its end',
  async t => {
    const script = scriptedBackend()
    script.answers.set('a', { value: '1' })
    const { rotation, published, pass, status, lines } = await rotate(
      t,
      ['scripted/a?ttl=10&resurrect_ttl=100'],
      [script],
      { interval: 1 }
    )
    script.answers.set('a', new VaultUnreachable('a', 'down'))
    let calls = 0
    for (let second = 0; second < 100; second++) {
      pass(1)
      const before = script.calls.length
      await rotation.tick()
      calls += script.calls.length - before
    }
    t.ok(calls > 4 && calls < 12, `${calls} calls in 100 s`)
    t.match(status(), { state: 'stale', failures: calls })
    t.match(lines.at(-1), { level: 'warn', message: /the last value stays/ })
    pass(11)
    await rotation.tick()
    t.same(values(published), [['unreachable']], 'then it has none')
    script.answers.set('a', { value: '1' })
    pass(40)
    await rotation.tick()
    t.same(values(published), [['unreachable'], ['1']])
  }
)

await t.test(
  'a denial is believed for neg_ttl, and takes effect at once only where told so',
  async t => {
    const script = scriptedBackend()
    script.answers.set('keep', { value: 'k' })
    script.answers.set('fail', { value: 'f' })
    const { rotation, published, pass } = await rotate(
      t,
      ['scripted/keep?ttl=10&neg_ttl=200', 'scripted/fail?ttl=10&neg_ttl=200&on_denied=fail'],
      [script],
      { interval: 1 }
    )
    for (const name of ['keep', 'fail']) script.answers.set(name, new VaultDenied(name, 'no'))
    pass(10)
    await rotation.tick()
    t.same(values(published), [['denied']])
    const before = script.calls.length
    pass(190)
    await rotation.tick()
    t.equal(script.calls.length, before)
    pass(11)
    await rotation.tick()
    t.equal(script.calls.length, before + 2)
  }
)

await t.test('an absence with a default is asked again, quietly', async t => {
  const script = scriptedBackend()
  const { rotation, published, pass, lines } = await rotate(
    t,
    ['scripted/a?default=d&neg_ttl=1'],
    [script],
    { interval: 1 }
  )
  pass(2)
  await rotation.tick()
  t.same(lines, [])
  script.answers.set('a', { value: 'stored' })
  pass(10)
  await rotation.tick()
  t.same(values(published), [['stored']])
})

await t.test('one bad secret holds back no other, and is tried again less and less', async t => {
  const script = scriptedBackend()
  const names = Array.from({ length: 12 }, (_, i) => `n${i}`)
  for (const name of names) script.answers.set(name, { value: `${name} old` })
  const { rotation, published, refusals, pass, status, set, events } = await rotate(
    t,
    names.map(name => `scripted/${name}?ttl=1&resurrect_ttl=1000`),
    [script],
    { interval: 1 }
  )
  for (const name of names) script.answers.set(name, { value: `${name} new` })
  refusals.add('n0 new')
  pass(1)
  t.equal(await rotation.tick(), 11)
  t.equal(published.flatMap(changes => [...changes]).length, 11)
  t.match(status(), { state: 'invalid', last_error: 'it does not fit' })
  t.match(
    events.filter(({ kind }) => kind === 'refused'),
    [{ reference: '{vault://scripted/n0?ttl=1&resurrect_ttl=1000}' }]
  )
  let attempts = 0
  for (let second = 0; second < 60; second++) {
    pass(1)
    const before = script.calls.filter(call => call === 'fetch n0').length
    await rotation.tick()
    attempts += script.calls.filter(call => call === 'fetch n0').length - before
  }
  t.ok(attempts < 8, `${attempts} attempts in a minute`)
  pass(1000)
  await rotation.tick()
  t.equal(set.status()[0]!.state, 'malformed', 'after resurrect_ttl it has no value')
  t.same(values(published).at(-1), ['malformed'])
  script.answers.set('n0', { value: 'n0 good' })
  pass(400)
  await rotation.tick()
  t.same(values(published).at(-1), ['n0 good'])
  t.equal(status().state, 'ok')
})

await t.test('a value that turned unusable never replaces a good one', async t => {
  const script = scriptedBackend()
  script.answers.set('pair', { value: { user: 'u1', word: 'w1' } })
  const { rotation, published, pass, set } = await rotate(
    t,
    ['scripted/pair/user?ttl=1', 'scripted/pair/word?ttl=1'],
    [script],
    { interval: 1 }
  )
  script.answers.set('pair', { value: { user: 'u2' } })
  pass(1)
  t.equal(await rotation.tick(), 0, 'no half of the pair either')
  t.same(published, [])
  t.match(set.status(), [
    { state: 'invalid', last_error: /no member "word"/ },
    { state: 'invalid', last_error: /no member "word"/ }
  ])
  script.answers.set('pair', { value: { user: 'u3', word: 'w3' } })
  pass(2)
  t.equal(await rotation.tick(), 2)
})

await t.test(
  'what one entity uses comes into force together, a key when its certificate is there',
  async t => {
    const script = scriptedBackend()
    script.answers.set('cert', { value: 'cert 1' })
    script.answers.set('key', { value: 'key 1' })
    const inUse = { cert: '1', key: '1' }
    const { rotation, pass } = await rotate(
      t,
      ['scripted/cert?ttl=1', 'scripted/key?ttl=1'],
      [script],
      {
        interval: 1,
        usersOf: () => ['certificate'],
        async publish(changes) {
          const next = { ...inUse }
          for (const outcome of changes.values()) {
            const [name, version] = (outcome as { value: string }).value.split(' ')
            next[name as 'cert' | 'key'] = version!
          }
          if (next.cert !== next.key) throw new Error('key and certificate do not belong together')
          Object.assign(inUse, next)
        }
      }
    )
    script.answers.set('key', { value: 'key 2' })
    pass(1)
    t.equal(await rotation.tick(), 0)
    t.same(inUse, { cert: '1', key: '1' })
    script.answers.set('cert', { value: 'cert 2' })
    pass(1)
    t.equal(await rotation.tick(), 2)
    t.same(inUse, { cert: '2', key: '2' })
  }
)

await t.test('a lease is read again at two thirds of its life', async t => {
  const script = scriptedBackend()
  script.answers.set('a', { value: '1', ttl: 90 })
  const { rotation, pass } = await rotate(t, ['scripted/a'], [script])
  pass(59)
  await rotation.tick()
  t.equal(script.calls.length, 1)
  pass(1)
  await rotation.tick()
  t.equal(script.calls.length, 2)
})

await t.test('a vault that throttles is not asked during the pause, not even by hand', async t => {
  const script = scriptedBackend()
  script.answers.set('a', { value: '1' })
  script.answers.set('b', { value: '1' })
  const { rotation, pass, status } = await rotate(
    t,
    ['scripted/a?ttl=1', 'scripted/b?ttl=1'],
    [script],
    { interval: 1 }
  )
  script.answers.set('a', new VaultThrottled('a', 'slowly', 60))
  script.answers.set('b', new VaultThrottled('b', 'slowly', 60))
  pass(1)
  await rotation.tick()
  t.match(status(), { state: 'stale' })
  const before = script.calls.length
  pass(59)
  await rotation.tick()
  await rotation.refresh()
  t.equal(script.calls.length, before, 'not before it may')
  script.answers.set('a', { value: '2' })
  script.answers.set('b', { value: '2' })
  pass(20)
  t.equal(await rotation.tick(), 2)
})

await t.test('a vault that hangs holds back no other', async t => {
  const slow = scriptedBackend('slow')
  const quick = scriptedBackend('quick')
  slow.answers.set('a', { value: '1' })
  quick.answers.set('b', { value: '1' })
  const { rotation, published } = await rotate(t, ['slow/a', 'quick/b'], [slow, quick])
  const hanging = Promise.withResolvers<undefined>()
  slow.answers.set('a', () => hanging.promise)
  quick.answers.set('b', { value: '2' })
  const refreshing = rotation.refresh()
  await until(() => published.length === 1, 'the quick one in force')
  t.same(values(published), [['2']])
  hanging.resolve(undefined)
  await refreshing
})

await t.test('a refresh asked for during a read reads once more, however many ask', async t => {
  const script = scriptedBackend()
  script.answers.set('a', { value: '1' })
  const { rotation, published } = await rotate(t, ['scripted/a'], [script])
  const held = Promise.withResolvers<{ value: string }>()
  script.answers.set('a', () => held.promise)
  const first = rotation.refresh()
  await until(() => script.calls.length === 2, 'the read to be under way')
  script.answers.set('a', { value: '3' })
  const later = [rotation.refresh(), rotation.refresh(), rotation.refresh()]
  held.resolve({ value: '2' })
  await Promise.all([first, ...later])
  t.equal(script.calls.length, 3)
  t.equal(values(published).flat().at(-1), '3')
})

await t.test('the timer looks each interval, and short ttls are told', async t => {
  const script = scriptedBackend()
  let n = 0
  script.answers.set('a', async () => ({ value: String(++n) }))
  const { published, lines } = await rotate(t, ['scripted/a?ttl=0.01'], [script], {
    interval: 0.1,
    now: () => performance.now()
  })
  t.match(lines, [{ level: 'warn', message: /ttl is shorter than the rotation interval of 0.1 s/ }])
  await until(() => published.length >= 3, 'three rotations')
})

await t.test(
  'what is of an earlier process is asked for again soon, however long that fails',
  async t => {
    const script = scriptedBackend()
    const { vaults, now, pass } = vaultsOn([script.type])
    t.teardown(() => vaults.close())
    const set = vaults.prepare([])
    script.answers.set('a', new VaultUnreachable('a', 'it is away'))
    const texts = [reference('scripted/a')]
    await set.load(texts)
    const resource = set.resourceOf(texts[0]!.text)!
    const pauseAfter = async (failures: number): Promise<number> => {
      for (let i = 0; i < failures; i++) {
        pass(60)
        await resource.join()
      }
      return resource.dueAt - now()
    }
    resource.restore({ value: 'kept' }, 60)
    t.equal(await pauseAfter(10), 5000)
    t.same(resource.current, { value: 'kept' })
    script.answers.set('a', { value: 'current' })
    await resource.join()
    script.answers.set('a', new VaultUnreachable('a', 'it is away'))
    t.equal(await pauseAfter(10), 30_000, 'what this process read may wait longer')
  }
)
