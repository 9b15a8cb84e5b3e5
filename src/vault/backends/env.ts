import * as Type from 'typebox'
import { SecretAbsent, VaultDenied } from '../../errors.ts'
import type { Backend, BackendType } from '../backend.ts'

/** What matches the names a pattern means; they are upper case. */
function patternOf(pattern: string): RegExp {
  return new RegExp(`^${pattern.toUpperCase().replaceAll('*', '.*')}$`)
}

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
        ),
        allow: Type.Optional(
          Type.Array(Type.String({ pattern: '^[A-Za-z0-9_*]+$' }), {
            description:
              'Names of the variables that may be read, `*` for any characters; others are denied. Default: all.'
          })
        )
      },
      { additionalProperties: false }
    ),
    // A list that a reference could widen would hold nothing back.
    protectedFields: ['allow'],
    local: true,
    open(config): Backend {
      const prefix = (config.prefix as string | undefined) ?? ''
      const allow = (config.allow as readonly string[] | undefined)?.map(patternOf)
      return {
        async fetch(resource, version) {
          const name = (prefix + resource).replaceAll('-', '_').toUpperCase()
          if (allow !== undefined && !allow.some(pattern => pattern.test(name)))
            throw new VaultDenied(name, 'its setting allow does not allow this variable')
          const variable = version === '2' ? `${name}_PREVIOUS` : name
          const value = environment[variable]
          if (value === undefined) throw new SecretAbsent(`${variable} (no such variable is set)`)
          return { value }
        }
      }
    }
  }
}
