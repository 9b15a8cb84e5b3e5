import type { FetchOptions, TestGateway } from '../../harness.ts'

/** A client that keeps cookies, as far as sessions need one: without domains, paths and time. */
export class Browser {
  readonly cookies: Map<string, string>
  readonly #gateway: TestGateway

  constructor(gateway: TestGateway, cookies: Iterable<readonly [string, string]> = []) {
    this.#gateway = gateway
    this.cookies = new Map(cookies)
  }

  /** Sends a request with the cookies; `lines` are the answer's `Set-Cookie` fields. */
  async fetch(path: string, options: FetchOptions = {}) {
    const cookie = [...this.cookies].map(([name, value]) => `${name}=${value}`).join('; ')
    const headers = { ...(cookie === '' ? {} : { cookie }), ...options.headers }
    const answer = await this.#gateway.fetch(path, { ...options, headers })
    const lines = [answer.headers['set-cookie'] ?? []].flat()
    for (const line of lines) {
      const [, name, value] = /^([^=]+)=([^;]*)/.exec(line)!
      if (line.includes('Max-Age=0')) this.cookies.delete(name!)
      else this.cookies.set(name!, value!)
    }
    return { ...answer, lines }
  }

  logIn(apikey: string, path: string) {
    return this.fetch(path, { headers: { apikey } })
  }
}
