import { startUpstream } from '../../harness.ts'
import type { Proof } from './chaos.ts'

const WHOLE = /^(.+)-user-(\d+)\/\1-password-\2$/

/**
 * Pairs of a user name and a password: a consumer's credentials, and both halves of a header that each
 * record of a log carries.
 */
export async function credentials(names: readonly string[]): Promise<Proof> {
  const collected: string[] = []
  const collector = await startUpstream((received, response) => {
    collected.push(received.headers['x-pair'] as string)
    response.end()
  })
  const basic = (name: string, n: number): string =>
    `Basic ${Buffer.from(`${name}-user-${n}:${name}-password-${n}`).toString('base64')}`
  const proof: Proof = {
    pair: (name, n) => ({
      user: `${name}-user-${n}`,
      password: `${name}-password-${n}`
    }),
    entities: (reference, upstream) => ({
      services: [
        {
          name: 'echo',
          url: upstream.url,
          routes: names.map(name => ({
            name: name,
            paths: [`/${name}`],
            plugins: [
              { name: 'basic-auth' },
              {
                name: 'http-log',
                config: {
                  http_endpoint: collector.url,
                  headers: {
                    'X-Pair': `${reference(name, 'user')}/${reference(name, 'password')}`
                  },
                  queue: { max_batch_size: 50, max_coalescing_delay: 0.1 }
                }
              }
            ]
          }))
        }
      ],
      consumers: names.map(name => ({
        username: name,
        basicauth_credentials: [
          { username: reference(name, 'user'), password: reference(name, 'password') }
        ]
      }))
    }),
    async request(gateway, name, n) {
      try {
        const headers = { authorization: basic(name, n) }
        const { status } = await gateway.fetch(`/${name}`, { headers })
        return status === 200 ? undefined : `answered ${status}`
      } catch (error) {
        return String(error)
      }
    },
    async inForce(gateway, name, n) {
      return (await proof.request(gateway, name, n)) === undefined
    },
    halves: () => [...new Set(collected)].filter(pair => !WHOLE.test(pair)),
    get uses() {
      return new Set(collected).size
    },
    [Symbol.asyncDispose]: () => collector.close()
  }
  return proof
}
