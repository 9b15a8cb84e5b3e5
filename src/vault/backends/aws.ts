import type {
  DescribeSecretCommandOutput,
  GetSecretValueCommandOutput,
  SecretsManagerClient
} from '@aws-sdk/client-secrets-manager'
import { SecretMalformed, VaultMisconfigured } from '../../errors.ts'
import type { Backend, BackendEnvironment, BackendType, Fetched } from '../backend.ts'
import { type Credentials, createCredentials, importCredentials } from './aws/credentials.ts'
import { classify, hasEnded, isAbsent, isSkewed } from './aws/failure.ts'
import { Handler } from './aws/handler.ts'
import { type AwsSettings, awsSchema, protectedFields, settingsOf } from './aws/settings.ts'
import { textOf } from './payload.ts'
import { untilAborted } from './until-aborted.ts'

type Sdk = typeof import('@aws-sdk/client-secrets-manager')

const importClient = (): Promise<Sdk> => import('@aws-sdk/client-secrets-manager')

const CURRENT = 'AWSCURRENT'
/** Version numbers as Kong knows them. */
const STAGES: Readonly<Record<string, string>> = { '1': CURRENT, '2': 'AWSPREVIOUS' }
/** AWS makes no version id shorter or longer, and people hardly ever a stage this long. */
const VERSION_ID = /^.{32,64}$/

/**
 * Secrets from AWS Secrets Manager. Its parts are in aws/: the settings, the credentials, the handler
 * that carries requests, and what errors mean.
 */
export const awsBackend: BackendType = {
  name: 'aws',
  schema: awsSchema,
  protectedFields,
  load: () => Promise.all([importClient(), importCredentials()]),
  async open(config, environment) {
    const settings = settingsOf(config)
    const sdk = await importClient()
    const handler = new Handler(environment.env)
    const connect = () => createConnection(sdk, settings, handler, environment)
    return new AwsVault(sdk, await connect(), connect, handler)
  }
}

/** A client with the credentials it has taken out. */
interface Connection {
  readonly client: SecretsManagerClient
  readonly credentials: Credentials
}

class AwsVault implements Backend {
  readonly #sdk: Sdk
  readonly #connect: () => Promise<Connection>
  readonly #handler: Handler
  #connection: Connection
  #connecting: Promise<Connection> | undefined
  #mayDescribe = true

  constructor(
    sdk: Sdk,
    connection: Connection,
    connect: () => Promise<Connection>,
    handler: Handler
  ) {
    this.#sdk = sdk
    this.#connection = connection
    this.#connect = connect
    this.#handler = handler
  }

  async fetch(
    resource: string,
    version: string | undefined,
    signal: AbortSignal
  ): Promise<Fetched | undefined> {
    const command = new this.#sdk.GetSecretValueCommand({
      SecretId: resource,
      ...selectorOf(version)
    })
    const answer = await this.#ask(resource, signal, client =>
      client.send(command, { abortSignal: signal })
    )
    return answer && fetchedOf(answer, resource)
  }

  async probe(
    resource: string,
    version: string | undefined,
    signal: AbortSignal
  ): Promise<string | undefined> {
    const { VersionId: id, VersionStage: stage = CURRENT } = selectorOf(version)
    // A description leaves out versions that no stage is on, which a version id may well name.
    if (!this.#mayDescribe || id !== undefined) {
      return (await this.fetch(resource, version, signal))?.version
    }
    const command = new this.#sdk.DescribeSecretCommand({ SecretId: resource })
    try {
      const answer = await this.#ask(resource, signal, client =>
        client.send(command, { abortSignal: signal })
      )
      return answer && versionAt(stage, answer)
    } catch (error) {
      if ((error as { code?: string }).code !== 'POSTERN_VAULT_DENIED') throw error
      // Many an identity may read a secret and not describe it: what reading says counts.
      const read = await this.fetch(resource, version, signal)
      this.#mayDescribe = false
      return read?.version
    }
  }

  health(): { readonly tokenExpiresAt?: number } {
    const { expiresAt } = this.#connection.credentials
    return expiresAt === undefined ? {} : { tokenExpiresAt: expiresAt }
  }

  /** Sends once more where another clock or other credentials help; both may be needed, each once. */
  async #sent<T>(send: (client: SecretsManagerClient) => Promise<T>): Promise<T> {
    let connection = this.#connection
    let renewed = false
    let skewed = false
    for (;;) {
      try {
        return await send(connection.client)
      } catch (error) {
        if (!renewed && hasEnded(error) && connection.credentials.temporary) {
          renewed = true
          // The new client has yet to learn by how much the clock is wrong.
          skewed = false
          connection = await this.#renewed(connection)
        } else if (!skewed && isSkewed(error)) {
          // Signed anew by the clock of AWS where ours turned out to be wrong.
          skewed = true
        } else throw error
      }
    }
  }

  /**
   * After AWS refused credentials that have not ended by our clock: they were revoked, or the clock was
   * set. Others are taken out, once for all who wait.
   */
  async #renewed(refused: Connection): Promise<Connection> {
    if (this.#connection !== refused) return this.#connection
    this.#connecting ??= this.#connect().finally(() => {
      this.#connecting = undefined
    })
    this.#connection = await this.#connecting
    return this.#connection
  }

  close(): void {
    this.#connection.client.destroy()
    this.#handler.close()
  }

  async #ask<T>(
    resource: string,
    signal: AbortSignal,
    send: (client: SecretsManagerClient) => Promise<T>
  ): Promise<T | undefined> {
    try {
      signal.throwIfAborted()
      // The SDK does not heed the signal while it finds credentials.
      return await untilAborted(this.#sent(send), signal)
    } catch (error) {
      if (isAbsent(error)) return undefined
      throw classify(error, resource)
    }
  }
}

/** Which version is meant: none is the current one. */
function selectorOf(version: string | undefined): {
  readonly VersionId?: string
  readonly VersionStage?: string
} {
  if (version === undefined) return {}
  return VERSION_ID.test(version)
    ? { VersionId: version }
    : { VersionStage: STAGES[version] ?? version }
}

function fetchedOf(answer: GetSecretValueCommandOutput, resource: string): Fetched {
  const { SecretString: text, SecretBinary: bytes, VersionId: version } = answer
  const value = text ?? (bytes && textOf(bytes, resource))
  if (value === undefined) throw new SecretMalformed(resource, 'this version holds nothing')
  return version === undefined ? { value } : { value, version }
}

function versionAt(stage: string, secret: DescribeSecretCommandOutput): string | undefined {
  if (secret.DeletedDate !== undefined) return undefined
  const versions = Object.entries(secret.VersionIdsToStages ?? {})
  return versions.find(([, stages]) => stages.includes(stage))?.[0]
}

async function createConnection(
  { SecretsManagerClient }: Sdk,
  settings: AwsSettings,
  requestHandler: Handler,
  { env, log }: BackendEnvironment
): Promise<Connection> {
  const ignore = (): void => {}
  const warn = (message: unknown): void => log.warn({ vault: 'aws' }, String(message))
  const logger = { trace: ignore, debug: ignore, info: ignore, warn, error: ignore }
  const region =
    settings.region ??
    env.AWS_REGION ??
    env.AWS_DEFAULT_REGION ??
    (await regionOfProfile(SecretsManagerClient))
  const credentials = await createCredentials(settings, region, requestHandler, logger)
  const { endpoint_url: endpoint } = settings
  const client = new SecretsManagerClient({
    region,
    requestHandler,
    credentials: credentials.provider,
    // Who asks again, and when, is the cache's to say.
    maxAttempts: 1,
    logger,
    ...(endpoint === undefined ? {} : { endpoint })
  })
  return { client, credentials }
}

async function regionOfProfile(Client: Sdk['SecretsManagerClient']): Promise<string> {
  try {
    return await new Client({}).config.region()
  } catch {
    throw new VaultMisconfigured(
      'no region is known',
      'Set region, AWS_REGION, or the region of the profile'
    )
  }
}
