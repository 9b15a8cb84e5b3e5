import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { parse, parseAllDocuments } from 'yaml'
import { loadConfig } from '../src/config.ts'
import { plugins } from '../src/plugins/index.ts'
import { collectSettings } from '../src/settings.ts'
import { version } from '../src/version.ts'

const root = join(import.meta.dirname, '../deploy')
const read = (path: string): string => readFileSync(join(root, path), 'utf8')

interface Manifest {
  readonly kind: string
  readonly data?: Readonly<Record<string, string>>
  readonly spec?: {
    readonly selector: object
    readonly template: {
      readonly spec: {
        readonly automountServiceAccountToken: boolean
        readonly terminationGracePeriodSeconds: number
        readonly securityContext: Readonly<Record<string, unknown>>
        readonly topologySpreadConstraints?: readonly object[]
        readonly containers: readonly {
          readonly image: string
          readonly env: readonly { readonly name: string; readonly value: string }[]
          readonly securityContext: Readonly<Record<string, unknown>>
          readonly readinessProbe: object
          readonly livenessProbe: object
        }[]
      }
    }
  }
}

const manifests = parseAllDocuments(read('kubernetes/postern.yaml')).map(
  document => document.toJS() as Manifest
)
const find = (kind: string): Manifest => manifests.find(each => each.kind === kind)!

await t.test('the manifests have what an operator expects', async t => {
  t.same(
    manifests.map(({ kind }) => kind),
    [
      'Namespace',
      'ServiceAccount',
      'ConfigMap',
      'Deployment',
      'Service',
      'HorizontalPodAutoscaler',
      'PodDisruptionBudget',
      'NetworkPolicy'
    ]
  )
})

await t.test('the configuration and the settings are valid', async t => {
  const config = loadConfig(find('ConfigMap').data!['postern.yaml']!, {
    file: 'postern.yaml',
    plugins
  })
  t.equal(config.routes.length, 1)
  const { env } = find('Deployment').spec!.template.spec.containers[0]!
  const { warnings } = collectSettings(
    Object.fromEntries(env.map(({ name, value }) => [name, value]))
  )
  t.same(warnings, [])
  const chart = parse(read('helm/postern/values.yaml'))
  t.equal(loadConfig(chart.config, { file: 'values.yaml', plugins }).routes.length, 1)
  t.same(collectSettings(chart.env).warnings, [])
})

await t.test('the pod is locked down and has time to drain', async t => {
  const pod = find('Deployment').spec!.template.spec
  const container = pod.containers[0]!
  t.equal(pod.automountServiceAccountToken, false)
  t.match(pod.securityContext, { runAsNonRoot: true, seccompProfile: { type: 'RuntimeDefault' } })
  t.match(container.securityContext, {
    readOnlyRootFilesystem: true,
    allowPrivilegeEscalation: false,
    capabilities: { drop: ['ALL'] }
  })
  t.match(container.readinessProbe, { httpGet: { path: '/status/ready' } })
  t.match(container.livenessProbe, { httpGet: { path: '/status' } })
  const setting = (name: string): number =>
    Number(container.env.find(each => each.name === name)!.value)
  t.ok(
    pod.terminationGracePeriodSeconds >
      setting('POSTERN_SHUTDOWN_DELAY') + setting('POSTERN_SHUTDOWN_TIMEOUT')
  )
})

const KEYS = ['kubernetes.io/hostname', 'topology.kubernetes.io/zone']

await t.test('pods are spread over nodes and zones', async t => {
  const { template, selector } = find('Deployment').spec!
  t.match(
    template.spec.topologySpreadConstraints,
    KEYS.map(topologyKey => ({
      topologyKey,
      whenUnsatisfiable: 'ScheduleAnyway',
      labelSelector: selector
    }))
  )
})

await t.test('manifests, chart and Compose file are of this version', async t => {
  t.equal(find('Deployment').spec!.template.spec.containers[0]!.image, `postern:${version}`)
  t.match(parse(read('helm/postern/Chart.yaml')), { version, appVersion: version })
  t.equal(parse(read('../compose.yaml')).services.postern.image, `postern:${version}`)
})

const helm = (...args: string[]) =>
  spawnSync('helm', args, { cwd: join(root, 'helm/postern'), encoding: 'utf8' })
const lacks = helm('version').error === undefined ? false : 'helm is not installed'
if (lacks !== false) process.stdout.write(`# ${lacks}: the chart is not rendered\n`)

/** Renders the chart, with values over its own. */
function render(values: object): readonly Manifest[] {
  const file = join(t.testdir({ 'values.json': JSON.stringify(values) }), 'values.json')
  const lint = helm('lint', '.', '--strict', '--values', file)
  if (lint.status !== 0) throw new Error(lint.stdout + lint.stderr)
  const { status, stdout, stderr } = helm('template', 'edge', '.', '--values', file)
  if (status !== 0) throw new Error(stderr)
  return parseAllDocuments(stdout).map(document => document.toJS() as Manifest)
}

await t.test('the chart renders what the manifests have', { skip: lacks }, async t => {
  const all = render({})
  const kinds = all.map(({ kind }) => kind).sort()
  const inManifests = manifests.map(({ kind }) => kind).filter(kind => kind !== 'Namespace')
  t.same(kinds, inManifests.sort())
  const pod = all.find(({ kind }) => kind === 'Deployment')!.spec!.template.spec
  const expected = find('Deployment').spec!.template.spec
  t.same(pod.securityContext, expected.securityContext)
  t.same(pod.containers[0]!.securityContext, expected.containers[0]!.securityContext)
  t.match(pod, { automountServiceAccountToken: false, terminationGracePeriodSeconds: 60 })
  t.match(pod.containers[0], {
    readinessProbe: { httpGet: { path: '/status/ready' } },
    livenessProbe: { httpGet: { path: '/status' } },
    startupProbe: {}
  })
})

await t.test('the chart spreads pods as its values say', { skip: lacks }, async t => {
  const specOf = (values: object) => render(values).find(({ kind }) => kind === 'Deployment')!.spec!
  const { template, selector } = specOf({})
  t.match(
    template.spec.topologySpreadConstraints,
    KEYS.map(topologyKey => ({
      topologyKey,
      maxSkew: 1,
      whenUnsatisfiable: 'ScheduleAnyway',
      labelSelector: selector
    }))
  )
  const rule = { topologyKey: 'rack', maxSkew: 2, whenUnsatisfiable: 'DoNotSchedule' }
  const own = { ...rule, labelSelector: { matchLabels: { role: 'edge' } } }
  t.same(
    specOf({ topologySpreadConstraints: [rule, own] }).template.spec.topologySpreadConstraints,
    [{ ...rule, labelSelector: selector }, own]
  )
  t.equal(
    specOf({ topologySpreadConstraints: [] }).template.spec.topologySpreadConstraints,
    undefined
  )
  t.throws(
    () => render({ topologySpreadConstraints: [{ ...rule, whenUnsatisfiable: 'Never' }] }),
    /whenUnsatisfiable/
  )
})

await t.test('the chart with other values', { skip: lacks }, async t => {
  const all = render({
    env: {
      POSTERN_MAX_BODY_SIZE: 10_000_000,
      POSTERN_VAULT_AWS_REGION: 'eu-central-1',
      POSTERN_SSL_CERT_KEY: '{vault://fs/key}',
      POSTERN_STATUS_LISTEN: '[::]:8007',
      POSTERN_SHUTDOWN_DELAY: 0
    },
    // A chart that has this one as its dependency hands it this.
    global: {},
    imagePullSecrets: [{ name: 'registry' }],
    secretName: 'edge-secrets',
    tlsSecretName: 'edge-tls',
    serviceAccount: {
      annotations: { 'eks.amazonaws.com/role-arn': 'arn:aws:iam::1:role/edge' },
      podLabels: { 'azure.workload.identity/use': 'true' }
    },
    vaultToken: { enabled: true },
    drain: { delay: 5, timeout: 20 },
    autoscaling: { enabled: false },
    networkPolicy: { statusFrom: [] },
    nodeSelector: { role: 'edge' }
  })
  const of = (kind: string): unknown => all.find(each => each.kind === kind)
  t.equal(of('HorizontalPodAutoscaler'), undefined)
  t.match(of('ServiceAccount'), {
    metadata: { annotations: { 'eks.amazonaws.com/role-arn': 'arn:aws:iam::1:role/edge' } }
  })
  t.same((of('NetworkPolicy') as { spec: { ingress: unknown } }).spec.ingress, [
    { ports: [{ port: 'http' }, { port: 'https' }] }
  ])
  const pod = all.find(({ kind }) => kind === 'Deployment')!.spec!.template.spec
  t.match(of('Deployment'), {
    spec: {
      replicas: 2,
      template: { metadata: { labels: { 'azure.workload.identity/use': 'true' } } }
    }
  })
  t.match(pod, { terminationGracePeriodSeconds: 35, nodeSelector: { role: 'edge' } })
  const env = new Map(pod.containers[0]!.env.map(({ name, value }) => [name, value]))
  t.equal(env.get('POSTERN_MAX_BODY_SIZE'), '10000000')
  t.equal(env.get('POSTERN_VAULT_FS_PREFIX'), '/run/secrets/postern')
  t.equal(env.get('POSTERN_SSL_CERT'), '/run/secrets/tls/tls.crt')
  t.equal(env.get('POSTERN_SSL_CERT_KEY'), '{vault://fs/key}', 'what env says comes first')
  t.equal(env.get('POSTERN_STATUS_LISTEN'), '[::]:8007')
  t.equal(env.get('POSTERN_SHUTDOWN_DELAY'), '0')
  t.equal(env.get('POSTERN_SHUTDOWN_TIMEOUT'), '20')
  t.equal(env.size, pod.containers[0]!.env.length, 'no variable stands twice')
  t.match(pod, {
    imagePullSecrets: [{ name: 'registry' }],
    volumes: [
      { name: 'config' },
      { name: 'secrets', secret: { secretName: 'edge-secrets' } },
      { name: 'tls', secret: { secretName: 'edge-tls' } },
      {
        name: 'vault-token',
        projected: { sources: [{ serviceAccountToken: { audience: 'vault' } }] }
      }
    ]
  })
  t.throws(() => render({ replica: 3 }), /replica/, 'a name that is none')
})
