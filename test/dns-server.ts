import { createSocket, type Socket } from 'node:dgram'
import { once } from 'node:events'
import net, { type AddressInfo } from 'node:net'
import packet, { type Answer, type Question, type SoaData } from 'dns-packet'

/** How the server treats questions: `serve` answers from the zone. */
export type Mode =
  | 'serve'
  | 'first-alias'
  | 'silent'
  | 'servfail'
  | 'truncate'
  | 'wrong-id'
  | 'garbage'

/** A name server on a free port of this host, over UDP and TCP. */
export interface TestNameServer {
  readonly port: number
  /** `TYPE name` to its records; a name without any does not exist. */
  readonly zone: Map<string, readonly Answer[]>
  /** Questions so far, as `TYPE name`. */
  readonly questions: string[]
  mode: Mode
  /** Seconds an answer that there is nothing holds. */
  negativeTtl: number
  [Symbol.asyncDispose](): Promise<void>
}

type RecordData = string | { port: number; target: string; priority?: number; weight?: number }

/** Records of one name and type. */
export function records(
  type: 'A' | 'AAAA' | 'CNAME' | 'SRV',
  name: string,
  ttl: number,
  ...data: RecordData[]
): [string, readonly Answer[]] {
  return [`${type} ${name}`, data.map(each => ({ type, name, ttl, data: each }) as Answer)]
}

export async function startNameServer(
  ...zone: readonly (readonly [string, readonly Answer[]])[]
): Promise<TestNameServer> {
  const { udp, tcp, port } = await bind()
  const server: TestNameServer = {
    port,
    zone: new Map(zone),
    questions: [],
    mode: 'serve',
    negativeTtl: 1,
    async [Symbol.asyncDispose]() {
      udp.close()
      await new Promise(resolve => tcp.close(resolve))
    }
  }
  udp.on('message', (bytes, { port, address }) => {
    const answer = respond(server, bytes, false)
    if (answer !== undefined) udp.send(answer, port, address)
  })
  tcp.on('connection', socket => {
    socket.on('error', () => {})
    socket.on('data', bytes => {
      const answer = respond(server, bytes.subarray(2), true)
      if (answer === undefined) return
      const length = Buffer.alloc(2)
      length.writeUInt16BE(answer.length)
      // In two pieces, as a network may deliver it.
      socket.write(length)
      socket.write(answer)
    })
  })
  return server
}

/** A port that is free for both, which takes a few attempts at times. */
async function bind(): Promise<{ udp: Socket; tcp: net.Server; port: number }> {
  for (;;) {
    const tcp = net.createServer()
    tcp.listen(0, '127.0.0.1')
    await once(tcp, 'listening')
    const { port } = tcp.address() as AddressInfo
    const udp = createSocket('udp4')
    try {
      udp.bind(port, '127.0.0.1')
      await once(udp, 'listening')
      return { udp, tcp, port }
    } catch {
      tcp.close()
    }
  }
}

/** Records of a question, with the aliases on the way to them. */
function find(
  zone: TestNameServer['zone'],
  { type, name }: Question,
  deep: boolean
): readonly Answer[] {
  const alias = zone.get(`CNAME ${name}`)?.[0]
  if (alias?.type === 'CNAME') {
    return deep ? [alias, ...find(zone, { type, name: alias.data }, deep)] : [alias]
  }
  return zone.get(`${type} ${name}`) ?? []
}

function respond(server: TestNameServer, bytes: Buffer, whole: boolean): Buffer | undefined {
  const { zone, mode } = server
  const { id = 0, questions = [] } = packet.decode(bytes)
  const question = questions[0]!
  const name = question.name.toLowerCase()
  server.questions.push(`${question.type} ${name}`)
  if (mode === 'silent') return undefined
  if (mode === 'garbage') return Buffer.from('garbage')
  const exists = [...zone.keys()].some(key => key.endsWith(` ${name}`))
  const answers =
    mode === 'servfail' ? [] : find(zone, { ...question, name }, mode !== 'first-alias')
  const rcode = mode === 'servfail' ? 2 : exists ? 0 : 3
  const truncated = mode === 'truncate' && !whole
  const soa: SoaData = { mname: 'ns.test', rname: 'root.test', minimum: server.negativeTtl }
  return packet.encode({
    type: 'response',
    id: mode === 'wrong-id' ? (id + 1) % 65_536 : id,
    flags: rcode | (truncated ? packet.TRUNCATED_RESPONSE : 0),
    questions: [question],
    answers: truncated ? [] : [...answers],
    authorities:
      answers.length === 0
        ? [{ type: 'SOA', name: 'test', ttl: server.negativeTtl, data: soa }]
        : []
  })
}
