import { randomUUID } from 'node:crypto'

const CURRENT = 'AWSCURRENT'
const PREVIOUS = 'AWSPREVIOUS'

interface Version {
  readonly id: string
  readonly text?: string
  readonly bytes?: Buffer
  readonly stages: Set<string>
}

interface Stored {
  readonly versions: Version[]
  /** Set while it is scheduled for deletion. */
  deletedAt?: number
}

/** What is asked for, by the names of the API. */
export interface Asked {
  readonly SecretId: string
  readonly VersionId?: string
  readonly VersionStage?: string
}

/** An error of the service by its type. */
export class ServiceFault extends Error {
  constructor(type: string, message: string) {
    super(message)
    this.name = type
  }
}

/** The secrets of an account in one region. */
export class SecretStore {
  readonly #secrets = new Map<string, Stored>()

  /** Puts a value as the current one; the one before is the previous one now. Gives the version id. */
  put(name: string, value: string | Buffer, id: string = randomUUID()): string {
    const stored = this.#secrets.get(name) ?? { versions: [] }
    this.#secrets.set(name, stored)
    const holder = (stage: string) => stored.versions.find(({ stages }) => stages.has(stage))
    const current = holder(CURRENT)
    if (current !== undefined) {
      holder(PREVIOUS)?.stages.delete(PREVIOUS)
      current.stages.delete(CURRENT)
      current.stages.add(PREVIOUS)
    }
    stored.versions.push({
      id,
      stages: new Set([CURRENT]),
      ...(typeof value === 'string' ? { text: value } : { bytes: value })
    })
    return id
  }

  /** Puts a value under a stage of its own, leaving the current one alone. */
  stage(name: string, stage: string, text: string): string {
    const id = randomUUID()
    this.#secrets.get(name)!.versions.push({ id, text, stages: new Set([stage]) })
    return id
  }

  /** Deletes without a recovery window. */
  remove(name: string): void {
    this.#secrets.delete(name)
  }

  /** Deletes with one. */
  schedule(name: string): void {
    this.#secrets.get(name)!.deletedAt = Date.now()
  }

  get({ SecretId, VersionId, VersionStage }: Asked): object {
    const { versions, deletedAt } = this.#find(SecretId)
    if (deletedAt !== undefined) {
      throw new ServiceFault(
        'InvalidRequestException',
        "You can't perform this operation on the secret because it was marked for deletion."
      )
    }
    const stage = VersionStage ?? (VersionId === undefined ? CURRENT : undefined)
    const version = versions.find(
      ({ id, stages }) =>
        (VersionId === undefined || id === VersionId) && (stage === undefined || stages.has(stage))
    )
    if (version === undefined) {
      throw new ServiceFault(
        'ResourceNotFoundException',
        `Secrets Manager can't find the specified secret value for ${
          VersionId === undefined ? `staging label: ${stage}` : `VersionId: ${VersionId}`
        }`
      )
    }
    const { id, text, bytes, stages } = version
    return {
      ...this.#described(SecretId),
      CreatedDate: 1,
      VersionId: id,
      VersionStages: [...stages],
      ...(text === undefined ? {} : { SecretString: text }),
      ...(bytes === undefined ? {} : { SecretBinary: bytes.toString('base64') })
    }
  }

  describe({ SecretId }: Asked): object {
    const { versions, deletedAt } = this.#find(SecretId)
    return {
      ...this.#described(SecretId),
      ...(deletedAt === undefined ? {} : { DeletedDate: deletedAt / 1000 }),
      VersionIdsToStages: Object.fromEntries(
        versions
          .filter(({ stages }) => stages.size > 0)
          .map(({ id, stages }) => [id, [...stages]] as const)
      )
    }
  }

  #find(name: string): Stored {
    const stored = this.#secrets.get(name)
    if (stored !== undefined) return stored
    throw new ServiceFault(
      'ResourceNotFoundException',
      "Secrets Manager can't find the specified secret."
    )
  }

  #described(Name: string): object {
    return { Name, ARN: `arn:aws:secretsmanager:eu-central-1:123456789012:secret:${Name}-AbCdEf` }
  }
}
