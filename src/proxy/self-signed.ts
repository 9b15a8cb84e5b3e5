import { generateKeyPairSync, randomBytes, sign } from 'node:crypto'
import type { KeyPair } from './tls.ts'

const DAYS = 365
const DAY = 86_400_000

/** Tags of ASN.1 (X.690 §8), those that a certificate needs. */
const BOOLEAN = 0x01
const INTEGER = 0x02
const BIT_STRING = 0x03
const OCTET_STRING = 0x04
const UTF8_STRING = 0x0c
const UTC_TIME = 0x17
const GENERALIZED_TIME = 0x18
const SEQUENCE = 0x30
const SET = 0x31
/** Members that a context numbers: of one value, and of others. */
const primitive = (number: number): number => 0x80 | number
const constructed = (number: number): number => 0xa0 | number

const oid = (hex: string): Buffer => der(0x06, Buffer.from(hex, 'hex'))
const COMMON_NAME = oid('550403')
const BASIC_CONSTRAINTS = oid('551d13')
const SUBJECT_ALT_NAME = oid('551d11')
const ECDSA_WITH_SHA256 = oid('2a8648ce3d040302')

/** One value of the distinguished encoding: tag, length, content. */
function der(tag: number, ...content: readonly Uint8Array[]): Buffer {
  const body = Buffer.concat(content)
  if (body.length < 0x80) return Buffer.concat([Buffer.from([tag, body.length]), body])
  const size = body.length < 0x100 ? [0x81, body.length] : [0x82, body.length >> 8, body.length]
  return Buffer.concat([Buffer.from([tag, ...size]), body])
}

/** RFC 5280 §4.1.2.5: two digits of the year until 2049, four from then on. */
function time(date: Date): Buffer {
  const text = `${date.toISOString().replaceAll(/[-:T]|\..*/g, '')}Z`
  return date.getUTCFullYear() < 2050
    ? der(UTC_TIME, Buffer.from(text.slice(2)))
    : der(GENERALIZED_TIME, Buffer.from(text))
}

/**
 * A fresh self-signed certificate (RFC 5280) of a P-256 key for `localhost` and 127.0.0.1, for
 * listeners that were given none. Libraries that do this take longer to load than a gateway to start.
 */
export function selfSigned(now = Date.now()): KeyPair {
  const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
  const serial = randomBytes(16)
  // Positive, and of no fewer bytes than it has.
  serial[0] = (serial[0]! & 0x3f) | 0x40
  const algorithm = der(SEQUENCE, ECDSA_WITH_SHA256)
  const commonName = der(SEQUENCE, COMMON_NAME, der(UTF8_STRING, Buffer.from('localhost')))
  const name = der(SEQUENCE, der(SET, commonName))
  const names = der(
    SEQUENCE,
    der(primitive(2), Buffer.from('localhost')),
    der(primitive(7), Buffer.from([127, 0, 0, 1]))
  )
  const critical = der(BOOLEAN, Buffer.from([0xff]))
  const extensions = der(
    SEQUENCE,
    der(SEQUENCE, BASIC_CONSTRAINTS, critical, der(OCTET_STRING, der(SEQUENCE))),
    der(SEQUENCE, SUBJECT_ALT_NAME, der(OCTET_STRING, names))
  )
  const certificate = der(
    SEQUENCE,
    der(constructed(0), der(INTEGER, Buffer.from([2]))),
    der(INTEGER, serial),
    algorithm,
    name,
    // From a day ago: clients' clocks differ.
    der(SEQUENCE, time(new Date(now - DAY)), time(new Date(now + DAYS * DAY))),
    name,
    publicKey.export({ type: 'spki', format: 'der' }),
    der(constructed(3), extensions)
  )
  const signature = der(BIT_STRING, Buffer.from([0]), sign('sha256', certificate, privateKey))
  return {
    cert: pem(der(SEQUENCE, certificate, algorithm, signature)),
    key: privateKey.export({ type: 'pkcs8', format: 'pem' }) as string
  }
}

/** RFC 7468: lines of 64 characters. */
function pem(bytes: Buffer): string {
  const lines = bytes.toString('base64').match(/.{1,64}/g)!
  return `-----BEGIN CERTIFICATE-----\n${lines.join('\n')}\n-----END CERTIFICATE-----\n`
}
