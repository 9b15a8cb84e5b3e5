import t from 'tap'
import { ACCOUNT, API_KEY, LOGIN, startFakeConjur } from '../conjur-server.ts'
import { chaos } from './chaos.ts'
import { credentials } from './credentials.ts'

await chaos(
  t,
  'conjur, a policy as one resource',
  async () => {
    const conjur = await startFakeConjur()
    return {
      type: 'conjur',
      port: conjur.port,
      proxy: { affects: ({ url }) => !url.startsWith('/authn') },
      requestsPerRead: 8,
      settings: proxy => ({
        endpoint_url: proxy.url,
        account: ACCOUNT,
        login: LOGIN,
        api_key: API_KEY
      }),
      put(policy, pair) {
        for (const [name, value] of Object.entries(pair)) conjur.put(`${policy}/${name}`, value)
      },
      resource: scenario => `pair-${scenario}`,
      expire: () => conjur.revokeTokens(),
      [Symbol.asyncDispose]: () => conjur.close()
    }
  },
  credentials
)
