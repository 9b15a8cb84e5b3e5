import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { MAX_SERIES, Metrics, type MetricsState } from '../src/metrics.ts'
import { countRequest, createCounts } from '../src/proxy/counts.ts'
import type { ReadOutcome } from '../src/vault/observation.ts'
import type { ReferenceStatus } from '../src/vault/vaults.ts'
import { certificateFor } from './certificates.ts'
import { startGateway, startUpstream } from './harness.ts'

// Threads start slowly on a busy machine.
t.setTimeout(120_000)

const IDLE: MetricsState = {
  version: '1.2.3',
  startedAt: 1_700_000_000_000,
  workers: { configured: 2, serving: 1, unresponsive: [] },
  inFlight: 0,
  webSockets: 0,
  delays: [],
  requests: createCounts(),
  entities: {},
  lastReload: undefined,
  references: [],
  health: [],
  certificates: []
}
const STATUS: ReferenceStatus = {
  reference: '{vault://fs/a}',
  vault: 'fs',
  resource: 'a',
  state: 'ok',
  version: 'v1',
  age: 12,
  next_refresh: 48,
  last_error: undefined,
  failures: 0
}

/** Samples by their name with labels; fails on anything that is not the text format. */
function parse(text: string): Map<string, number> {
  const samples = new Map<string, number>()
  const types = new Map<string, string>()
  if (!text.endsWith('\n')) throw new Error('the last line does not end')
  for (const line of text.slice(0, -1).split('\n')) {
    const type = /^# TYPE ([a-z_]+) (counter|gauge|histogram|summary)$/.exec(line)
    if (type !== null) types.set(type[1]!, type[2]!)
    if (line.startsWith('# ')) continue
    const parts =
      /^([a-z_]+)(\{(?:[a-z_]+="(?:[^"\\\n]|\\[\\n"])*",?)*\})? (-?[0-9.e+-]+|\+Inf)$/.exec(line)
    if (parts === null) throw new Error(`not a sample: ${line}`)
    const family = parts[1]!.replace(/_(sum|count|bucket)$/, '')
    if (!types.has(parts[1]!) && !types.has(family)) throw new Error(`no type before ${line}`)
    const name = parts[1]! + (parts[2] ?? '')
    if (samples.has(name)) throw new Error(`twice: ${name}`)
    samples.set(name, Number(parts[3]))
  }
  return samples
}

t.test('requests are counted by class, and their time summed', async t => {
  const counts = createCounts()
  for (const status of [101, 200, 204, 301, 404, 499, 500, 503, 0, 700])
    countRequest(counts, status, 500)
  const delays = [{ thread: 2, p50: 0.001, p99: 0.02, max: 0.5 }]
  const samples = parse(new Metrics().render({ ...IDLE, requests: counts, inFlight: 3, delays }))
  const classes = ['1xx', '2xx', '3xx', '4xx', '5xx', 'other']
  t.same(
    classes.map(each => samples.get(`postern_requests_total{class="${each}"}`)),
    [1, 2, 1, 2, 2, 2]
  )
  t.equal(samples.get('postern_request_duration_seconds_sum'), 5)
  t.equal(samples.get('postern_request_duration_seconds_count'), 10)
  t.equal(samples.get('postern_requests_in_flight'), 3)
  t.same(
    ['0.5', '0.99', '1'].map(quantile =>
      samples.get(`postern_event_loop_delay_seconds{thread="2",quantile="${quantile}"}`)
    ),
    [0.001, 0.02, 0.5]
  )
  t.equal(samples.get('postern_workers{state="serving"}'), 1)
  t.equal(samples.get(`postern_build_info{version="1.2.3",node="${process.versions.node}"}`), 1)
})

t.test('reads of a vault: outcomes, and a histogram that adds up', async t => {
  const metrics = new Metrics()
  const read = (outcome: ReadOutcome, seconds: number, operation: 'fetch' | 'probe' = 'fetch') =>
    metrics.observe({ kind: 'read', vault: 'hcv', type: 'hcv', operation, outcome, seconds })
  for (const seconds of [0.001, 0.02, 0.02, 3, 30]) read('ok', seconds)
  read('denied', 0.2)
  read('ok', 0.2, 'probe')
  const of = { vault: 'hcv', reference: '{vault://hcv/a}' }
  metrics.observe({ kind: 'changed', ...of, from: '1', to: '2' })
  metrics.observe({ kind: 'refused', ...of })
  metrics.observe({ kind: 'refused', ...of })
  metrics.observe({ kind: 'paused', vault: 'hcv', type: 'hcv', seconds: 5 })
  const samples = parse(metrics.render(IDLE))
  t.equal(samples.get('postern_vault_reads_total{vault="hcv",operation="fetch",outcome="ok"}'), 5)
  t.equal(
    samples.get('postern_vault_reads_total{vault="hcv",operation="fetch",outcome="denied"}'),
    1
  )
  t.equal(samples.get('postern_vault_reads_total{vault="hcv",operation="probe",outcome="ok"}'), 1)
  t.equal(samples.get('postern_vault_pauses_total{vault="hcv"}'), 1)
  const bucket = (le: string): number | undefined =>
    samples.get(`postern_vault_read_duration_seconds_bucket{vault="hcv",le="${le}"}`)
  t.same(['0.005', '0.025', '0.25', '5', '10', '+Inf'].map(bucket), [1, 3, 5, 6, 6, 7])
  t.equal(samples.get('postern_vault_read_duration_seconds_count{vault="hcv"}'), 7)
  t.equal(samples.get('postern_vault_changes_total{vault="hcv"}'), 1)
  t.equal(samples.get('postern_vault_refusals_total{vault="hcv"}'), 2)
})

t.test('what is known of each secret, and of each vault', async t => {
  const never = { version: undefined, age: undefined, next_refresh: undefined }
  const references: ReferenceStatus[] = [
    STATUS,
    { ...STATUS, reference: '{vault://fs/b}', ...never, state: 'absent', failures: 4 },
    {
      ...STATUS,
      reference: '{vault://fs/c?default="\\}',
      state: 'stale',
      age: 600,
      version: 'a\nb',
      source: 'last-known-good'
    }
  ]
  const samples = parse(
    new Metrics().render({
      ...IDLE,
      references,
      health: [{ vault: 'hcv', tokenExpiresAt: 5000 }, { vault: 'fs' }],
      certificates: [{ certificate: 'id', names: 'a.example *.b', notAfter: 7000 }]
    })
  )
  const of = (name: string, reference = '{vault://fs/a}'): number | undefined =>
    samples.get(`postern_secret_${name}{reference="${reference}",vault="fs"}`)
  t.equal(of('age_seconds'), 12)
  t.equal(of('next_refresh_seconds'), 48)
  t.equal(of('stale'), 0)
  t.equal(of('stale', '{vault://fs/b}'), 1)
  t.equal(of('age_seconds', '{vault://fs/b}'), undefined)
  t.equal(of('failures', '{vault://fs/b}'), 4)
  t.ok(Math.abs(of('last_success_timestamp_seconds')! + 12 - Date.now() / 1000) < 5)
  t.equal(samples.get('postern_secret_info{reference="{vault://fs/a}",vault="fs",version="v1"}'), 1)
  t.equal(of('stale', '{vault://fs/c?default=\\"\\\\}'), 1)
  t.equal(samples.get('postern_vault_references{vault="fs",state="absent"}'), 1)
  t.equal(samples.get('postern_vault_oldest_value_seconds{vault="fs"}'), 600)
  t.equal(samples.get('postern_vault_last_known_good{vault="fs"}'), 1)
  t.equal(samples.get('postern_vault_token_expiry_timestamp_seconds{vault="hcv"}'), 5)
  t.equal(
    samples.get(
      'postern_certificate_expiry_timestamp_seconds{certificate="id",names="a.example *.b"}'
    ),
    7
  )
})

t.test('series by reference are bounded', async t => {
  const references = Array.from({ length: MAX_SERIES + 5 }, (_, i) => ({
    ...STATUS,
    reference: `{vault://fs/${i}}`
  }))
  const samples = parse(new Metrics().render({ ...IDLE, references }))
  t.equal(samples.get('postern_secret_unlisted'), 5)
  t.equal(samples.get('postern_vault_references{vault="fs",state="ok"}'), MAX_SERIES + 5)
})

t.test('a running gateway shows its traffic, reloads, secrets and certificates', async t => {
  await using upstream = await startUpstream()
  const { cert, key } = await certificateFor('metrics.example')
  const config = {
    services: [{ name: 'echo', url: upstream.url, routes: [{ name: 'echo', paths: ['/echo'] }] }],
    consumers: [
      { username: 'anna', keyauth_credentials: [{ key: '{vault://env/metrics-test-key}' }] }
    ],
    certificates: [{ cert, key, snis: [{ name: 'metrics.example' }] }]
  }
  await using gateway = await startGateway(config, {
    env: { METRICS_TEST_KEY: 'a-key-for-the-metrics' },
    workers: 2
  })
  await gateway.fetch('/echo')
  await gateway.fetch('/nowhere')
  await gateway.reload({ ...config, plugins: [{ name: 'correlation-id' }] })
  await t.rejects(gateway.reload({ ...config, plugins: [{ name: 'none' }] }))
  await gateway.gateway.workers[0]!.terminate()
  const response = await gateway.status('/metrics')
  t.equal(response.headers['content-type'], 'text/plain; version=0.0.4; charset=utf-8')
  const samples = parse(response.body)
  t.equal(samples.get('postern_requests_total{class="2xx"}'), 1, 'dead threads count')
  t.equal(samples.get('postern_requests_total{class="4xx"}'), 1)
  t.ok(samples.get('postern_request_duration_seconds_sum')! > 0)
  const delay = [...samples].filter(([name]) => name.startsWith('postern_event_loop_delay_seconds'))
  t.ok(delay.length >= 3)
  for (const [name, seconds] of delay) t.ok(seconds >= 0 && seconds < 60, name)
  // The file is watched too, so each may have been counted twice.
  t.ok(samples.get('postern_config_reloads_total{result="ok"}')! >= 1)
  t.ok(samples.get('postern_config_reloads_total{result="refused"}')! >= 1)
  t.equal(samples.get('postern_config_last_reload_success'), 0)
  t.equal(samples.get('postern_config_entities{kind="plugins"}'), 1)
  t.equal(
    samples.get('postern_secret_stale{reference="{vault://env/metrics-test-key}",vault="env"}'),
    0
  )
  const expiry = [...samples].find(([name]) => /certificate_expiry.*metrics\.example/.test(name))
  t.ok(expiry![1] > Date.now() / 1000)
  t.notMatch(response.body, /a-key-for-the-metrics/)
})

t.test('every metric is documented, and no other', async t => {
  const metrics = new Metrics()
  const text = metrics.render({ ...IDLE, lastReload: { at: 0, ok: true } })
  const shown = [...text.matchAll(/^# TYPE ([a-z_]+) /gm)].map(([, name]) => name!)
  const page = readFileSync(join(import.meta.dirname, '../docs/operations.md'), 'utf8')
  const table = page.split('\n## Metrics\n')[1]!.split('\n## ')[0]!
  const documented = [...table.matchAll(/^\| `([a-z_]+)` \|/gm)].map(([, name]) => name!)
  t.same(documented.toSorted(), shown.toSorted())
})
