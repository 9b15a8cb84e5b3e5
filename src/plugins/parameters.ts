/** What a parameter list gives for one name: all its values, true standing for one without `=`. */
export type ParameterValues = readonly (string | true)[]

const NOTHING: ParameterValues = []

/** The values of a parameter in `a=b&c` text (a query or form), in order; names match exactly. */
export function findParameter(text: string | undefined, name: string): ParameterValues {
  if (text === undefined || text === '') return NOTHING
  let found: (string | true)[] | undefined
  for (let start = 0; start <= text.length; ) {
    const end = endOf(text, start)
    const equals = equalsIn(text, start, end)
    if (decode(text.slice(start, equals)) === name) {
      found ??= []
      found.push(equals === end ? true : decode(text.slice(equals + 1, end)))
    }
    start = end + 1
  }
  return found ?? NOTHING
}

/** The text without a parameter, everything else byte for byte; undefined when nothing remains. */
export function removeParameter(text: string, name: string): string | undefined {
  const kept: string[] = []
  for (let start = 0; start <= text.length; ) {
    const end = endOf(text, start)
    if (decode(text.slice(start, equalsIn(text, start, end))) !== name) {
      kept.push(text.slice(start, end))
    }
    start = end + 1
  }
  return kept.length === 0 ? undefined : kept.join('&')
}

/** Where the part that begins at `start` ends. */
function endOf(text: string, start: number): number {
  const ampersand = text.indexOf('&', start)
  return ampersand === -1 ? text.length : ampersand
}

/** Where the name ends: at its `=`, else at the end of the part. */
function equalsIn(text: string, start: number, end: number): number {
  const equals = text.indexOf('=', start)
  return equals === -1 || equals > end ? end : equals
}

/** Decodes as forms do; escapes that are no UTF-8 stay as they stand. */
function decode(text: string): string {
  if (!text.includes('%') && !text.includes('+')) return text
  try {
    return decodeURIComponent(text.replaceAll('+', ' '))
  } catch {
    return text
  }
}
