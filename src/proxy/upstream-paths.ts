import type { Route, Service } from '../schema/entities.ts'
import { compileUpstreamPath } from './path.ts'

type UpstreamPath = (requestPath: string, prefix: string | undefined) => string

/**
 * The path function of each route, compiled on its first use and dropped with the route. Always v0:
 * the format honours `path_handling: v1` only in a router flavour this router is not.
 */
export class UpstreamPaths {
  readonly #byRoute = new WeakMap<Route, UpstreamPath>()

  of(route: Route, service: Service): UpstreamPath {
    let compiled = this.#byRoute.get(route)
    if (compiled === undefined) {
      compiled = compileUpstreamPath(service.path, route.strip_path, 'v0')
      this.#byRoute.set(route, compiled)
    }
    return compiled
  }
}
