import type { Test } from 'tap'
import { startGateway, startUpstream, until } from '../harness.ts'
import { traffic } from './traffic.ts'

/** A real vault with one secret, `partner`. */
export interface RotatingVault {
  readonly vault: { readonly name: string; readonly config: object }
  readonly env: Readonly<Record<string, string>>
  /** Stores a value as the current one. */
  put(value: string): Promise<unknown>
  /** Ends the process at once; everything it holds is lost. */
  kill(): Promise<void>
  /** Starts it again, empty. */
  start(): Promise<void>
}

/** A rotation, an outage and what comes after it, under traffic of which no request may fail. */
export async function rotationAndOutage(t: Test, live: RotatingVault): Promise<void> {
  const put = (n: number) => live.put(JSON.stringify({ key: `key-${n}` }))
  await put(1)
  await using upstream = await startUpstream()
  await using gateway = await startGateway(
    {
      vaults: [{ ...live.vault, prefix: 'live', config: { ...live.vault.config, ttl: 1 } }],
      services: [
        {
          name: 'echo',
          url: upstream.url,
          routes: [{ name: 'echo', paths: ['/'] }],
          plugins: [{ name: 'key-auth' }]
        }
      ],
      consumers: [{ username: 'now', keyauth_credentials: [{ key: '{vault://live/partner/key}' }] }]
    },
    {
      env: { ...live.env, POSTERN_VAULT_ROTATION_INTERVAL: '1', POSTERN_SECRET_GRACE: '1' },
      workers: 2
    }
  )
  const statusOf = async (n: number) =>
    (await gateway.fetch('/', { headers: { apikey: `key-${n}` } })).status
  const vaults = async () => (await gateway.status('/vaults')).body
  let inForce = 1
  await using load = traffic(() => statusOf(inForce))

  await put(2)
  await until(async () => (await statusOf(2)) === 200, 'the new key is in force')
  inForce = 2
  await until(async () => (await statusOf(1)) === 401, 'the old key is no longer accepted')

  await live.kill()
  await until(async () => /"state": ?"stale"/.test(await vaults()), 'the outage is told', 60_000)
  t.equal(await statusOf(2), 200, 'the last good value serves')
  await live.start()
  await put(3)
  await until(async () => (await statusOf(3)) === 200, 'rotation goes on', 60_000)
  inForce = 3
  await load.stop()
  t.strictSame(load.failures, [])
  t.ok(load.served > 100, `${load.served} requests were served`)
  t.notMatch(await vaults(), /key-\d/, 'no secret is shown')
}
