import * as Type from 'typebox'
import { oneOf, Path } from './fields.ts'

const strict = { additionalProperties: false } as const
const counter = Type.Integer({ minimum: 0, maximum: 255, default: 0 })
/** Seconds; 0 turns the probe off. */
const interval = Type.Number({ minimum: 0, maximum: 65535, default: 0 })
const type = oneOf(['tcp', 'http', 'https', 'grpc', 'grpcs'], { default: 'http' })

function statuses(codes: readonly number[]) {
  return Type.Array(Type.Integer({ minimum: 100, maximum: 999 }), {
    uniqueItems: true,
    default: [...codes]
  })
}

const failures = { tcp_failures: counter, timeouts: counter, http_failures: counter }
const passiveSuccess = [
  200, 201, 202, 203, 204, 205, 206, 207, 208, 226, 300, 301, 302, 303, 304, 305, 306, 307, 308
]

/** How the health of an upstream's targets is told; complete after defaults. Counters of 0 are off. */
export const HealthChecksSchema = Type.Object(
  {
    /** Percent of the weight that must be more than available. */
    threshold: Type.Number({ minimum: 0, maximum: 100, default: 0 }),
    active: Type.Object(
      {
        type,
        /** Seconds. */
        timeout: Type.Number({ minimum: 0, maximum: 65535, default: 1 }),
        concurrency: Type.Integer({ minimum: 1, maximum: 2147483648, default: 10 }),
        http_path: Type.String({ ...Path, default: '/' }),
        https_sni: Type.Optional(Type.String({ minLength: 1, format: 'postern-sni' })),
        https_verify_certificate: Type.Boolean({ default: true }),
        headers: Type.Optional(Type.Record(Type.String(), Type.Array(Type.String()))),
        healthy: Type.Object(
          { interval, http_statuses: statuses([200, 302]), successes: counter },
          { ...strict, default: {} }
        ),
        unhealthy: Type.Object(
          {
            interval,
            http_statuses: statuses([429, 404, 500, 501, 502, 503, 504, 505]),
            ...failures
          },
          { ...strict, default: {} }
        )
      },
      { ...strict, default: {} }
    ),
    passive: Type.Object(
      {
        type,
        healthy: Type.Object(
          { http_statuses: statuses(passiveSuccess), successes: counter },
          { ...strict, default: {} }
        ),
        unhealthy: Type.Object(
          { http_statuses: statuses([429, 500, 503]), ...failures },
          { ...strict, default: {} }
        )
      },
      { ...strict, default: {} }
    )
  },
  { ...strict, default: {} }
)
