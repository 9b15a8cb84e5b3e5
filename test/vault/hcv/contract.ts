import type { Test } from 'tap'
import { hcvBackend } from '../../../src/vault/backends/hcv.ts'
import { backendContract } from '../backend-contract.ts'
import type { FakeVault, HcvServer } from '../hcv-server.ts'
import { appRole } from './scenarios.ts'

/** Everything but logins, which the contract's faults are not about. */
const READS = /^(?!auth\/.*login)/

/** A server whose answers can be made to fail. */
export type FaultyServer = HcvServer & Pick<FakeVault, 'fault' | 'connections'>

const subjects = {
  'hcv, key-value v2 by approle': {
    path: (resource: string) => `secret/data/${resource}`,
    body: (value: string | object) => ({ data: value }),
    settings: async (server: HcvServer) => (await appRole(server)).settings
  },
  'hcv, key-value v1 by token': {
    path: (resource: string) => `plain/${resource}`,
    body: (value: string | object) => value as object,
    async settings(server: HcvServer) {
      await server.call('POST', 'sys/mounts/plain', { type: 'kv' })
      return { port: server.port, token: 'root', mount: 'plain' }
    }
  }
}

/** The contract of a backend, for both key-value engines of a server. */
export async function hcvContract(t: Test, start: () => Promise<FaultyServer>): Promise<void> {
  for (const [name, { path, body, settings }] of Object.entries(subjects)) {
    await backendContract(t, name, async () => {
      const server = await start()
      const config: Record<string, unknown> = await settings(server)
      const secrets = [config.approle_secret_id, config.token]
      return {
        type: hcvBackend,
        config,
        secrets: secrets.filter(secret => typeof secret === 'string'),
        skip: { text: 'these engines hold objects' },
        resource: name => `team/${name}`,
        async put(resource, value) {
          const answer = await server.call('POST', path(resource), body(value))
          const metadata = answer?.data
          return metadata && `${metadata.version}@${metadata.created_time}`
        },
        async remove(resource) {
          await server.call('DELETE', path(resource))
        },
        fault: kind => server.fault(kind, READS),
        connections: () => server.connections,
        close: () => server[Symbol.asyncDispose]()
      }
    })
  }
}
