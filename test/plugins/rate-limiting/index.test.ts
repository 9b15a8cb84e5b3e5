import t, { type Test } from 'tap'
import { periods, secondsLeft } from '../../../src/plugins/rate-limiting/periods.ts'
import { startGateway, startUpstream, type TestResponse } from '../../harness.ts'

/** Waits until the window in force lasts for long enough that a test fits in. */
async function early(period: 'minute' | 'hour', milliseconds: number): Promise<void> {
  const { windowAt } = periods.find(({ name }) => name === period)!
  while (windowAt(Date.now()) !== windowAt(Date.now() + milliseconds)) {
    await new Promise(resolve => setTimeout(resolve, 50))
  }
}

interface Serving {
  readonly config?: object
  readonly more?: object
  readonly workers?: number
  readonly env?: Record<string, string>
}

async function serve(test: Test, { config, more, workers = 1, env = {} }: Serving) {
  const upstream = await startUpstream()
  test.teardown(() => upstream.close())
  const document = {
    services: [{ name: 's', url: upstream.url, routes: [{ name: 'r', paths: ['/'] }] }],
    plugins: [{ name: 'rate-limiting', config }],
    ...more
  }
  const gateway = await startGateway(document, { workers, env })
  test.teardown(() => gateway.close())
  await early('hour', 20_000)
  return { gateway, document, ask: gateway.fetch, upstream }
}

function told({ headers }: TestResponse): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(headers).filter(([name]) => /ratelimit|retry-after/.test(name))
  )
}

t.test('requests pass until the limit, are told what is left, and then refused', async t => {
  const { ask, upstream } = await serve(t, { config: { hour: 6 } })
  for (const left of [5, 4, 3, 2, 1, 0]) {
    const passed = await ask('/')
    const reset = secondsLeft(periods[2]!, Date.now())
    t.equal(passed.status, 200)
    t.match(told(passed), {
      'x-ratelimit-limit-hour': '6',
      'x-ratelimit-remaining-hour': String(left),
      'ratelimit-limit': '6',
      'ratelimit-remaining': String(left)
    })
    t.notOk('retry-after' in told(passed))
    const difference = Number(told(passed)['ratelimit-reset']) - reset
    t.ok(difference === 0 || difference === 1, 'the reset is when the hour ends')
  }
  const refused = await ask('/')
  t.equal(refused.status, 429)
  t.equal(refused.json().message, 'API rate limit exceeded')
  t.ok(refused.json().request_id)
  t.match(told(refused), {
    'x-ratelimit-limit-hour': '6',
    'x-ratelimit-remaining-hour': '0',
    'ratelimit-remaining': '0',
    'retry-after': told(refused)['ratelimit-reset']
  })
  t.equal(upstream.requests.length, 6)
})
