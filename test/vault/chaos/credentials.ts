import { startUpstream } from '../../harness.ts'
import { type Proof, scenarios } from './chaos.ts'

const WHOLE = /^(.+)-user-(\d+)\/\1-password-\2$/

/**
 * Pairs of a user name and a password: a consumer's credentials, and both halves of a header that each
 * record of a log carries.
 */
export async function credentials(): Promise<Proof> {
  const collected: string[] = []
  const collector = await startUpstream((received, response) => {
    collected.push(received.headers['x-pair'] as string)
    response.end()
  })
  const basic = (scenario: string, n: number): string =>
    `Basic ${Buffer.from(`${scenario}-user-${n}:${scenario}-password-${n}`).toString('base64')}`
  const proof: Proof = {
    pair: (scenario, n) => ({
      user: `${scenario}-user-${n}`,
      password: `${scenario}-password-${n}`
    }),
    entities: (reference, upstream) => ({
      services: [
        {
          name: 'echo',
          url: upstream.url,
          routes: scenarios.map(scenario => ({
            name: scenario,
            paths: [`/${scenario}`],
            plugins: [
              { name: 'basic-auth' },
              {
                name: 'http-log',
                config: {
                  http_endpoint: collector.url,
                  headers: {
                    'X-Pair': `${reference(scenario, 'user')}/${reference(scenario, 'password')}`
                  },
                  queue: { max_batch_size: 50, max_coalescing_delay: 0.1 }
                }
              }
            ]
          }))
        }
      ],
      consumers: scenarios.map(scenario => ({
        username: scenario,
        basicauth_credentials: [
          { username: reference(scenario, 'user'), password: reference(scenario, 'password') }
        ]
      }))
    }),
    async request(gateway, scenario, n) {
      try {
        const headers = { authorization: basic(scenario, n) }
        const { status } = await gateway.fetch(`/${scenario}`, { headers })
        return status === 200 ? undefined : `answered ${status}`
      } catch (error) {
        return String(error)
      }
    },
    async inForce(gateway, scenario, n) {
      return (await proof.request(gateway, scenario, n)) === undefined
    },
    halves: () => [...new Set(collected)].filter(pair => !WHOLE.test(pair)),
    get uses() {
      return new Set(collected).size
    },
    [Symbol.asyncDispose]: () => collector.close()
  }
  return proof
}
