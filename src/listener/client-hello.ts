/** RFC 8446 §5.1 and §4: a record of handshake messages, and the message that opens a connection. */
const HANDSHAKE = 22
const CLIENT_HELLO = 1
const RECORD_HEADER = 5
const MESSAGE_HEADER = 4
/** Longest content of a record that is not encrypted (RFC 8446 §5.1). */
const MAX_RECORD = 16_384
/** RFC 6066 §3: the extension, and the only kind of name there is. */
const SERVER_NAME = 0
const HOST_NAME = 0

/**
 * Bytes and records of a ClientHello that are looked at. Those of today take some 2 KiB in one record;
 * clients with small records, or that part one from the next on purpose, take a few.
 */
const MAX_BYTES = 16_384
const MAX_RECORDS = 32

/**
 * The name a TLS client asks for (RFC 6066 §3) in what its connection begins with; empty when it asks
 * for none, and when this is nothing a name can be read from, which TLS itself is left to judge.
 * Undefined while more bytes are needed, at most 16 KiB.
 */
export function askedName(bytes: Buffer): string | undefined {
  let hello: Buffer = Buffer.alloc(0)
  let at = 0
  for (let records = 0; records < MAX_RECORDS; records++) {
    if (bytes.length > at && bytes[at] !== HANDSHAKE) return ''
    if (bytes.length < at + RECORD_HEADER) return undefined
    const length = bytes.readUInt16BE(at + 3)
    const end = at + RECORD_HEADER + length
    if (length === 0 || length > MAX_RECORD || end > MAX_BYTES) return ''
    if (bytes.length < end) return undefined
    const fragment = bytes.subarray(at + RECORD_HEADER, end)
    hello = hello.length === 0 ? fragment : Buffer.concat([hello, fragment])
    if (hello[0] !== CLIENT_HELLO) return ''
    if (hello.length >= MESSAGE_HEADER) {
      const whole = MESSAGE_HEADER + hello.readUIntBE(1, 3)
      if (whole > MAX_BYTES) return ''
      if (hello.length >= whole) return nameIn(hello.subarray(MESSAGE_HEADER, whole))
    }
    at = end
  }
  return ''
}

/** RFC 8446 §4.1.2, which is the form of RFC 5246 §7.4.1.2 too. */
function nameIn(hello: Buffer): string {
  try {
    // The version and the random bytes; then session id, cipher suites and compression methods.
    let at = 2 + 32
    at = after(hello, at, 1)
    at = after(hello, at, 2)
    at = after(hello, at, 1)
    const end = after(hello, at, 2)
    at += 2
    while (at < end) {
      const next = after(hello, at + 2, 2)
      if (hello.readUInt16BE(at) === SERVER_NAME) return hostName(hello.subarray(at + 4, next))
      at = next
    }
  } catch {
    // Lengths that lead out of the message.
  }
  return ''
}

/** Where the vector that begins with its length, of `size` bytes, ends. Throws a RangeError outside. */
function after(bytes: Buffer, at: number, size: number): number {
  const end = at + size + bytes.readUIntBE(at, size)
  if (end > bytes.length) throw new RangeError('a vector is longer than what holds it')
  return end
}

/** The one name of a list, as OpenSSL takes it. Throws a RangeError when the list is cut off. */
function hostName(list: Buffer): string {
  const whole = after(list, 0, 2) === list.length && after(list, 3, 2) === list.length
  return whole && list[2] === HOST_NAME ? list.toString('latin1', 5) : ''
}
