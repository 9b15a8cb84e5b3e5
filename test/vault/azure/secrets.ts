import { randomBytes } from 'node:crypto'

export interface Version {
  readonly id: string
  readonly value: string
  readonly contentType?: string
  enabled: boolean
}

/** The secrets of a vault. */
export class SecretStore {
  readonly #secrets = new Map<string, Version[]>()

  /** Adds a version and gives its id: 32 hex digits. */
  put(name: string, value: string, contentType?: string): string {
    const versions = this.#secrets.get(name) ?? []
    this.#secrets.set(name, versions)
    const id = randomBytes(16).toString('hex')
    versions.push({
      id,
      value,
      enabled: true,
      ...(contentType === undefined ? {} : { contentType })
    })
    return id
  }

  disable(name: string): void {
    this.#secrets.get(name)!.at(-1)!.enabled = false
  }

  remove(name: string): void {
    this.#secrets.delete(name)
  }

  find(name: string, id: string | undefined): Version | undefined {
    const versions = this.#secrets.get(name)
    return id === undefined ? versions?.at(-1) : versions?.find(version => version.id === id)
  }
}
