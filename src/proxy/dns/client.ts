import { randomInt } from 'node:crypto'
import { createSocket } from 'node:dgram'
import { connect, isIP } from 'node:net'
import type { DecodedPacket, Answer as PacketRecord, RecordType, SrvAnswer } from 'dns-packet'

/** A name server. */
export interface NameServer {
  readonly host: string
  readonly port: number
}

export interface ClientOptions {
  /** Asked in this order; another when one does not answer. */
  readonly servers: readonly NameServer[]
  /** Milliseconds a server has to answer. */
  readonly timeout: number
  /** Rounds through the servers. */
  readonly attempts: number
}

/** The record types that lead to addresses. */
export type AddressType = 'A' | 'AAAA' | 'SRV'

export interface DnsRecord {
  /** An address, or the target of an SRV record. */
  readonly data: string
  readonly priority: number
  readonly weight: number
  readonly port: number
}

/** What a server said: the records there are, possibly none. */
export interface Lookup {
  readonly records: readonly DnsRecord[]
  /** Seconds the answer holds, also of one that there is nothing. */
  readonly ttl: number
  /** Whether the name does not exist at all, with any type. */
  readonly unknown: boolean
}

/** Bytes of a UDP answer we take (RFC 6891); larger ones come over TCP. */
const UDP_SIZE = 1232
const MAX_CNAMES = 8
/** Seconds an answer without an SOA record is taken to hold (RFC 2308 §5 leaves it open). */
const NEGATIVE_TTL = 1

type Packets = typeof import('dns-packet')
let packets: Promise<Packets> | undefined
// Most gateways name addresses or hosts of the hosts file only; the library waits until it is needed.
const load = (): Promise<Packets> => {
  packets ??= import('dns-packet').then(({ default: library }) => library)
  return packets
}

const failure = (code: string, message: string): Error =>
  Object.assign(new Error(message), { code })

/**
 * Asks for the records of a name, following CNAME records. Rejects with an error whose `code` tells
 * why no server answered.
 */
export async function lookUp(
  name: string,
  type: AddressType,
  options: ClientOptions
): Promise<Lookup> {
  let asked = name
  let ttl = Number.POSITIVE_INFINITY
  for (let i = 0; i < MAX_CNAMES; i++) {
    const answer = await ask(asked, type, options)
    const { aliased, found, aliasTtl } = readAnswer(answer, asked, type)
    ttl = Math.min(ttl, aliasTtl, ...found.map(record => ttlOf(record)))
    if (found.length > 0) return { records: found.map(toRecord), ttl, unknown: false }
    const unknown = answer.rcode === 'NXDOMAIN'
    if (unknown || aliased === asked) {
      return { records: [], ttl: Math.min(ttl, negativeTtl(answer)), unknown }
    }
    asked = aliased
  }
  throw failure('ELOOP', `${name} is an alias of an alias, ${MAX_CNAMES} times`)
}

type Response = DecodedPacket & { readonly rcode?: string }

const ttlOf = (record: PacketRecord): number => ('ttl' in record ? (record.ttl ?? 0) : 0)

/** Follows the aliases within one answer from `name` on, as far as it goes (RFC 1034 §3.6.2). */
function readAnswer(answer: Response, name: string, type: AddressType) {
  const records = answer.answers ?? []
  let aliased = name
  let aliasTtl = Number.POSITIVE_INFINITY
  for (let i = 0; i < MAX_CNAMES; i++) {
    const alias = records.find(record => record.type === 'CNAME' && isSame(record.name, aliased))
    if (alias?.type !== 'CNAME') break
    aliased = alias.data
    aliasTtl = Math.min(aliasTtl, ttlOf(alias))
  }
  const found = records.filter(
    record => record.type === type && isSame(record.name, aliased) && isUsable(record)
  )
  return { aliased, aliasTtl, found }
}

const isSame = (a: string, b: string): boolean =>
  a.toLowerCase().replace(/\.$/, '') === b.toLowerCase().replace(/\.$/, '')

function isUsable(record: PacketRecord): boolean {
  if (record.type === 'A') return isIP(record.data) === 4
  if (record.type === 'AAAA') return isIP(record.data) === 6
  // RFC 2782: a target of "." says that there is no such service.
  return record.type === 'SRV' && record.data.target !== '.' && record.data.target !== ''
}

function toRecord(record: PacketRecord): DnsRecord {
  if (record.type !== 'SRV') {
    return { data: (record as { data: string }).data, priority: 0, weight: 1, port: 0 }
  }
  const { target, port, priority = 0, weight = 0 } = (record as SrvAnswer).data
  return { data: target, priority, weight, port }
}

/** RFC 2308 §5: the smaller of the SOA record's TTL and its minimum field. */
function negativeTtl(answer: Response): number {
  const soa = answer.authorities?.find(record => record.type === 'SOA')
  if (soa?.type !== 'SOA') return NEGATIVE_TTL
  return Math.min(ttlOf(soa), soa.data.minimum ?? NEGATIVE_TTL)
}

async function ask(name: string, type: RecordType, options: ClientOptions): Promise<Response> {
  let last: Error = failure('ENOSERVER', 'no name server is configured')
  for (let attempt = 0; attempt < options.attempts; attempt++) {
    for (const server of options.servers) {
      try {
        const answer = await askServer(name, type, server, options.timeout)
        const { rcode = 'NOERROR' } = answer
        if (rcode === 'NOERROR' || rcode === 'NXDOMAIN') return answer
        last = failure(rcode, `${server.host} answered ${rcode}`)
      } catch (error) {
        last = error as Error
      }
    }
  }
  throw last
}

async function askServer(
  name: string,
  type: RecordType,
  server: NameServer,
  timeout: number
): Promise<Response> {
  const library = await load()
  const question = library.encode({
    type: 'query',
    // With a port of its own for each question, an answer cannot be forged blindly (RFC 5452).
    id: randomInt(65_536),
    flags: library.RECURSION_DESIRED,
    questions: [{ name, type }],
    additionals: [
      { type: 'OPT', name: '.', udpPayloadSize: UDP_SIZE, flags: 0, options: [] } as never
    ]
  })
  const accept = (bytes: Buffer): Response | undefined => {
    try {
      const answer = library.decode(bytes) as Response
      const echoed = answer.questions?.[0]
      const fits =
        answer.type === 'response' &&
        answer.id === question.readUInt16BE(0) &&
        echoed !== undefined &&
        echoed.type === type &&
        isSame(echoed.name, name)
      return fits ? answer : undefined
    } catch {
      return undefined
    }
  }
  const answer = await overUdp(question, server, timeout, accept)
  return answer.flag_tc ? overTcp(question, server, timeout, accept) : answer
}

type Accept = (bytes: Buffer) => Response | undefined

function overUdp(
  question: Buffer,
  { host, port }: NameServer,
  timeout: number,
  accept: Accept
): Promise<Response> {
  const { promise, resolve, reject } = Promise.withResolvers<Response>()
  const socket = createSocket(isIP(host) === 6 ? 'udp6' : 'udp4')
  const timer = setTimeout(
    () => reject(failure('ETIMEDOUT', `${host} did not answer in time`)),
    timeout
  )
  socket.on('error', reject)
  socket.on('message', bytes => {
    const answer = accept(bytes)
    // What does not answer this question is noise or a forgery: the time goes on.
    if (answer !== undefined) resolve(answer)
  })
  // Connected, so that only this server is heard, and "port unreachable" too.
  socket.connect(port, host, () => socket.send(question))
  return promise.finally(() => {
    clearTimeout(timer)
    socket.close()
  })
}

function overTcp(
  question: Buffer,
  server: NameServer,
  timeout: number,
  accept: Accept
): Promise<Response> {
  const { promise, resolve, reject } = Promise.withResolvers<Response>()
  const socket = connect(server.port, server.host)
  const timer = setTimeout(
    () => reject(failure('ETIMEDOUT', `${server.host} did not answer in time`)),
    timeout
  )
  // RFC 1035 §4.2.2: two bytes of length before each message.
  const length = Buffer.alloc(2)
  length.writeUInt16BE(question.length)
  socket.write(Buffer.concat([length, question]))
  let received = Buffer.alloc(0)
  socket.on('data', chunk => {
    received = Buffer.concat([received, chunk])
    if (received.length < 2 || received.length < 2 + received.readUInt16BE(0)) return
    const answer = accept(received.subarray(2))
    if (answer === undefined) reject(failure('EBADRESP', `${server.host} answered nonsense`))
    else resolve(answer)
  })
  socket.on('error', reject)
  socket.on('close', () => reject(failure('ECONNRESET', `${server.host} closed the connection`)))
  return promise.finally(() => {
    clearTimeout(timer)
    socket.destroy()
  })
}
