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
    readonly template: {
      readonly spec: {
        readonly automountServiceAccountToken: boolean
        readonly terminationGracePeriodSeconds: number
        readonly securityContext: Readonly<Record<string, unknown>>
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

await t.test('manifests and chart are of this version', async t => {
  t.equal(find('Deployment').spec!.template.spec.containers[0]!.image, `postern:${version}`)
  t.match(parse(read('helm/postern/Chart.yaml')), { version, appVersion: version })
})
