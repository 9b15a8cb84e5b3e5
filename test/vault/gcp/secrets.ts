import { crc32c } from '../../../src/vault/backends/gcp/crc32c.ts'

type State = 'ENABLED' | 'DISABLED' | 'DESTROYED'
const PROJECT_NUMBER = '123456789012'

interface Version {
  readonly data: Buffer
  state: State
}

interface Secret {
  readonly versions: Version[]
  readonly aliases: Map<string, string>
}

/** An error of the API: its google.rpc.Code by name, and a message. */
export class ApiFault extends Error {
  constructor(status: string, message: string) {
    super(message)
    this.name = status
  }
}

/** The secrets of a project, by `secrets/NAME` or `locations/PLACE/secrets/NAME`. */
export class SecretStore {
  readonly #secrets = new Map<string, Secret>()

  /** Adds a version and gives its number. */
  put(path: string, value: string | Buffer): string {
    const secret: Secret = this.#secrets.get(path) ?? { versions: [], aliases: new Map() }
    this.#secrets.set(path, secret)
    secret.versions.push({ data: Buffer.from(value), state: 'ENABLED' })
    return String(secret.versions.length)
  }

  alias(path: string, alias: string, number: string): void {
    this.#secrets.get(path)!.aliases.set(alias, number)
  }

  setState(path: string, number: string, state: State): void {
    this.#secrets.get(path)!.versions[Number(number) - 1]!.state = state
  }

  remove(path: string): void {
    this.#secrets.delete(path)
  }

  access(path: string, version: string): object {
    const { number, state, data } = this.#find(path, version)
    if (state !== 'ENABLED') {
      throw new ApiFault(
        'FAILED_PRECONDITION',
        `Secret Version [${nameOf(path, number)}] is in ${state} state.`
      )
    }
    return {
      name: nameOf(path, number),
      payload: { data: data.toString('base64'), dataCrc32c: String(crc32c(data)) }
    }
  }

  #find(path: string, version: string) {
    const secret = this.#secrets.get(path)
    if (secret === undefined) {
      throw new ApiFault(
        'NOT_FOUND',
        `Secret [projects/${PROJECT_NUMBER}/${path}] not found or has no versions.`
      )
    }
    // The newest that was made, whatever its state.
    const number =
      version === 'latest'
        ? String(secret.versions.length)
        : (secret.aliases.get(version) ?? version)
    const found = secret.versions[Number(number) - 1]
    if (found === undefined) {
      throw new ApiFault('NOT_FOUND', `Secret Version [${nameOf(path, number)}] not found.`)
    }
    return { number, ...found }
  }
}

function nameOf(path: string, number: string): string {
  return `projects/${PROJECT_NUMBER}/${path}/versions/${number}`
}
