import type { Test } from 'tap'
import { startGateway, startUpstream } from '../../harness.ts'
import { Browser } from './browser.ts'

export const ANNA = 'aaaaaaaa-0000-4000-8000-000000000001'
export const ANNAS_KEY = 'bbbbbbbb-0000-4000-8000-000000000001'
export const SECRET = 'l3m0n-s0rb3t-l3m0n-s0rb3t-l3m0n-s0rb3t'

/** Whom the sessions of these tests are about. */
export const consumers = [
  {
    id: ANNA,
    username: 'anna',
    custom_id: 'A-1',
    keyauth_credentials: [{ id: ANNAS_KEY, key: 'annas-key' }]
  },
  { username: 'bert', keyauth_credentials: [{ key: 'berts-key' }] },
  { custom_id: 'C-1', keyauth_credentials: [{ key: 'carls-key' }] },
  { username: 'l'.repeat(6000), keyauth_credentials: [{ key: 'long-key' }] },
  { username: 'm'.repeat(12_000), keyauth_credentials: [{ key: 'too-long-key' }] },
  {
    username: 'anonymous',
    plugins: [{ name: 'request-termination', config: { status_code: 401, message: 'log in' } }]
  }
]

/** A file with a route for each path, which has a session plugin of its own. */
export function documentOf(
  url: string,
  configs: Readonly<Record<string, object>>,
  people: readonly object[] = consumers
) {
  const routes = Object.entries(configs).map(([path, config], i) => ({
    name: `r${i}`,
    paths: [path],
    strip_path: false,
    plugins: [{ name: 'session', config: { secret: SECRET, ...config } }]
  }))
  const plugins = [{ name: 'key-auth', config: { anonymous: 'anonymous' } }]
  return { consumers: people, services: [{ name: 's', url, routes, plugins }] }
}

/** A gateway of such a file, with an upstream and a client. */
export async function serve(
  test: Test,
  configs: Readonly<Record<string, object>>,
  options: { readonly env?: Record<string, string>; readonly workers?: number } = {}
) {
  const upstream = await startUpstream()
  test.teardown(() => upstream.close())
  const gateway = await startGateway(documentOf(upstream.url, configs), options)
  test.teardown(() => gateway.close())
  return { gateway, upstream, browser: new Browser(gateway) }
}
