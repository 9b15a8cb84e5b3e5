import t from 'tap'
import { OWNER, ROLE, startFakeAws } from '../aws-server.ts'
import { chaos } from './chaos.ts'
import { credentials } from './credentials.ts'

await chaos(
  t,
  'aws',
  async () => {
    const aws = await startFakeAws()
    return {
      type: 'aws',
      port: aws.port,
      proxy: { affects: ({ headers }) => headers['x-amz-target'] !== undefined },
      requestsPerRead: 4,
      settings: proxy => ({
        region: 'eu-central-1',
        endpoint_url: proxy.url,
        access_key_id: OWNER.id,
        secret_access_key: OWNER.secret,
        assume_role_arn: ROLE,
        sts_endpoint_url: proxy.url
      }),
      put: (resource, pair) => aws.secrets.put(resource, JSON.stringify(pair)),
      resource: scenario => `pair-${scenario}`,
      expire() {
        for (const key of aws.keys.values()) if (key.sessionToken !== undefined) key.expiresAt = 1
      },
      [Symbol.asyncDispose]: () => aws.close()
    }
  },
  credentials
)
