import * as Type from 'typebox'
import type { Backend, BackendType } from '../backend.ts'

/**
 * Secrets from environment variables: prefix and resource, `-` as `_`, upper case. Version 2 is the
 * variable with `_PREVIOUS` behind it. The environment of a process never changes, so neither do
 * these. `environment` is that of the gateway.
 */
export function envBackend(environment: Readonly<Record<string, string | undefined>>): BackendType {
  return {
    name: 'env',
    schema: Type.Object(
      {
        prefix: Type.Optional(
          Type.String({
            pattern: '^[A-Za-z_-][A-Za-z0-9_-]*$',
            description: 'Put before every name.'
          })
        )
      },
      { additionalProperties: false }
    ),
    protectedFields: [],
    local: true,
    open(config): Backend {
      const prefix = (config.prefix as string | undefined) ?? ''
      return {
        async fetch(resource, version) {
          const name = (prefix + resource).replaceAll('-', '_').toUpperCase()
          const value = environment[version === '2' ? `${name}_PREVIOUS` : name]
          return value === undefined ? undefined : { value }
        }
      }
    }
  }
}
