import { definePlugin } from '../plugin.ts'
import { check, SessionSchema, translate } from './config.ts'
import { SHARED_BYTES } from './keys.ts'
import { Sessions } from './sessions.ts'

/** Keeps who was authenticated, so that the requests that follow need no credential. */
export default definePlugin({
  name: 'session',
  priority: 1900,
  consumerScope: false,
  sharedBytes: SHARED_BYTES,
  schema: SessionSchema,
  translate,
  check,
  setup: (config, context) => new Sessions(config, context)
})
