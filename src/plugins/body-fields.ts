/** Text of a multipart or form part; files are no fields. */
const NO_FIELDS: ReadonlyMap<string, readonly string[]> = new Map()

/**
 * The top-level text fields of a body, by name: a form, a JSON object or multipart. Empty for bodies
 * that cannot be parsed as what they say they are.
 */
export async function bodyFields(
  body: Buffer,
  contentType: string | undefined
): Promise<ReadonlyMap<string, readonly string[]>> {
  const type = contentType?.split(';')[0]!.trim().toLowerCase()
  try {
    if (type === 'application/json') return jsonFields(body)
    if (type === 'application/x-www-form-urlencoded' || type === 'multipart/form-data') {
      const form = await formOf(body, contentType!)
      const fields = new Map<string, string[]>()
      for (const [name, value] of form) {
        if (typeof value !== 'string') continue
        const values = fields.get(name)
        if (values === undefined) fields.set(name, [value])
        else values.push(value)
      }
      return fields
    }
  } catch {
    return NO_FIELDS
  }
  return NO_FIELDS
}

/** The same body without a field. Multipart bodies get a boundary of the same name. */
export async function withoutBodyField(
  body: Buffer,
  contentType: string | undefined,
  name: string
): Promise<Buffer> {
  const type = contentType?.split(';')[0]!.trim().toLowerCase()
  if (type === 'application/json') {
    const { [name]: _removed, ...rest } = JSON.parse(body.toString('utf8')) as Record<
      string,
      unknown
    >
    return Buffer.from(JSON.stringify(rest))
  }
  if (type === 'application/x-www-form-urlencoded') {
    const form = new URLSearchParams(body.toString('utf8'))
    form.delete(name)
    return Buffer.from(form.toString())
  }
  const boundary = /boundary="?([^";]+)"?/i.exec(contentType ?? '')?.[1]
  if (boundary === undefined) return body
  // Parts are cut at their delimiters (RFC 2046 §5.1.1); those of other fields stay byte for byte.
  const delimiter = `--${boundary}`
  const parts = body.toString('latin1').split(delimiter)
  const kept = parts.filter((part, index) => {
    const head = part.split('\r\n\r\n', 1)[0]!
    const own = /;\s*name="([^"]*)"/i.exec(head)?.[1]
    return index === 0 || own !== name
  })
  return Buffer.from(kept.join(delimiter), 'latin1')
}

function jsonFields(body: Buffer): ReadonlyMap<string, readonly string[]> {
  const value: unknown = JSON.parse(body.toString('utf8'))
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return NO_FIELDS
  const fields = new Map<string, readonly string[]>()
  for (const [name, member] of Object.entries(value)) {
    if (typeof member === 'string') fields.set(name, [member])
    else if (typeof member === 'number') fields.set(name, [String(member)])
    else if (Array.isArray(member)) fields.set(name, member.map(String))
  }
  return fields
}

async function formOf(body: Buffer, contentType: string): Promise<FormData> {
  return new Response(new Uint8Array(body), {
    headers: { 'content-type': contentType }
  }).formData() as Promise<FormData>
}
