import t from 'tap'
import { PROJECT, startFakeGcp } from '../gcp-server.ts'
import { chaos } from './chaos.ts'
import { credentials } from './credentials.ts'

await chaos(
  t,
  'gcp',
  async () => {
    const gcp = await startFakeGcp()
    return {
      type: 'gcp',
      port: gcp.port,
      env: { GCE_METADATA_HOST: gcp.url },
      requestsPerRead: 2,
      settings: proxy => ({
        project_id: PROJECT,
        endpoint_url: proxy.url,
        auth_method_order: 'legacy'
      }),
      put: (resource, pair) => gcp.secrets.put(`secrets/${resource}`, JSON.stringify(pair)),
      resource: scenario => `pair-${scenario}`,
      expire: () => gcp.tokens.clear(),
      [Symbol.asyncDispose]: () => gcp.close()
    }
  },
  credentials
)
