import { isIP, type Socket } from 'node:net'
import type { TLSSocket } from 'node:tls'

/** What the header before a connection told: the client, unless the proxy spoke for itself. */
export interface ProxyHeader {
  /** Bytes the header takes. */
  readonly length: number
  /** The client's address; undefined for `UNKNOWN` and `LOCAL`, which tell none. */
  readonly address: string | undefined
}

const V1 = Buffer.from('PROXY ')
/** The PROXY protocol specification §2.2: what no other protocol begins with. */
const V2 = Buffer.from('\r\n\r\n\0\r\nQUIT\n', 'latin1')
/** Longest line of version 1, its CRLF included (§2.1). */
const MAX_V1 = 107
/** Bytes a version 2 header may announce here; with TLVs proxies send a few hundred. */
const MAX_V2 = 4096
const PORT = /^(?:0|[1-9]\d{0,4})$/

const startsAlike = (bytes: Buffer, prefix: Buffer): boolean => {
  const shared = Math.min(bytes.length, prefix.length)
  return bytes.compare(prefix, 0, shared, 0, shared) === 0
}

/**
 * Reads the header a PROXY protocol connection must begin with, version 1 or 2, strictly. Undefined
 * when more bytes are needed; throws when they are no header.
 */
export function parseProxyHeader(bytes: Buffer): ProxyHeader | undefined {
  if (startsAlike(bytes, V2)) return bytes.length < 16 ? undefined : parseV2(bytes)
  if (startsAlike(bytes, V1)) return bytes.length < V1.length ? undefined : parseV1(bytes)
  throw new Error('the connection does not begin with a PROXY protocol header')
}

function parseV1(bytes: Buffer): ProxyHeader | undefined {
  const end = bytes.subarray(0, MAX_V1).indexOf('\r\n')
  if (end === -1) {
    if (bytes.length >= MAX_V1) throw new Error('the PROXY line is too long')
    return undefined
  }
  const length = end + 2
  const line = bytes.toString('latin1', 0, end)
  if (line === 'PROXY UNKNOWN' || line.startsWith('PROXY UNKNOWN ')) {
    return { length, address: undefined }
  }
  const [, family, source = '', destination = '', from = '', to = '', ...rest] = line.split(' ')
  const version = family === 'TCP4' ? 4 : family === 'TCP6' ? 6 : 0
  const valid =
    version !== 0 &&
    rest.length === 0 &&
    isIP(source) === version &&
    isIP(destination) === version &&
    [from, to].every(port => PORT.test(port) && Number(port) <= 65_535)
  if (!valid) throw new Error('the PROXY line is malformed')
  return { length, address: plainAddress(source) }
}

function parseV2(bytes: Buffer): ProxyHeader | undefined {
  const version = bytes[12]! >> 4
  const command = bytes[12]! & 15
  const announced = bytes.readUInt16BE(14)
  if (version !== 2 || command > 1) throw new Error('the PROXY header is of an unknown kind')
  if (announced > MAX_V2) throw new Error('the PROXY header is too long')
  const length = 16 + announced
  if (bytes.length < length) return undefined
  // LOCAL: a health check of the proxy itself.
  if (command === 0) return { length, address: undefined }
  const family = bytes[13]! >> 4
  if (family === 1) {
    if (announced < 12) throw new Error('the PROXY header is too short for its addresses')
    return { length, address: bytes.subarray(16, 20).join('.') }
  }
  if (family === 2) {
    if (announced < 36) throw new Error('the PROXY header is too short for its addresses')
    return { length, address: ipv6(bytes.subarray(16, 32)) }
  }
  return { length, address: undefined }
}

function ipv6(bytes: Buffer): string {
  const groups: string[] = []
  for (let i = 0; i < 16; i += 2) groups.push(bytes.readUInt16BE(i).toString(16))
  return plainAddress(groups.join(':'))
}

/**
 * An address as it is written everywhere: IPv6 in its canonical form (RFC 5952), and one that stands
 * for IPv4 as that, since proxies that listen on both families tell IPv4 clients so.
 */
export function plainAddress(ip: string): string {
  if (isIP(ip) !== 6 || ip.includes('%')) return ip
  // The URL parser writes the canonical form.
  const canonical = new URL(`http://[${ip}]`).hostname.slice(1, -1)
  const mapped = /^::ffff:([0-9a-f]{1,4}):([0-9a-f]{1,4})$/.exec(canonical)
  if (mapped === null) return canonical
  const [high, low] = [Number.parseInt(mapped[1]!, 16), Number.parseInt(mapped[2]!, 16)]
  return [high >> 8, high & 255, low >> 8, low & 255].join('.')
}

const CLIENT = Symbol('the client a PROXY header named')
type Told = Socket & { [CLIENT]?: string; readonly _parent?: Told }

/** The client a PROXY protocol header named for this connection, or for the one TLS runs over. */
export function proxiedAddress(socket: Socket | TLSSocket | undefined): string | undefined {
  const told = socket as Told | undefined
  return told?.[CLIENT] ?? told?._parent?.[CLIENT]
}

/**
 * Takes the PROXY protocol header off a connection and calls `next`; what follows stays to be read.
 * A connection without one, or one that is not whole within `timeout` milliseconds, is destroyed.
 */
export function takeProxyHeader(socket: Socket, timeout: number, next: () => void): void {
  readPreamble(socket, timeout, bytes => {
    const header = parseProxyHeader(bytes)
    if (header === undefined) return undefined
    if (header.address !== undefined) (socket as Told)[CLIENT] = header.address
    return { skip: header.length, next }
  })
}

/** What a preamble was: bytes to take off, and who reads on. */
interface Preamble {
  readonly skip: number
  readonly next: () => void
}

/**
 * Reads what a connection begins with until `decide` knows what it is, then puts back what follows.
 * Destroys it when `decide` throws, and when it has not decided within `timeout` milliseconds.
 */
export function readPreamble(
  socket: Socket,
  timeout: number,
  decide: (bytes: Buffer) => Preamble | undefined
): void {
  let gathered: Buffer | undefined
  const timer = setTimeout(() => socket.destroy(), timeout)
  const finish = (): void => {
    clearTimeout(timer)
    socket.off('readable', onReadable)
    socket.off('end', onGone)
    socket.off('error', onGone)
    socket.off('close', finish)
  }
  const onGone = (): void => {
    finish()
    socket.destroy()
  }
  const onReadable = (): void => {
    for (;;) {
      const chunk = socket.read() as Buffer | null
      if (chunk === null) return
      gathered = gathered === undefined ? chunk : Buffer.concat([gathered, chunk])
      let decided: Preamble | undefined
      try {
        decided = decide(gathered)
      } catch {
        onGone()
        return
      }
      if (decided === undefined) continue
      finish()
      if (decided.skip < gathered.length) socket.unshift(gathered.subarray(decided.skip))
      decided.next()
      return
    }
  }
  socket.on('readable', onReadable)
  socket.on('end', onGone)
  socket.on('error', onGone)
  socket.on('close', finish)
}

/** RFC 9113 §3.4: what an HTTP/2 connection begins with. */
const HTTP2_PREFACE = Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n')

/** Whether a connection begins as HTTP/2 with prior knowledge; undefined while its bytes do not tell. */
export function isHttp2Preface(bytes: Buffer): boolean | undefined {
  if (!startsAlike(bytes, HTTP2_PREFACE)) return false
  return bytes.length >= HTTP2_PREFACE.length ? true : undefined
}
