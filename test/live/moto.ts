import {
  CreateSecretCommand,
  DeleteSecretCommand,
  PutSecretValueCommand,
  type PutSecretValueCommandInput,
  SecretsManagerClient,
  UpdateSecretVersionStageCommand
} from '@aws-sdk/client-secrets-manager'
import { freePort } from '../ports.ts'
import { startServer } from './server.ts'

export const REGION = 'eu-central-1'
export const KEYS = { access_key_id: 'test', secret_access_key: 'test' }

/** Secrets Manager, STS and instance metadata as moto plays them, with an administrator's client. */
export interface Moto {
  readonly url: string
  readonly client: SecretsManagerClient
  /** Stores a value as the current one, or under stages; gives the id of the version. */
  put(
    name: string,
    value: string | Buffer,
    more?: Partial<PutSecretValueCommandInput>
  ): Promise<string>
  /** Moves a stage to another version. */
  stage(name: string, stage: string, to: string, from: string): Promise<void>
  /** Deletes without a recovery window. */
  remove(name: string): Promise<void>
  /** Ends the process at once; everything it holds is lost. */
  kill(): Promise<void>
  /** Starts it again, empty, on the same port. */
  start(): Promise<void>
  [Symbol.asyncDispose](): Promise<void>
}

/** Starts `moto_server` on a free port. */
export async function startMoto(): Promise<Moto> {
  const port = await freePort()
  const url = `http://127.0.0.1:${port}`
  const launch = () =>
    startServer({
      command: 'moto_server',
      args: ['-H', '127.0.0.1', '-p', String(port)],
      ready: async () => (await fetch(`${url}/moto-api/data.json`)).ok
    })
  let server = await launch()
  const client = new SecretsManagerClient({
    region: REGION,
    endpoint: url,
    credentials: { accessKeyId: KEYS.access_key_id, secretAccessKey: KEYS.secret_access_key }
  })
  return {
    url,
    client,
    async put(name, value, more) {
      const content = typeof value === 'string' ? { SecretString: value } : { SecretBinary: value }
      const stored = await client
        .send(new PutSecretValueCommand({ SecretId: name, ...content, ...more }))
        .catch(error => {
          if (error.name !== 'ResourceNotFoundException') throw error
          return client.send(new CreateSecretCommand({ Name: name, ...content }))
        })
      return stored.VersionId!
    },
    async stage(name, stage, to, from) {
      await client.send(
        new UpdateSecretVersionStageCommand({
          SecretId: name,
          VersionStage: stage,
          MoveToVersionId: to,
          RemoveFromVersionId: from
        })
      )
    },
    async remove(name) {
      await client.send(
        new DeleteSecretCommand({ SecretId: name, ForceDeleteWithoutRecovery: true })
      )
    },
    kill: () => server.kill(),
    async start() {
      server = await launch()
    },
    async [Symbol.asyncDispose]() {
      client.destroy()
      await server.kill()
    }
  }
}
