/**
 * Regular expressions of the format, which its own engine matches in linear time and without
 * look-around. They are written in that engine's syntax and compiled to JavaScript's here, once for
 * the check of a file and once for its router, so that what passes the one works in the other.
 */

const LOOKAROUND = /\(\?(?:[=!]|<[=!])/
const BACKREFERENCE = /\\(?:[1-9]|k<)/
const INLINE_FLAGS = /^\(\?([ims]+)\)/

/** POSIX classes, which stand inside brackets: `[[:alpha:]_]`. */
const POSIX_CLASSES: Readonly<Record<string, string>> = {
  alnum: '0-9A-Za-z',
  alpha: 'A-Za-z',
  ascii: '\\x00-\\x7f',
  blank: ' \\t',
  cntrl: '\\x00-\\x1f\\x7f',
  digit: '0-9',
  graph: '!-~',
  lower: 'a-z',
  print: ' -~',
  punct: '!-\\/:-@\\[-`{-~',
  space: '\\s',
  upper: 'A-Z',
  word: '\\w',
  xdigit: '0-9A-Fa-f'
}

function translate(pattern: string): string {
  return pattern
    .replaceAll('(?P<', '(?<')
    .replace(/\[:(\w+):\]/g, (whole, name: string) => POSIX_CLASSES[name] ?? whole)
    .replace(/\\(?:x\{([0-9A-Fa-f]+)\}|([Az]))/g, (_whole, hex?: string, anchor?: string) =>
      hex === undefined ? (anchor === 'A' ? '^' : '$') : `\\u{${hex}}`
    )
}

/**
 * Compiles a pattern, anchored at the start of its subject (not at the end) when `anchored`. Throws
 * SyntaxError when it does not compile.
 */
export function compilePattern(pattern: string, anchored: boolean): RegExp {
  const inline = INLINE_FLAGS.exec(pattern)
  const flags = inline?.[1] ?? ''
  const body = translate(pattern.slice(inline?.[0].length ?? 0))
  const source = anchored ? `^(?:${body})` : body
  try {
    return new RegExp(source, `${flags}u`)
  } catch (error) {
    // The format's engine takes escapes of any punctuation, which the `u` flag refuses; without the
    // flag, though, a class such as \p{L} would silently mean something else.
    if (/\\[pPu]\{/.test(body)) throw error
    return new RegExp(source, flags)
  }
}

/** Why a pattern cannot be used, or undefined. */
export function patternProblem(pattern: string): string | undefined {
  if (LOOKAROUND.test(pattern)) return 'look-around is not supported'
  if (BACKREFERENCE.test(pattern.replaceAll('\\\\', ''))) return 'back-references are not supported'
  try {
    compilePattern(pattern, true)
    return undefined
  } catch (error) {
    return (error as Error).message.replace(/^.*: /s, '')
  }
}
