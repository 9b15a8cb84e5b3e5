export {
  ConfigError,
  formatProblem,
  type Place,
  type Problem,
  SecretAbsent,
  SecretMalformed,
  VaultDenied,
  VaultThrottled,
  VaultUnreachable
} from './errors.ts'
export { type Gateway, type OpenListener, startGateway } from './gateway.ts'
export {
  type Context,
  definePlugin,
  type Exchange,
  type Hooks,
  type Plugin
} from './plugins/plugin.ts'
export { referenceable } from './schema/referenceable.ts'
export {
  type Backend,
  type BackendEnvironment,
  type BackendType,
  defineBackend,
  type Fetched
} from './vault/backend.ts'
export { Secret } from './vault/secret.ts'
export { version } from './version.ts'
