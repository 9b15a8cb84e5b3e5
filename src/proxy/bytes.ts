/** What methods and field names consist of (RFC 9110 §5.6.2). */
export const TOKEN = 1
/** What a field value may hold (RFC 9110 §5.5): nothing that could end the line. */
export const VALUE = 2
/** RFC 9112 §3.2: no space, no control character. Bytes above 126 are written as they came. */
export const TARGET = 4

/** The kinds of text each byte may stand in. Two loops a field are half the cost of two patterns. */
const KINDS = new Uint8Array(256)
for (let code = 0; code < 256; code++) {
  if (/[!#$%&'*+.^_`|~0-9A-Za-z-]/.test(String.fromCharCode(code))) KINDS[code]! |= TOKEN
  if (code === 9 || (code >= 32 && code !== 127)) KINDS[code]! |= VALUE
  if (code > 32 && code !== 127) KINDS[code]! |= TARGET
}

/** Whether a text consists of bytes of one kind. */
export function isAll(text: string, kind: number): boolean {
  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i)
    if (code > 255 || (KINDS[code]! & kind) === 0) return false
  }
  return true
}
