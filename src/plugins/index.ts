import acl from './acl.ts'
import basicAuth from './basic-auth.ts'
import correlationId from './correlation-id.ts'
import httpLog from './http-log.ts'
import keyAuth from './key-auth.ts'
import type { Plugin } from './plugin.ts'
import rateLimiting from './rate-limiting/index.ts'
import requestTermination from './request-termination.ts'
import session from './session/index.ts'

/** Every plugin this release includes, by priority. */
export const plugins: readonly Plugin[] = [
  correlationId,
  session,
  keyAuth,
  basicAuth,
  acl,
  rateLimiting,
  httpLog,
  requestTermination
] as readonly unknown[] as readonly Plugin[]
