import { readFileSync, statSync } from 'node:fs'
import { isIP } from 'node:net'
import type { NameServer } from './client.ts'

/** What `resolv.conf` says, as far as it concerns a stub resolver. */
export interface ResolvConf {
  readonly servers: readonly NameServer[]
  /** Domains that short names are completed with. */
  readonly search: readonly string[]
  /** A name with fewer dots is tried with the search domains first. */
  readonly ndots: number
}

/** Reads the text of a `resolv.conf` (resolv.conf(5)). */
export function parseResolvConf(text: string): ResolvConf {
  const servers: NameServer[] = []
  let search: readonly string[] = []
  let ndots = 1
  for (const line of text.split('\n')) {
    const [keyword, ...values] = line
      .replace(/[#;].*/, '')
      .trim()
      .split(/\s+/)
    if (keyword === 'nameserver' && isIP(values[0]?.replace(/%.*/, '') ?? '') !== 0) {
      servers.push({ host: values[0]!, port: 53 })
    } else if (keyword === 'search' || keyword === 'domain') {
      search = values.map(domain => domain.replace(/\.$/, '')).filter(domain => domain !== '')
    } else if (keyword === 'options') {
      const option = values.find(value => /^ndots:\d+$/.test(value))
      if (option !== undefined) ndots = Math.min(15, Number(option.slice('ndots:'.length)))
    }
  }
  return { servers: servers.slice(0, 3), search, ndots }
}

/** The system's `resolv.conf`; a server on this host when there is none (resolv.conf(5)). */
export function readResolvConf(file = '/etc/resolv.conf'): ResolvConf {
  let text = ''
  try {
    text = readFileSync(file, 'utf8')
  } catch {
    // As the system's own resolver does without the file.
  }
  const conf = parseResolvConf(text)
  return conf.servers.length > 0 ? conf : { ...conf, servers: [{ host: '127.0.0.1', port: 53 }] }
}

/** The names to ask for in turn: absolute ones as they are, short ones with the search domains. */
export function candidates(name: string, { search, ndots }: ResolvConf): readonly string[] {
  if (name.endsWith('.')) return [name.slice(0, -1)]
  const completed = search.map(domain => `${name}.${domain}`)
  const dots = name.split('.').length - 1
  return dots >= ndots ? [name, ...completed] : [...completed, name]
}

/** The hosts file, read again when it has changed. */
export class HostsFile {
  readonly #file: string
  #stamp = ''
  #names = new Map<string, readonly string[]>()

  constructor(file: string) {
    this.#file = file
  }

  /** The addresses of a name there, IPv4 ones first; undefined when it names none. */
  find(name: string): readonly string[] | undefined {
    this.#refresh()
    const lower = name.toLowerCase().replace(/\.$/, '')
    const found = this.#names.get(lower)
    if (found !== undefined) return found
    // RFC 6761 §6.3: localhost is this host, whatever a server says.
    return lower === 'localhost' || lower.endsWith('.localhost') ? ['127.0.0.1'] : undefined
  }

  #refresh(): void {
    try {
      const { mtimeMs, ino, size } = statSync(this.#file)
      const stamp = `${mtimeMs} ${ino} ${size}`
      if (stamp === this.#stamp) return
      this.#names = parseHosts(readFileSync(this.#file, 'utf8'))
      this.#stamp = stamp
    } catch {
      this.#names = new Map()
      this.#stamp = ''
    }
  }
}

function parseHosts(text: string): Map<string, readonly string[]> {
  const names = new Map<string, string[]>()
  for (const line of text.split('\n')) {
    const [address = '', ...hosts] = line.replace(/#.*/, '').trim().split(/\s+/)
    if (isIP(address) === 0) continue
    for (const host of hosts) {
      const lower = host.toLowerCase()
      const known = names.get(lower)
      if (known === undefined) names.set(lower, [address])
      else if (!known.includes(address)) known.push(address)
    }
  }
  // `localhost` is listed with both families nearly everywhere, and served on IPv4 nearly everywhere.
  for (const addresses of names.values()) addresses.sort((a, b) => isIP(a) - isIP(b))
  return names
}
