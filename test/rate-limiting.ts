import type { TestGateway } from './harness.ts'

let scopes = 0

/** A document with one route, limited in Redis and counted from nothing. */
export function limitedRoute(upstream: string, redis: object, config: object) {
  const name = `scope-${process.pid}-${Date.now()}-${++scopes}`
  const plugin = { name: 'rate-limiting', config: { policy: 'redis', redis, ...config } }
  return {
    services: [{ name, url: upstream, routes: [{ name, paths: ['/'], plugins: [plugin] }] }]
  }
}

/** Asks once more; what then remains of the day's limit, undefined when nothing is told. */
export async function remainingOfDay(gateway: TestGateway): Promise<unknown> {
  return (await gateway.fetch('/')).headers['x-ratelimit-remaining-day']
}
